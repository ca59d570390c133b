"""The channel that tells the network which vertebra is meant."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def heatmap(shape: Sequence[int], centre: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian of height 1 at `centre` (z, y, x; fractions allowed) with `sigma`, all in voxels. float32 (z, y, x)."""
    axes = [np.exp(-0.5 * ((np.arange(n) - c) / sigma) ** 2).astype(np.float32) for n, c in zip(shape, centre, strict=True)]
    return axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
