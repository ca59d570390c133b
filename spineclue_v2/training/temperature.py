"""Temperature scaling (Guo et al. 2017)."""
from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

TEMPERATURE_RANGE = (0.05, 20.0)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature that minimises the cross entropy of softmax(logits / T) on out-of-fold rows.

    Args:
        logits: (n, classes), or log-probabilities.
        targets: (n,) class indices; rows with a negative target are left out.

    Returns:
        T within `TEMPERATURE_RANGE`; 1.0 without rows. The loss is convex in 1 / T: golden-section search finds its minimum.
    """
    known = targets >= 0
    logits, targets = logits[known].double(), targets[known]
    if len(targets) == 0:
        return 1.0
    low, high = (1.0 / bound for bound in reversed(TEMPERATURE_RANGE))
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(80):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if F.cross_entropy(logits * left, targets) < F.cross_entropy(logits * right, targets):
            high = right
        else:
            low = left
    return 2.0 / (low + high)
