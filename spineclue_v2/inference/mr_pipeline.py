"""Prediction of an MR scan: label map on the input grid, volumes of the structures, a picture."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..export.case_record import versions
from ..export.structures import NO_STRUCTURE, structure_records
from ..imageio.orientation import oriented_view
from ..imageio.volume import ImageGrid, Volume, read_volume, write_volume
from ..preprocessing.mr import to_mr_space
from ..preprocessing.resampling import resampled_floats
from ..stages.registry import MR_STAGES
from ..utilities.files import write_json
from ..visualization.mr_report import write_mr_report
from .model import Model


def mr_stage(model: Model) -> str:
    """The last MR stage that was trained: hybrid_3d where there is one, else the 2D branches alone."""
    return MR_STAGES[1] if MR_STAGES[1] in model.stages else MR_STAGES[0]


def predict_mr_volume(volume: Volume, model: Model, mirror: bool = False) -> tuple[Volume, dict[str, float]]:
    """Label map on the grid of `volume` with the dataset's own values (uint8 or uint16), and seconds per step."""
    from ..stages.mr.level_assignment import name_levels
    from ..stages.mr.positional_prior import pooled
    from ..stages.mr.predictor import predict_2d, predict_3d

    seconds, started = {}, time.perf_counter()
    stage = mr_stage(model)
    data = model.plans.stage(stage).data
    scan = to_mr_space(volume, data)
    seconds["preprocess"] = time.perf_counter() - started
    started = time.perf_counter()
    networks = model.stages[stage].networks
    if stage == MR_STAGES[1]:
        probability = predict_3d(scan.array, networks, model.plans, model.device, mirror)
    else:
        probability = predict_2d(scan.array, networks, model.plans.stage(stage), model.device, mirror)
    seconds[stage] = time.perf_counter() - started
    started = time.perf_counter()
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


def predict_mr_case(path: Path, name: str, output: Path, model: Model, mirror: bool = False, report: bool = True,
                    on_read: Callable[[], object] | None = None) -> list[dict[str, Any]]:
    """Predict one MR and write CASE.nii.gz, CASE.png and, last, CASE.json; returns the structures."""
    started = time.perf_counter()
    volume = read_volume(path)
    seconds = {"read": time.perf_counter() - started}
    if on_read is not None:
        on_read()
    labels, steps = predict_mr_volume(volume, model, mirror)
    data = model.plans.stage(mr_stage(model)).data
    rows = structure_records(labels, dict(zip(data.classes, data.label_values, strict=True)))
    for ending in (".json", ".png"):  # what an earlier run left must neither vouch for half-replaced files nor show other ones
        (output / f"{name}{ending}").unlink(missing_ok=True)
    if report:
        write_mr_report(volume, labels, rows, data.orientation, output / f"{name}.png", name)
    write_volume(labels, output / f"{name}.nii.gz")
    seconds |= steps | {"total": time.perf_counter() - started}
    write_json(output / f"{name}.json", {
        "status": "ok" if rows else NO_STRUCTURE, "stage": mr_stage(model), "structures": rows, "plans": model.record,
        "versions": versions(), "seconds": {key: round(float(value), 3) for key, value in seconds.items()}})
    return rows
