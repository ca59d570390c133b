"""One door for scans of any format."""
from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from .archives import real_path
from .dicom import read_dicom
from .dicom_headers import is_dicom
from .grid_checks import FILE_ENDINGS
from .itk import itk_silent, read_with_itk
from .nifti import read_nifti
from .scanned import Scanned

LFS_POINTER = b"version https://git-lfs"


def read_scan(path: Path, series: str | None = None, modality: str | None = None) -> Scanned:
    """Array (z, y, x) as stored (rescaled where the header says so) and grid of a scan: a file, a folder with DICOM series at any depth, a
    `.zip` of either, or a path inside a `.zip`. `series` and `modality`: see `dicom.read_dicom`."""
    shown, path = path, real_path(path)
    try:
        if path.is_file() and _begins_with(path, LFS_POINTER):
            raise InputError(f"{path} is a pointer of Git LFS and not the file itself; fetch it (git lfs pull).")
        if ".nii" in path.name.lower() and path.name.lower().endswith(FILE_ENDINGS) and path.is_file():
            kept = _KEPT.pop(_identity(path), None)
            _KEPT.clear()
            return read_nifti(path) if kept is None else kept
        with itk_silent():
            if path.is_dir() or (path.is_file() and not path.name.lower().endswith(FILE_ENDINGS) and is_dicom(path)):
                folder = path.parent if path.name.upper() == "DICOMDIR" else path
                return read_dicom(folder, series, modality)
            if path.is_symlink() and not path.exists():
                raise InputError(f"{path} is a link to {os.readlink(path)}, which does not exist; fetch that file (git-annex, DataLad), or "
                                 "mend the link.")
            if not path.exists():
                raise InputError(f"{path} does not exist.")
            if not path.name.lower().endswith(FILE_ENDINGS):
                raise InputError(f"{path} is of no known format; expected {', '.join(FILE_ENDINGS)}, .zip, or a DICOM file or folder.")
            with itk_path(path) as plain:
                return read_with_itk(plain)
    except MemoryError as error:
        raise InputError(f"{shown} does not fit into memory.") from error
    except InputError as error:
        if path == shown:
            raise
        raise InputError(str(error).replace(str(path), str(shown))) from error.__cause__


def _begins_with(path: Path, start: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(start)) == start


def read_scan_ahead(path: Path, series: str | None = None) -> Scanned:
    """`read_scan`; of a NIfTI file the result is kept for the next `read_scan` of the same file, which alone holds it then.

    The read of another NIfTI file lets go of it.
    """
    scanned, real = read_scan(path, series), real_path(path)
    if real.is_file() and ".nii" in real.name.lower():
        _KEPT.clear()
        _KEPT[_identity(real)] = scanned
    return scanned


def _identity(path: Path) -> tuple[str, int, int]:
    """Changes with the content of a file, as far as the file system tells."""
    status = path.stat()
    return str(path.absolute()), status.st_mtime_ns, status.st_size


_KEPT: dict[tuple[str, int, int], Scanned] = {}


@contextmanager
def itk_path(path: Path) -> Iterator[Path]:
    """A path to the same file that ITK can take: names that are no UTF-8 end the process there."""
    try:
        str(path.absolute()).encode("utf-8")
        yield path
        return
    except UnicodeEncodeError:
        pass
    with tempfile.TemporaryDirectory(prefix="spineclue_") as folder:
        for entry in path.parent.iterdir():  # headers name their files of voxels, which lie beside them
            if entry == path or _is_plain(entry.name):
                os.symlink(entry.absolute(), Path(folder, f"scan{path.suffix}" if entry == path else entry.name))
        plain = Path(folder, f"scan{path.suffix}")
        try:
            yield plain
        except InputError as error:
            raise InputError(str(error).replace(str(plain), str(path))) from error.__cause__


def _is_plain(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
