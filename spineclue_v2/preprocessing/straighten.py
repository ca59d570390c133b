"""Sheared scans on a grid with right angles, for what needs one: the networks and the pictures.

The affine A of a sheared grid is split into A = Q R (QR decomposition): Q has right angles, and R is upper triangular. On the grid with the
axes Q and the spacings diag(R) slice k is slice k of the scan, moved and sheared inside its plane and not interpolated across slices. So a
tilted gantry costs one interpolation in the plane, and none where the slices are moved by whole pixels.
"""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..imageio.grid import ImageGrid
from ..imageio.grid_checks import MIN_SLICES
from ..imageio.volume import Volume
from ..utilities.triples import float_triple

CT_AIR = -1024.0
RINGING = 0.02     # of the range of values: a spline swings by this much beside an edge


def straightened(volume: Volume, fill: float = CT_AIR) -> Volume:
    """`volume` itself where its axes are at right angles; else resampled (cubic spline in each slice) to the grid `straight_grid`.

    What lies outside the scan is `fill`, but not below its lowest value; rows and columns at the border that hold nothing else are cut off,
    since the networks see the whole field of view. Voxels are int16, or float32 where they were.
    """
    if not volume.geometry.is_sheared:
        return volume
    target, kind = straight_grid(volume.geometry), np.dtype(np.float32 if volume.array.dtype.kind == "f" else np.int16)
    background = max(fill, float(volume.array.min()))
    array = _in_planes(volume, target, kind, background, smooth=True)
    start, stop = [0, 0, 0], list(array.shape)
    inside = array > background + RINGING * (float(volume.array.max()) - background)
    for axis in (1, 2):
        reached = np.flatnonzero(inside.any(axis=(0, 3 - axis)))
        if reached.size >= MIN_SLICES:
            start[axis], stop[axis] = int(reached[0]), int(reached[-1]) + 1
    trimmed = Volume(array, target).cropped(start, stop)
    return Volume(np.ascontiguousarray(trimmed.array), trimmed.geometry, volume.flags)


def sheared_labels(labels: Volume, geometry: ImageGrid) -> Volume:
    """A label map on `straight_grid(geometry)` brought back to the sheared grid `geometry`: the nearest voxel's label."""
    if not geometry.is_sheared:
        return labels
    return replace(labels, array=_in_planes(labels, geometry, labels.array.dtype, 0, smooth=False), geometry=geometry)


def straight_grid(geometry: ImageGrid) -> ImageGrid:
    """The grid with right angles that holds all of a sheared one, with its slices at the same places."""
    if not geometry.is_sheared:
        return geometry
    axes, upper = _split(geometry)
    spacing = np.diag(upper)
    last = np.array(geometry.shape[::-1]) - 1
    corners = np.array([(x, y, z) for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
    steps = corners @ upper.T / spacing                       # in voxels of the new grid, from the scan's first voxel
    low, high = np.floor(steps.min(0) + 1e-6), np.ceil(steps.max(0) - 1e-6)
    origin = np.asarray(geometry.origin) + axes @ (low * spacing)
    shape = (high - low + 1).astype(int)
    return ImageGrid((int(shape[2]), int(shape[1]), int(shape[0])), float_triple(spacing[::-1]), float_triple(origin), axes)


def _split(geometry: ImageGrid) -> tuple[np.ndarray, np.ndarray]:
    """Q and R of the affine, with a positive diagonal."""
    axes, upper = np.linalg.qr(geometry.affine[:3, :3])
    signs = np.sign(np.diag(upper))
    return axes * signs, signs[:, None] * upper


def _in_planes(volume: Volume, target: ImageGrid, kind: np.dtype, background: float, smooth: bool) -> np.ndarray:
    """`volume` on `target`, slice by slice: both grids have the same slices, moved and sheared in their planes."""
    from scipy.ndimage import affine_transform

    result = np.empty(target.shape, kind)
    # In voxels (z, y, x) of the volume per voxel of the target.
    first = volume.geometry.world_to_index(target.index_to_world((0, 0, 0)))
    steps = (volume.geometry.world_to_index(target.index_to_world(np.eye(3))) - first).T
    rows, columns = np.arange(target.shape[1]), np.arange(target.shape[2])
    last = np.array(volume.array.shape) - 0.5
    for k in range(target.shape[0]):
        place = first + steps[:, 0] * k
        plane = volume.array[min(max(round(float(place[0])), 0), volume.array.shape[0] - 1)]
        turned: np.ndarray = affine_transform(plane.astype(np.float32), steps[1:, 1:], place[1:], target.shape[1:],
                                              order=3 if smooth else 0, mode="nearest")
        # A voxel reaches half a voxel beyond its centre, and the outermost are voxels like the others.
        y = place[1] + steps[1, 1] * rows
        x = place[2] + steps[2, 1] * rows[:, None] + steps[2, 2] * columns
        turned[(y < -0.5) | (y > last[1])] = background
        turned[(x < -0.5) | (x > last[2])] = background
        if kind.kind != "f":
            limits = np.iinfo(kind)
            np.clip(np.rint(turned, out=turned), limits.min, limits.max, out=turned)
        result[k] = turned
    return result
