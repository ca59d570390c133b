"""Slices of a volume: sagittal ones hold (z, y) at one x, coronal ones (z, x) at one y. Row 0 is the highest z, as a reader sees it."""
from __future__ import annotations

from typing import Any

import numpy as np

PLANES = ("sagittal", "coronal")


def take_slice(volume: Any, plane: str, index: int) -> np.ndarray:
    """Slice (rows, columns) of a (z, y, x) volume, cranial up."""
    cut = volume[:, :, index] if plane == "sagittal" else volume[:, index, :]
    return np.asarray(cut)[::-1]
