"""Bodies with their end plates, fitted in 3D to the masks: what every angle and distance of this room rests on.

An end plate is the surface where columns along the body's axis leave the mask. A curved surface is fitted robustly to it over the whole
footprint of the body, and the plane runs through the rims of that surface, as the line does that a reader draws.
All points and directions that leave this module are LPS mm (x, y, z).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..anatomy.vertebra import BodyFrame, Vertebra
from ..imageio.grid import ImageGrid
from ..stages.grade.comparison import USUAL
from ..stages.grade.heights import axes_along, crossing, line_ends, measure, sample
from ..stages.grade.trust import inside, voxel_along
from ..utilities.triples import Floats3
from .stairs import stair_slope
from .usual_wedge import turns_to_usual

STEP_MM = 1.0               # between columns
Z_STEP_MM = 0.5             # along columns, as `crossing` counts
FOOTPRINT = 0.95            # share of depth and width that the fit looks at: beyond lie spurs
RIM = 0.85                  # share of depth and width between which the slope is taken
FEWEST_COLUMNS = 40
ROUGHEST_MM = 0.7           # residual above which there is no end plate: 0.56 at most in whole reference masks of 1 mm
ROUGHEST_VOXELS = 0.36      # the same in voxels: 0.29 is the deviation of a place that may be anywhere in one
SCALE_MM, SCALE_VOXELS = 0.6, 0.3   # deviation of columns that is always taken for noise, mm and voxels along the column
THICK = 1.6                 # times as far apart as voxels in the plane: slices between which a mask is interpolated by its shape
SOFT_MM = 6.0
COARSEST = 0.15             # share of the body's depth that a voxel along the spine may not reach: steps would tilt the plate
STEEPEST = 0.6              # slope against the body's own axis above which it is none
BELOW_PLATE_MM = 2.5        # where the plate's front and back edge are looked for, inside the body
AXIS_WIDTH_MM = 8.0         # half the width of the lower end plate of C2 where C3 does not tell

CUT = "cut by the border of the scan"
TOO_COARSE = "voxels along the spine are too coarse for so small a body"
NO_PLATES = "its end plates are not clear in the mask"


@dataclass(frozen=True, eq=False)
class EndPlate:
    """A fitted end plate. Points and unit vectors are LPS mm (x, y, z).

    `centre`: the middle of the fitted plane, at the rims' height; `normal`: cranial; `front`, `back`: where the plane meets the anterior
    and posterior edge of the body in its mid-sagittal plane; `right`, `left`: ends of the mid-coronal line; `surface`: (3, 3) points of the
    end plate itself, hollow as it is, near the front, in the middle and near the back; `residual_mm`: roughness round the fit.
    """

    centre: np.ndarray
    normal: np.ndarray
    front: np.ndarray
    back: np.ndarray
    right: np.ndarray
    left: np.ndarray
    surface: np.ndarray
    residual_mm: float

    @property
    def length_mm(self) -> float:
        """From the front to the back edge."""
        return float(np.linalg.norm(self.back - self.front))

    def nod(self, axes: np.ndarray) -> float:
        """Degrees by which it falls to the front in the frame `axes` (3, 3): rows cranial, posterior, left, LPS."""
        up, back, _ = axes @ self.normal
        return float(np.degrees(np.arctan2(-back, up)))

    def nodded(self, degrees: float, axes: np.ndarray) -> EndPlate:
        """The end plate turned about its centre and the left axis of `axes`, so that it falls `degrees` more to the front."""
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = axes.T @ np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]]) @ axes
        front, back, right, left, surface = (self.centre + (points - self.centre) @ turn.T
                                             for points in (self.front, self.back, self.right, self.left, self.surface))
        return EndPlate(self.centre, turn @ self.normal, front, back, right, left, surface, self.residual_mm)


@dataclass(frozen=True, eq=False)
class Body:
    """One vertebral body. `centre` LPS mm; `axes` (3, 3): rows are the cranial, posterior and left unit vectors, LPS; `half_depth_mm`,
    `half_width_mm` of the footprint; `upper`, `lower`: end plates, None where `why_not` says why; `confidence` of the level's name;
    `frame`: in the vertebra's mask."""

    level: str
    confidence: float | None
    centre: np.ndarray
    axes: np.ndarray
    half_depth_mm: float
    half_width_mm: float
    upper: EndPlate | None = None
    lower: EndPlate | None = None
    why_not: str | None = None
    frame: BodyFrame | None = None


