"""Augmentation that localize and segment share: scanners differ in kernel, dose, thickness and calibration, scans end anywhere."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

HU_SCALE, HU_SHIFT = 0.15, 50.0     # contrast media, bone density and calibration
SHARPEN = (0.3, 2.0)                # unsharp masking: bone and lung kernels
BLUR_MM = (0.5, 1.6)
THICK_MM = (2.5, 5.5)               # slices averaged and interpolated again
NOISE_HU = (10.0, 110.0)


def augment_hu(array: np.ndarray, rng: np.random.Generator, spacing: float) -> np.ndarray:
    """HU array (z, ...) of voxels of `spacing` mm as another scanner might have given it; float32 of the same shape."""
    array = array.astype(np.float32)
    if rng.random() < 0.6:
        array = array * np.float32(1 + rng.uniform(-HU_SCALE, HU_SCALE)) + np.float32(rng.uniform(-HU_SHIFT, HU_SHIFT))
    roll = rng.random()
    if roll < 0.25:
        array = array + np.float32(rng.uniform(*SHARPEN)) * (array - ndimage.gaussian_filter(array, 0.9 / spacing)).clip(-600, 600)
    elif roll < 0.4:
        array = ndimage.gaussian_filter(array, rng.uniform(*BLUR_MM) / spacing)
    if rng.random() < 0.3:
        array = array + rng.standard_normal(array.shape, np.float32) * np.float32(rng.uniform(*NOISE_HU))
    if rng.random() < 0.15:
        array = thick_slices(array, rng, spacing)
    return array


def thick_slices(array: np.ndarray, rng: np.random.Generator, spacing: float) -> np.ndarray:
    """The array as a scan with thick slices along one random axis shows it."""
    axis = int(rng.integers(array.ndim))
    step = rng.uniform(*THICK_MM) / spacing
    if step <= 1.2 or array.shape[axis] < 4 * step:
        return array
    smooth = ndimage.uniform_filter1d(array, max(1, int(round(step))), axis=axis)
    kept = np.arange(rng.uniform(0, step), array.shape[axis] - 1, step)
    position = np.interp(np.arange(array.shape[axis]), kept, np.arange(len(kept)))
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, len(kept) - 1)
    weight = (position - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    rows = np.round(kept).astype(int)
    return np.take(smooth, rows[low], axis) * (1 - weight) + np.take(smooth, rows[high], axis) * weight


def field_ends(start: Sequence[float] | np.ndarray, stop: Sequence[float] | np.ndarray, shape: Sequence[int], rng: np.random.Generator,
               kept_share: float) -> list[tuple[int, int]]:
    """Random field of view [first, stop) per axis of an array of `shape` that still holds `kept_share` of the box start..stop.

    One or two faces close in on the box, up and down most often, as in scans that end within a vertebra.
    """
    field = [(0, int(n)) for n in shape]
    axes = {0 if rng.random() < 0.6 else int(rng.integers(len(field)))}
    if rng.random() < 0.4:
        axes.add(int(rng.integers(len(field))))
    for axis in sorted(axes):
        length = stop[axis] - start[axis]
        reach = (1 - kept_share) * length
        if rng.random() < 0.5:
            field[axis] = (int(np.clip(start[axis] + rng.uniform(-0.4 * length, reach), 0, shape[axis] - 8)), field[axis][1])
        else:
            end = stop[axis] - rng.uniform(-0.4 * length, reach)
            field[axis] = (field[axis][0], int(np.clip(end, field[axis][0] + 8, shape[axis])))
    return field
