"""Resampling between grids: separable cubic (scans) and by position (labels), and the way into network space."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..anatomy.label_boxes import label_boxes
from ..imageio.orientation import oriented_view
from ..imageio.volume import ImageGrid, Volume, resample_grid
from ..plans.data import Data
from ..utilities.memory import give_back_memory
from .straighten import straight_grid, straightened

_SLAB = 48                # output slices at a time

_TILE = 64                # output samples of one axis at a time: the band of the matrix, not the matrix


def to_network_space(volume: Volume, data: Data) -> Volume:
    """`volume` (HU) reoriented, resampled to `data.spacing_mm` (cubic; averaged where coarser), limited, int16 (z, y, x).

    A sheared scan is straightened first (`straighten.straightened`).
    """
    source = oriented_view(straightened(volume), data.orientation)
    geometry = resample_grid(source.geometry, (data.spacing_mm,) * 3)
    array = _resample(source.array, _axis_maps(source.geometry, geometry, _cubic), geometry.shape, data.hu_min, data.hu_max)
    give_back_memory()      # of the slabs
    return Volume(array, geometry)


def resample_floats(volume: Volume, target: ImageGrid, linear: bool = False) -> np.ndarray:
    """`volume` on the grid `target`, which shares its directions: float32, cubic (or linear), averaged where coarser."""
    maps = _axis_maps(volume.geometry, target, _linear if linear else _cubic)
    return _apply_axis(_in_planes(volume.array, maps), maps[0], 0)


def network_grid(geometry: ImageGrid, data: Data) -> ImageGrid:
    """Grid that `to_network_space` gives a scan of `geometry`, without touching voxels."""
    return resample_grid(straight_grid(geometry).reoriented(data.orientation)[0], (data.spacing_mm,) * 3)


def labels_to_network_space(volume: Volume, target: ImageGrid, verse_value: Mapping[int, int] | None = None) -> Volume:
    """Label map on the grid `target`, uint8 VerSe values; `verse_value` maps stored values (None: they are VerSe's already).

    Each structure is resampled linearly on its own box; a voxel is foreground where all structures together hold half of
    it, and belongs to the one with the largest share: smooth like one-hot, at the cost of the boxes only.
    """
    source = oriented_view(volume, target.orientation)
    if not np.allclose(source.geometry.direction, target.direction, atol=1e-3):
        return _labels_by_position(volume, target, verse_value)
    maps = _axis_maps(source.geometry, target, _linear)
    result = np.zeros(target.shape, np.uint8)
    share = np.zeros(target.shape, np.uint8)      # largest share of a structure so far, in 1/200
    total = np.zeros(target.shape, np.uint8)      # share of all structures
    for value, box in label_boxes(source.array).items():
        verse = verse_value.get(value, 0) if verse_value is not None else value
        if not verse:
            continue
        window, local = _target_window(maps, box)
        if any(s.stop <= s.start for s in window):
            continue
        part = np.round(_apply_maps((source.array[box] == value).astype(np.float32), local) * 200).astype(np.uint8)
        total[window] += np.minimum(part, 200 - total[window])
        better = part > share[window]
        result[window][better] = verse
        share[window][better] = part[better]
    result[total < 100] = 0
    return Volume(result, target)


def windows(array: np.ndarray, windows_hu: Sequence[tuple[float, float]]) -> np.ndarray:
    """HU array (...) -> float32 (C, ...): one channel per CT window (low, high), scaled to 0..1 and clipped."""
    channels = np.empty((len(windows_hu), *array.shape), np.float32)
    for channel, (low, high) in zip(channels, windows_hu, strict=True):
        np.subtract(array, low, out=channel, casting="unsafe", dtype=np.float32)
        channel *= 1.0 / (high - low)
        np.clip(channel, 0, 1, out=channel)
    return channels


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution (a = -1/2), support 2."""
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1 - np.abs(x))


def _axis_maps(source: ImageGrid, target: ImageGrid, kernel: Any) -> list[np.ndarray]:
    """One float32 matrix (target samples, source samples) per array axis; the grids share their directions."""
    first = source.world_to_index(target.origin)
    steps = [new / old for new, old in zip(target.spacing, source.spacing, strict=True)]
    return [_axis_map(source.shape[a], target.shape[a], float(first[a]), steps[a], kernel) for a in range(3)]


