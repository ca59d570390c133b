"""Prediction of an MR scan: bodies and discs as a label map on the scan's grid."""
from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from ..imageio.orientation import oriented_view
from ..imageio.volume import ImageGrid, Volume
from ..preprocessing.mr import to_mr_space
from ..preprocessing.resampling import resampled_floats
from ..results import MRResult
from ..stages.registry import MR_STAGES
from .model import Model
from .pipeline import Progress


def mr_stage(model: Model) -> str:
    """The last MR stage that was trained: hybrid_3d where there is one, else the 2D branches alone."""
    return MR_STAGES[1] if MR_STAGES[1] in model.stages else MR_STAGES[0]


def predict_mr_volume(volume: Volume, model: Model, mirror: bool = False, progress: Progress | None = None
                      ) -> tuple[Volume, dict[str, float]]:
    """Label map on the grid of `volume` with the dataset's own values (uint8 or uint16), and seconds per step."""
    from ..stages.mr.level_assignment import name_levels
    from ..stages.mr.positional_prior import pooled
    from ..stages.mr.predictor import predict_2d, predict_3d

    stage = mr_stage(model)
    say = progress or (lambda step, fraction: None)
    seconds, started = {}, time.perf_counter()
    say("preprocess", 0.0)
    data = model.plans.stage(stage).data
    scan = to_mr_space(volume, data)
    seconds["preprocess"] = time.perf_counter() - started
    started = time.perf_counter()
    say(stage, 1 / 3)
    networks = model.stages[stage].networks
    if stage == MR_STAGES[1]:
        probability = predict_3d(scan.array, networks, model.plans, model.device, mirror)
    else:
        probability = predict_2d(scan.array, networks, model.plans.stage(stage), model.device, mirror)
    seconds[stage] = time.perf_counter() - started
    started = time.perf_counter()
    say("export", 2 / 3)
    places = pooled([fitted.get("places", {}) for fitted in model.stages[stage].fitted])
    named = name_levels(probability, replace(data, spacing_mm=scan.geometry.spacing), places)
    classes = most_likely(named, scan.geometry, volume.geometry, data.orientation)
    values = np.array([0, *data.label_values], np.uint8 if max(data.label_values) < 256 else np.uint16)
    seconds["export"] = time.perf_counter() - started
    return Volume(values[classes], volume.geometry), seconds


def most_likely(probability: np.ndarray, model: ImageGrid, target: ImageGrid, orientation: str) -> np.ndarray:
    """Class (uint8) at every voxel of `target`, decided as `apply_threshold` does; one class at a time is interpolated there.

    `probability` (C, slices, rows, columns) on the grid `model`, whose axes run towards `orientation`.
    """
    from ..stages.mr.threshold import BACKGROUND_COUNTS

    oriented = target.reoriented(orientation)[0]
    best, label = np.full(oriented.shape, -1.0, np.float32), np.zeros(oriented.shape, np.uint8)
    for number, share in enumerate(probability):
        here = resampled_floats(Volume(share, model), oriented, linear=True) * (1.0 if number else BACKGROUND_COUNTS)
        better = here > best
        best[better], label[better] = here[better], number
    return oriented_view(Volume(label, oriented), target.orientation).array


def predict_mr(volume: Volume, model: Model, mirror: bool = False, progress: Progress | None = None) -> MRResult:
    """Bodies and discs of an MR scan, with the label map on the scan's grid."""
    labels, seconds = predict_mr_volume(volume, model, mirror, progress)
    data = model.plans.stage(mr_stage(model)).data
    return MRResult((), False, None, seconds, grid=volume.geometry, label_volume=labels, stage=mr_stage(model),
                    classes=dict(zip(data.classes, data.label_values, strict=True)), orientation=data.orientation)