@dataclass(frozen=True, eq=False)
class Footprint:
    """Where a plate is looked for: `centre` index of `grid`, `axes` rows z', y', x' in array order (mm), half its depth and width."""

    grid: ImageGrid
    centre: np.ndarray
    axes: np.ndarray
    half_depth_mm: float
    half_width_mm: float

    def roughest(self) -> float:
        """Residual (mm) above which points along z' are no end plate: what voxels of the grid alone could make, or ROUGHEST_MM."""
        return max(ROUGHEST_MM, ROUGHEST_VOXELS * self.voxel_mm())

    def voxel_mm(self) -> float:
        """How far a voxel reaches along z'."""
        return float(np.square(self.axes[0]) @ np.asarray(self.grid.spacing))

    def world(self, local: np.ndarray) -> np.ndarray:
        """LPS mm of points (..., 3) in mm along the axes."""
        return self.grid.index_to_world(self.centre + local @ self.axes / np.asarray(self.grid.spacing))


def fit_bodies(vertebrae: Sequence[Vertebra], grid: ImageGrid, field: ImageGrid) -> tuple[Body, ...]:
    """Bodies of the named vertebrae (cranio-caudal), C1 left out, with the end plates that can be trusted.

    `grid`: that of the masks, LPS order; `field`: the scan's, beyond whose border nothing is known. A `Vertebra.frame` is used where there
    is one; where the stage heights has not run, it is measured.
    """
    named = [v for v in vertebrae if v.mask is not None and v.level is not None and v.level != "C1"]
    centres = grid.world_to_index(np.array([v.known_body_centre for v in named]).reshape(-1, 3)) * np.asarray(grid.spacing)
    axes = axes_along(centres[:, ::-1])  # in the grid's own directions, which may be oblique
    found = [_fit_body(v, grid, field, axis) for v, axis in zip(named, axes, strict=True)]
    for i, v in enumerate(named):
        if v.level == "C2":
            below = found[i + 1] if i + 1 < len(named) and named[i + 1].level == "C3" else None
            found[i] = _fit_axis(v, grid, field, axes[i], below)
    return tuple(found)


def _fit_body(vertebra: Vertebra, grid: ImageGrid, field: ImageGrid, axis: np.ndarray) -> Body:
    frame = vertebra.frame
    # With a doubt and no frame the stage heights has found none; looking again would cost as much and find none.
    if frame is None and vertebra.height_doubt is None and vertebra.level in USUAL:
        frame = measure(vertebra.known_mask, grid.spacing, axis)
    if frame is None:
        return _without(vertebra, grid, axis, NO_PLATES)
    start = np.array(vertebra.known_mask_start)
    body = Body(vertebra.known_level, vertebra.confidence, grid.index_to_world(frame.centre + start),
                np.stack([_lps(grid, row) for row in frame.axes]), float(np.ptp(frame.walls_mm)) / 2, frame.half_width_mm, frame=frame)
    if not inside(frame, start, grid, field):
        return replace(body, why_not=CUT)
    voxel = max(voxel_along(frame.axes[0], grid, each) for each in (grid, field))
    if voxel > COARSEST * 2 * body.half_depth_mm:
        return replace(body, why_not=TOO_COARSE)
    values = mask_values(vertebra, grid)
    (upper, above), (lower, below) = (_plate_of(vertebra, values, grid, frame, side) for side in (1, -1))
    if upper is not None and lower is not None and above is not None and below is not None:
        upper, lower = _usually_wedged(body, upper, lower, (above, below))
    return replace(body, upper=upper, lower=lower, why_not=None if upper is not None and lower is not None else NO_PLATES)


