"""`CASE.npz`: level probabilities and soft masks, from which `inference.ensemble` merges predictions."""
from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy.vertebra import vertebra_record
from ..utilities.files import atomic_path
from .labelled_spine import LabelledSpine


def write_probabilities(result: LabelledSpine, path: str | Path, classifiers: Collection[str], forbid_anomalies: bool) -> None:
    """Write `path` by rename.

    `probabilities` (n, 24) over C1..L5 and `body_centre_mm` (n, 3), LPS mm, hold one row per vertebra in cranio-caudal order. For the
    ensemble there are also `log_probabilities` (n, 25) of all classifiers together and `mask_0`, ... (uint8, 255 = 1) on tight crops of
    the grid that `record` (JSON) describes, with the vertebrae's other values and the options that decide what the rows mean.
    """
    _, mask_grid = result.grids()
    rows = {name: np.array([getattr(v, name) for v in result.vertebrae], dtype=np.float32).reshape(-1, width)
            for name, width in (("probabilities", 24), ("log_probabilities", 25))}
    masks = {f"mask_{i}": v.mask_probability if v.mask_probability is not None else v.mask.astype(np.uint8) * 255
             for i, v in enumerate(result.vertebrae) if v.mask is not None}
    record = json.dumps({"geometry": mask_grid.to_json(), "vertebrae": [vertebra_record(v) for v in result.vertebrae],
                         "options": {"classifiers": sorted(classifiers), "forbid_anomalies": forbid_anomalies}})
    centres = np.array([v.body_centre for v in result.vertebrae], dtype=np.float32).reshape(-1, 3)
    arrays: dict[str, Any] = {**masks, **rows, "record": np.array(record), "body_centre_mm": centres}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