def _axis_map(num_in: int, num_out: int, first: float, step: float, kernel: Any) -> np.ndarray:
    positions = first + step * np.arange(num_out)
    if num_in == num_out and abs(step - 1) < 1e-6 and np.abs(positions - np.arange(num_out)).max() < 1e-3:
        return np.eye(num_out, dtype=np.float32)
    stretch = max(1.0, step)                               # coarser grids average over what they skip (no aliasing)
    reach = int(np.ceil(2 * stretch))
    samples = np.floor(positions)[:, None].astype(int) + np.arange(-reach, reach + 2)
    weights = kernel((samples - positions[:, None]) / stretch)
    weights /= weights.sum(1, keepdims=True)
    matrix = np.zeros((num_out, num_in), np.float32)
    # Beyond the edge the last sample repeats: nothing is invented.
    np.add.at(matrix, (np.arange(num_out)[:, None], np.clip(samples, 0, num_in - 1)), weights)
    return matrix


def _band(matrix: np.ndarray) -> tuple[int, int]:
    columns = np.flatnonzero(matrix.any(0))
    return (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 1)


def _apply_axis(array: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """Product of `matrix` with one axis of a float32 array, tile by tile along the band."""
    if matrix.shape[0] == matrix.shape[1] and (np.diagonal(matrix) == 1).all():      # rows sum to 1: the identity
        return array
    shape = list(array.shape)
    shape[axis] = matrix.shape[0]
    result = np.empty(shape, np.float32)
    for begin in range(0, matrix.shape[0], _TILE):
        rows = matrix[begin:begin + _TILE]
        low, high = _band(rows)
        rows = np.ascontiguousarray(rows[:, low:high])
        target = slice(begin, begin + rows.shape[0])
        if axis == 2:
            np.matmul(array[:, :, low:high], rows.T, out=result[:, :, target])
        elif axis == 1:
            np.matmul(rows, array[:, low:high], out=result[:, target])
        else:
            flat = array[low:high].reshape(high - low, -1)
            result[target] = (rows @ flat).reshape(rows.shape[0], *shape[1:])
    return result


def _in_planes(array: np.ndarray, maps: Sequence[np.ndarray], at_once: int = 8) -> np.ndarray:
    """Axes 1 and 2 of a scan of any type resampled, float32: `at_once` slices at a time, so that hardly any of it exists as float32."""
    result = np.empty((array.shape[0], maps[1].shape[0], maps[2].shape[0]), np.float32)
    for begin in range(0, len(array), at_once):
        part = np.array(array[begin:begin + at_once], dtype=np.float32, order="C")
        result[begin:begin + at_once] = _apply_axis(_apply_axis(part, maps[2], 2), maps[1], 1)
    return result


def _apply_maps(array: np.ndarray, maps: Sequence[np.ndarray]) -> np.ndarray:
    for axis in (2, 1, 0):
        array = _apply_axis(array, maps[axis], axis)
    return array


def _resample(array: np.ndarray, maps: Sequence[np.ndarray], shape: Sequence[int], low: int, high: int) -> np.ndarray:
    """Resample slab by slab into int16, limited to low..high and rounded."""
    result = np.empty(tuple(shape), np.int16)
    for begin in range(0, shape[0], _SLAB):
        rows = maps[0][begin:begin + _SLAB]
        first, last = _band(rows)
        slab = _apply_axis(_in_planes(array[first:last], maps), np.ascontiguousarray(rows[:, first:last]), 0)
        np.clip(slab, low, high, out=slab)
        result[begin:begin + len(rows)] = np.rint(slab, out=slab)
    return result


def _target_window(maps: Sequence[np.ndarray], box: Sequence[slice]) -> tuple[tuple[slice, ...], list[np.ndarray]]:
    """Target samples that a source `box` reaches, and the maps restricted to both."""
    window, local = [], []
    for matrix, part in zip(maps, box, strict=True):
        columns = matrix[:, part]
        rows = np.flatnonzero(columns.any(1))
        reached = slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 0)
        window.append(reached)
        local.append(np.ascontiguousarray(columns[reached]))
    return tuple(window), local


def _labels_by_position(volume: Volume, target: ImageGrid, verse_value: Mapping[int, int] | None) -> Volume:
    """Nearest neighbour through world coordinates, for grids whose axes are turned against each other."""
    import SimpleITK as sitk

    array = volume.array
    if verse_value is not None:
        table = np.zeros(int(array.max()) + 1, np.uint8)
        for value, verse in verse_value.items():
            if value < len(table):
                table[value] = verse
        array = table[array]
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in target.shape[::-1]])
    resampler.SetOutputSpacing([float(s) for s in target.spacing[::-1]])
    resampler.SetOutputOrigin([float(o) for o in target.origin])
    resampler.SetOutputDirection([float(d) for d in np.asarray(target.direction).ravel()])
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    result = sitk.GetArrayFromImage(resampler.Execute(Volume(array, volume.geometry).to_sitk()))
    return Volume(result.astype(np.uint8, copy=False), target)
