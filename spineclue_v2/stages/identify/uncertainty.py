"""Monte-Carlo dropout in the head and temperature scaling (SpineCLUE Eq. 5 and 6; Guo et al. 2017)."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .network import LevelNetwork

TEMPERATURE_RANGE = (0.05, 20.0)


def entropy(probabilities: Tensor) -> Tensor:
    """(..., levels) -> (...): U = -sum p log p in nats (Eq. 6); 0 log 0 = 0."""
    return -torch.xlogy(probabilities, probabilities).sum(dim=-1)


@torch.inference_mode()
def monte_carlo(network: LevelNetwork, features: Tensor, samples: int = 20, temperature: float = 1.0,
                seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Mean probabilities (n, levels), entropy (n,) and variance (n, levels) over `samples` dropout draws of the head.

    Dropout sits only in the head, so the backbone has run once and the samples are one batched product over
    (samples, n, inputs). The draws come from their own generator: the same seed gives the same answer, the training mode of
    `network` does not matter and the global random state is not touched.

    Args:
        network: gives `dropout_masks` and `classify`.
        features: (n, feature_dim) from `network.features`.
        samples: N of Eq. 5.
        temperature: divides the logits (`fit_temperature`).
        seed: of the dropout masks.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    generator = torch.Generator(device=features.device).manual_seed(seed)
    keep = network.dropout_masks((samples, len(features)), generator)
    probabilities = (network.classify(features, keep).float() / temperature).softmax(dim=-1)
    mean = probabilities.mean(dim=0)
    return mean, entropy(mean), probabilities.var(dim=0, unbiased=False)


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
