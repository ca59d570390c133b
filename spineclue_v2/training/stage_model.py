"""A trained stage: its networks, one per fold, and what was fitted with them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

Network = TypeVar("Network", bound=torch.nn.Module)

CHECKPOINT_NAME = "checkpoint_final.pth"


@dataclass
class StageModel(Generic[Network]):
    """Networks of one stage (one per fold) in evaluation mode, with the checkpoints' fitted values and extra tensors."""

    networks: list[Network]
    fitted: list[dict[str, Any]]
    extra: list[dict[str, torch.Tensor]]
    sha256: list[str]                         # of the weights, not of the files
