"""Bounding boxes of the values of a label map."""
from __future__ import annotations

import numpy as np

from ..utilities.triples import Box
from .levels import IGNORED


def label_boxes(array: np.ndarray) -> dict[int, Box]:
    """Bounding box (z, y, x) of every value but 0 in a label map, in one pass. No copy of a view with other axes or directions."""
    from scipy.ndimage import find_objects

    backwards = [axis for axis, stride in enumerate(array.strides) if stride < 0]
    order = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    stored = np.flip(array, tuple(backwards)).transpose(order)          # as it lies in memory
    found: dict[int, Box] = {}
    for value, box in enumerate(find_objects(np.ascontiguousarray(stored)), start=1):
        if box is not None:
            z, y, x = (_turned(box[order.index(axis)], array.shape[axis]) if axis in backwards else box[order.index(axis)]
                       for axis in range(3))
            found[value] = z, y, x
    return found


def _turned(part: slice, length: int) -> slice:
    """The same indices of an axis that runs the other way."""
    return slice(length - part.stop, length - part.start, None)


def beside_ignored(array: np.ndarray, box: Box, value: int, ignored: int = IGNORED) -> bool:
    """Whether a voxel of a structure has a neighbour (6) of the value `ignored`. `box`: of the structure in the label map (z, y, x)."""
    from scipy.ndimage import binary_dilation

    around = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
    part = array[around]
    hidden = part == ignored
    return bool(hidden.any() and (binary_dilation(part == value) & hidden).any())
