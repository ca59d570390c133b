"""Shares of classes: what a pixel of the 2D branches holds, which is wider than the voxels whose labels are learned.

A disc is two such pixels high; called by their largest class, pixels lose a fifth of it (documentation/explanation/spine_mr.md).
"""
from __future__ import annotations

import torch
from torch.nn import functional as F

from ...adapters import dice_of_soft_labels
from ...anatomy import IGNORED
from .network import shrink

ROUNDING = 1e-4             # shares are means of float32


def soft_labels_of_pixels(labels: torch.Tensor, factor: int, classes: int) -> torch.Tensor:
    """(..., rows, columns) class numbers -> (..., classes, rows / factor, columns / factor): shares of the voxels of each pixel.

    `IGNORED` voxels have no share, so those of a pixel may add up to less than 1.
    """
    annotated = labels != IGNORED
    shares = F.one_hot(torch.where(annotated, labels, 0).long(), classes).movedim(-1, -3).float()
    return shrink(shares * annotated.unsqueeze(-3), factor)


def labels_of_pixels(labels: torch.Tensor, factor: int, classes: int) -> torch.Tensor:
    """(S, rows, columns) class numbers -> (S, rows / factor, columns / factor): the class with most voxels in each pixel, `IGNORED` where
    half of them or more are."""
    if factor == 1:
        return labels
    shares = soft_labels_of_pixels(labels, factor, classes)
    return torch.where(shares.sum(1) > 0.5, shares.argmax(1), IGNORED).to(labels.dtype)


def soft_labels_of_tissue_classes(shares: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Shares (B, classes, ...) -> (B, kinds, ...); `kinds` (classes,) the kind of each class."""
    return torch.stack([shares[:, kinds == k].sum(1) for k in range(int(kinds.max()) + 1)], 1)


def soft_dice_and_cross_entropy(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Cross entropy less soft Dice, mean over the foreground classes, sums over the whole batch; both (B, classes, ...).

    Where every share is 0 or 1 this is `adapters.dice_and_cross_entropy(batch_dice=True)`. For others cross entropy asks for the share
    itself, Dice for all of a pixel of which it is worth having any: together they make up for edges that come out too small.
    """
    annotated = shares.sum(1, keepdim=True)
    if bool((annotated > 1 - ROUNDING).all()):
        return F.cross_entropy(logits, shares) + dice_of_soft_labels()(logits, shares)
    # A pixel weighs as much as is annotated of it.
    entropy = -(shares * logits.log_softmax(1)).sum() / annotated.sum().clamp_min(ROUNDING)
    return entropy + dice_of_soft_labels()(logits, shares, loss_mask=annotated)
