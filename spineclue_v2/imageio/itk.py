"""Formats that ITK reads (NRRD, MetaImage), after their header was checked."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import InputError
from .grid import ImageGrid
from .grid_checks import check_grid, check_placement, reason_of
from .header_checks import check_header, stored_bytes
from .nifti import shear_flags, unplaced_flag
from .scanned import Scanned

PLACING_FIELDS = ("space directions", "transformmatrix", "rotation", "orientation")


def read_with_itk(path: Path) -> Scanned:
    import SimpleITK as sitk

    fields = check_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path} is no readable image of its kind ({reason_of(error)}).") from error
    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"{path} holds {reader.GetNumberOfComponents()} values per voxel (colour?); expected one, in HU.")
    check_grid(path, reader.GetSize(), reader.GetSpacing(), sitk.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent(),
                stored_bytes(path, fields))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read to its end ({reason_of(error)}); is it truncated? Copy it again.") from error
    image = image[:, :, :, 0] if image.GetDimension() == 4 else image
    array = sitk.GetArrayFromImage(image)
    geometry = ImageGrid(array.shape, tuple(image.GetSpacing()[::-1]), tuple(image.GetOrigin()),
                        np.array(image.GetDirection(), dtype=float).reshape(3, 3))
    geometry = unit_columns(geometry)
    check_placement(path, geometry)
    placed = any(field in fields for field in PLACING_FIELDS)
    return Scanned(array, geometry, (*(() if placed else (unplaced_flag(),)), *shear_flags(geometry)))


def unit_columns(geometry: ImageGrid) -> ImageGrid:
    """The same grid with axes of length 1, and right angles where they are right but for rounding: headers may say otherwise."""
    if not np.isfinite(geometry.affine).all() or (np.linalg.norm(geometry.affine[:3, :3], axis=0) == 0).any():
        return geometry  # refused by the checks that follow
    return ImageGrid.from_affine(geometry.affine, geometry.shape)


_silence = threading.Lock()
_silent_users, _shown_before = 0, True


@contextmanager
def itk_silent() -> Iterator[None]:
    """Keep ITK's C++ warnings off the user's screen: what matters is checked and said here.

    The switch is one for the whole process: the first of several threads turns it off, the last one turns it back to what it was.
    """
    global _silent_users, _shown_before
    import SimpleITK as sitk

    with _silence:
        if _silent_users == 0:
            _shown_before = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
        _silent_users += 1
    try:
        yield
    finally:
        with _silence:
            _silent_users -= 1
            if _silent_users == 0:
                sitk.ProcessObject.SetGlobalWarningDisplay(_shown_before)
