"""One door for scans of any format."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .dicom import read_dicom_series
from .grid import ImageGrid
from .grid_checks import FILE_ENDINGS
from .itk import itk_silent, read_with_itk
from .nifti import read_nifti


def read_scan(path: Path) -> tuple[np.ndarray, ImageGrid]:
    """Array (z, y, x) as stored (rescaled where the header says so) and grid of a scan file or a folder with a DICOM series."""
    with itk_silent():
        if path.is_dir():
            return read_dicom_series(path)
        if not path.exists():
            raise InputError(f"{path} does not exist.")
        if not path.name.lower().endswith(FILE_ENDINGS):
            raise InputError(f"{path} is of no known format; expected {', '.join(FILE_ENDINGS)} or a DICOM folder.")
        try:
            return read_nifti(path) if ".nii" in path.name.lower() else read_with_itk(path)
        except MemoryError as error:
            raise InputError(f"{path} does not fit into memory.") from error
