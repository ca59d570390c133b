"""Sheared scans on a grid with right angles, for what needs one: the networks and the pictures.

The affine A of a sheared grid is split into A = Q R (QR decomposition): Q has right angles, and R is upper triangular. On the grid with the
axes Q and the spacings diag(R) slice k is slice k of the scan, moved and sheared inside its plane and not interpolated across slices. So a
tilted gantry costs one interpolation in the plane, and none where the slices are moved by whole pixels.

What the networks find depends more on the field of view than on that interpolation, so the new field ends where the scan's content does:
padding (voxels of the lowest value up to the edge) is none, and a spline that swings beside an edge makes none.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..imageio.grid import ImageGrid
from ..imageio.grid_checks import MIN_SLICES
from ..imageio.volume import Volume
from ..utilities.triples import float_triple

CT_AIR = -1024.0
FAINT = 0.02       # of the range of values above the lowest: air and padding, which no field of view is kept for
SLIVER = 1 / 8     # of the fullest line of a slice: the field does not grow for a tip that rounding leaves


def straightened(volume: Volume, fill: float = CT_AIR) -> Volume:
    """`volume` itself where its axes are at right angles; else resampled (cubic spline in each slice) to the grid `straight_grid`.

    What lies outside the scan is `fill`, but not below its lowest value; rows and columns at the border that hold nothing else are cut off,
    since the networks see the whole field of view. Voxels are int16, or float32 where they were.
    """
    if not volume.geometry.is_sheared:
        return volume
    source, grid = volume.array, volume.geometry
    target, kind = straight_grid(grid), np.dtype(np.float32 if source.dtype.kind == "f" else np.int16)
    background, highest = max(fill, float(source.min())), float(source.max())
    array, reached = np.empty(target.shape, kind), [np.zeros(n, bool) for n in target.shape[1:]]
    for k, (plane, first, steps) in enumerate(_planes(grid, target)):
        content, outer = _extended(source[plane], background)
        index, inside = _nearest(first, steps, content.shape, target.shape[1:])
        array[k] = _spline(content, first, steps, target.shape[1:], kind)
        array[k][~inside | outer[index]] = background
        held = inside & (source[plane][index] > background + FAINT * (highest - background))
        for axis, lines in enumerate(reached):
            count = held.sum(axis=1 - axis)
            lines |= count > SLIVER * count.max()
    start, stop = [0, 0, 0], list(array.shape)
    for axis, lines in enumerate(reached, 1):
        places = np.flatnonzero(lines)
        if places.size >= MIN_SLICES:
            start[axis], stop[axis] = int(places[0]), int(places[-1]) + 1
    trimmed = Volume(array, target).cropped(start, stop)
    return Volume(np.ascontiguousarray(trimmed.array), trimmed.geometry, volume.flags)


def sheared_labels(labels: Volume, geometry: ImageGrid) -> Volume:
    """A label map on `straight_grid(geometry)` brought back to the sheared grid `geometry`: the nearest voxel's label."""
    if not geometry.is_sheared:
        return labels
    array = np.zeros(geometry.shape, labels.array.dtype)
    for k, (plane, first, steps) in enumerate(_planes(labels.geometry, geometry)):
        index, inside = _nearest(first, steps, labels.array.shape[1:], geometry.shape[1:])
        array[k] = np.where(inside, labels.array[plane][index], 0)
    return replace(labels, array=array, geometry=geometry)


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


def _planes(source: ImageGrid, target: ImageGrid) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each slice of `target` the slice of `source` at its place, the pixel there (y, x) of its first pixel, and the 2 x 2 steps in
    (y, x) per pixel: both grids have the same slices, moved and sheared in their planes."""
    first = source.world_to_index(target.index_to_world((0, 0, 0)))
    steps = (source.world_to_index(target.index_to_world(np.eye(3))) - first).T
    for k in range(target.shape[0]):
        place = first + steps[:, 0] * k
        yield min(max(round(float(place[0])), 0), source.shape[0] - 1), place[1:], steps[1:, 1:]


def _extended(plane: np.ndarray, background: float) -> tuple[np.ndarray, np.ndarray]:
    """`plane` as float32 with its outermost content repeated over the padding around it, and where that padding is.

    Padding are the voxels at the lowest value between the content and the edge, column by column, and columns at the edge without content.
    """
    content, rows, columns = plane > background, np.arange(plane.shape[0])[:, None], np.arange(plane.shape[1])
    held = np.flatnonzero(content.any(axis=0))
    if held.size == 0:
        return plane.astype(np.float32), np.zeros(plane.shape, bool)
    low, high = content.argmax(axis=0), plane.shape[0] - 1 - content[::-1].argmax(axis=0)
    outer = (rows < low) | (rows > high) | (columns < held[0]) | (columns > held[-1])
    nearest = np.clip(columns, held[0], held[-1])
    return plane[np.clip(rows, low[nearest], high[nearest]), nearest].astype(np.float32), outer


def _nearest(first: np.ndarray, steps: np.ndarray, shape: Sequence[int], wanted: Sequence[int]
             ) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The nearest pixel (y, x) of a plane of `shape` for each of a plane of `wanted` pixels, and whether it lies in it.

    A pixel reaches half a pixel beyond its centre, and the outermost are pixels like the others.
    """
    rows, columns = np.arange(wanted[0])[:, None], np.arange(wanted[1])
    y = np.rint(first[0] + steps[0, 0] * rows + steps[0, 1] * columns).astype(int)
    x = np.rint(first[1] + steps[1, 0] * rows + steps[1, 1] * columns).astype(int)
    inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    return (np.clip(y, 0, shape[0] - 1), np.clip(x, 0, shape[1] - 1)), inside


def _spline(plane: np.ndarray, first: np.ndarray, steps: np.ndarray, shape: Sequence[int], kind: np.dtype) -> np.ndarray:
    """The cubic spline through a plane (float32) on other pixels; whole numbers are rounded and limited to their type."""
    from scipy.ndimage import affine_transform

    turned: np.ndarray = affine_transform(plane, steps, first, tuple(shape), order=3, mode="nearest")
    if kind.kind != "f":
        limits = np.iinfo(kind)
        np.clip(np.rint(turned, out=turned), limits.min, limits.max, out=turned)
    return turned
