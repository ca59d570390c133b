"""Plan groups of stage localize."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LocalizeNetwork:
    family: str                       # ultralytics model family, e.g. "yolo11"
    scale: str                        # n, s, m, l, x
    slice_size: tuple[int, int]       # (z, in-plane) pixels of a training slice, multiples of 32


@dataclass(frozen=True)
class LocalizeRun:
    batch_size: int
    epochs: int
    iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    slices_per_plane: int             # k: slices per plane and scan at inference
    inference_batch: int
    min_score: float                  # boxes below never reach the clustering
    nms_iou: float
    eps_mm: float                     # radius of the position clustering, in scaled millimetres
    axis_scale: tuple[float, float, float]  # (z, y, x): distances are divided by these before clustering
    min_samples_fraction: float          # share of the slices expected to cross a vertebra that must hold a box
    size_eps: float                   # radius of the size clustering, relative to the median height and width
    spacing_between_mm: tuple[float, float]  # smallest and largest plausible distance of neighbouring centres
