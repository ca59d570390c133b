"""Plan groups of stage appearance."""
from __future__ import annotations

from dataclasses import dataclass

from ...plans.data import Box


@dataclass(frozen=True)
class AppearanceNetworkPlan:
    spacing_mm: float                 # of the crop: half a rib's width; finer would cost time, coarser would lose the ribs
    crop_size: Box                    # voxels: two to three vertebrae up and down, the ribs' beginnings at the sides
    widths: tuple[int, ...]           # channels per resolution
    pool_grid: Box                    # spatial cells kept by the pooling: above and below, before and behind; left and right mean the same
    dropout: float
    landmarks: bool = False           # sacrum and skull base are classes of their own, beside "not a vertebra"
    members: int = 1                  # networks whose mean probability is the classifier's


@dataclass(frozen=True)
class AppearanceRun:
    batch_size: int                   # crops, levels equally often
    epochs: int
    iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    centre_jitter_mm: float           # located centres err by about as much
    false_fraction: float             # crops of a batch around places that are no vertebra
    optimizer: str = "AdamW"
