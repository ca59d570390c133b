"""Plan groups of stage grade."""
from __future__ import annotations

from dataclasses import dataclass

from ...plans.data import Box


@dataclass(frozen=True)
class GradeNetwork:
    crop_size: Box                    # voxels (z, y, x) that a vertebra is zoomed to
    features: tuple[int, ...]         # channels per resolution
    blocks: tuple[int, ...]           # residual blocks with squeeze and excitation per resolution
    projection_dim: int
    windows_hu: tuple[tuple[float, float], ...]  # CT channels beside the mask


@dataclass(frozen=True)
class GradeRun:
    batch_size: int                   # vertebrae, the four grades equally often; the contrastive loss sees each twice
    epochs: int
    iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    contrastive_weight: float         # of the supervised contrastive loss beside cross entropy; 0 = cross entropy alone
    temperature: float
    detach_classifier: bool           # the classifier learns on features that it cannot change
    ordinal: bool                     # soft targets: a far grade is a worse mistake than a neighbouring one
