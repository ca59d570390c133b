"""Plan groups `data`: the network spaces of CT and MR."""
from __future__ import annotations

from dataclasses import dataclass

Box = tuple[int, int, int]


@dataclass(frozen=True)
class Data:
    """Network space of a stage: isotropic spacing (mm), orientation, HU limits of the stored int16 volume, CT windows (channels)."""

    spacing_mm: float
    orientation: str = "LPS"
    hu_min: int = -1024
    hu_max: int = 3071
    windows_hu: tuple[tuple[float, float], ...] = ((-200.0, 400.0), (-100.0, 1300.0))


@dataclass(frozen=True)
class MRData:
    """Network space of the MR stages: sagittal slices, z-scored; class k + 1 is `classes[k]` (canonical names)."""

    spacing_mm: tuple[float, float, float]   # (slice, row, column)
    orientation: str                  # x, y, z index axes run towards these sides; "PIL": slices to the left, rows to the feet
    percentiles: tuple[float, float]  # of the non-zero voxels: intensities are clipped there before the z-score
    classes: tuple[str, ...]
    label_values: tuple[int, ...]     # the dataset's own value of each class, used in written label maps
