"""How alike two masks are once laid upon each other rigidly: the mean distance of their surfaces.

A mask becomes a signed distance field whose zero level lies between voxels, so that voxels of several millimetres do not hide shapes.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..anatomy.vertebra import Vertebra
from ..imageio.grid import ImageGrid

POINTS = 300             # of a surface
TURNS = 12               # of the alignment
FINE_MM = 1.2            # finer voxels are joined: shapes do not gain from them
MARGIN_MM = 8.0          # of the field around a mask
REACH_MM = 32.0          # from the body centre: body, pedicles and the front of the arch, which a narrow field of view does not cut
KEPT = 0.85              # of the points, the nearest: what one mask lacks of a process says nothing
LEAST_MM = 0.1           # no two segmentations are more alike
SMOOTHING = 0.7          # voxels


@dataclass(frozen=True)
class Shape:
    """A mask's surface near the body in its own millimetres (z, y, x from the field's first voxel).

    Attributes:
        points: (k, 3) on the surface.
        frame: (3, 3) columns left, back, head.
        field: (z, y, x) signed distance, mm, positive inside.
        slopes: (3, z, y, x) its gradient.
        spacing: (3,) mm of the field.
    """

    points: np.ndarray
    frame: np.ndarray
    field: np.ndarray
    slopes: np.ndarray
    spacing: np.ndarray


def shape_of(vertebra: Vertebra, grid: ImageGrid, along: np.ndarray) -> Shape | None:
    """The shape of a vertebra; None where its mask lies not near the body centre. `along`: the row's direction there, world, upwards."""
    from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

    mask, spacing = vertebra.known_mask, np.array(grid.spacing)
    factors = np.maximum(1, np.round(FINE_MM / spacing)).astype(int)
    low = np.array(vertebra.known_mask_start, dtype=float)
    margin = np.ceil(MARGIN_MM / (spacing * factors)).astype(int)
    coarse = np.pad(_pooled(mask, factors), [(int(m), int(m)) for m in margin])
    first = low + (factors - 1) / 2 - margin * factors                   # index of the coarse field's first voxel
    spacing = spacing * factors
    half = spacing.mean() / 2
    inner, outer = distance_transform_edt(coarse, sampling=spacing), distance_transform_edt(~coarse, sampling=spacing)
    field = gaussian_filter(np.where(coarse, inner - half, half - outer), SMOOTHING).astype(np.float32)
    slopes = np.asarray(np.gradient(field, *spacing), dtype=np.float32)
    surface = np.argwhere(coarse & ~binary_erosion(coarse)) * spacing
    centre = (grid.world_to_index(vertebra.known_body_centre) - first) * np.array(grid.spacing)
    near = surface[np.linalg.norm(surface - centre, axis=1) <= REACH_MM]
    if len(near) < 10:
        return None
    slope = _at(slopes, near, spacing)
    near = near - _at(field[None], near, spacing) * slope / np.maximum((slope ** 2).sum(1, keepdims=True), 0.25)
    head = (np.asarray(grid.direction).T @ along)[::-1]
    return Shape(near, _frame(head, near.mean(0) - centre), field, slopes, spacing)


def surface_distances(first: Sequence[Shape | None], second: Sequence[Shape | None]) -> np.ndarray:
    """(n, m) mm between the surfaces of each pair once laid upon each other; infinite where there is no shape."""
    return np.array([[np.inf if a is None or b is None else _aligned_distance(a, b) for b in second] for a in first]).reshape(
        len(first), len(second))


def _aligned_distance(moving: Shape, still: Shape) -> float:
    """Trimmed mean distance (mm) both ways, after least squares on the distance field from the frames and centroids."""
    turn = still.frame @ moving.frame.T
    shift = still.points.mean(0) - turn @ moving.points.mean(0)
    points = _some(moving.points)
    for _ in range(TURNS):
        there = points @ turn.T + shift
        distance, slope = _at(still.field[None], there, still.spacing)[:, 0], _at(still.slopes, there, still.spacing)
        near = np.abs(distance) <= np.quantile(np.abs(distance), KEPT)
        middle = there.mean(0)
        rows = np.concatenate([slope, np.cross(there - middle, slope)], axis=1)[near]
        step = np.linalg.lstsq(rows, -distance[near], rcond=1e-3)[0]
        small = _rotation(step[3:])
        turn, shift = small @ turn, small @ (shift - middle) + middle + step[:3]
    ahead = _at(still.field[None], points @ turn.T + shift, still.spacing)
    back = _at(moving.field[None], (_some(still.points) - shift) @ turn, moving.spacing)
    return max((_trimmed(ahead) + _trimmed(back)) / 2, LEAST_MM)


def _frame(head: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Columns left, back, head of a vertebra whose arch lies `back` of its body; the row goes up along `head`."""
    head = head / max(float(np.linalg.norm(head)), 1e-6)
    back = back - head * (back @ head)
    back = back / max(float(np.linalg.norm(back)), 1e-6)
    return np.stack([np.cross(back, head), back, head], axis=1)


def _rotation(vector: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(np.clip(vector, -0.2, 0.2)).as_matrix()


def _at(fields: np.ndarray, points: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """(k, c) values of c fields at points (k, 3) mm; beyond the border those of the border."""
    from scipy.ndimage import map_coordinates

    index = (points / spacing).T
    return np.stack([map_coordinates(field, index, order=1, mode="nearest") for field in fields], axis=1)


def _pooled(mask: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Blocks of `factors` voxels, true where at least half of a block is."""
    if (factors == 1).all():
        return mask
    padded = np.pad(mask, [(0, int(-n % f)) for n, f in zip(mask.shape, factors, strict=True)])
    z, y, x = (int(n // f) for n, f in zip(padded.shape, factors, strict=True))
    a, b, c = map(int, factors)
    return padded.reshape(z, a, y, b, x, c).mean(axis=(1, 3, 5)) >= 0.5


def _some(points: np.ndarray) -> np.ndarray:
    """At most `POINTS` of them, evenly taken."""
    return points[np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int)]


def _trimmed(distance: np.ndarray) -> float:
    sorted_distance = np.sort(np.abs(distance).ravel())
    return float(sorted_distance[:max(1, int(KEPT * len(sorted_distance)))].mean())
