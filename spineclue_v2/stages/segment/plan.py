"""Plan groups of stage segment."""
from __future__ import annotations

from dataclasses import dataclass

from ...plans.data import Box


@dataclass(frozen=True)
class SegmentNetwork:
    architecture: str                 # "ResEnc" or "TransUNet3D"
    crop_size: Box                    # voxels (z, y, x)
    features: tuple[int, ...]         # channels per resolution
    blocks: tuple[int, ...]           # residual blocks per resolution of the encoder
    heatmap_sigma_mm: float


@dataclass(frozen=True)
class SegmentRun:
    batch_size: int
    epochs: int
    iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    inference_batch: int
    centre_jitter_mm: float           # the heat map is made from centres moved by up to this much
    min_volume_ml: float              # smaller bodies are no vertebra
    overlap_dice: float               # two located centres whose masks overlap more are the same vertebra
