"""Prediction of an MR scan: label map on the input grid, volumes of the structures, a picture."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import structures
from ..mr_preprocessing import to_mr_space
from ..plans import MR_STAGES
from ..preprocessing import oriented_view, resampled_floats
from ..storage import atomic_path, write_json
from ..volume import Geometry, Volume, read_volume, write_volume
from .export import versions
from .model import Model

logger = logging.getLogger(__name__)

NO_STRUCTURE = "no structure found"
TILES = 5                 # sagittal slices shown
DPI = 110


def mr_stage(model: Model) -> str:
    """The last MR stage that was trained: hybrid_3d where there is one, else the 2D branches alone."""
    return MR_STAGES[1] if MR_STAGES[1] in model.stages else MR_STAGES[0]


def predict_mr_volume(volume: Volume, model: Model, mirror: bool = False) -> tuple[Volume, dict[str, float]]:
    """Label map on the grid of `volume` with the dataset's own values (uint8 or uint16), and seconds per step."""
    from ..stages.hybrid.naming import name_levels
    from ..stages.hybrid.places import pooled
    from ..stages.hybrid.predictor import predict_2d, predict_3d

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


def most_likely(probability: np.ndarray, model: Geometry, target: Geometry, orientation: str) -> np.ndarray:
    """Class (uint8) at every voxel of `target`, decided as `decide` does; one class at a time is interpolated there.

    `probability` (C, slices, rows, columns) on the grid `model`, whose axes run towards `orientation`.
    """
    from ..stages.hybrid.decision import BACKGROUND_COUNTS

    oriented = target.reoriented(orientation)[0]
    best, label = np.full(oriented.shape, -1.0, np.float32), np.zeros(oriented.shape, np.uint8)
    for number, share in enumerate(probability):
        here = resampled_floats(Volume(share, model), oriented, linear=True) * (1.0 if number else BACKGROUND_COUNTS)
        better = here > best
        best[better], label[better] = here[better], number
    return oriented_view(Volume(label, oriented), target.orientation).array


def structure_records(labels: Volume, classes: dict[str, int]) -> list[dict[str, Any]]:
    """Per structure found: name, kind, label, volume (ml), centroid (LPS mm), whether it touches the border; in the plan's order."""
    from ..preprocessing import label_boxes

    boxes, rows = label_boxes(labels.array), []
    shape, ml = np.array(labels.array.shape), float(np.prod(labels.spacing)) / 1000
    for name, value in classes.items():
        if value not in boxes:
            continue
        box = boxes[value]
        mask = labels.array[box] == value
        start, stop = np.array([s.start for s in box]), np.array([s.stop for s in box])
        centroid = labels.geometry.index_to_world(start + np.mean(np.nonzero(mask), axis=1))
        rows.append({"structure": name, "kind": structures.kind(name), "label": value, "volume_ml": round(float(mask.sum()) * ml, 3),
                     "centroid_mm": [round(float(c), 2) for c in centroid],
                     "touches_border": bool((start == 0).any() or (stop == shape).any())})
    return rows


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


def write_mr_report(volume: Volume, labels: Volume, rows: list[dict[str, Any]], orientation: str, path: Path, title: str) -> None:
    """`CASE.png`: sagittal slices through the labelled part, structures outlined in colour and named on the middle one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scan, found = oriented_view(volume, orientation), oriented_view(labels, orientation)
    inside = np.flatnonzero((found.array > 0).any((1, 2)))
    first, last = (inside[0], inside[-1]) if len(inside) else (0, scan.array.shape[0] - 1)
    chosen = np.unique(np.linspace(first, last, TILES).round().astype(int))
    high, wide = (n * s for n, s in zip(scan.array.shape[1:], scan.spacing[1:], strict=True))
    tall = 7.0
    figure = Figure(figsize=(max(6.0, tall * wide / high * len(chosen)), tall + 0.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}: {len(rows)} structures" if rows else f"{title}: {NO_STRUCTURE}", color="white")
    window = np.percentile(scan.array[scan.array != 0] if (scan.array != 0).any() else scan.array, (1, 99.5))
    for number, (axis, index) in enumerate(zip(np.atleast_1d(figure.subplots(1, len(chosen))), chosen, strict=True)):
        extent = (0, wide, high, 0)
        axis.imshow(scan.array[index], cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="bilinear")
        axis.set_axis_off()
        axis.set_title(f"slice {index + 1}", color="white", fontsize="small")
        for row in rows:
            mask = found.array[index] == row["label"]
            if not mask.any():
                continue
            colour = _colour(row["structure"])
            y, x = ((np.arange(n) + 0.5) * s for n, s in zip(mask.shape, scan.spacing[1:], strict=True))
            axis.contourf(x, y, mask, levels=[0.5, 1.5], colors=[colour], alpha=0.35)
            axis.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=0.8)
            if number == len(chosen) // 2:
                axis.text(x[mask.any(0)].mean(), y[mask.any(1)].mean(), row["structure"], color="white", fontsize=7,
                          ha="center", va="center")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="black", format="png")


def _colour(name: str) -> tuple[float, float, float]:
    """RGB 0..1: a vertebra's own colour, a disc's between its neighbours' and white, grey for the rest."""
    from ..anatomy import colour

    kind, upper = structures.kind(name), name.split("/")[0]
    if kind == "other" or name == structures.SACRUM:
        return (0.67, 0.67, 0.67)
    red, green, blue = (c / 255 for c in colour(upper))
    return (red, green, blue) if kind == "body" else ((red + 1) / 2, (green + 1) / 2, (blue + 1) / 2)
