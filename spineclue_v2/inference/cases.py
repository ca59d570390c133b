"""Which scans an input names: files, folders, DICOM trees, archives, lists of paths; and what the cases are called."""
from __future__ import annotations

import hashlib
import logging
import os
import sys
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ..errors import InputError
from ..imageio.archives import is_archive, real_path
from ..imageio.dicom_headers import is_dicom
from ..imageio.dicom_series import DicomFolder, Series, choose_series, files_below, is_dicom_folder, look_through
from ..imageio.volume import FILE_ENDINGS
from .scan_files import joined_name, scan_files, without_ending

logger = logging.getLogger(__name__)

KINDS = f"{', '.join(FILE_ENDINGS)}, .zip, or DICOM folders"
ALL = "all"
RESERVED = ("plans", "predict_args", "index")     # plans.json, predict_args.json and index.html are the run's
LONGEST_NAME = 150        # bytes; endings and folders come on top, and file systems take 255
SHOWN = 3


@dataclass(frozen=True)
class Case:
    """A scan to predict: its name in the output folder, where it lies, and which DICOM series it is (None: the longest there)."""

    name: str
    path: Path
    series: str | None = None


def list_cases(source: str | Path, series: Sequence[str] = (), modality: str | None = "CT") -> list[Case]:
    """Cases behind `source`.

    Args:
        source: a scan file (nnU-Net's `_0000` is cut from its name), a folder of scans, a DICOM folder or a tree of them, a `.zip` of
            these, `@LIST` with one path a line, or `-` for such a list on standard input. A listed path that is not there is a case that
            fails.
        series: UIDs (or their ends) of DICOM series: these alone. "all": every series that can be a scan.
        modality: of scans; DICOM series of others are no cases, where there are some of this.

    Raises:
        InputError: nothing there, no scan there, or two scans that would have one name.
    """
    text = str(source)
    if text == "-" or text.startswith("@"):
        cases = _apart([case for path in dict.fromkeys(_listed(text)) for case in _listed_cases(path, series, modality)])
        where = "The list on standard input" if text == "-" else f"The list {text[1:]}"
    else:
        source = Path(source)
        where = f"{'The archive' if is_archive(source) else 'Input folder'} {source}"
        if not real_path(source).exists():
            raise InputError(f"Input {source} does not exist.")
        cases = _cases_of(source, series, modality)
    if not cases:
        raise InputError(f"{where} holds no scan ({KINDS}){_held_instead(text)}.")
    return _distinct(cases, where, Path(source))


