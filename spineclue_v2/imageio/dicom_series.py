"""Which DICOM series a folder holds, at any depth, and which one is meant.

Files are grouped by the series they name, wherever they lie: PATIENT/STUDY/SERIES trees, media with a DICOMDIR, or all in one folder.
"""
from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .dicom_headers import Damaged, SliceHeader, headers_of, is_dicom
from .grid_checks import FILE_ENDINGS, MIN_SLICES

MAX_DEPTH = 12
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
COMPARED = 3    # images of one place in two folders that are compared byte by byte
MAX_FILES = 200_000
UNKNOWN_MODALITIES = ("", "OT")
"""Of pictures without a modality: they may be CT. Every other modality is what it says."""


@dataclass(frozen=True, eq=False)
class Series:
    """All slices of one series.

    Attributes:
        uid, study: of the series and of its study.
        slices: in the order of their files.
        folder: the deepest one that holds all files.
    """

    uid: str
    study: str
    slices: tuple[SliceHeader, ...]
    folder: Path

    @property
    def modality(self) -> str:
        return self.slices[0].modality

    @property
    def usable_slices(self) -> int:
        """Slices that are no scout views."""
        return sum(not header.localizer for header in self.slices)

    @property
    def in_place(self) -> bool:
        """Whether its slices say where they lie; screenshots and secondary captures do not."""
        return sum(header.position is not None and header.orientation is not None for header in self.slices) >= MIN_SLICES

    def fits(self, modality: str | None) -> bool:
        """Whether it can be a scan of `modality` (None: of CT or MR) with enough slices in grey."""
        wanted = ("CT", "MR") if modality is None else (modality,)
        grey = sum(header.grey for header in self.slices)
        return self.modality in (*wanted, *UNKNOWN_MODALITIES) and min(self.usable_slices, grey) >= MIN_SLICES

    def describe(self) -> str:
        return f"{self.modality or 'no modality'}, {len(self.slices)} slices"


@dataclass(frozen=True, eq=False)
class DicomFolder:
    """What a folder holds: series of images (largest first), files that are no images, images that could not be read."""

    path: Path
    series: tuple[Series, ...]
    others: tuple[Path, ...]
    damaged: tuple[Path, ...]


def files_below(folder: Path, depth: int = MAX_DEPTH, dangling: bool = False) -> Iterator[Path]:
    """Regular files of a folder tree in a fixed order; hidden ones are left out, links to folders are followed once.

    `dangling`: links whose file is missing, too (files of git-annex that were not fetched).
    """
    seen: set[tuple[int, int]] = set()
    count = 0
    for place, folders, names in os.walk(folder, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen or len(Path(place).relative_to(folder).parts) >= depth:
            folders[:] = []
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and (path.is_file() or dangling and path.is_symlink() and not path.exists()):
                count += 1
                if count > MAX_FILES:
                    raise InputError(f"{folder} holds more than {MAX_FILES} files; give the folder of the scans themselves.")
                yield path


def look_through(folder: Path, files: Iterable[Path] | None = None) -> DicomFolder:
    """The series of a folder tree. `files`: look at these alone."""
    found: defaultdict[str, list[SliceHeader]] = defaultdict(list)
    others, damaged = [], []
    for path in files_below(folder) if files is None else files:
        if path.name.lower().endswith(FILE_ENDINGS):
            continue
        headers = headers_of(path)
        if isinstance(headers, Damaged) or (path.suffix.lower() in DICOM_ENDINGS and path.stat().st_size == 0):
            damaged.append(path)
        elif headers:
            found[headers[0].series].extend(headers)
        elif path.name.upper() != "DICOMDIR" and is_dicom(path):
            others.append(path)
    series = [Series(uid, part[0].study, tuple(part), _common_folder(part)) for uid, headers in found.items() for part in _apart(headers)]
    return DicomFolder(folder, tuple(sorted(series, key=lambda s: -len(s.slices))), tuple(others), tuple(damaged))


def _apart(headers: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Slices under one series UID: folder by folder where folders hold different images of one place, as of two patients whose UIDs an
    anonymiser made equal (or left out). Copies of the same images, and a series that is spread over folders, stay together."""
    folders: defaultdict[Path, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        folders[header.path.parent].append(header)
    first: dict[object, SliceHeader] = {}
    doubles = []
    for header in headers:
        place = header.number if header.position is None else tuple(round(n, 2) for n in header.position)
        other = first.setdefault((place, header.orientation, header.frame), header)
        if other.path.parent != header.path.parent:
            doubles.append((other.path, header.path))
    if any(not filecmp.cmp(one, other, shallow=False) for one, other in doubles[:COMPARED]):
        return list(folders.values())
    return [list(headers)]


def is_dicom_folder(folder: Path) -> bool:
    """True when the folder holds DICOM images directly and no scan file of another format."""
    files = [entry for entry in sorted(folder.iterdir()) if entry.is_file() and not entry.name.startswith(".")]
    if any(entry.name.lower().endswith(FILE_ENDINGS) for entry in files):
        return False
    return any(headers_of(entry) is not None for entry in files)


def choose_series(found: DicomFolder, wanted: str | None, modality: str | None) -> tuple[Series, tuple[Series, ...]]:
    """The series that is meant, and the others that would have done as well.

    `wanted`: the UID a user asked for, or its end; else the one with the most slices among those of `modality`, first among those that say
    where they lie. Raises InputError where
    there is none, or several that end so.
    """
    where = found.path
    if not found.series:
        if found.damaged:
            raise InputError(f"{where} holds the image {found.damaged[0].name} that cannot be read; is it truncated? Copy it again.")
        raise InputError(f"{where} holds no DICOM series; expected one, or a scan file ({', '.join(FILE_ENDINGS)}).")
    if wanted is not None:
        matching = [s for s in found.series if s.uid == wanted] or [s for s in found.series if wanted and s.uid.endswith(wanted)]
        if len(matching) != 1:
            raise InputError(f"{where} holds {len(matching) or 'no'} series '{wanted}'; expected one of {series_names(found.series)} "
                             "(--list shows them).")
        return matching[0], ()
    fitting = [s for s in found.series if s.fits(modality)]
    for better in ([s for s in fitting if s.modality not in UNKNOWN_MODALITIES], [s for s in fitting if s.in_place]):
        fitting = [s for s in fitting if s in better] or fitting
    if not fitting:
        right = [s for s in found.series if modality is None or s.modality in (modality, *UNKNOWN_MODALITIES)]
        if right and not any(header.grey for s in right for header in s.slices):
            raise InputError(f"The DICOM series in {where} is in colour; expected a CT.")
        if right:
            count, usable = sum(len(s.slices) for s in right), max(s.usable_slices for s in right)
            held = f"a DICOM series of {usable} slices" if usable else f"{count} scout views (localizers) and no other image"
            raise InputError(f"{where} holds {held}; expected a series of {MIN_SLICES} slices or more, so give the whole one's folder.")
        raise InputError(f"{where} holds {', '.join(s.describe() for s in found.series[:3])}; expected "
                         f"{modality or 'CT or MR'}. Give the folder of that series, or --series UID with --modality where the header is "
                         "wrong.")
    return fitting[0], tuple(fitting[1:])


def series_names(series: Sequence[Series]) -> str:
    shown = ", ".join(s.uid for s in series[:4])
    return shown + (f" and {len(series) - 4} more" if len(series) > 4 else "")


def _common_folder(headers: Sequence[SliceHeader]) -> Path:
    return Path(os.path.commonpath({header.path.parent for header in headers}))
