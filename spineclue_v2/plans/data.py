"""Plan groups `data`: the network spaces of CT and MR."""
from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from .fields import CONFIG, LARGEST_NUMBER, Whole, Window, check_one_each, planned

SIDES = {"L": "L", "R": "L", "P": "P", "A": "P", "S": "S", "I": "S"}


def _check_orientation(letters: str) -> str:
    if sorted(SIDES.get(letter, "") for letter in letters) != ["L", "P", "S"]:
        raise ValueError("expected one letter for each axis, such as LPS")
    return letters


Orientation = Annotated[str, AfterValidator(_check_orientation)]
Spacing = Annotated[float, Field(gt=0, le=50)]
Percent = Annotated[float, Field(ge=0, le=100)]
Hounsfield = Annotated[int, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]


@dataclass(frozen=True, config=CONFIG)
class Data:
    """Network space of the CT stages."""

    spacing_mm: Annotated[Spacing, planned("edge of a voxel, the same along all axes", "mm")]
    orientation: Annotated[Orientation, planned("sides that the x, y and z index axes run towards")] = "LPS"
    hu_min: Annotated[Hounsfield, planned("lower limit of the stored int16 volume", "HU")] = -1024
    hu_max: Annotated[Hounsfield, planned("upper limit of the stored int16 volume", "HU")] = 3071
    windows_hu: Annotated[tuple[Window, ...], planned(
        "lower and upper limit of each CT window; one input channel per window", "HU", min_length=1)] = (
        (-200.0, 400.0), (-100.0, 1300.0))


@dataclass(frozen=True, config=CONFIG)
class MRData:
    """Network space of the MR stages: sagittal slices, z-scored; class k + 1 is `classes[k]`."""

    spacing_mm: Annotated[tuple[Spacing, Spacing, Spacing], planned("edges of a voxel (slice, row, column)", "mm")]
    orientation: Annotated[Orientation, planned(
        "sides that the x, y and z index axes run towards; PIL: slices to the left, rows to the feet")]
    percentiles: Annotated[tuple[Percent, Percent], planned(
        "of the non-zero voxels: intensities are clipped there before the z-score", "%")]
    classes: Annotated[tuple[str, ...], planned("canonical names of the structures", min_length=1)]
    label_values: Annotated[tuple[Whole, ...], planned(
        "the dataset's own value of each class, used in written label maps", min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> MRData:
        check_one_each("structure", classes=self.classes, label_values=self.label_values)
        return self
