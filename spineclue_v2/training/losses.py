"""Losses that several stages share."""
from __future__ import annotations

import math

import torch
from torch import Tensor


def supervised_contrastive(projected: Tensor, labels: Tensor, temperature: float = 0.1, form: str = "in") -> Tensor:
    """Supervised contrastive loss, the mean over all views that have a positive.

    Args:
        projected: (V, P) unit vectors, all views of the batch (gathered over GPUs when there are several).
        labels: (V,) level indices; equal labels are positives, every other view is in the denominator.
        temperature: the paper gives none; 0.1 is Khosla's.
        form: "in", as the paper prints Eq. 2 (the mean over positives inside the log), or "out", which Khosla et al. 2020
            (arXiv 2004.11362, Eq. 2) recommend (outside). A batch without a positive pair gives 0.
    """
    if form not in ("in", "out"):
        raise ValueError(f"form must be 'in' or 'out', got '{form}'")
    similarity = projected.float() @ projected.float().T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    log_share = similarity - similarity.masked_fill(itself, -math.inf).logsumexp(dim=1, keepdim=True)
    count = positive.sum(dim=1)
    has_positive = count > 0
    if not has_positive.any():
        return projected.sum() * 0.0
    log_share, positive, count = log_share[has_positive], positive[has_positive], count[has_positive]
    if form == "in":
        per_view = log_share.masked_fill(~positive, -math.inf).logsumexp(dim=1) - count.log()
    else:
        per_view = log_share.masked_fill(~positive, 0.0).sum(dim=1) / count
    return -per_view.mean()
