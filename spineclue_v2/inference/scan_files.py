"""Scan files below a folder, at any depth: which of them are scans, and what their cases are called."""
from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePath

from ..imageio.archives import is_archive
from ..imageio.dicom_series import files_below
from ..imageio.volume import FILE_ENDINGS

logger = logging.getLogger(__name__)

MAX_RECORD_BYTES = 64 << 20
LABEL_FOLDERS = frozenset(("derivatives", "labels", "labelstr", "labelsts", "labelsval", "masks", "segmentation", "segmentations"))
"""Folders of label maps in BIDS, nnU-Net's and TotalSegmentator's layouts; compared in lower case."""
LABEL_NAME = re.compile(r"(^|[_.-])(seg|dseg|msk|mask|masks|label|labels|labelmap|segmentation)$", re.IGNORECASE)
BIDS_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
RESULT_ENDINGS = ("_parts", ".seg")
CROP_FOLDERS = ("_crops", "_crops_upright")
ENDINGS = (*FILE_ENDINGS, ".zip", ".dcm", ".dicom", ".ima")


def scan_files(folder: Path, archives: bool = True) -> list[Path]:
    """Scan files (and `.zip`) below `folder`, as paths relative to it: those at the top first.

    Left out, with a warning each: results of this program, and what its name or folder calls a label map, unless there is nothing else.
    """
    found = [path.relative_to(folder) for path in files_below(folder, dangling=True) if path.name.lower().endswith(FILE_ENDINGS)]
    found = _without_results(folder, found)
    labels = [path for path in found if is_label_name(path)]
    if 0 < len(labels) < len(found):
        _say_left_out(labels, "a label map by its name")
        found = [path for path in found if path not in set(labels)]
    packed = [path.relative_to(folder) for path in files_below(folder) if is_archive(path)] if archives else []
    return sorted(found, key=_depth_first) + sorted(packed, key=_depth_first)


def is_label_name(path: PurePath) -> bool:
    """Whether a relative path is that of a label map by the customs of public datasets."""
    return bool(LABEL_NAME.search(without_ending(path.name))) or any(part.lower() in LABEL_FOLDERS for part in path.parts[:-1])


def joined_name(path: PurePath) -> str:
    """Name of a case from its path relative to the input, without ending: folders and file name, joined by `_`.

    A folder that the name begins with anyway is not repeated (`p1/p1_ct.nii.gz` is `p1_ct`), and a BIDS name says everything by itself
    (`sub-1/ses-2/ct/sub-1_ses-2_ct.nii.gz` is `sub-1_ses-2_ct`).
    """
    name = without_ending(path.name)
    for part in reversed(path.parts[:-1]):
        if BIDS_SUBJECT.fullmatch(part) and name.startswith(f"{part}_"):
            return name
    for part in reversed(path.parts[:-1]):
        if not re.match(re.escape(part) + r"([_.-]|$)", name):
            name = f"{part}_{name}"
    return name


def without_ending(name: str) -> str:
    for ending in ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[:-len(ending)]
    return name


def _depth_first(path: PurePath) -> tuple[bool, PurePath]:
    return len(path.parts) > 1, path


def _say_left_out(files: Sequence[Path], what: str) -> None:
    more = f" (so are {len(files) - 1} more)" if len(files) > 1 else ""
    logger.warning("%s is %s%s; left out. To have such a file labelled, give it itself.", files[0], what, more)


def _without_results(folder: Path, files: Sequence[Path]) -> list[Path]:
    """`files` without what this program wrote: label maps and parts beside the record of a prediction, and crops in a folder beside it."""
    results = {path for path in files if any(_is_record(folder / record) for record in _records(path))}
    if results:
        _say_left_out(sorted(results), "a result of an earlier run")
    return [path for path in files if path not in results]


def _records(path: Path) -> Iterator[Path]:
    """Where the record of the prediction would lie that wrote `path`."""
    name = without_ending(path.name)
    for base in (name, *(name.removesuffix(end) for end in RESULT_ENDINGS if name.endswith(end))):
        yield path.with_name(f"{base}.json")
    folder = path.parent
    for end in CROP_FOLDERS:
        if folder.name.endswith(end):
            yield folder.with_name(f"{folder.name.removesuffix(end)}.json")


@lru_cache(maxsize=4096)
def _is_record_file(record: Path, size: int, changed: int) -> bool:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"status", "versions", "plans", "seconds"} <= set(content)


def _is_record(record: Path) -> bool:
    """Whether a file is the `CASE.json` of a prediction."""
    try:
        state = record.stat()
    except OSError:
        return False
    return 0 < state.st_size <= MAX_RECORD_BYTES and _is_record_file(record, state.st_size, state.st_mtime_ns)
