"""Results that a person corrected, as training cases with their provenance."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2.anatomy import LABEL_OF_NAME, NAME_OF_LABEL, ORDER_INDEX, VERTEBRA_LABELS
from spineclue_v2.dataset.raw import RawDataset, verse_values
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.orientation import oriented_view
from spineclue_v2.imageio.segmentations import read_segments
from spineclue_v2.imageio.volume import FILE_ENDINGS, ImageGrid, Volume, read_labels, read_volume, write_volume
from spineclue_v2.utilities.files import read_json, write_json

from .common import place, stem

logger = logging.getLogger(__name__)

PROVENANCE = "provenance.json"
SEGMENTS = ".seg.nrrd"
REPLACED = "labelsReplaced"


@dataclass(frozen=True)
class Correction:
    """One corrected case: its label file, its scan, and what the prediction had been (label map and record), where they are there."""

    case: str
    labels: Path
    scan: Path
    predicted: Path | None = None
    record: Path | None = None


def find_corrections(source: str | Path, raw: RawDataset, scans: str | Path | None = None) -> list[Correction]:
    """Corrected files of `source`: `CASE.seg.nrrd`, or label maps of VerSe's values; a file or a folder.

    Args:
        source: one file, or a folder; where a case has both, the `.seg.nrrd` counts.
        raw: dataset that they go into.
        scans: a scan, or a folder of scans with the cases' names; default: imagesUl and imagesTr of the dataset.

    Raises:
        InputError: nothing is there, or a case has no scan.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source} does not exist; give the .seg.nrrd that 3D Slicer saved, or the folder of such files.")
    files = sorted(source.glob(f"*{SEGMENTS}")) if source.is_dir() else [source]
    if not files:
        raise InputError(f"{source} holds no *{SEGMENTS}; save the corrected segmentation there, under the name of its case.")
    found = _scans(raw, None if scans is None else Path(scans), len(files) == 1)
    corrections = []
    for file in files:
        case = _case_of(file)
        scan = found.get(case) or found.get("")
        if scan is None:
            raise InputError(f"{file}: there is no scan '{case}' in imagesUl or imagesTr of {raw.name}; say with -s where it is.")
        beside = [file.parent / f"{case}{ending}" for ending in (".nii.gz", ".json")]
        label, record = (path if path.is_file() and path != file else None for path in beside)
        corrections.append(Correction(case, file, scan, label, record))
    return corrections


def _case_of(file: Path) -> str:
    return file.name[:-len(SEGMENTS)] if file.name.lower().endswith(SEGMENTS) else stem(file)


def _scans(raw: RawDataset, scans: Path | None, single: bool) -> dict[str, Path]:
    """{case: scan}; a single file of any name is the scan of the only case, ""."""
    if scans is None:
        return {**{case: raw.image(case) for case in raw.cases}, **raw.unlabelled}
    if scans.is_file():
        if not single:
            raise InputError(f"{scans} is one scan and several cases are given; give the folder of their scans.")
        return {"": scans}
    if not scans.is_dir():
        raise InputError(f"{scans} does not exist; give the scan, or the folder of scans.")
    return {stem(p).removesuffix("_0000"): p for p in sorted(scans.iterdir()) if p.name.lower().endswith(FILE_ENDINGS)
            and not p.name.lower().endswith(SEGMENTS)}


def corrected_labels(correction: Correction, grid: ImageGrid) -> np.ndarray:
    """VerSe's values (z, y, x) on `grid`, that of the scan. 3D Slicer may store the part of the grid that is not empty alone.

    InputError where the voxels are others, no segment is a vertebra, or two mean the same level.
    """
    if correction.labels.name.lower().endswith(SEGMENTS):
        stored, names = read_segments(correction.labels)
        table = verse_values({"background": 0} | names, correction.labels)
        strange = sorted(name for name, value in names.items() if not table[value])
        if strange:
            logger.warning("%s: the segment '%s' is no vertebra and is left out.", correction.labels.name, "', '".join(strange))
    else:
        stored = read_labels(correction.labels)
        table = {value: value for value in (0, *NAME_OF_LABEL)}
    values = np.zeros(65536, np.uint8)
    values[list(table)] = list(table.values())
    view, target = oriented_view(Volume(values[stored.array], stored.geometry)), grid.reoriented("LPS")[0]
    start = target.world_to_index(view.geometry.index_to_world((0, 0, 0)))
    end = target.world_to_index(view.geometry.index_to_world(np.array(view.array.shape) - 1))
    first = np.round(start).astype(int)
    whole = np.abs(start - first).max() < 0.1 and np.abs(end - (first + np.array(view.array.shape) - 1)).max() < 0.1
    inside = (first >= 0).all() and (first + view.array.shape <= target.shape).all()
    if not (whole and inside):
        spacing = tuple(round(s, 3) for s in stored.spacing)
        raise InputError(f"{correction.labels} lies on another grid than {correction.scan.name} (shape {stored.array.shape}, spacing "
                         f"{spacing} against {grid.shape}, {tuple(round(s, 3) for s in grid.spacing)}); in 3D Slicer choose the scan as "
                         "source geometry of the segmentation and save again.")
    array = np.zeros(grid.shape, np.uint8)
    filled = oriented_view(Volume(array, grid)).array           # shares memory with `array`
    filled[tuple(slice(a, a + n) for a, n in zip(first, view.array.shape, strict=True))] = view.array
    if not np.isin(array, VERTEBRA_LABELS).any():
        raise InputError(f"{correction.labels} names no vertebra; call the segments C1..C7, T1..T12, L1..L5.")
    return array