def _held_instead(source: str) -> str:
    """Some of the files that lie where no scan does, for a sentence: Analyze pairs, archives within archives, papers."""
    path, names = Path(source), list[str]()
    if is_archive(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    elif path.is_dir():
        names = [str(file.relative_to(path)) for file in islice(files_below(path), SHOWN + 1)]
    shown = ", ".join(printable(name) for name in names[:SHOWN])
    return f"; what it holds is {shown}{', ...' if len(names) > SHOWN else ''}" if names else ""


def _case(path: Path) -> Case:
    return Case(case_name(path), path)


def _listed_cases(path: Path, series: Sequence[str], modality: str | None, name: str = "") -> list[Case]:
    """Cases of one path of a list, named after that path (or `name`); one that cannot be looked into is a case that fails by itself."""
    name = name or case_name(path)
    if not path.exists():
        return [Case(name, path)]
    try:
        found = _cases_of(path, series, modality)
    except InputError:
        return [Case(name, path)]
    if len(found) == 1:
        return [replace(found[0], name=name)]
    return [replace(case, name=f"{name}_{case.name}") for case in found] or [Case(name, path)]


def _apart(cases: list[Case]) -> list[Case]:
    """Cases of a list whose names repeat are named after their folders, too (`p1/ct.nii.gz`, `p2/ct.nii.gz`)."""
    counts = Counter(case.name for case in cases)
    return [replace(case, name=f"{printable(case.path.absolute().parent.name)}_{case.name}") if counts[case.name] > 1 else case
            for case in cases]


def _listed(text: str) -> list[Path]:
    """Paths of a list: one a line, `#` begins a comment; relative to the working folder, else to the list's own."""
    if text == "-":
        lines, home = sys.stdin.read().splitlines(), Path()
    else:
        try:
            # Names that are no UTF-8 come through unharmed.
            lines, home = Path(text[1:]).read_text(encoding="utf-8", errors="surrogateescape").splitlines(), Path(text[1:]).parent
        except (OSError, ValueError) as error:
            raise InputError(f"List {text[1:]} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    paths = [Path(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if any("\0" in str(path) for path in paths):
        raise InputError(f"{'The list on standard input' if text == '-' else text[1:]} is no text with one path a line.")
    return [home / path if not path.exists() and (home / path).exists() else path for path in paths]


def _cases_of(source: Path, series: Sequence[str], modality: str | None) -> list[Case]:
    """Cases of one path that exists."""
    real = real_path(source)
    if real.is_file():
        return [Case(case_name(source), source.parent if source.name.upper() == "DICOMDIR" else source)]
    cases = list[Case]()
    for path in scan_files(real, archives=real == source) if not series else ():
        name = _cut_channel(printable(joined_name(path)))
        cases += _listed_cases(source / path, (), modality, name) if is_archive(real / path) else [Case(name, source / path)]
    if is_dicom_folder(real) and not series:
        return cases + _directory_cases(source, real, modality)
    return cases + _tree_cases(source, real, series, modality, bool(cases))


def _directory_cases(source: Path, real: Path, modality: str | None) -> list[Case]:
    """Cases of a folder that holds DICOM files directly: one per study."""
    found = look_through(real)
    studies: defaultdict[str, list[Series]] = defaultdict(list)
    for one in found.series:
        if one.fits(modality):
            studies[one.study].append(one)
    if len(studies) <= 1:
        return [_case(source)]
    chosen = [max(several, key=lambda s: len(s.slices)) for several in studies.values()]
    chosen.sort(key=lambda s: str(s.slices[0].path))
    logger.warning("%s holds scans of %d studies; each becomes a case.", source.name, len(chosen))
    files = [without_ending(s.slices[0].path.name) for s in chosen]
    single = all(len({header.path for header in s.slices}) == 1 for s in chosen) and len(set(files)) == len(files)
    return [Case(files[i] if single else f"{case_name(source)}_{i + 1}", source, s.uid) for i, s in enumerate(chosen)]


def _tree_cases(source: Path, real: Path, series: Sequence[str], modality: str | None, others: bool) -> list[Case]:
    """Cases of the DICOM series below a folder: one per folder that series lie in, or the `series` asked for."""
    found = look_through(real)
    if series and list(series) != [ALL]:
        chosen = [choose_series(found, uid, modality)[0] for uid in series]
        return [Case(case_name(source), source, chosen[0].uid)] if len(chosen) == 1 else _series_cases(source, chosen)
    fitting = [one for one in found.series if one.fits(modality)]
    if list(series) == [ALL]:
        return _series_cases(source, sorted(fitting, key=lambda one: str(one.slices[0].path)))
    if not fitting and not others and found.series:
        # None can be a scan: the largest says best why.
        return [Case(_folder_name(source, real, found.series[0].folder), _inside(source, real, found.series[0].folder))]
    by_folder: defaultdict[Path, list[Series]] = defaultdict(list)
    for one in fitting:
        by_folder[one.folder].append(one)
    cases = []
    for folder, several in sorted(by_folder.items()):
        below = [one for one in fitting if folder in one.folder.parents]
        place, name = _inside(source, real, folder), _folder_name(source, real, folder)
        inner = _directory_cases(place, folder, modality) if not below else [Case(f"{name}_{i}", place, one.uid)
                                                                              for i, one in enumerate(several, 1)]
        cases += [replace(case, name=name if len(inner) == 1 else case.name) for case in inner]
    return cases


def _inside(source: Path, real: Path, folder: Path) -> Path:
    return source / folder.relative_to(real)


def _folder_name(source: Path, real: Path, folder: Path) -> str:
    """Name of a case from the folders that lead to it."""
    parts = folder.relative_to(real).parts
    return _cut_channel(printable("_".join(parts))) if parts else case_name(source)


def _series_cases(source: Path, chosen: Sequence[Series]) -> list[Case]:
    """One case per series, named after the folder and the series' number; numbers that repeat are counted."""
    numbers = [one.slices[0].series_number for one in chosen]
    names = [case_name(source) + (f"_s{number}" if number is not None else "") for number in numbers]
    counts = [names[:i].count(name) + 1 for i, name in enumerate(names)]
    return [Case(f"{name}_{count}" if names.count(name) > 1 or numbers[i] is None else name, source, one.uid)
            for i, (name, count, one) in enumerate(zip(names, counts, chosen, strict=True))]


def _distinct(cases: list[Case], where: str, root: Path) -> list[Case]:
    """The cases with names that files can have and that occur once: those of different folders that would share one get a code of their
    own path.

    The code rests on the path alone, so that a case is called the same whatever else lies there when it is looked for again. InputError
    for files of one folder, which differ by their endings or by nnU-Net's `_0000` alone.
    """
    cases = [replace(case, name=_usable(case, root)) for case in cases]
    counts = Counter(case.name for case in cases)
    doubled = [case for case in cases if counts[case.name] > 1]
    places = Counter((case.name, case.path.parent) for case in doubled)
    for case in doubled:
        if places[case.name, case.path.parent] > 1:
            files = ", ".join(dict.fromkeys(printable(other.path.name) for other in doubled if other.name == case.name))
            raise InputError(f"{where}: {files} would both become case '{case.name}'; rename one.")
    return [replace(case, name=f"{case.name}-{_code(case, root)}") if counts[case.name] > 1 else case for case in cases]


def _usable(case: Case, root: Path) -> str:
    """The case's name where files can be called so: a name that is too long keeps its end behind a code, and names of the run's own files
    get a word more."""
    name = "".join("_" if unicodedata.category(letter) == "Cc" else letter for letter in case.name)
    if name in RESERVED:
        return f"{name}_scan"
    encoded = name.encode()
    return f"{_code(case, root)}-{encoded[-LONGEST_NAME:].decode(errors='ignore')}" if len(encoded) > LONGEST_NAME else name


def _code(case: Case, root: Path) -> str:
    path = case.path.relative_to(root) if case.path.is_relative_to(root) else case.path
    return hashlib.sha256(os.fsencode(path) + (case.series or "").encode()).hexdigest()[:8]


def case_name(path: Path) -> str:
    """Name of a case: the file name without its ending and without nnU-Net's channel number."""
    # Links keep their own name: what they point to may be called after its hash.
    name = os.path.basename(os.path.abspath(path))
    if not path.is_dir():
        name = without_ending(name)
    return _cut_channel(printable(name))


def _cut_channel(name: str) -> str:
    return name[:-5] if name.endswith("_0000") and len(name) > 5 else name


def printable(name: str) -> str:
    """A file name as text: bytes that are no UTF-8 are read as Latin-1, so that results can be named after them."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name


def series_rows(source: str | Path, modality: str | None = "CT") -> list[dict[str, str]]:
    """One row per DICOM series or scan file behind `source`, for a table: what there is, and whether it can be a scan of `modality`."""
    real = real_path(Path(source))
    if not real.exists():
        raise InputError(f"Input {source} does not exist.")
    rows = []
    if real.is_file() and not is_dicom(real):
        return [{"series": "-", "what": printable(real.name), "slices": "", "usable": "file", "folder": printable(str(real.parent))}]
    found = look_through(real) if real.is_dir() else look_through(real.parent, [real])
    for one in found.series:
        first = one.slices[0]
        spacing = "" if first.spacing is None else f"{first.shape[1]} x {first.shape[0]}, {first.spacing[1]:g} mm"
        rows.append({"series": one.uid, "what": " ".join(part for part in (one.modality or "?", printable(first.text), spacing) if part),
                     "slices": str(len(one.slices)), "usable": "yes" if one.fits(modality) else "no",
                     "folder": printable(str(_shown_folder(one, found)))})
    return rows + [{"series": "-", "what": printable(path.name), "slices": "", "usable": "file", "folder": printable(str(path.parent))}
                   for path in (scan_files(real) if real.is_dir() else [])]


def _shown_folder(series: Series, found: DicomFolder) -> Path:
    return series.folder.relative_to(found.path) if series.folder.is_relative_to(found.path) else series.folder


