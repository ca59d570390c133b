"""What nobody annotated (nnU-Net's label "ignore") is neither right nor wrong."""
from __future__ import annotations

import numpy as np

from ..anatomy import IGNORED
from ..anatomy.label_boxes import label_boxes
from ..imageio.volume import Volume


def without_ignored(reference: Volume, prediction: Volume | None) -> tuple[Volume, Volume | None]:
    """Both label maps (VerSe values, one grid) with background wherever the reference is `IGNORED`.

    A predicted vertebra of which not even half lies where somebody annotated is left out as a whole, so that its rest is no false positive.
    """
    ignored = reference.array == IGNORED
    if not ignored.any():
        return reference, prediction
    cleared = Volume(np.where(ignored, 0, reference.array).astype(np.uint8), reference.geometry, reference.flags)
    if prediction is None or prediction.array.shape != ignored.shape:  # the caller says so
        return cleared, prediction
    array = prediction.array.copy()
    for value, box in label_boxes(array).items():
        mask = array[box] == value
        array[box][mask & ignored[box] if mostly(~ignored[box], mask) else mask] = 0
    return cleared, Volume(array, prediction.geometry, prediction.flags)


def mostly(annotated: np.ndarray, mask: np.ndarray) -> bool:
    """Whether half of a mask or more lies where somebody annotated (bool arrays of one shape)."""
    return 2 * int((annotated & mask).sum()) >= int(mask.sum())
