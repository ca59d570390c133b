"""Body heights of one vertebra, measured in its mask: what a reader can check with a ruler.

The body is seen in its own frame: z' along the bisector of its end plates, y' towards its canal. Behind the body lies the canal, so
in a band round the mid-sagittal plane the mask ends at the posterior wall, and body and arch part. There quadratic surfaces fitted to
both end plates set the frame, and the distance of the end plates along z' just inside the anterior wall, in the middle and just
inside the posterior wall are the heights Ha, Hm, Hp of quantitative morphometry (its six points; Genant et al. 1993).
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...anatomy.morphology import body_centre
from ...anatomy.vertebra import BodyFrame
from ...utilities.triples import float_triple

STEP_MM = 0.75                  # samples along y' and x'
Z_STEP_MM = 0.5
REACH_MM = (30.0, 40.0, 9.0)    # half lengths (z', y', x') of the sampled box
FITTED = 0.9                    # share of the depth that is looked at: the rims beyond are rounded and carry spurs
HEIGHT_POSITIONS = (-0.85, 0.0, 0.85)     # where heights are taken, as a share of half the depth: -1 anterior wall, 1 posterior wall
PATCH = 0.3                     # half length of the patch of end plate behind each height, same unit
DEPTH_MM = (8.0, 60.0)          # plausible distance of the walls
HOLE_MM = 2.0                   # holes of a ragged mask up to here are passed on the way to the end plates
ROUGHEST_MM = 1.5               # residual of the fit above which there is no end plate: 0.7 at most in whole masks of 1 mm
CONSISTENT = 0.15               # share by which two ways to a height may differ: 0.06 at most in whole masks of 1 mm
MOST_TURNED_DEG = 42.0          # an arch further aside than scoliosis turns a vertebra is half an arch
ITERATIONS = 8
SETTLED = 0.003                 # slope of the mean end plate at which the frame has settled (0.2 degrees)
WAIST = 0.5                     # share of the height round its middle in which the walls are looked for
LEANING = 0.03                  # slope of the walls that is left to be
MOST_SKEWED = 0.6               # slope beyond which it is the frame that is wrong


def measure(mask: np.ndarray, spacing_mm: Sequence[float], axis: Sequence[float] | np.ndarray | None = None,
            back: Sequence[float] | np.ndarray = (0.0, 1.0, 0.0)) -> BodyFrame | None:
    """Heights of the vertebra `mask` (bool or 0..1, (z, y, x), roughly LPS); None where no body with two end plates is found, or where
    the end plates are too ragged to say the same twice.

    `spacing_mm` (z, y, x). `axis`: the spine's cranial direction here (z, y, x), where neighbours tell it; the end plates
    themselves decide in the end. `back`: roughly where the arch must lie (z, y, x); half an arch points elsewhere. C1 (no body) and C2
    (the dens) have no heights in this sense: the caller leaves them out.
    """
    mask = np.asarray(mask)
    spacing = np.asarray(spacing_mm, dtype=float)
    if not mask.any():
        return None
    centre = np.asarray(body_centre(mask > 0.5, spacing), dtype=float)
    values = np.pad(mask.astype(np.float32), 1)
    middle = np.argwhere(values > 0.5).mean(0)
    starts = [np.asarray(axis, dtype=float)] if axis is not None else []
    starts += [np.array([1.0, t, 0.0]) for t in (0.0, 0.45, -0.45)]
    for start in starts:
        found = _settle(values, spacing, centre + 1, start, middle, np.asarray(back, dtype=float))
        if found is not None:
            return found
    return None


def axes_along(centres_mm: np.ndarray) -> list[np.ndarray]:
    """Cranial directions (z, y, x) at each of the body centres (n, 3) (x, y, z) mm, ordered in cranio-caudal order."""
    if len(centres_mm) < 2:
        return [np.array([1.0, 0.0, 0.0])] * len(centres_mm)
    links = centres_mm[:-1] - centres_mm[1:]
    links = links / np.maximum(np.linalg.norm(links, axis=1, keepdims=True), 1e-6)
    mean = np.concatenate([links[:1], links[:-1] + links[1:], links[-1:]])
    return [(row / max(np.linalg.norm(row), 1e-6))[::-1] for row in mean]


def _settle(values: np.ndarray, spacing: np.ndarray, centre: np.ndarray, start: np.ndarray, middle_of_mask: np.ndarray,
             back: np.ndarray) -> BodyFrame | None:
    """Turn and shift the frame until the mean end plate is level and the centre lies in the middle; None when it does not come to that."""
    axes = _frame(start, _towards_arch(spacing, centre, middle_of_mask, back))
    found, skew, sound = None, 0.0, False
    for _ in range(ITERATIONS):
        profile = _profile(values, spacing, centre, axes, skew)
        if profile is None:
            return None
        top, bottom, walls, (lean, stair), sides, heights, residual = profile
        middle = 0.5 * (walls[0] + walls[1])
        half = 0.5 * (walls[1] - walls[0])
        found = BodyFrame(centre - 1, axes, walls, heights, 0.5 * (sides[1] - sides[0]), residual)
        sound = _says_the_same(heights, top - bottom)
        slope_y = 0.5 * (top[1] + bottom[1]) / half
        slope_x = 0.5 * (top[3] + bottom[3]) / REACH_MM[2]
        lift = 0.5 * (top[0] + bottom[0])
        aside = 0.5 * (sides[0] + sides[1])
        centre = centre + (lift * axes[0] + middle * axes[1] + aside * axes[2]) / spacing
        # What the walls will lean once the frame has been turned: turning level plates by their slope takes as much off the walls. Less
        # than a stair of voxels makes of upright walls is no leaning.
        leaning = skew + lean + slope_y
        wanted = float(np.clip(np.sign(leaning) * max(0.0, abs(leaning) - stair), -MOST_SKEWED, MOST_SKEWED))
        if (max(abs(slope_y), abs(slope_x)) < SETTLED and max(abs(middle), abs(lift), abs(aside)) < 0.3
                and abs(wanted - skew) < LEANING):
            break
        skew = wanted
        axes = _frame(axes[0] - slope_y * axes[1] - slope_x * axes[2], _towards_arch(spacing, centre, middle_of_mask, back))
    if found is None or found.residual_mm > ROUGHEST_MM or min(found.heights_mm) < 2 * Z_STEP_MM or not sound:
        return None
    return found


def _frame(axis: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Right-angled unit rows z', y', x' (each (z, y, x)) with z' along `axis` and y' as near to `back` as that allows."""
    up = axis / np.linalg.norm(axis)
    back = back - (back @ up) * up
    back = back / np.linalg.norm(back)
    return np.stack([up, back, np.cross(up, back)])


