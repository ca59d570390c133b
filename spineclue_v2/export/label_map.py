"""The label map: crops of masks pasted onto the scan's own grid."""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .. import anatomy
from ..anatomy.vertebra import Vertebra
from ..imageio.volume import ImageGrid

THRESHOLD = 0.5

JUST_OUTSIDE = 127 / 255  # the highest 8-bit probability that is no mask


def label_map(vertebrae: Iterable[Vertebra], network_grid: ImageGrid, geometry: ImageGrid) -> np.ndarray:
    """VerSe label values, uint8 (z, y, x) on grid `geometry`.

    Each vertebra's probability (network space; its mask where there is none) is interpolated linearly inside its own bounding box only; a
    voxel belongs to the vertebra with the highest value of at least 0.5. Vertebrae without mask or level leave no trace.
    """
    labels = np.zeros(geometry.shape, dtype=np.uint8)
    drawn = [(v, v.level, box) for v in vertebrae if v.mask is not None and v.level is not None
             and (box := target_box(v, network_grid, geometry)) is not None]
    if not drawn:
        return labels
    # Values of the current owners, 8 bit, only where vertebrae are: no float volume of the whole scan.
    start = np.min([low for _, _, (low, _) in drawn], axis=0)
    stop = np.max([high for _, _, (_, high) in drawn], axis=0)
    owned = np.zeros(stop - start, dtype=np.uint8)
    for vertebra, level, (low, high) in drawn:
        value = np.round(interpolated(vertebra, network_grid, geometry, low, high) * 255).astype(np.uint8)
        best = owned[_slices(low - start, high - start)]
        wins = (value >= THRESHOLD * 255) & (value > best)
        best[wins] = value[wins]
        labels[_slices(low, high)][wins] = anatomy.LABEL_OF_NAME[level]
    return labels


def _slices(low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def target_box(vertebra: Vertebra, model: ImageGrid, target: ImageGrid) -> tuple[np.ndarray, np.ndarray] | None:
    """Index box [low, high) of `target` that the mask reaches, half-open; None when it lies outside."""
    first = np.array(vertebra.mask_start) - 1
    last = np.array(vertebra.mask_start) + np.array(_mask(vertebra).shape)
    corners = np.stack(np.meshgrid(*zip(first, last, strict=True), indexing="ij"), axis=-1).reshape(-1, 3)
    index = target.world_to_index(model.index_to_world(corners))
    low = np.maximum(np.floor(index.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(index.max(axis=0)) + 1, target.shape).astype(int)
    return (low, high) if (low < high).all() else None


def interpolated(vertebra: Vertebra, model: ImageGrid, target: ImageGrid, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The vertebra's probability, or mask, at the target voxels [low, high), float32 in [0, 1]; 0 outside it.

    A mask that touches the border of network space is continued by one voxel: the outer half voxels of a finer grid lie beyond the
    last voxel centres of network space.
    """
    start = np.array(vertebra.mask_start)
    mask = _field(vertebra)
    for axis in range(3):
        ends = np.moveaxis(mask, axis, 0)
        if start[axis] == 0:
            ends[0] = ends[1]
        if start[axis] + _mask(vertebra).shape[axis] == model.shape[axis]:
            ends[-1] = ends[-2]
    # Affine map from target index (from `low` on) to index in the padded mask.
    origin = model.world_to_index(target.index_to_world(low)) - (start - 1)
    moved = model.world_to_index(target.index_to_world(low + np.eye(3))) - (start - 1)
    steps = (moved - origin).T
    if all((np.abs(column) > 1e-6).sum() == 1 for column in steps.T):
        return _separable(mask, steps, origin, high - low)
    from scipy.ndimage import affine_transform

    return affine_transform(mask, steps, origin, tuple(high - low), order=1, mode="constant", prefilter=False)


def _mask(vertebra: Vertebra) -> np.ndarray:
    """The mask of a vertebra that was segmented; ValueError for one that was not."""
    if vertebra.mask is None:
        raise ValueError("the vertebra has no mask")
    return vertebra.mask


def _field(vertebra: Vertebra) -> np.ndarray:
    """Values to interpolate, float32, one voxel wider than the mask on every side; the probability places the surface between voxels."""
    if vertebra.mask_probability is None:
        return np.pad(_mask(vertebra).astype(np.float32), 1)
    # What the tight box cuts off: the fall goes on, and the surface lies at most half a voxel outside the last voxel of the mask.
    probability = vertebra.mask_probability.astype(np.float32) / 255
    fall, nearest = np.pad(probability, 1, mode="reflect", reflect_type="odd"), np.pad(probability, 1, mode="edge")
    field = np.clip(np.minimum(fall, 1 - nearest), 0, JUST_OUTSIDE)
    field[1:-1, 1:-1, 1:-1] = probability
    return field


def _separable(mask: np.ndarray, steps: np.ndarray, origin: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Linear interpolation where target axes run along mask axes: one axis after the other, many times faster than in general."""
    source = [int(np.argmax(np.abs(steps[:, axis]))) for axis in range(3)]  # mask axis of each target axis
    values = mask.transpose(source)
    # Axes that shrink first: fewer voxels for the rest.
    for axis in sorted(range(3), key=lambda a: shape[a] / values.shape[a]):
        place = origin[source[axis]] + steps[source[axis], axis] * np.arange(shape[axis])
        below = np.floor(place).astype(int)
        weight = (place - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        size = values.shape[axis]
        inside = ((place >= 0) & (place <= size - 1)).astype(np.float32).reshape(weight.shape)
        lower = np.take(values, np.clip(below, 0, size - 1), axis=axis)
        upper = np.take(values, np.clip(below + 1, 0, size - 1), axis=axis)
        values = (lower + (upper - lower) * weight) * inside
    return values
