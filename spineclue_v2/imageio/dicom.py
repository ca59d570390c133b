"""DICOM series: a folder of slices as one volume."""
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .grid import ImageGrid
from .grid_checks import FILE_ENDINGS, MIN_SLICES, check_grid, reason_of
from .itk import from_itk, itk_silent

logger = logging.getLogger(__name__)


_DICOM_LOOK_BYTES = 1 << 20

_PIXEL_DATA = b"\xe0\x7f\x10\x00"


def is_dicom_folder(folder: Path) -> bool:
    """True when the folder holds DICOM files directly and no scan file of another format."""
    import SimpleITK as sitk

    if any(entry.name.lower().endswith(FILE_ENDINGS) for entry in folder.iterdir()):
        return False
    with itk_silent():
        return bool(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def series_files(folder: Path) -> tuple[Path, ...]:
    """The files of the longest DICOM series of a folder, in the order of the slices; empty for anything else."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader
    with itk_silent():
        files = [reader.GetGDCMSeriesFileNames(str(folder), series) for series in reader.GetGDCMSeriesIDs(str(folder))]
    return tuple(Path(name) for name in max(files, key=len, default=()))


def read_dicom_series(folder: Path) -> tuple[np.ndarray, ImageGrid]:
    import SimpleITK as sitk

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise InputError(f"{folder} holds no DICOM series; expected one, or a scan file ({', '.join(FILE_ENDINGS)}).")
    files = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), identifier) for identifier in series]
    _check_leftovers(folder, {Path(name).name for names in files for name in names})
    names = max(files, key=len)
    if len(files) > 1:
        logger.warning("%s holds %d DICOM series; the longest one (%d slices) is used.", folder.name, len(files), len(names))
    if len(names) < MIN_SLICES:
        raise InputError(f"{folder} holds a DICOM series of {len(names)} slices; expected {MIN_SLICES} or more.")
    first = sitk.ImageFileReader()
    first.SetFileName(names[0])
    try:
        first.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"The DICOM series in {folder} cannot be read ({reason_of(error)}).") from error
    stored = sum(Path(name).stat().st_size for name in names)
    check_grid(folder, (*first.GetSize()[:2], len(names)), (1.0, 1.0, 1.0), 1, stored)  # before anything is allocated
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"The DICOM series in {folder} cannot be read ({reason_of(error)}).") from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"The DICOM series in {folder} is in colour; expected a CT.")
    if image.GetDimension() == 4:
        image = image[:, :, :, 0]
    spacing = (*image.GetSpacing()[:2], _slice_step(folder, reader, len(names)) or image.GetSpacing()[2])
    check_grid(folder, image.GetSize(), spacing, 1, stored)
    image.SetSpacing(spacing)
    return from_itk(folder, image)


def _check_leftovers(folder: Path, used: set[str]) -> None:
    """Files that GDCM left out without a word: a damaged slice is refused, other DICOM objects (reports, ...) are mentioned."""
    others = []
    for entry in folder.iterdir():
        if entry.name not in used and entry.is_file() and entry.name.upper() != "DICOMDIR":
            with open(entry, "rb") as file:
                content = file.read(_DICOM_LOOK_BYTES)
            if content[128:132] == b"DICM":
                others.append(entry.name)
                if _PIXEL_DATA in content:
                    raise InputError(f"{folder} holds the image {entry.name} that cannot be read; is it truncated? Copy it again.")
    if others:
        logger.warning("%s: %d DICOM files belong to no series of images (e.g. %s); they are left out.", folder.name, len(others),
                       others[0])


def _slice_step(folder: Path, reader: Any, count: int) -> float | None:
    """Distance between slices in mm from their positions, None when the files state none. (ITK looks at the first two only.)"""
    position, orientation = "0020|0032", "0020|0037"
    if not all(reader.HasMetaDataKey(i, position) for i in range(count)) or not reader.HasMetaDataKey(0, orientation):
        return None
    try:
        positions = np.array([[float(v) for v in reader.GetMetaData(i, position).split("\\")] for i in range(count)]).reshape(count, 3)
        cosines = np.array([float(v) for v in reader.GetMetaData(0, orientation).split("\\")]).reshape(2, 3)
    except ValueError:
        raise InputError(f"The DICOM series in {folder} has slices whose position or orientation is no list of numbers.") from None
    if not (np.isfinite(positions).all() and np.isfinite(cosines).all()):
        raise InputError(f"The DICOM series in {folder} has slices whose position or orientation is not finite.")
    moves = np.diff(positions, axis=0)
    along = np.abs(moves @ np.cross(cosines[0], cosines[1]))
    step = float(np.median(along))
    if along.min() < 0.01:
        raise InputError(f"The DICOM series in {folder} has several images at one position; expected one phase only.")
    if along.max() > 1.2 * step or along.min() < 0.8 * step:
        raise InputError(f"The DICOM series in {folder} has slices {along.min():g} to {along.max():g} mm apart; expected even "
                         "steps. Are files missing?")
    tilt = np.degrees(np.arccos(np.clip(along / np.linalg.norm(moves, axis=1), 0, 1)).max())
    if tilt > 1:
        logger.warning("%s was scanned with the gantry tilted by %.0f degrees, which is not corrected.", folder.name, tilt)
    return step
