"""From the heads of the slice detector to boxes: what ultralytics does in PyTorch, for heads that come as arrays."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..converted import ConvertedNetwork

if TYPE_CHECKING:
    import torch

HEADS = "heads"
LEVEL_STRIDES = (8, 16, 32)   # pixels of a slice per cell, level by level
BINS = 16                     # of the distribution from which each side of a box is the mean
MAX_BOXES = 100               # of a slice

Detector = Callable[[np.ndarray, float, float], list[np.ndarray]]
"""(slices (B, C, H, W) float32, least score, overlap) -> per slice (n, 5): x0, y0, x1, y1 pixels and the score, best first."""


def detector_of(network: Any, device: torch.device) -> Detector:
    """The detector of a converted network, or of a module on `device`."""
    if isinstance(network, ConvertedNetwork) and HEADS in network.functions:
        return partial(_through_heads, network.engine(HEADS))
    return partial(_through_module, network, device)


def _through_module(network: Any, device: torch.device, slices: np.ndarray, min_score: float, nms_iou: float) -> list[np.ndarray]:
    import torch

    from ...training.device import autocast

    with torch.inference_mode(), autocast(device, bfloat16=False):
        return [found.numpy() for found in network.boxes(torch.from_numpy(slices).to(device), min_score, nms_iou)]


def _through_heads(heads: Callable[..., Any], slices: np.ndarray, min_score: float, nms_iou: float) -> list[np.ndarray]:
    sides, scores = heads(slices)
    return [boxes_of(one, score[0], slices.shape[2:], min_score, nms_iou) for one, score in zip(sides, scores, strict=True)]


def boxes_of(sides: np.ndarray, logits: np.ndarray, size: Sequence[int], min_score: float, nms_iou: float) -> np.ndarray:
    """Boxes (n, 5) of one slice: x0, y0, x1, y1 in pixels and the score, best first; of overlapping ones the best.

    Args:
        sides: (4 * BINS, cells) logits of how far left, up, right and down of its cell's middle a box reaches, in cells.
        logits: (cells,) of the score.
        size: (rows, columns) of the slice, multiples of the largest stride.
        min_score: boxes have more.
        nms_iou: boxes that overlap a better one by more are left out.
    """
    score = 1 / (1 + np.exp(-logits.astype(np.float64)))
    kept = np.flatnonzero(score > min_score)
    kept = kept[np.argsort(-score[kept], kind="stable")]
    bins = sides[:, kept].astype(np.float64).reshape(4, BINS, -1)
    share = np.exp(bins - bins.max(1, keepdims=True))
    reach = (share * np.arange(BINS)[:, None]).sum(1) / share.sum(1)
    middle, stride = (values[..., kept] for values in _cells(size))
    corners = (np.concatenate([middle - reach[:2], middle + reach[2:]]) * stride).T
    best = _suppress(corners, nms_iou)[:MAX_BOXES]
    return np.concatenate([corners[best], score[kept][best, None]], axis=1)


def _cells(size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Middles (2, cells: x, y) in cells, and strides (cells,)."""
    middles, strides = [], []
    for stride in LEVEL_STRIDES:
        y, x = np.meshgrid(np.arange(size[0] // stride) + 0.5, np.arange(size[1] // stride) + 0.5, indexing="ij")
        middles.append(np.stack([x.ravel(), y.ravel()]))
        strides.append(np.full(x.size, float(stride)))
    return np.concatenate(middles, axis=1), np.concatenate(strides)


def _suppress(corners: np.ndarray, limit: float) -> list[int]:
    """Indices of boxes (n, 4), best first, that overlap no better one that stays by more than `limit`."""
    area = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    free, kept = np.ones(len(corners), dtype=bool), []
    for i in range(len(corners)):
        if not free[i]:
            continue
        kept.append(i)
        shared = np.clip(np.minimum(corners[i, 2:], corners[i + 1:, 2:]) - np.maximum(corners[i, :2], corners[i + 1:, :2]), 0, None).prod(1)
        free[i + 1:] &= shared <= limit * (area[i] + area[i + 1:] - shared)
    return kept
