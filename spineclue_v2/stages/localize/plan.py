"""Plan groups of stage localize."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeGuard

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from ...plans.fields import CONFIG, Amount, Batch, Fraction, ScheduledRun, check_multiples, check_order, one_of, planned

OLD_GAP_MM = 4.0          # a second look of plans that counted slices left no wider gaps
STRIDE = 32               # the coarsest of the detector's maps
Pixels = Annotated[int, Field(gt=0, le=4096)]
Positive = Annotated[float, Field(gt=0, le=10 ** 9)]


@dataclass(frozen=True, config=CONFIG)
class LocalizeNetwork:
    family: Annotated[str, planned("model family of ultralytics, such as yolo11")]
    scale: Annotated[str, one_of("n", "s", "m", "l", "x"), planned("size of the model in its family")]
    slice_size: Annotated[tuple[Pixels, Pixels], planned("edges (z, in plane) of a training slice, multiples of 32", "pixels")]

    @model_validator(mode="after")
    def _check(self) -> LocalizeNetwork:
        check_multiples("slice_size", self.slice_size, STRIDE, "the detector's coarsest grid")
        return self


@dataclass(frozen=True, config=CONFIG)
class LocalizeRun(ScheduledRun):
    batch_size: Annotated[Batch, planned("slices per training step", "slices")]
    slice_gap_mm: Annotated[float, Field(gt=0, le=50), planned(
        "distance of the slices of a plane (sagittal, coronal) where the spine is read; their number follows from the scan", "mm")]
    inference_batch: Annotated[Batch, planned("slices at a time in prediction", "slices")]
    min_score: Annotated[Fraction, planned("boxes of a lower score never reach the clustering")]
    nms_iou: Annotated[Fraction, planned("of two boxes that overlap more, the one of the lower score is dropped", "IoU")]
    eps_mm: Annotated[Positive, planned("radius of the position clustering, in scaled millimetres", "mm")]
    axis_scale: Annotated[tuple[Positive, Positive, Positive], planned(
        "distances along (z, y, x) are divided by these before the clustering")]
    min_samples_fraction: Annotated[Fraction, planned(
        "part of the slices expected to cross a vertebra that must hold a box of it", old_names=["min_samples_share"])]
    size_eps: Annotated[Amount, planned("radius of the size clustering, relative to the median height and width")]
    spacing_between_mm: Annotated[tuple[Positive, Positive], AfterValidator(check_order), planned(
        "smallest and largest plausible distance of neighbouring centres", "mm")]

    @staticmethod
    def upgrade(entries: Mapping[str, Any]) -> Mapping[str, Any]:
        """Entries of a plan of 0.1, which counted slices per plane, with the distance that it meant.

        So many slices lay over the whole field of view; where that left gaps wider than `OLD_GAP_MM`, a second look laid them closer.
        """
        if "slices_per_plane" not in entries or "slice_gap_mm" in entries:
            return entries
        old = entries["slices_per_plane"]
        count, source = (old.get("value"), old.get("from")) if isinstance(old, dict) else (old, None)
        field_mm = source.get("fov_p95_mm") if isinstance(source, dict) else None
        gap = min(OLD_GAP_MM, field_mm / count) if _is_positive(count) and _is_positive(field_mm) else OLD_GAP_MM
        return {**{key: value for key, value in entries.items() if key != "slices_per_plane"},
                "slice_gap_mm": {"value": gap, "rule": "from the slices per plane of an older plan", "from": {"slices_per_plane": count}}}


def _is_positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
