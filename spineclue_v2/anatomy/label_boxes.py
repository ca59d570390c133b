"""Bounding boxes of the values of a label map."""
from __future__ import annotations

import numpy as np

from ..utilities.triples import Box
from .levels import IGNORED


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


def beside_ignored(array: np.ndarray, box: Box, value: int, ignored: int = IGNORED) -> bool:
    """Whether a voxel of a structure has a neighbour (6) of the value `ignored`. `box`: of the structure in the label map (z, y, x)."""
    from scipy.ndimage import binary_dilation

    around = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
    part = array[around]
    hidden = part == ignored
    return bool(hidden.any() and (binary_dilation(part == value) & hidden).any())
