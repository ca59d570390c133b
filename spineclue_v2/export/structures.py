"""Structures of an MR label map as records."""
from __future__ import annotations

from typing import Any

import numpy as np

from ..anatomy import structures
from ..imageio.volume import Volume

NO_STRUCTURE = "no structure found"


def structure_records(labels: Volume, classes: dict[str, int]) -> list[dict[str, Any]]:
    """Per structure found: name, kind, label, volume (ml), centroid (LPS mm), whether it touches the border; in the plan's order."""
    from ..anatomy.label_boxes import label_boxes

    boxes, rows = label_boxes(labels.array), []
    shape, ml = np.array(labels.array.shape), float(np.prod(labels.spacing)) / 1000
    for name, value in classes.items():
        if value not in boxes:
            continue
        box = boxes[value]
        mask = labels.array[box] == value
        start, stop = np.array([s.start for s in box]), np.array([s.stop for s in box])
        centroid = labels.geometry.index_to_world(start + np.mean(np.nonzero(mask), axis=1))
        rows.append({"structure": name, "kind": structures.kind(name), "label": value, "volume_ml": round(float(mask.sum()) * ml, 3),
                     "centroid_mm": [round(float(c), 2) for c in centroid],
                     "touches_border": bool((start == 0).any() or (stop == shape).any())})
    return rows
