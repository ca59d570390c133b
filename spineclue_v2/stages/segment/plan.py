"""Plan groups of stage segment."""
from __future__ import annotations

from typing import Annotated

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from ...plans.fields import CONFIG, Amount, Batch, Blocks, Box, Channels, Fraction, ScheduledRun, check_multiples, check_one_each, planned


@dataclass(frozen=True, config=CONFIG)
class SegmentNetwork:
    architecture: Annotated[str, planned("ResEnc or TransUNet3D; a trainer with a network of its own may read other names")]
    crop_size: Annotated[Box, planned("crop (z, y, x) around a located vertebra; multiples of 2 ^ (resolutions - 1)", "voxels")]
    features: Annotated[tuple[Channels, ...], planned("channels per resolution; each halves the grid of the one before", min_length=1)]
    blocks: Annotated[tuple[Blocks, ...], planned("residual blocks per resolution of the encoder", min_length=1)]
    heatmap_sigma_mm: Annotated[Amount, planned("width of the Gaussian at the located centre", "mm", gt=0)]

    @model_validator(mode="after")
    def _check(self) -> SegmentNetwork:
        check_one_each("resolution", features=self.features, blocks=self.blocks)
        stride = 2 ** (len(self.features) - 1)
        check_multiples("crop_size", self.crop_size, stride, f"which {len(self.features)} resolutions (features) can halve")
        if all(n == stride for n in self.crop_size):
            raise ValueError(f"crop_size is {' x '.join(map(str, self.crop_size))}, a single voxel on the coarsest grid of "
                             f"{len(self.features)} resolutions (features); expected at least {2 * stride} along one axis")
        return self


@dataclass(frozen=True, config=CONFIG)
class SegmentRun(ScheduledRun):
    batch_size: Annotated[Batch, planned("crops per training step", "crops")]
    inference_batch: Annotated[Batch, planned("crops at a time in prediction", "crops")]
    centre_jitter_mm: Annotated[Amount, planned("training moves the centre of the heat map by up to this much", "mm")]
    min_volume_ml: Annotated[Amount, planned("smaller bodies are no vertebra", "ml")]
    overlap_dice: Annotated[Fraction, planned("two located centres whose masks overlap more are the same vertebra", "Dice")]