def import_correction(correction: Correction, raw: RawDataset, replace: bool = False) -> dict[str, Any]:
    """Make the corrected case a training case of the dataset; returns its entry in `provenance.json`.

    A scan of imagesUl moves to imagesTr. With `replace` the labels of a training case are replaced, and the old ones go to
    labelsReplaced. Images come before labels, dataset.json last.

    Raises:
        InputError: another grid, a level that dataset.json does not name, a case that has labels already.
    """
    if correction.case in raw.cases and not replace:
        raise InputError(f"{raw.name} has labels of '{correction.case}' already; say --replace to replace them "
                         f"({REPLACED} keeps the old ones).")
    if raw.file_ending != ".nii.gz" or "dataset" in raw.json:
        raise InputError(f"{raw.folder / 'dataset.json'} lists its files itself or has another ending than .nii.gz; add the case "
                         "there by hand.")
    scan = read_volume(correction.scan)
    array = corrected_labels(correction, scan.geometry)
    value_of = {verse: value for value, verse in raw.verse_value.items() if verse}
    present = [int(v) for v in np.unique(array) if v]
    lacking = [NAME_OF_LABEL[v] for v in present if v not in value_of]
    if lacking:
        raise InputError(f"{correction.labels} has {lacking[0]}, which {raw.folder / 'dataset.json'} does not name; add it to its labels.")
    entry = _entry(correction, array, present)
    image = raw.folder / "imagesTr" / f"{correction.case}_0000.nii.gz"
    label = raw.folder / "labelsTr" / f"{correction.case}.nii.gz"
    if label.is_file():
        place(label, raw.folder / REPLACED / label.name)
    if not image.is_file():
        if correction.scan.name.lower().endswith(".nii.gz"):
            place(correction.scan, image)
        else:
            write_volume(scan, image)
    table = np.zeros(256, np.uint16)
    for verse, value in value_of.items():
        table[verse] = value
    mapped = table[array]
    write_volume(Volume(mapped.astype(np.uint8) if mapped.max() < 256 else mapped, scan.geometry), label)
    _register(raw, correction.case, entry)
    return entry


def _register(raw: RawDataset, case: str, entry: Mapping[str, Any]) -> None:
    path = raw.folder / PROVENANCE
    write_json(path, (read_json(path, "provenance") if path.is_file() else {}) | {case: dict(entry)})
    unlabelled = raw.folder / "imagesUl" / f"{case}_0000.nii.gz"
    content = read_json(raw.folder / "dataset.json", "dataset description")
    content["numTraining"] = len({p.name for p in (raw.folder / "imagesTr").glob("*_0000.nii.gz") if not p.name.startswith(".")})
    write_json(raw.folder / "dataset.json", content)
    unlabelled.unlink(missing_ok=True)          # its scan is in imagesTr now


def _entry(correction: Correction, array: np.ndarray, present: list[int]) -> dict[str, Any]:
    levels = sorted((NAME_OF_LABEL[v] for v in present if v in VERTEBRA_LABELS), key=ORDER_INDEX.__getitem__)
    entry: dict[str, Any] = {"origin": "corrected prediction", "labels": correction.labels.name, "scan": correction.scan.name,
                             "levels": levels}
    if correction.record is not None:
        record = read_json(correction.record, "record")
        entry |= {"plans": record.get("plans"), "versions": record.get("versions"), "anchored": record.get("numbering_anchored")}
    if correction.predicted is not None:
        before = read_labels(correction.predicted)
        if before.array.shape == array.shape:
            changed = [name for name in LABEL_OF_NAME if ((before.array == LABEL_OF_NAME[name]) != (array == LABEL_OF_NAME[name])).any()]
            entry |= {"changed_voxels": int((before.array != array).sum()), "changed_levels": changed}
    return entry