def _without(vertebra: Vertebra, grid: ImageGrid, axis: np.ndarray, why: str) -> Body:
    axes = np.stack([_lps(grid, row) for row in (axis, np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]))])
    return Body(vertebra.known_level, vertebra.confidence, np.array(vertebra.known_body_centre), axes, 0.0, 0.0, why_not=why)


def _fit_axis(vertebra: Vertebra, grid: ImageGrid, field: ImageGrid, axis: np.ndarray, below: Body | None) -> Body:
    """C2, of which only the lower end plate is one; its dens makes any frame of two end plates wrong."""
    width = below.half_width_mm if below is not None and below.half_width_mm else AXIS_WIDTH_MM
    values, spacing = mask_values(vertebra, grid), np.array(grid.spacing)
    centre = grid.world_to_index(np.array(vertebra.known_body_centre)) - np.array(vertebra.known_mask_start)
    plate = None
    for _ in range(3):
        up = axis / np.linalg.norm(axis)
        back = np.array([0.0, 1.0, 0.0]) - up[1] * up
        back /= np.linalg.norm(back)
        axes = np.stack([up, back, np.cross(up, back)])
        y = np.arange(-25.0, 25.0, 0.5)
        row = sample(values, spacing, centre, axes, (np.zeros(1), y, np.arange(-3.0, 3.5, 1.0)))[0].mean(1)
        walls = line_ends(row, y)
        if walls is None:
            return _without(vertebra, grid, axis, NO_PLATES)
        centre = centre + 0.5 * sum(walls) * axes[1] / spacing
        half = 0.5 * (walls[1] - walls[0])
        frame = BodyFrame(centre, axes, (-half, half), (12.0, 12.0, 12.0), width, 0.0)
        if not inside(frame, np.array(vertebra.known_mask_start), grid, field):
            return _without(vertebra, grid, axis, CUT)
        plate, _ = _plate_of(vertebra, values, grid, frame, -1)
        if plate is None or voxel_along(axes[0], grid, field) > COARSEST * 2 * half:
            return _without(vertebra, grid, axis, NO_PLATES)
        axis = (plate.normal @ np.asarray(grid.direction))[::-1]
    world = np.stack([_lps(grid, row) for row in frame.axes])
    middle = grid.index_to_world(centre + np.array(vertebra.known_mask_start))
    return Body("C2", vertebra.confidence, middle, world, half, width, None, plate, "only its lower end plate is one")


def _plate_of(vertebra: Vertebra, values: np.ndarray, grid: ImageGrid, frame: BodyFrame, side: int
              ) -> tuple[EndPlate | None, float | None]:
    """The fitted end plate. Where slices are thick it is nodded half way to what the ends of the columns in them say, and the standard
    deviation (degrees) of its slope from front to back is told."""
    plate = fit_plate(values, vertebra.known_mask_start, grid, frame, side)
    slope = None
    if plate is not None and thick_axis(vertebra, grid) is not None:
        slope = stair_slope(vertebra.known_mask, grid.spacing, frame, side)
    if plate is None or slope is None:
        return plate, None
    axes = np.stack([_lps(grid, row) for row in frame.axes])
    tilt, deviation = np.degrees(np.arctan(slope))
    return plate.nodded(0.5 * (float(tilt) - plate.nod(axes)), axes), float(deviation)


def _usually_wedged(body: Body, upper: EndPlate, lower: EndPlate, deviations: tuple[float, float]) -> tuple[EndPlate, EndPlate]:
    """Both end plates of thick slices, nodded as far as they are uncertain (`deviations`, degrees) towards the wedge that is usual at this
    level."""
    above, below = turns_to_usual(body.level, (upper.nod(body.axes), lower.nod(body.axes)), deviations)
    return upper.nodded(above, body.axes), lower.nodded(below, body.axes)


