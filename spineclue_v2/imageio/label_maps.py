"""Whether voxel values are those of a label map: said before anything else is made of them."""
from __future__ import annotations

import numpy as np

from ..errors import InputError

MOST_LABELS = 100         # values of a label map; a scan has hundreds
BYTE, FEWEST_LARGE = 255, 5    # maps with larger values name more than a phantom of two materials has
LEAST_BACKGROUND = 0.2    # of the voxels of a label map are 0
FIRST_LOOK = 20_000       # voxels that tell most scans from label maps
ROUNDING = 2e-4           # as in `read_labels`


def refuse_label_map(array: np.ndarray, what: object) -> None:
    """InputError, with what to run instead, where `array` (z, y, x) holds few whole values from 0 upwards on a background of 0."""
    values = label_values(array)
    if values is None:
        return
    raise InputError(f"{what} is a label map ({len(values)} whole values, {values[0]:g} to {values[-1]:g}, on a background of 0); expected "
                     "a scan. Give the scan that it was drawn on, or name the vertebrae of the map: "
                     f"spineclue_relabel -i {what} -o NAMED.nii.gz.")


def label_values(array: np.ndarray) -> np.ndarray | None:
    """The values of a label map in increasing order; None for what is none."""
    flat = array.reshape(-1)
    for look in (flat[:: max(1, flat.size // FIRST_LOOK)], flat):
        values = np.unique(look)
        if len(values) > MOST_LABELS or values[0] < 0 or np.abs(values - np.round(values)).max() > ROUNDING:
            return None
    if values[-1] > BYTE and len(values) < FEWEST_LARGE:
        return None
    return values if float((array == 0).mean()) >= LEAST_BACKGROUND else None
