"""What the segmentation network sees of a vertebra: CT windows of a crop, and a heat map at its centre."""
from __future__ import annotations

from typing import Any

import numpy as np

from ...adapters import crop_and_pad
from ...preprocessing.crops import crop_start
from ...preprocessing.resampling import windows
from .heatmap import heatmap


def crop_channels(image: Any, centre: np.ndarray, size: tuple[int, ...], windows_hu: Any, hu_min: int, sigma: float) -> np.ndarray:
    """Network input (C + 1, z, y, x) of `size` around `centre` (z, y, x index): CT windows 0..1, last channel the heat map."""
    start = crop_start(centre, size)
    ct = crop_and_pad(image, start, size, pad_value=hu_min)
    return np.concatenate([windows(ct, windows_hu), heatmap(size, centre - start, sigma)[None]])
