"""The upper end plate of S1, which no mask of ours holds: looked for in the CT below the last lumbar vertebra.

Columns run from the last lumbar end plate downwards, through the disc. Where they enter bone again, S1 begins. A plane is fitted to those
places as to any other end plate. Another tool's mask of the sacrum serves in the same way.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..imageio.grid import ImageGrid
from ..imageio.orientation import oriented_view
from ..imageio.volume import Volume
from ..stages.grade.heights import sample
from .bodies import Body, EndPlate, Footprint, plate_of_points

REACH_MM = 28.0             # furthest end plate below the last lumbar one, at the front of a high and lordotic disc
BEGIN_MM = -3.0             # the mask may end before the bone does
STEP_MM = 0.5
COLUMN_MM = 1.5
BONE_ABOVE_DISC = 110.0     # HU by which bone must rise above the disc
FOOTPRINT = 0.8
ENOUGH = 0.6                # share of the columns that must meet the plate
NEAR_MM = 2.0               # of the plane: a column that meets the plate
EDGE_BAND_MM = 6.0
WIDER = 1.3                 # share of the footprint within which the plate's edges are looked for
STEEPEST_DEG = 45.0         # between the two end plates of the lowest disc
NOT_LOWEST = "not in view"
NOT_SEEN = "not seen clearly enough below the last lumbar vertebra"


def sacral_plate(bodies: Sequence[Body], scan: Volume | None, sacrum: Volume | None) -> Body | str:
    """S1 with its upper end plate alone, below the L5 or L6 of `bodies`; in words ("is ...") why there is none.

    `scan`: the CT (HU); `sacrum`: a mask of the sacrum, which is used where it is given. Both in any orientation.
    """
    last = bodies[-1] if bodies else None
    if last is None or last.level not in ("L5", "L6") or last.lower is None:
        return NOT_LOWEST
    if sacrum is not None:
        view = oriented_view(Volume((sacrum.array > 0).astype(np.uint8), sacrum.geometry))
        return _search(last, last.lower, view, 0.5) or NOT_SEEN
    if scan is None:
        return "not known without the CT"
    return _search(last, last.lower, oriented_view(scan), BONE_ABOVE_DISC) or NOT_SEEN


def _search(last: Body, plate: EndPlate, view: Volume, rise: float) -> Body | None:
    """Twice: along the last lumbar end plate's normal, then along the normal of what was found."""
    half_depth, half_width = max(plate.length_mm / 2, last.half_depth_mm), last.half_width_mm
    grid = view.geometry
    up, origin, begin, found = plate.normal, 0.5 * (plate.front + plate.back), BEGIN_MM, None
    for _ in range(2):
        axes = _axes(up, last.axes[1], grid)
        y, x, height = _surface(view, grid.world_to_index(origin), axes, half_depth, half_width, begin, rise)
        inner = np.square(y / half_depth) + np.square(x / half_width) <= FOOTPRINT ** 2
        good = inner & np.isfinite(height)
        if good.sum() < ENOUGH * inner.sum():
            return None
        keep = good & _around_plane(y, x, height, good)
        if keep.sum() < ENOUGH * inner.sum():
            return None
        footprint = Footprint(grid, grid.world_to_index(origin), axes, half_depth, half_width)
        points = np.stack([height, y, x], axis=1)
        first = plate_of_points(points[keep], footprint, None)
        edges = None if first is None else _edges(points, first, footprint)
        found = plate_of_points(points[keep], footprint, edges)
        if edges is None or found is None:
            return None
        if np.degrees(np.arccos(np.clip(found.normal @ plate.normal, -1, 1))) > STEEPEST_DEG:
            return None
        # From here on columns begin in the disc, half way between both end plates.
        up, origin, begin = found.normal, 0.5 * (found.front + found.back), -0.5 * float(np.linalg.norm(found.centre - plate.centre))
        origin, begin = origin - begin * up, 0.0
    assert found is not None
    rows = np.stack([np.asarray(grid.direction) @ row[::-1] for row in axes])
    return Body("S1", last.confidence, found.centre, rows, half_depth, half_width, found, None, "only its upper end plate is looked for")


def _axes(up: np.ndarray, back: np.ndarray, grid: ImageGrid) -> np.ndarray:
    """Rows z', y', x' in array order for LPS directions `up` and, roughly, `back`."""
    up = (up @ np.asarray(grid.direction))[::-1]
    back = (back @ np.asarray(grid.direction))[::-1]
    back = back - (back @ up) * up
    back = back / np.linalg.norm(back)
    return np.stack([up, back, np.cross(up, back)])


def _surface(view: Volume, centre: np.ndarray, axes: np.ndarray, half_depth: float, half_width: float, begin: float, rise: float
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y', x' and height (mm, negative: below `centre`; nan: never) at which columns enter bone, each flat."""
    y = np.arange(-WIDER * half_depth, WIDER * half_depth + COLUMN_MM, COLUMN_MM)
    x = np.arange(-half_width, half_width + COLUMN_MM, COLUMN_MM)
    z = np.arange(-begin, -REACH_MM, -STEP_MM)
    spacing = np.asarray(view.spacing)
    corners = centre + np.array([[a, b, c] for a in z[[0, -1]] for b in y[[0, -1]] for c in x[[0, -1]]]) @ axes / spacing
    low = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, np.array(view.array.shape) - 1)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 2, low + 1, view.array.shape)
    part = view.array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float32)
    columns = sample(part, spacing, centre - low, axes, (z, y, x))
    columns = (columns + np.roll(columns, 1, 0) + np.roll(columns, -1, 0))[1:-1].reshape(len(z) - 2, -1) / 3
    height = np.array([_entry(column, rise) for column in columns.T]) * -STEP_MM + z[1]
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    return grid_y.ravel(), grid_x.ravel(), height


def _entry(column: np.ndarray, rise: float) -> float:
    """Sample (interpolated) at which a column that comes from a disc enters bone: half way up the first rise of at least `rise` above the
    lowest value so far; nan where there is none."""
    lowest = np.minimum.accumulate(column)
    bone = np.flatnonzero(column - lowest >= rise)
    if not len(bone):
        return float("nan")
    begin = int(np.argmin(column[:bone[0] + 1]))
    peak = bone[0]
    while peak + 1 < len(column) and column[peak + 1] >= column[peak]:
        peak += 1
    wanted = 0.5 * (column[begin] + column[peak])
    after = begin + int(np.argmax(column[begin:peak + 1] >= wanted))
    if after == begin:
        return float(begin)
    return after - 1 + float((wanted - column[after - 1]) / max(column[after] - column[after - 1], 1e-6))


def _around_plane(y: np.ndarray, x: np.ndarray, height: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Bool: near the plane through the most of the points `good` (planes through random threes, always the same ones)."""
    points = np.stack([np.ones_like(y), y, x], axis=1)
    chosen, rng, best, most = np.flatnonzero(good), np.random.default_rng(0), good, -1
    for _ in range(200):
        three = rng.choice(chosen, 3, replace=False)
        try:
            plane = np.linalg.solve(points[three], height[three])
        except np.linalg.LinAlgError:
            continue
        if np.abs(plane[1:]).max() > np.tan(np.radians(STEEPEST_DEG)):
            continue
        near = np.abs(height - points @ plane) <= NEAR_MM
        count = int((near & good).sum())
        if count > most:
            best, most = near, count
    return best


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
