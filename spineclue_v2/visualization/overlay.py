"""Pictures of label maps on their scans, in the form of a prediction's report: to look through a dataset or results."""
from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from .. import anatomy
from ..anatomy.vertebra import Vertebra
from ..errors import InputError
from ..evaluation.files import VERSE_MASK, case_key, label_files, stem
from ..export.labelled_spine import LabelledSpine
from ..imageio.volume import FILE_ENDINGS, Volume, read_volume
from ..utilities.files import read_json
from ..utilities.parallel import run_tasks
from ..utilities.triples import box_slices, float_triple, int_triple


def vertebrae_of(labels: Volume, record: Mapping[str, Any] | None = None) -> tuple[Vertebra, ...]:
    """Vertebrae of a label map (VerSe values, LPS order) in cranio-caudal order: mask crop, centres, extent, volume.

    `record` is the content of the map's CASE.json, for confidences. Detection scores are 1.
    """
    from ..preprocessing.ct import vertebra_properties

    confidence = {v.get("level"): v.get("confidence") for v in (record or {}).get("vertebrae", [])}
    spacing, found = np.array(labels.geometry.spacing), []
    for name, entry in vertebra_properties(labels).items():
        start, stop = np.array(entry["start"]), np.array(entry["stop"])
        found.append(Vertebra(
            box_centre=float_triple(labels.geometry.index_to_world((start + stop - 1) / 2)),
            extent=float_triple((stop - start) * spacing), score=1.0, mask=labels.array[box_slices(start, stop - start)] == entry["label"],
            mask_start=int_triple(start),
            mask_centroid=float_triple(labels.geometry.index_to_world(entry["centroid"])),
            body_centre=float_triple(labels.geometry.index_to_world(entry["body_centre"])),
            volume_ml=entry["voxels"] * float(np.prod(spacing)) / 1000, touches_border=entry["touches_border"],
            level=name, confidence=confidence.get(name)))
    return tuple(sorted(found, key=lambda v: anatomy.ORDER_INDEX[v.known_level]))


def plot_overlays(images: str | Path, labels: str | Path, output: str | Path, num_processes: int = 0,
                  executor: Executor | None = None, progress: bool = False,
                  verse_value: Mapping[int, int] | None = None) -> tuple[dict[str, Path], dict[str, str]]:
    """Draw `CASE.png` for every label map of the folder `labels` on its scan in the folder `images`.

    Returns ({case: picture}, {case: why it failed}). `verse_value` maps the maps' values to VerSe's where they differ.
    InputError when a folder is missing or nothing fits.
    """
    images, labels, output = Path(images), Path(labels), Path(output)
    for folder in (images, labels):
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder.")
    scans = {case_key(stem(path)): path for path in sorted(images.iterdir())
             if path.name.lower().endswith(FILE_ENDINGS) and not stem(path).endswith(VERSE_MASK)}
    pairs = {case_key(stem(path)): path for path in label_files(labels) if case_key(stem(path)) in scans}
    if not pairs:
        raise InputError(f"No label map in {labels} fits a scan in {images}.")
    tasks = {case: (scans[case], path, output / f"{case}.png", case, verse_value) for case, path in pairs.items()}
    return run_tasks(_plot, tasks, executor, num_processes, "drawing", progress)


def _plot(image: Path, label: Path, target: Path, case: str, verse_value: Mapping[int, int] | None) -> Path:
    from ..evaluation.case import check_same_grid
    from ..evaluation.summary import read_verse_labels
    from .report import write_report

    scan, labels = read_volume(image).reoriented("LPS"), read_verse_labels(label, verse_value)
    check_same_grid(scan.geometry, labels.geometry, case)
    beside = label.parent / f"{stem(label)}.json"
    record = read_json(beside, "record") if beside.is_file() else {}
    result = LabelledSpine(vertebrae_of(labels, record), record.get("numbering_anchored", True))
    write_report(result, labels.geometry, scan, target, case)
    return target
