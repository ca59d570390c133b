"""A trained stage: its networks, one per fold, and what was fitted with them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch

Network = TypeVar("Network")

CHECKPOINT_NAME = "checkpoint_final.pth"


@dataclass
class StageModel(Generic[Network]):
    """Networks of one stage (one per fold) in evaluation mode, with the checkpoints' fitted values and extra tensors.

    `networks` are modules of PyTorch, or stand for them (`stages.converted.ConvertedNetwork`); `extra` are then arrays.
    """

    networks: list[Network]
    fitted: list[dict[str, Any]]
    extra: list[dict[str, torch.Tensor | np.ndarray]]
    sha256: list[str]                         # of the weights, not of the files
