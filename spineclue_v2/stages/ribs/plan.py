"""Plan groups of stage ribs."""
from __future__ import annotations

from typing import Annotated

from pydantic.dataclasses import dataclass

from ...plans.fields import CONFIG, Amount, Batch, Count, Run, Whole, planned


@dataclass(frozen=True, config=CONFIG)
class RibsNetwork:
    thresholds_hu: Annotated[tuple[float, ...], planned("what counts as bone, one reading each, from low to high", "HU", min_length=1)]


@dataclass(frozen=True, config=CONFIG)
class RibsRun(Run):
    batch_size: Annotated[Batch, planned("vertebrae per training step, the levels equally often", "vertebrae")]
    epochs: Annotated[Whole, planned("length of the training", "epochs")]
    iterations_per_epoch: Annotated[Count, planned("training steps per epoch", "steps")]
    initial_lr: Annotated[Amount, planned("learning rate of the first step; it falls to 0 as (1 - t) ^ 0.9")]
    weight_decay: Annotated[Amount, planned("weight decay of the optimiser")]
    centre_jitter_mm: Annotated[Amount, planned("training moves a body's centre by about this much", "mm")]
