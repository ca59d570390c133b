"""Prediction of an MR scan: label map on the input grid, volumes of the structures, a picture."""
from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..export.case_record import versions
from ..export.structures import NO_STRUCTURE, structure_records
from ..imageio.volume import Volume, read_volume, write_volume
from ..stages.base import Findings, Options
from ..stages.registry import pipeline_of
from ..utilities.files import write_json
from ..visualization.mr_report import write_mr_report
from .model import Model
from .pipeline import run_stages


def mr_stage(model: Model) -> str:
    """The stage that labels: hybrid_3d where there is one, else the 2D branches alone."""
    return next(stage.name for stage in reversed(pipeline_of("MR")) if stage.name in model.stages)


def predict_mr_volume(volume: Volume, model: Model, mirror: bool = False) -> tuple[Volume, dict[str, float]]:
    """Label map on the grid of `volume` with the dataset's own values (uint8 or uint16), and seconds per stage."""
    if model.modality != "MR":
        raise InputError(f"This is a model of CT (stages {', '.join(model.stages)}), which does not label MR; give one trained on MR.")
    findings, seconds = run_stages(Findings(volume), model, Options(mirror=mirror))
    assert findings.labels is not None
    return findings.labels, seconds


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
