"""Prediction of an MR scan: bodies and discs as a label map on the scan's grid."""
from __future__ import annotations

from ..errors import InputError
from ..flags import Flag
from ..imageio.volume import Volume
from ..preprocessing.straighten import sheared_labels, straightened
from ..results import MRResult
from ..stages.base import Findings, Options
from ..stages.registry import pipeline_of
from .model import Model
from .pipeline import Progress, run_stages


def mr_stage(model: Model) -> str:
    """The stage that labels: hybrid_3d where there is one, else the 2D branches alone."""
    return next(stage.name for stage in reversed(pipeline_of("MR")) if stage.name in model.stages)


def predict_mr_volume(volume: Volume, model: Model, mirror: bool = False, progress: Progress | None = None
                      ) -> tuple[Volume, dict[str, float]]:
    """Label map on the grid of `volume` with the dataset's own values (uint8 or uint16), and seconds per stage."""
    if model.modality != "MR":
        raise InputError(f"This is a model of CT (stages {', '.join(model.stages)}), which does not label MR; give one trained on MR.")
    findings, seconds = run_stages(Findings(straightened(volume, fill=0.0)), model, Options(mirror=mirror), progress)
    assert findings.labels is not None
    return sheared_labels(findings.labels, volume.geometry), seconds


def predict_mr(volume: Volume, model: Model, mirror: bool = False, progress: Progress | None = None) -> MRResult:
    """Bodies and discs of an MR scan, with the label map on the scan's grid. InputError for a model of CT."""
    labels, seconds = predict_mr_volume(volume, model, mirror, progress)
    data = model.plans.stage(mr_stage(model)).data
    flags = volume.flags if labels.array.any() else (*volume.flags, _nothing_found())
    return MRResult((), False, None, seconds, grid=volume.geometry, flags=flags, label_volume=labels, stage=mr_stage(model),
                    classes=dict(zip(data.classes, data.label_values, strict=True)), orientation=data.orientation)


def _nothing_found() -> Flag:
    return Flag("no_vertebra", "result", "review", "No structure was found in this scan.", 0, 1,
                "Check that the scan is one of those that the model was trained for.")
