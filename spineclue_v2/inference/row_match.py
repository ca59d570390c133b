"""Which vertebra of one scan is which of another scan of the same patient: by the shapes of the masks and the gaps between bodies.

Two masks of one vertebra differ by the noise of segmentation, those of neighbours by their shape. Every pair of vertebrae is laid upon each
other rigidly (each for itself, since the patient lies otherwise), and what distance is left between the surfaces tells how likely
they are one. All pairs of an offset of the two rows speak together; offsets, and that the rows share nothing, are the hypotheses.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..anatomy.vertebra import Vertebra
from ..anatomy.vertebral_gaps import round_positions, vertebral_gaps
from ..imageio.grid import ImageGrid

POINTS = 300             # of a surface, for the distances
TURNS = 12               # of the alignment of two surfaces
LEAST_MM = 0.1           # no two segmentations are more alike
REACH_MM = 32.0          # from the body centre: body, pedicles and the front of the arch, which a narrow field does not cut
KEPT = 0.85              # of the points, the nearest: what one mask lacks of a process says nothing
NOISE_MM, NOISE_OF_VOXEL = 0.1, 0.25   # distance of two masks of one vertebra: so much, and so much of the longest side of a voxel
SAME_SPREAD, OTHER = 0.5, (0.30, 0.35)  # spread of the log of that; mean and spread of log(distance / mm) of two vertebrae
SAME_GAP_MM, OTHER_GAP_MM = 0.8, 3.0    # spread of the difference of two gaps between body centres
LEAST_GAP = -4.0         # the most that one gap speaks against: a body centre may be off
WORTH = 0.5              # of what pairs say together: segmentation errs alike in neighbours
SAME_PLACE_MM, MAYBE_PLACE_MM, OVERLAP = 5.0, 15.0, 0.7
FEWEST = 2               # whole vertebrae that both scans show
NOTHING = 0.0            # log prior of rows that share nothing, beside 0 of each offset


@dataclass(frozen=True)
class Row:
    """Vertebrae of a scan, cranio-caudal, on the grid of their masks; `voxel_mm`: longest side of the scan's own voxels."""

    vertebrae: Sequence[Vertebra]
    grid: ImageGrid
    voxel_mm: float

    @property
    def centres(self) -> np.ndarray:
        """(n, 3) body centres, LPS mm."""
        return np.array([v.known_body_centre for v in self.vertebrae]).reshape(-1, 3)


@dataclass(frozen=True)
class Match:
    """How two rows belong together: `pairs` of positions (in the first, in the second), the `confidence` of their offset, and whether
    the pairs lie in the `same_place`."""

    pairs: tuple[tuple[int, int], ...]
    confidence: float
    same_place: bool = False


@dataclass(frozen=True)
class Shape:
    """Surface of a mask near the body, world LPS mm, and its own frame (columns: left, back, head). `whole`: its body lies in the scan: a
    vertebra at an end of the row that touches the border does not count."""

    points: np.ndarray
    frame: np.ndarray
    whole: bool


def match_rows(first: Row, second: Row) -> Match | None:
    """The most likely offset of two rows (cranio-caudal, with masks); None where they show fewer than two whole vertebrae in common."""
    distances = surface_distances(shapes_of(first.vertebrae, first.grid), shapes_of(second.vertebrae, second.grid))
    noise = float(np.log(NOISE_MM + NOISE_OF_VOXEL * max(first.voxel_mm, second.voxel_mm)))
    centres = [row.centres for row in (first, second)]
    places = [round_positions(vertebral_gaps(row)) if len(row) else np.zeros(0, int) for row in centres]
    scored = []
    for offset in range(-int(places[1].max(initial=0)), int(places[0].max(initial=0)) + 1):
        pairs = [(i, j) for i, a in enumerate(places[0]) for j, b in enumerate(places[1]) if a == b + offset]
        if sum(np.isfinite(distances[pair]) for pair in pairs) >= FEWEST:
            scored.append((WORTH * score(pairs, distances, centres, noise), pairs))
    if not scored:
        return None
    logs = np.array([value for value, _ in scored])
    best = int(logs.argmax())
    return Match(tuple(scored[best][1]), float(np.exp(logs[best] - np.logaddexp.reduce(np.append(logs, NOTHING)))))


def match_places(first: Row, second: Row) -> Match | None:
    """The pairs of two rows that lie in the same place: one patient in one frame of reference. None where they do not.

    The bodies of all vertebrae in the part that both scans show coincide, and at least half of the smaller mask lies in the other one:
    patients who lie alike by chance differ in this.
    """
    if not first.vertebrae or not second.vertebrae:
        return None
    distance = np.linalg.norm(first.centres[:, None] - second.centres[None], axis=2)
    nearest = distance.argmin(axis=1)
    pairs = [(i, int(j)) for i, j in enumerate(nearest) if distance[i, j] <= SAME_PLACE_MM and distance[:, j].argmin() == i]
    near = sum(row.min() <= MAYBE_PLACE_MM for row in distance)
    if len(pairs) < FEWEST or len(pairs) < near:
        return None
    overlaps = [_overlap(first.vertebrae[i], first.grid, second.vertebrae[j], second.grid) for i, j in pairs]
    known = [value for value in overlaps if value is not None]
    if len(known) < FEWEST or float(np.median(known)) < OVERLAP:
        return None
    return Match(tuple(pairs), float(np.clip(np.median(known), 0, 1)), True)


