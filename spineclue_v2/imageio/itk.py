"""Formats that ITK reads (NRRD, MetaImage), after their header was checked."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .grid import ImageGrid
from .grid_checks import check_grid, check_placement, reason_of
from .header_checks import check_header, stored_bytes


def read_with_itk(path: Path) -> tuple[np.ndarray, ImageGrid]:
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
    return from_itk(path, image[:, :, :, 0] if image.GetDimension() == 4 else image)


def from_itk(path: Path, image: Any) -> tuple[np.ndarray, ImageGrid]:
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    geometry = ImageGrid(array.shape, tuple(image.GetSpacing()[::-1]), tuple(image.GetOrigin()),
                        np.array(image.GetDirection(), dtype=float).reshape(3, 3))
    check_placement(path, geometry)
    return array, geometry


def direction_3d(reader: Any) -> np.ndarray:
    side = reader.GetDimension()
    return np.array(reader.GetDirection(), dtype=float).reshape(side, side)[:3, :3]


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
