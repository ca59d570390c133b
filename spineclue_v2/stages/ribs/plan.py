"""Plan groups of stage ribs."""
from __future__ import annotations

from typing import Annotated

from pydantic.dataclasses import dataclass

from ...plans.fields import CONFIG, Amount, Batch, ScheduledRun, planned


@dataclass(frozen=True, config=CONFIG)
class RibsNetwork:
    thresholds_hu: Annotated[tuple[float, ...], planned("what counts as bone, one reading each, from low to high", "HU", min_length=1)]


@dataclass(frozen=True, config=CONFIG)
class RibsRun(ScheduledRun):
    batch_size: Annotated[Batch, planned("vertebrae per training step, the levels equally often", "vertebrae")]
    centre_jitter_mm: Annotated[Amount, planned("training moves a body's centre by about this much", "mm")]
