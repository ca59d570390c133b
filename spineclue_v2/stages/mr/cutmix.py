"""CutMix of two unlabelled batches: random boxes of one image are pasted into the other (Yun et al. 2019; French et al. 2020)."""
from __future__ import annotations

import numpy as np
import torch


def box_mask(shape: tuple[int, int], boxes: int, area: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Boolean (rows, columns): union of `boxes` random boxes that each take an equal part of a drawn share of the image.

    The share is uniform in `area`; side ratios are log-uniform, so boxes are tall as often as wide. Boxes may overlap, so the union
    may take less than the share, never more than its rounding to whole pixels.
    """
    mask = np.zeros(shape, bool)
    share = rng.uniform(*area) / boxes
    for _ in range(boxes):
        # Height as a share of the image so that the width, share / height, stays within it.
        height = float(np.exp(rng.uniform(np.log(share), 0.0)))
        size = [max(1, min(n, round(part * n))) for n, part in zip(shape, (height, share / height), strict=True)]
        row, column = (int(rng.integers(n - s + 1)) for n, s in zip(shape, size, strict=True))
        mask[row:row + size[0], column:column + size[1]] = True
    return mask


def mix(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`second` inside `mask`, `first` outside: (B, C, rows, columns) each, mask (B, rows, columns) boolean."""
    return torch.where(mask[:, None], second, first)
