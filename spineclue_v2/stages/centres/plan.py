"""Plan groups of stage centres."""
from __future__ import annotations

from typing import Annotated

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from ...plans.fields import CONFIG, Amount, Batch, Blocks, Box, Channels, Fraction, ScheduledRun, check_multiples, check_one_each, planned


@dataclass(frozen=True, config=CONFIG)
class CentresNetwork:
    patch_size: Annotated[Box, planned("patch (z, y, x) along the row; multiples of 2 ^ (resolutions - 1)", "voxels")]
    features: Annotated[tuple[Channels, ...], planned("channels per resolution; each halves the grid of the one before", min_length=1)]
    blocks: Annotated[tuple[Blocks, ...], planned("residual blocks per resolution of the encoder", min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> CentresNetwork:
        check_one_each("resolution", features=self.features, blocks=self.blocks)
        check_multiples("patch_size", self.patch_size, 2 ** (len(self.features) - 1),
                        f"which {len(self.features)} resolutions (features) can halve")
        return self


@dataclass(frozen=True, config=CONFIG)
class CentresRun(ScheduledRun):
    batch_size: Annotated[Batch, planned("patches per training step", "patches")]
    inference_batch: Annotated[Batch, planned("patches at a time in prediction", "patches")]
    sigma_mm: Annotated[Amount, planned("width of the Gaussian at a body's centre in the target", "mm", gt=0)]
    peak_weight: Annotated[Amount, planned("how much more a voxel counts at a centre than away from all")]
    least_score: Annotated[Fraction, planned("height of the heat map from which a peak is a body")]
