"""Which further formats there are, what each needs, and where it puts its file."""
from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...imageio.volume import Volume
from .base import Exportable
from .bids import bids_files, bids_stem, bids_subject
from .dicom_source import check_source, made_from, source_files


@dataclass(frozen=True)
class Format:
    """A format that can be asked for.

    Attributes:
        meaning: one line.
        writer: "module:function" in this folder; called with (result, label volume, folder, case name), returns the path.
        place: file or folder that it writes, with {case} for the case's name; `{subject}` is the name as BIDS wants it.
        packages: that have to be installed.
        dicom: needs a scan that was read from DICOM files.
        scan: needs the voxels of the scan.
        empty: is written for a result without any structure, too.
    """

    meaning: str
    writer: str
    place: str
    packages: tuple[str, ...] = ()
    dicom: bool = False
    scan: bool = False
    empty: bool = False


_DICOM = ("highdicom", "pydicom")

CROP_ENDINGS = ("_ct.nii.gz", "_msk.nii.gz")

FORMATS: dict[str, Format] = {
    "seg.nrrd": Format("segmentation of 3D Slicer, segments named and coloured", "seg_nrrd:write_seg_nrrd", "{case}.seg.nrrd", empty=True),
    "mrk.json": Format("body centres as markups of 3D Slicer", "markups:write_markups", "{case}.mrk.json", empty=True),
    "bids": Format("derivatives in the layout and with the names of VerSe", "bids:write_bids",
                   "derivatives/{folder}/{subject}_seg-vert_msk.nii.gz", empty=True),
    "crops": Format("one CT and one mask per vertebra, as scanned", "crops:write_crops", "{case}_crops", scan=True),
    "crops_upright": Format("the same, each vertebra turned upright", "crops:write_upright_crops", "{case}_crops_upright", scan=True),
    "dicom_seg": Format("DICOM segmentation on the slices of the scan", "dicom_seg:write_seg", "{case}_seg.dcm", _DICOM, dicom=True),
    "dicom_sr": Format("DICOM structured report, TID 1500", "dicom_sr:write_sr", "{case}_sr.dcm", _DICOM, dicom=True),
    "dicom_rtstruct": Format("DICOM structure set: contours", "dicom_rtstruct:write_rtstruct", "{case}_rtstruct.dcm",
                             ("pydicom", "skimage"), dicom=True),
}


def check_formats(names: Iterable[str]) -> None:
    """InputError, before any time is spent, for a format that does not exist or whose packages are missing."""
    for name in names:
        if name not in FORMATS:
            raise InputError(f"The format {name!r} is unknown; there are {', '.join(FORMATS)}.")
        missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
        if missing:
            raise InputError(f"The format {name} needs the package {' and '.join(missing)}; install it with "
                             "pip install 'spineclue_v2[dicom]'.")


def check_result(names: Iterable[str], result: Exportable, case: str) -> None:
    """InputError, before anything is written, when `result` lacks what one of the formats needs."""
    names = list(names)
    check_formats(names)
    if any(FORMATS[name].dicom for name in names):
        check_source(source_files(made_from(result), case))
    if any(FORMATS[name].scan for name in names) and result.scan is None:
        raise InputError(f"Crops of {case} cannot be cut: the scan was not kept with the result; predict with keep_scan=True.")


def check_volume(names: Iterable[str], volume: Volume, case: str) -> None:
    """InputError, before a scan is predicted, when DICOM objects are asked for and it was not read from usable DICOM files."""
    if any(FORMATS[name].dicom for name in names):
        check_source(source_files(volume.files, case))


def format_files(names: Iterable[str], folder: str | Path, case: str) -> list[Path]:
    """The files or folders by which one sees that the formats of a case are there."""
    return [Path(folder) / FORMATS[name].place.format(case=case, folder=bids_subject(case), subject=bids_stem(case)) for name in names]


def missing_files(names: Sequence[str], folder: str | Path, case: str, empty: bool) -> bool:
    """Whether a format that is written for this case (`empty`: it has no structure) is not there."""
    return any(not path.exists() for name, path in zip(names, format_files(names, folder, case), strict=True)
               if FORMATS[name].empty or not empty)


def remove_formats(folder: str | Path, case: str) -> None:
    """Take away what an earlier run wrote in any format, so that nothing contradicts the new result."""
    for path in (*format_files(FORMATS, folder, case), *bids_files(Path(folder), case)):
        if path.is_dir():
            for ending in CROP_ENDINGS:
                for crop in path.glob(f"{glob.escape(case)}_*{ending}"):
                    crop.unlink()
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)


def write_formats(names: Iterable[str], result: Exportable, labels: Volume, folder: str | Path, case: str) -> dict[str, Path]:
    """Write each format once; {format: path}. What has nothing to show (no structure) is left out."""
    written: dict[str, Path] = {}
    for name in dict.fromkeys(names):
        if result.structures or FORMATS[name].empty:
            module, _, function = FORMATS[name].writer.partition(":")
            writer: Any = getattr(import_module(f".{module}", __package__), function)
            written[name] = writer(result, labels, Path(folder), case)
    return written
