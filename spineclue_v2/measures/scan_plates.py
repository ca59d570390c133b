"""End plates in the CT itself: where columns that come from the disc enter bone.

The bony end plate shows as a rise from disc to cortex. It is looked for column by column, and fitted as in a mask.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..imageio.volume import Volume
from ..stages.grade.heights import sample
from .bodies import EndPlate, Footprint, plate_of_points

STEP_MM = 0.5
COLUMN_MM = 1.5
BONE_ABOVE_DISC = 110.0     # HU by which bone must rise above the disc
FOOTPRINT = 0.9
ENOUGH = 0.6                # share of the columns that must meet the plate
NEAR_MM = 2.0               # of the plane: a column that meets the plate
EDGE_BAND_MM = 6.0
WIDER = 1.3                 # share of the footprint within which the plate's edges are looked for
STEEPEST_DEG = 45.0         # of a plane against the columns


@dataclass(frozen=True, eq=False)
class Columns:
    """Parallel columns of a CT in LPS order: they run against `up` (LPS unit vector), from `begin_mm` above `origin` (LPS mm) to `end_mm`
    below it, within a footprint whose depth lies along `back`."""

    view: Volume
    origin: np.ndarray
    up: np.ndarray
    back: np.ndarray
    half_depth_mm: float
    half_width_mm: float
    begin_mm: float
    end_mm: float

    def footprint(self) -> Footprint:
        grid = self.view.geometry
        up, back = ((direction @ np.asarray(grid.direction))[::-1] for direction in (self.up, self.back))
        back = back - (back @ up) * up
        back = back / np.linalg.norm(back)
        axes = np.stack([up, back, np.cross(up, back)])
        return Footprint(grid, grid.world_to_index(self.origin), axes, self.half_depth_mm, self.half_width_mm)


def find_plate(columns: Columns, rise: float) -> EndPlate | None:
    """The end plate that the columns meet; None where too few of them meet a common surface. `rise`: HU from disc to bone."""
    footprint = columns.footprint()
    points = _entries(columns, footprint, rise)
    height, y, x = points.T
    inner = np.square(y / columns.half_depth_mm) + np.square(x / columns.half_width_mm) <= FOOTPRINT ** 2
    good = inner & np.isfinite(height)
    if good.sum() < ENOUGH * inner.sum():
        return None
    keep = good & _around_plane(points, good)
    if keep.sum() < ENOUGH * inner.sum():
        return None
    first = plate_of_points(points[keep], footprint, None)
    edges = None if first is None else _edges(points, first, footprint)
    return None if edges is None else plate_of_points(points[keep], footprint, edges)


def _entries(columns: Columns, footprint: Footprint, rise: float) -> np.ndarray:
    """(n, 3) points (z', y', x') mm at which columns enter bone; z' is nan where one does not."""
    y = np.arange(-WIDER * columns.half_depth_mm, WIDER * columns.half_depth_mm + COLUMN_MM, COLUMN_MM)
    x = np.arange(-columns.half_width_mm, columns.half_width_mm + COLUMN_MM, COLUMN_MM)
    z = np.arange(columns.begin_mm, -columns.end_mm, -STEP_MM)
    array, spacing = columns.view.array, np.asarray(columns.view.spacing)
    ends = np.array([[a, b, c] for a in z[[0, -1]] for b in y[[0, -1]] for c in x[[0, -1]]])
    corners = footprint.centre + ends @ footprint.axes / spacing
    low = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, np.array(array.shape) - 1)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 2, low + 1, array.shape)
    part = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float32)
    values = sample(part, spacing, footprint.centre - low, footprint.axes, (z, y, x)).reshape(len(z), -1)
    values = (values[:-2] + values[1:-1] + values[2:]) / 3
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    return np.stack([z[1] - STEP_MM * first_entry(values, rise), grid_y.ravel(), grid_x.ravel()], axis=1)


def first_entry(columns: np.ndarray, rise: float) -> np.ndarray:
    """Sample (interpolated) at which each column (n_z, n), coming from a disc, enters bone: half way up the first rise of at least `rise`
    above the lowest value so far; nan where there is none."""
    count, every = len(columns), np.arange(columns.shape[1])
    row = np.arange(count)[:, None]
    risen = columns - np.minimum.accumulate(columns, axis=0) >= rise
    bone = np.where(risen.any(0), risen.argmax(0), count - 1)
    begin = np.where(row <= bone, columns, np.inf).argmin(0)
    falls = (np.diff(columns, axis=0, append=-np.inf) < 0) & (row >= bone)
    peak = falls.argmax(0)
    wanted = 0.5 * (columns[begin, every] + columns[peak, every])
    after = ((columns >= wanted) & (row > begin)).argmax(0)
    before = np.maximum(after - 1, 0)
    step = columns[after, every] - columns[before, every]
    found = before + (wanted - columns[before, every]) / np.maximum(step, 1e-6)
    return np.where(risen.any(0), found, np.nan)


def _around_plane(points: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Bool: near the plane through the most of the points `good` (planes through random threes, always the same ones)."""
    height, design = points[:, 0], np.stack([np.ones(len(points)), points[:, 1], points[:, 2]], axis=1)
    threes = np.random.default_rng(0).choice(np.flatnonzero(good), (200, 3))
    sound = np.abs(np.linalg.det(design[threes])) > 1.0
    if not sound.any():
        return good
    planes = np.linalg.solve(design[threes[sound]], height[threes[sound]][..., None])[..., 0]
    planes = planes[np.abs(planes[:, 1:]).max(1) <= np.tan(np.radians(STEEPEST_DEG))]
    if not len(planes):
        return good
    near = np.abs(height[:, None] - design @ planes.T) <= NEAR_MM
    return near[:, int((near & good[:, None]).sum(0).argmax())]


def _edges(points: np.ndarray, plate: EndPlate, footprint: Footprint) -> tuple[float, float] | None:
    """Front and back end (y' mm) of the run of columns round the middle, in the mid-sagittal band, that meet the plate."""
    _, y, x = points.T
    band = np.abs(x) <= EDGE_BAND_MM
    near = np.abs((footprint.world(points) - plate.centre) @ plate.normal) <= NEAR_MM + 1.0
    rows = np.unique(y)
    met = np.array([near[band & (y == row)].mean() >= 0.5 for row in rows])
    start = int(np.argmin(np.abs(rows)))
    if not met[start]:
        return None
    gaps = np.flatnonzero(~met)
    before, after = gaps[gaps < start], gaps[gaps > start]
    return (float(rows[before[-1] + 1] if len(before) else rows[0]) - COLUMN_MM / 2,
            float(rows[after[0] - 1] if len(after) else rows[-1]) + COLUMN_MM / 2)
