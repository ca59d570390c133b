"""Plan groups of stage grade."""
from __future__ import annotations

from typing import Annotated

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from ...plans.fields import (
    CONFIG,
    Amount,
    Batch,
    Blocks,
    Box,
    Channels,
    Count,
    ScheduledRun,
    Window,
    check_multiples,
    check_one_each,
    planned,
)


@dataclass(frozen=True, config=CONFIG)
class GradeNetwork:
    crop_size: Annotated[Box, planned("crop (z, y, x) that a vertebra is zoomed to; multiples of 2 ^ resolutions", "voxels")]
    features: Annotated[tuple[Channels, ...], planned("channels per resolution; each halves the grid, the first one too", min_length=1)]
    blocks: Annotated[tuple[Blocks, ...], planned("residual blocks with squeeze and excitation per resolution", min_length=1)]
    projection_dim: Annotated[Count, planned("length of the vectors that the contrastive loss compares", le=1 << 16)]
    windows_hu: Annotated[tuple[Window, ...], planned("CT windows beside the mask; one input channel each", "HU", min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> GradeNetwork:
        check_one_each("resolution", features=self.features, blocks=self.blocks)
        resolutions = len(self.features)
        check_multiples("crop_size", self.crop_size, 2 ** resolutions, f"which {resolutions} resolutions (features) can halve")
        return self


@dataclass(frozen=True, config=CONFIG)
class GradeRun(ScheduledRun):
    batch_size: Annotated[Batch, planned("vertebrae per training step, the four grades equally often; the contrastive loss sees each "
                                         "twice", "vertebrae")]
    contrastive_weight: Annotated[Amount, planned("of the supervised contrastive loss beside cross entropy; 0: cross entropy alone")]
    temperature: Annotated[Amount, planned("of the contrastive loss", gt=0)]
    detach_classifier: Annotated[bool, planned("the classifier learns on features that it cannot change")]
    ordinal: Annotated[bool, planned("soft targets: a far grade is a worse mistake than a neighbouring one")]