def mask_values(vertebra: Vertebra, grid: ImageGrid) -> np.ndarray:
    """The mask as float 0..1 with an edge that places surfaces to less than a voxel: the network's own where it was kept, between thick
    slices that of the distance to the mask's outline in each slice (shape-based interpolation, Raya and Udupa 1990)."""
    if vertebra.mask_probability is not None:
        return vertebra.mask_probability.astype(np.float32) / 255
    mask, spacing, thick = vertebra.known_mask, np.asarray(grid.spacing), thick_axis(vertebra, grid)
    if thick is None:
        return mask.astype(np.float32)
    from scipy.ndimage import distance_transform_edt

    def inside(slice_: np.ndarray) -> np.ndarray:
        padded = np.pad(slice_, 1)
        if not slice_.any():
            return np.full(slice_.shape, -SOFT_MM)
        return (distance_transform_edt(padded, in_plane) - distance_transform_edt(~padded, in_plane))[1:-1, 1:-1]
    in_plane = np.delete(spacing, thick)
    distance = np.stack([inside(slice_) for slice_ in np.moveaxis(mask, thick, 0)], axis=thick)
    return np.clip(0.5 + distance / (2 * SOFT_MM), 0, 1).astype(np.float32)


def thick_axis(vertebra: Vertebra, grid: ImageGrid) -> int | None:
    """The axis (0 z, 1 y, 2 x) along which a mask without probabilities has thick slices; None where voxels are about as long as wide."""
    thick = int(np.argmax(grid.spacing))
    return thick if vertebra.mask_probability is None and grid.spacing[thick] >= THICK * min(grid.spacing) else None


def fit_plate(values: np.ndarray, start: Sequence[int], grid: ImageGrid, frame: BodyFrame, side: int) -> EndPlate | None:
    """The end plate of `values` (0..1, (z, y, x), beginning at index `start` of `grid`) above (`side` 1) or below (-1) the frame's centre;
    None where the columns leave no smooth surface."""
    half_depth, half_width = np.ptp(frame.walls_mm) / 2, frame.half_width_mm
    middle = 0.5 * sum(frame.walls_mm)
    spacing = np.asarray(grid.spacing)
    centre = np.asarray(frame.centre) + middle * frame.axes[1] / spacing + 1
    values = np.pad(values, 1)
    reach = max(frame.heights_mm) * 0.5 + 8.0
    z = np.arange(0.0, reach, Z_STEP_MM) * side
    y = np.arange(-half_depth, half_depth + STEP_MM, STEP_MM)
    x = np.arange(-half_width, half_width + STEP_MM, STEP_MM)
    height = side * crossing(sample(values, spacing, centre, frame.axes, (z, y, x))) * Z_STEP_MM
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    used = np.isfinite(height) & (np.square(grid_y / half_depth) + np.square(grid_x / half_width) <= FOOTPRINT ** 2)
    footprint = Footprint(grid, centre - 1 + np.asarray(start), frame.axes, half_depth, half_width)
    points = np.stack([height[used], grid_y[used], grid_x[used]], axis=1)
    return plate_of_points(points, footprint, _edges(values, spacing, centre, frame, side, y))


def _edges(values: np.ndarray, spacing: np.ndarray, centre: np.ndarray, frame: BodyFrame, side: int, y: np.ndarray
           ) -> tuple[float, float] | None:
    """Front and back edge (y' mm) of the body a little inside its end plate, in the mid-sagittal band; None without."""
    wide = np.arange(1.4 * y[0], 1.4 * y[-1], 0.5)
    level = side * max(0.5 * min(frame.heights_mm) - BELOW_PLATE_MM, 0.0)
    row = sample(values, spacing, centre, frame.axes, (np.array([level - 0.5, level, level + 0.5]), wide, np.arange(-3.0, 3.5, 1.0)))
    return line_ends(row.mean((0, 2)), wide)


