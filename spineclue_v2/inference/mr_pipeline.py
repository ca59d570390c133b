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

FEWEST_SLICES = 5      # sagittal ones: a localizer has three
WIDEST_STEP_MM = 8.0   # between sagittal slices; bodies are 45 mm wide
COARSEST_MM = 3.0      # of rows and columns: discs are 6 mm high at least
LEAST_TALL_MM = 40.0   # of the field: two bodies and their disc


def mr_stage(model: Model) -> str:
    """The stage that labels: hybrid_3d where there is one, else the 2D branches alone."""
    return next(stage.name for stage in reversed(pipeline_of("MR")) if stage.name in model.stages)


def check_mr_scan(volume: Volume, source: str = "The scan") -> None:
    """InputError, one sentence, for what is no sagittal MR of a spine: axial or coronal slices, localizers, single slices."""
    grid = volume.geometry.reoriented("PIL")[0]
    (slices, rows, _), (across, down, deep) = grid.shape, grid.spacing
    if max(down, deep) > COARSEST_MM and max(down, deep) > across:
        plane = "axial" if down > deep else "coronal"
        raise InputError(f"{source} has {plane} slices {max(down, deep):.1f} mm apart; expected sagittal or isotropic MR, so give the "
                         "sagittal series of the examination.")
    if slices < FEWEST_SLICES or across > WIDEST_STEP_MM:
        raise InputError(f"{source} has {slices} sagittal slices {across:.1f} mm apart, as a localizer has; expected {FEWEST_SLICES} or "
                         f"more, at most {WIDEST_STEP_MM:.0f} mm apart.")
    if max(down, deep) > COARSEST_MM or rows * down < LEAST_TALL_MM:
        raise InputError(f"{source} has pixels of {down:.1f} x {deep:.1f} mm over {rows * down:.0f} mm from top to bottom; expected at "
                         f"most {COARSEST_MM:.0f} mm over {LEAST_TALL_MM:.0f} mm or more.")


def predict_mr_volume(volume: Volume, model: Model, mirror: bool = False, progress: Progress | None = None
                      ) -> tuple[Volume, dict[str, float]]:
    """Label map on the grid of `volume` with the dataset's own values (uint8 or uint16), and seconds per stage."""
    result = predict_mr(volume, model, mirror, progress)
    assert result.label_volume is not None
    return result.label_volume, dict(result.seconds)


def predict_mr(volume: Volume, model: Model, mirror: bool = False, progress: Progress | None = None) -> MRResult:
    """Bodies and discs of an MR scan, with the label map on the scan's grid. InputError for a model of CT."""
    if model.modality != "MR":
        raise InputError(f"This is a model of CT (stages {', '.join(model.stages)}), which does not label MR; give one trained on MR.")
    findings, seconds = run_stages(Findings(straightened(volume, fill=0.0), flags=volume.flags), model, Options(mirror=mirror), progress)
    assert findings.labels is not None
    data = model.plans.stage(mr_stage(model)).data
    labels = sheared_labels(findings.labels, volume.geometry)
    flags = findings.flags if labels.array.any() else (*findings.flags, _nothing_found())
    return MRResult((), findings.anchored, None, seconds, tuple(findings.notes), dict(findings.extra), grid=volume.geometry,
                    label_volume=labels, stage=mr_stage(model), classes=dict(zip(data.classes, data.label_values, strict=True)),
                    orientation=data.orientation, flags=flags)


def _nothing_found() -> Flag:
    return Flag("no_vertebra", "result", "review", "No structure was found in this scan.", 0, 1,
                "Check that the scan is one of those that the model was trained for.")
