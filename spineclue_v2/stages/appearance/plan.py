"""Plan groups of stage appearance."""
from __future__ import annotations

from typing import Annotated

from pydantic.dataclasses import dataclass

from ...plans.data import Spacing
from ...plans.fields import CONFIG, Amount, Batch, Box, Channels, Count, Fraction, ScheduledRun, planned


@dataclass(frozen=True, config=CONFIG)
class AppearanceNetworkPlan:
    spacing_mm: Annotated[Spacing, planned("edge of the crop's voxels", "mm")]
    crop_size: Annotated[Box, planned("crop (z, y, x) around a vertebra", "voxels")]
    widths: Annotated[tuple[Channels, ...], planned("channels per resolution", min_length=1)]
    pool_grid: Annotated[Box, planned("cells (z, y, x) kept by the pooling before the classifier", "cells")]
    dropout: Annotated[Amount, planned("part of the classifier's inputs that training drops", lt=1)]
    landmarks: Annotated[bool, planned('sacrum and skull base are classes of their own, beside "not a vertebra"')] = False
    members: Annotated[Count, planned("networks whose mean probability is the classifier's", "networks", le=100)] = 1


@dataclass(frozen=True, config=CONFIG)
class AppearanceRun(ScheduledRun):
    batch_size: Annotated[Batch, planned("crops per training step, the levels equally often", "crops")]
    centre_jitter_mm: Annotated[Amount, planned("training moves the centre of a crop by about this much", "mm")]
    false_fraction: Annotated[Fraction, planned("part of a batch that lies around places that are no vertebra")]
