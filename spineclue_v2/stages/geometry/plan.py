"""Plan groups of stage geometry."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GeometryNetworkPlan:
    width: int                        # channels of the transformer
    layers: int
    heads: int                        # of the attention; divides the width
    dropout: float
    members: int                      # networks whose mean probability is the classifier's


@dataclass(frozen=True)
class GeometryRun:
    batch_size: int                   # scans a member sees per step
    epochs: int
    iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    label_smoothing: float
    sampled_spines: int               # spine curves of the phantom beside the dataset's own: levels that the dataset never shows
    window: float                     # fraction of scans cut to a random run of neighbours
    optimizer: str = "AdamW"
