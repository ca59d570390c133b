"""Monte-Carlo dropout in the head (SpineCLUE Eq. 5 and 6)."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .network import LevelNetwork


def entropy(probabilities: Tensor) -> Tensor:
    """(..., levels) -> (...): U = -sum p log p in nats (Eq. 6); 0 log 0 = 0."""
    return -torch.xlogy(probabilities, probabilities).sum(dim=-1)


@torch.inference_mode()
def monte_carlo(network: LevelNetwork, features: Tensor, samples: int = 20, temperature: float = 1.0,
                seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean probabilities (n, levels) and their entropy (n,) over `samples` dropout draws of the head.

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
    return mean, entropy(mean)