def plate_of_points(points: np.ndarray, footprint: Footprint, edges: tuple[float, float] | None) -> EndPlate | None:
    """The plate through `points` (n, 3), mm along the rows of `footprint.axes` from its centre; `edges`: front and back end (y' mm). None
    where they are no smooth surface."""
    if len(points) < FEWEST_COLUMNS:
        return None
    height, y, x = points.T
    half_depth, half_width = footprint.half_depth_mm, footprint.half_width_mm
    coefficients, rough = robust_surface(y / half_depth, x / half_width, height, max(SCALE_MM, SCALE_VOXELS * footprint.voxel_mm()))
    # From rim to rim, as readers draw: a plate that is hollow on one side has another slope in its middle.
    slope_y = (coefficients[1] + coefficients[6] * RIM ** 2) / half_depth
    slope_x = coefficients[2] / half_width
    if rough > footprint.roughest() or max(abs(slope_y), abs(slope_x)) > STEEPEST:
        return None
    # Hollow plates: the plane that readers draw runs through the rims, where the quadratic terms have risen.
    rim_y, rim_x = coefficients[0] + coefficients[3], coefficients[0] + coefficients[4]
    front, back = edges if edges is not None else (-half_depth, half_depth)

    def world(up: float, backwards: float, left: float) -> np.ndarray:
        return footprint.world(np.array([up, backwards, left]))

    def on_line(along: float) -> np.ndarray:
        return world(rim_y + slope_y * along, along, 0.0)
    axes = footprint.axes
    normal = _lps(footprint.grid, axes[0] - slope_y * axes[1] - slope_x * axes[2])
    surface = np.stack([world(float(coefficients[[0, 1, 3, 6]] @ [1.0, s, s * s, s ** 3]), s * half_depth, 0.0) for s in (-0.8, 0.0, 0.8)])
    right, left = (world(rim_x + slope_x * along, 0.0, along) for along in (-half_width, half_width))
    return EndPlate(on_line(0.0), normal / np.linalg.norm(normal), on_line(front), on_line(back), right, left, surface, rough)


def robust_surface(s: np.ndarray, t: np.ndarray, height: np.ndarray, scale_mm: float = 0.0) -> tuple[np.ndarray, float]:
    """Least squares of height = a + b s + c t + d s^2 + e t^2 + f s t + g s^3 under Tukey weights; the coefficients, and the residual's
    deviation (mm). `s` from front to back, where end plates are hollow on one side, `t` from right to left, where they are even.
    `scale_mm`: deviation that is always taken for noise, so that of the stairs of thick slices no step counts as an outlier."""
    design = np.stack([np.ones_like(s), s, t, s * s, t * t, s * t, s ** 3], axis=1)
    residual = height - np.median(height)
    coefficients = np.zeros(7)
    for _ in range(6):
        scale = max(1.4826 * float(np.median(np.abs(residual))), scale_mm, 0.2)
        root = np.clip(1 - np.square(residual / (4.685 * scale)), 0, 1)
        coefficients = np.linalg.lstsq(design * root[:, None], height * root, rcond=None)[0]
        residual = height - design @ coefficients
    return coefficients, max(1.4826 * float(np.median(np.abs(residual))), 0.2)


def _lps(grid: ImageGrid, direction: np.ndarray) -> np.ndarray:
    """A direction in array order (z, y, x), mm, as LPS (x, y, z)."""
    return np.asarray(grid.direction) @ np.asarray(direction)[::-1]


def as_triple(point: np.ndarray) -> Floats3:
    """(x, y, z) rounded to 0.01 mm."""
    x, y, z = (round(float(c), 2) for c in point)
    return x, y, z
