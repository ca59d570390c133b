"""Which datasets are MR, and what such a dataset looks like: grids, structures, unlabelled scans."""
from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2.anatomy import IGNORE_NAME
from spineclue_v2.anatomy.structures import canonical_values, in_order, kind
from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.label_maps import refuse_label_map
from spineclue_v2.imageio.orientation import check_same_grid
from spineclue_v2.imageio.volume import read_labels, read_volume
from spineclue_v2.utilities.files import write_json
from spineclue_v2.utilities.parallel import run_tasks

from .fingerprint import FILE_NAME

logger = logging.getLogger(__name__)

ORIENTATION = "PIL"           # slices towards the left, rows caudally, columns posteriorly
_NOT_HU = re.compile(r"^(nonorm|zscore|rescale_to_0_1|rescale_0_1|rgb_to_0_1|RGB|R|G|B|PET|SUV|US|XRAY|X-RAY)$", re.IGNORECASE)
_MR_CHANNEL = re.compile(r"^(MRI?|T1|T2|PD|STIR|FLAIR|DIXON|WATER|FAT|IN[ _-]?PHASE|OUT[ _-]?PHASE)", re.IGNORECASE)


def recognise(raw: RawDataset) -> tuple[bool, str]:
    """(is MR, why): by the channel's name; where that says neither CT nor MR, by classes that CT datasets do not have (discs)."""
    channel = raw.channel_name.strip()
    if channel.upper() == "CT":
        return False, "channel CT"
    if _NOT_HU.match(channel):
        raise InputError(f"{raw.folder / 'dataset.json'}: channel 0 is called {channel!r}, so its values are no HU; expected CT or MR. "
                         "Name it CT where they are HU.")
    discs = [name for name in canonical_values(raw.labels, raw.folder) if kind(name) == "disc"]
    if _MR_CHANNEL.match(channel):
        return True, f"channel {channel}" + (f" and {len(discs)} disc classes" if discs else "")
    if not discs:
        logger.warning("Channel 0 of %s is called '%s', neither CT nor MR: it is taken as CT in HU.", raw.name, channel)
    return bool(discs), f"channel {channel} is unknown, " + (f"{len(discs)} classes are discs" if discs else "no class is a disc")


def extract_mr_fingerprint(raw: RawDataset, folder: Path, num_processes: int = 0, executor: Executor | None = None,
                           progress: bool = True) -> dict[str, Any]:
    """Measure every case and write `dataset_fingerprint.json` into `folder`; InputError when a case cannot be read."""
    names = {value: name for name, value in canonical_values(raw.labels, raw.folder).items()}
    ignored = raw.labels.get(IGNORE_NAME)
    tasks: dict[Any, tuple[Any, ...]] = {case: (raw.image(case), raw.label(case), case, names, ignored) for case in raw.cases}
    tasks |= {case: (path, None, case, names) for case, path in raw.unlabelled.items()}
    records, failures = run_tasks(measure_mr_case, tasks, executor, num_processes, "fingerprint", progress)
    if failures:
        case, why = next(iter(failures.items()))
        raise InputError(f"{raw.name}: {len(failures)} of {len(tasks)} cases are unusable (first '{case}': {why}); fix or remove them.")
    labelled = [records[case] for case in raw.cases]
    found = Counter(name for record in labelled for name in record["structures"])
    if not found:
        raise InputError(f"{raw.name}: no label map holds a structure that dataset.json names; check its labels.")
    empty = [case for case in raw.cases if not records[case]["structures"]]
    if empty:
        logger.warning("%d label map(s) are empty, e.g. of '%s'; move such scans to imagesUl if nobody labelled them.",
                       len(empty), empty[0])
    values = {name: value for value, name in names.items()}
    structures = {name: {"value": values[name], "cases": found[name],
                         "volume_ml_p50": _p([r["structures"][name] for r in labelled if name in r["structures"]], 50)}
                  for name in in_order(list(found))}
    everything = list(records.values())
    fingerprint = {
        "version": 1, "dataset_name": raw.name, "dataset_hash": raw.content_hash(), "channel_name": raw.channel_name,
        "spacings": [r["spacing"] for r in labelled], "shapes_after_crop": [r["shape"] for r in labelled],
        "mr": {"num_cases": len(labelled), "num_unlabelled": len(raw.unlabelled),
               "slice_mm_p50": _p([r["spacing"][0] for r in everything], 50),
               "in_plane_mm_p50": _p([min(r["spacing"][1:]) for r in everything], 50),
               "slices_p50": _p([r["shape"][0] for r in everything], 50),
               "fov_mm_p95": [_p([r["shape"][a] * r["spacing"][a] for r in everything], 95) for a in (1, 2)],
               "structures": structures}}
    write_json(folder / FILE_NAME, fingerprint)
    return fingerprint


def measure_mr_case(image: str | Path, label: str | Path | None, case: str, names: Mapping[int, str],
                    ignored: int | None = None) -> dict[str, Any]:
    """Shape and spacing (slice, row, column) in the stages' orientation, and ml of each labelled structure. `ignored`: value of nnU-Net's
    label "ignore", where the dataset has it."""
    scan = read_volume(image)
    refuse_label_map(scan.array, Path(image).name)
    geometry = scan.geometry.reoriented(ORIENTATION)[0]
    record: dict[str, Any] = {"shape": list(geometry.shape), "spacing": [float(s) for s in geometry.spacing], "structures": {}}
    if label is not None:
        labels = read_labels(label)
        check_same_grid(scan.geometry, labels.geometry, case, label)
        values, counts = np.unique(labels.array, return_counts=True)
        unknown = sorted({int(v) for v in values if v} - set(names) - {ignored})
        if unknown:
            raise InputError(f"its labels hold the values {unknown}, which dataset.json does not name")
        ml = float(np.prod(labels.spacing)) / 1000
        record["structures"] = {names[int(v)]: round(float(n) * ml, 3) for v, n in zip(values, counts, strict=True) if v in names}
    return record


def _p(values: list[float], percentile: float) -> float:
    return round(float(np.percentile(values, percentile)), 4)