def _towards_arch(spacing: np.ndarray, centre: np.ndarray, middle_of_mask: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Direction (z, y, x) mm from the body's centre to the middle of the whole mask: the arch pulls it backwards.

    Without an arch the two coincide, and with half of one it lies aside; then it is `back`.
    """
    offset = (middle_of_mask - centre) * spacing
    if np.linalg.norm(offset) <= 3.0:
        return back
    # Seen from above: how far forwards or backwards the vertebra leans is no matter here.
    flat, wanted = offset[1:], back[1:]
    along = flat @ wanted / max(np.linalg.norm(flat) * np.linalg.norm(wanted), 1e-6)
    return offset if along >= np.cos(np.radians(MOST_TURNED_DEG)) else back


def sample(values: np.ndarray, spacing: np.ndarray, centre: np.ndarray, axes: np.ndarray, along: Sequence[np.ndarray]) -> np.ndarray:
    """`values` interpolated linearly at centre + z' a + y' b + x' c (mm), (len(a), len(b), len(c)); 0 outside. Each of a, b and c has equal
    steps."""
    from scipy.ndimage import affine_transform

    first = np.array([line[0] for line in along])
    steps = np.array([(line[-1] - line[0]) / max(len(line) - 1, 1) for line in along])
    result: np.ndarray = affine_transform(values, (steps[:, None] * axes / spacing).T, centre + first @ axes / spacing,
                                          tuple(len(line) for line in along), output=np.float32, order=1, mode="constant")
    return result


def _profile(values: np.ndarray, spacing: np.ndarray, centre: np.ndarray, axes: np.ndarray, skew: float
             ) -> tuple[np.ndarray, np.ndarray, tuple[float, float], tuple[float, float], tuple[float, float],
                        tuple[float, float, float], float] | None:
    """In one frame: fitted upper and lower end plate, walls (y' mm), how far these still lean and how well that is known, sides (x' mm),
    heights and residual; None without a body there. `skew`: mm along y' per mm along z' by which the walls lean, so that columns run
    along them."""
    axes = np.stack([axes[0] + skew * axes[1], axes[1], axes[2]])
    z = np.arange(-REACH_MM[0], REACH_MM[0] + Z_STEP_MM, Z_STEP_MM)
    y = np.arange(-REACH_MM[1], REACH_MM[1] + STEP_MM, STEP_MM)
    x = np.arange(-REACH_MM[2], REACH_MM[2] + 2 * STEP_MM, 2 * STEP_MM)
    box = sample(values, spacing, centre, axes, (z, y, x))
    zero = len(z) // 2
    row = np.flatnonzero(np.abs(x) <= 5.0)
    upright = _walls(box[:, :, row].mean(2), z, y, float(np.linalg.norm(axes[1] * spacing)))
    if upright is None or not DEPTH_MM[0] <= upright[1] - upright[0] <= DEPTH_MM[1]:
        return None
    front, back, lean, stair = upright
    s = (y - 0.5 * (front + back)) / (0.5 * (back - front))
    used = (np.abs(s) <= FITTED)[:, None]
    upper, lower = crossing(box[zero:]) * Z_STEP_MM, -crossing(box[zero::-1]) * Z_STEP_MM
    where = np.argwhere(used & np.isfinite(upper) & np.isfinite(lower))
    if len(where) < 30:
        return None
    position = (s[where[:, 0]], x[where[:, 1]] / REACH_MM[2])
    (top, rough_top), (bottom, rough_bottom) = (_fit(*position, surface[tuple(where.T)]) for surface in (upper, lower))
    heights = _heights(*position, (upper - lower)[tuple(where.T)])
    if heights is None:
        return None
    wide = np.arange(-40.0, 40.0 + STEP_MM, STEP_MM)
    lines = sample(values, spacing, centre, axes, (np.zeros(1), np.linspace(front, 0.5 * (front + back), 8)[1:], wide))[0]
    sides = np.array([ends for line in lines if (ends := line_ends(line, wide)) is not None])
    if not len(sides):
        return None
    low, high = np.median(sides, axis=0)
    return top, bottom, (front, back), (lean, stair), (float(low), float(high)), heights, max(rough_top, rough_bottom)


def _walls(plane: np.ndarray, z: np.ndarray, y: np.ndarray, voxel_mm: float) -> tuple[float, float, float, float] | None:
    """Anterior and posterior wall (y' mm) of the mid-sagittal `plane` (n_z, n_y), by how much both lean (mm per mm) and what one step of
    the stair that voxels make of a wall adds to it; None without.

    Medians over the middle of the height: single rows may run on through crumbs of mask in the canal.
    """
    column = line_ends(plane[:, len(y) // 2], z)
    if column is None:
        return None
    rows = np.flatnonzero((z > WAIST * column[0]) & (z < WAIST * column[1]))
    found = [(z[i], *ends) for i in rows if (ends := line_ends(plane[i], y)) is not None]
    if not found:
        return None
    height, front, back = np.array(found).T
    apart = height[:, None] - height[None, :]
    far = apart >= 0.5 * np.ptp(height) if len(found) > 4 else np.zeros_like(apart, bool)
    slopes = [float(np.median((wall[:, None] - wall[None, :])[far] / apart[far])) if far.any() else 0.0 for wall in (front, back)]
    walls = [float(np.median(wall - slope * height)) for wall, slope in zip((front, back), slopes, strict=True)]
    # A wall that leans alone is no leaning body: a corner is missing.
    lean = min(slopes, key=abs) if min(slopes) > 0 or max(slopes) < 0 else 0.0
    return walls[0], walls[1], lean, voxel_mm / max(float(np.ptp(height)), voxel_mm)


def _heights(s: np.ndarray, x: np.ndarray, thickness: np.ndarray) -> tuple[float, float, float] | None:
    """Thickness at the three HEIGHT_POSITIONS, each from its own patch of both end plates; None where a patch is empty."""
    found = []
    for position in HEIGHT_POSITIONS:
        near = np.abs(s - position) <= PATCH
        if near.sum() < 12:
            return None
        found.append(float(_fit(s[near] - position, x[near], thickness[near], curved=position == 0.0)[0][0]))
    return float_triple(found)


def _says_the_same(heights: tuple[float, float, float], thickness: np.ndarray) -> bool:
    """Whether heights from their own patches agree with `thickness`, the fit (a, b, c, ...) to the whole end plates: where a corner of
    the mask is missing, or where something clings to it, they part."""
    whole = np.polynomial.polynomial.polyval(HEIGHT_POSITIONS, thickness[:3])
    return bool((np.abs(whole - heights) <= CONSISTENT * np.maximum(whole, heights)).all())


def line_ends(line: np.ndarray, position: np.ndarray) -> tuple[float, float] | None:
    """Positions (mm) where `line` falls below one half on both sides of its middle, interpolated; None where it is below there already."""
    start = len(line) // 2
    if line[start] < 0.5:
        return None
    gaps = np.flatnonzero(line < 0.5)
    before, after = gaps[gaps < start], gaps[gaps > start]

    def crossing(outside: int, inside: int) -> float:
        share = (line[inside] - 0.5) / max(line[inside] - line[outside], 1e-6)
        return float(position[inside] + share * (position[outside] - position[inside]))
    return (crossing(before[-1], before[-1] + 1) if len(before) else float(position[0]),
            crossing(after[0], after[0] - 1) if len(after) else float(position[-1]))


def crossing(box: np.ndarray) -> np.ndarray:
    """Samples from the first plane of `box` (n, ny, nx) until it falls below one half for good (holes of HOLE_MM do not count),
    interpolated; nan where it never does."""
    below = np.pad(box < 0.5, ((0, int(HOLE_MM / Z_STEP_MM)), (0, 0), (0, 0)), constant_values=True)
    outside = np.lib.stride_tricks.sliding_window_view(below, int(HOLE_MM / Z_STEP_MM) + 1, axis=0).all(-1)
    first = outside.argmax(0)
    last = np.take_along_axis(box, np.maximum(first - 1, 0)[None], 0)[0]
    after = np.take_along_axis(box, first[None], 0)[0]
    crossing = first - 1 + (last - 0.5) / np.maximum(last - after, 1e-6)
    return np.where(outside.any(0) & (first > 0), crossing, np.nan)


def _fit(s: np.ndarray, x: np.ndarray, height: np.ndarray, curved: bool = True) -> tuple[np.ndarray, float]:
    """Robust least squares of height = a + b s + c s^2 + d x + e x^2 (Tukey weights); coefficients and the residual's deviation.

    `curved` False: c = 0, for a patch that lies all on one side. It begins at the median, which crumbs of mask beside the body cannot
    draw away.
    """
    design = np.stack([np.ones_like(s), s, s * s if curved else np.zeros_like(s), x, x * x], axis=1)
    residual = height - np.median(height)
    for _ in range(5):
        scale = max(1.4826 * float(np.median(np.abs(residual))), 0.2)
        weight = np.square(np.clip(1 - np.square(residual / (4.685 * scale)), 0, 1))
        root = np.sqrt(weight)[:, None]
        coefficients = np.linalg.lstsq(design * root, height * root[:, 0], rcond=None)[0]
        residual = height - design @ coefficients
    return coefficients, max(1.4826 * float(np.median(np.abs(residual))), 0.2)


def body_mask(mask: np.ndarray, spacing_mm: Sequence[float], body: BodyFrame) -> np.ndarray:
    """The part of `mask` (z, y, x) that is body: in front of the posterior wall and within the body's width. Bool."""
    points = np.argwhere(mask > 0.5)
    local = ((points - body.centre) * np.asarray(spacing_mm)) @ body.axes.T
    # The rims of the end plates are some 10 % wider than the waist, where walls and width are measured.
    keep = (local[:, 1] <= body.walls_mm[1] + 1.0) & (np.abs(local[:, 2]) <= 1.15 * body.half_width_mm + 1.0)
    result = np.zeros(mask.shape, bool)
    result[tuple(points[keep].T)] = True
    return result


def trabecular_points(mask: np.ndarray, spacing_mm: Sequence[float], body: BodyFrame) -> np.ndarray:
    """Index positions (n, 3) of cancellous bone in the middle of the body, 1 mm apart: half the width, half the depth (in front of the
    basivertebral vein's entry), the middle 40 % of the height, nowhere nearer than 3 mm to the mask's surface."""
    from scipy.ndimage import distance_transform_edt

    spacing = np.asarray(spacing_mm, dtype=float)
    depth = distance_transform_edt(np.pad(mask > 0.5, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    lowest = min(body.heights_mm)
    middle, half = 0.5 * (body.walls_mm[0] + body.walls_mm[1]), 0.5 * (body.walls_mm[1] - body.walls_mm[0])
    along = (np.arange(-0.2 * lowest, 0.2 * lowest + 0.5, 1.0), np.arange(middle - 0.65 * half, middle + 0.35 * half, 1.0),
             np.arange(-0.5 * body.half_width_mm, 0.5 * body.half_width_mm + 0.5, 1.0))
    inner = sample(depth.astype(np.float32), spacing, body.centre, body.axes, along) >= 3.0
    return body.centre + np.stack(np.meshgrid(*along, indexing="ij"), axis=-1)[inner] @ body.axes / spacing
