"""Cross pseudo supervision (Chen et al. 2021): each branch learns the other's hard labels of unlabelled, mixed images."""
from __future__ import annotations

import torch
from torch.nn import functional as F

from .cutmix import mix


def pseudo_labels(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Labels (B, rows, columns) int64 of the mixed images from one branch's logits (B, C, rows, columns) of the unmixed ones.

    The logits are mixed by the same mask as the images, then the largest wins. No gradient flows through them.
    """
    return mix(first, second, mask).detach().argmax(1)


def cross_supervision(logits_a: torch.Tensor, logits_b: torch.Tensor, labels_a: torch.Tensor, labels_b: torch.Tensor) -> torch.Tensor:
    """CE(logits of a, labels of b) + CE(logits of b, labels of a); logits (B, C, ...) of the mixed images, labels (B, ...)."""
    return F.cross_entropy(logits_a, labels_b) + F.cross_entropy(logits_b, labels_a)


def ramp(epoch: int, length: int) -> float:
    """Weight factor of an epoch: rises linearly from 1 / length to 1 over `length` epochs; 1 throughout for length 0."""
    return 1.0 if length <= 0 else min(1.0, (epoch + 1) / length)