def _overlap(first: Vertebra, first_grid: ImageGrid, second: Vertebra, second_grid: ImageGrid) -> float | None:
    """Part of the first mask's voxels that lie in the second mask; None without masks."""
    if first.mask is None or second.mask is None or first.mask_start is None or second.mask_start is None:
        return None
    places = first_grid.index_to_world(np.argwhere(first.mask) + np.array(first.mask_start))
    index = np.round(second_grid.world_to_index(places)).astype(int) - np.array(second.mask_start)
    inside = (index >= 0).all(1) & (index < np.array(second.mask.shape)).all(1)
    return float(second.mask[tuple(index[inside].T)].sum() / len(places))


def score(pairs: Sequence[tuple[int, int]], distances: np.ndarray, centres: Sequence[np.ndarray], noise: float) -> float:
    """Log likelihood ratio of "these pairs are the same vertebrae" against "they are others". `noise`: mean log distance of the same."""
    found = np.log([distances[pair] for pair in pairs if np.isfinite(distances[pair])])
    nearer = np.maximum(found, noise)                        # none is too much alike
    total = float(np.sum(_log_normal(nearer, noise, SAME_SPREAD) - _log_normal(np.minimum(found, OTHER[0]), *OTHER)))
    for (i, j), (k, m) in zip(pairs, pairs[1:], strict=False):
        change = np.asarray(np.linalg.norm(centres[0][k] - centres[0][i]) - np.linalg.norm(centres[1][m] - centres[1][j]))
        total += max(float(_log_normal(change, 0.0, SAME_GAP_MM) - _log_normal(change, 0.0, OTHER_GAP_MM)), LEAST_GAP)
    return total


def surface_distances(first: Sequence[Shape | None], second: Sequence[Shape | None]) -> np.ndarray:
    """(n, m) mm between the surfaces of each pair once laid upon each other; infinite where one is cut or has no mask."""
    from scipy.spatial import cKDTree

    trees = [None if shape is None or not shape.whole else cKDTree(shape.points) for shape in second]
    out = np.full((len(first), len(second)), np.inf)
    for i, shape in enumerate(first):
        if shape is None or not shape.whole:
            continue
        for j, (other, tree) in enumerate(zip(second, trees, strict=True)):
            if other is not None and tree is not None:
                out[i, j] = _aligned_distance(shape, other, tree)
    return out


def shapes_of(row: Sequence[Vertebra], grid: ImageGrid) -> list[Shape | None]:
    """The shape of each vertebra of a row; None without a mask."""
    centres = np.array([v.known_body_centre for v in row]).reshape(-1, 3)
    found: list[Shape | None] = []
    for i, vertebra in enumerate(row):
        if vertebra.mask is None:
            found.append(None)
            continue
        points = surface_points(vertebra, grid)
        end = i in (0, len(row) - 1)
        along = centres[max(i - 1, 0)] - centres[min(i + 1, len(row) - 1)] if len(row) > 1 else np.array([0.0, 0.0, 1.0])
        head = along / max(float(np.linalg.norm(along)), 1e-6)
        back = points.mean(0) - centres[i]
        back -= head * (back @ head)
        back /= max(float(np.linalg.norm(back)), 1e-6)
        near = points[np.linalg.norm(points - centres[i], axis=1) <= REACH_MM]
        found.append(Shape(near, np.stack([np.cross(back, head), back, head], axis=1),
                           not (end and vertebra.touches_border)))
    return found


def surface_points(vertebra: Vertebra, grid: ImageGrid) -> np.ndarray:
    """(k, 3) world points of the voxels on a mask's surface."""
    from scipy.ndimage import binary_erosion

    mask = vertebra.known_mask
    surface = np.argwhere(mask & ~binary_erosion(mask))
    return grid.index_to_world(surface + np.array(vertebra.known_mask_start))


def _aligned_distance(moving: Shape, still: Shape, tree: object) -> float:
    """Trimmed mean distance (mm) of the surfaces, both ways, after iterative closest points from the frames and centroids."""
    from scipy.spatial import cKDTree

    assert isinstance(tree, cKDTree)
    turn = still.frame @ moving.frame.T
    whole = (moving.points - moving.points.mean(0)) @ turn.T + still.points.mean(0)
    chosen = np.linspace(0, len(whole) - 1, min(POINTS, len(whole))).astype(int)
    for _ in range(TURNS):
        points = whole[chosen]
        distance, nearest = map(np.asarray, tree.query(points))
        near = distance <= np.quantile(distance, KEPT)
        whole = _rigid(whole, points[near], still.points[nearest[near]])
    back = still.points[np.linspace(0, len(still.points) - 1, min(POINTS, len(still.points))).astype(int)]
    there, again = np.asarray(tree.query(whole[chosen])[0]), np.asarray(cKDTree(whole).query(back)[0])
    return max((_trimmed(there) + _trimmed(again)) / 2, LEAST_MM)


def _rigid(points: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`points` moved by the rotation and shift that bring `source` nearest to `target` (Kabsch 1976)."""
    a, b = source.mean(0), target.mean(0)
    u, _, v = np.linalg.svd((source - a).T @ (target - b))
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ v))])
    return (points - a) @ (u @ sign @ v) + b


def _trimmed(distance: np.ndarray) -> float:
    return float(np.mean(np.sort(distance)[:max(1, int(KEPT * len(distance)))]))


def _log_normal(value: np.ndarray, mean: float, spread: float) -> np.ndarray:
    """Log density of a normal distribution, up to its constant."""
    return np.asarray(-0.5 * ((value - mean) / spread) ** 2 - np.log(spread))
