"""Where crops start, and crops of masks."""
from __future__ import annotations

import numpy as np

from ..adapters import crop_and_pad


def mask_crop(mask: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Tight bool mask (z, y, x) -> float32 crop of `size` with the middle of the mask in its middle."""
    centre = (np.array(mask.shape) - 1) / 2
    return crop_and_pad(mask, crop_start(centre, size), size).astype(np.float32)






def crop_start(centre: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """First index (z, y, x) of the crop of `size` whose middle lies nearest to `centre`."""
    return np.round(np.asarray(centre) - (np.asarray(size) - 1) / 2).astype(int)
