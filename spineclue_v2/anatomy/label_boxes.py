"""Bounding boxes of the values of a label map."""
from __future__ import annotations

import numpy as np

from ..utilities.triples import Box


def label_boxes(array: np.ndarray) -> dict[int, Box]:
    """Bounding box (z, y, x) of every value but 0 in a label map, in one pass."""
    from scipy.ndimage import find_objects

    boxes = find_objects(array if array.flags.c_contiguous else np.ascontiguousarray(array))
    found: dict[int, Box] = {}
    for value, box in enumerate(boxes, start=1):
        if box is not None:
            z, y, x = box
            found[value] = z, y, x
    return found
