"""Errors as they occur in label maps, planted into good ones.

Arrays are (z, y, x), LPS, VerSe's values; every function returns a new one.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spineclue_v2.anatomy import LABEL_OF_NAME, NAME_OF_LABEL, ORDER_INDEX
from spineclue_v2.anatomy.label_boxes import label_boxes
from spineclue_v2.anatomy.morphology import body_centre

Plant = Callable[[np.ndarray, np.ndarray | None, np.ndarray, np.random.Generator], np.ndarray | None]
"""(labels, CT or None, spacing mm, rng) -> the map with an error, or None where this map has no place for it."""


def _row(labels: np.ndarray) -> list[int]:
    """Values from above downwards."""
    return sorted((int(v) for v in np.unique(labels) if v and int(v) != 26), key=lambda v: ORDER_INDEX[NAME_OF_LABEL[v]])


def shifted(labels: np.ndarray, ct: np.ndarray | None, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """The whole row is one level too high or too low."""
    row = _row(labels)
    if len(row) < 4 or any(v > 24 for v in row):
        return None
    steps = [s for s in (-1, 1) if row[0] + s >= 1 and row[-1] + s <= 24]
    if not steps:
        return None
    step = int(rng.choice(steps))
    return np.where(labels > 0, labels.astype(np.int16) + step, 0).astype(np.uint8)


def swapped(labels: np.ndarray, ct: np.ndarray | None, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Two neighbours have each other's value."""
    row = _row(labels)
    if len(row) < 3:
        return None
    i = int(rng.integers(0, len(row) - 1))
    out = labels.copy()
    out[labels == row[i]], out[labels == row[i + 1]] = row[i + 1], row[i]
    return out


def mixed(labels: np.ndarray, ct: np.ndarray | None, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """The hind part of a vertebra, or its lower half, has the value of the neighbour below."""
    row = _row(labels)
    if len(row) < 3:
        return None
    i = int(rng.integers(0, len(row) - 1))
    out, mask = labels.copy(), labels == row[i]
    box = label_boxes(labels)[row[i]]
    if rng.uniform() < 0.6:
        cut = int(box[1].start + 0.6 * (box[1].stop - box[1].start))
        mask[:, :cut] = False
    else:
        cut = int(round(box[0].start + body_centre(mask[box], spacing)[0]))
        mask[cut:] = False
    out[mask] = row[i + 1]
    return out


def merged(labels: np.ndarray, ct: np.ndarray | None, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Two neighbours have one value."""
    row = _row(labels)
    if len(row) < 4:
        return None
    i = int(rng.integers(0, len(row) - 1))
    first, second = (row[i], row[i + 1]) if rng.uniform() < 0.5 else (row[i + 1], row[i])
    out = labels.copy()
    out[labels == second] = first
    return out


def cut(labels: np.ndarray, ct: np.ndarray | None, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A mask ends in the middle of its vertebra."""
    row = _row(labels)
    if len(row) < 4:
        return None
    value = row[int(rng.integers(1, len(row) - 1))]
    z, y, x = label_boxes(labels)[value]
    mask = labels == value
    side = int(rng.integers(0, 3))
    keep = np.zeros_like(mask)
    if side == 0:
        keep[z, y, slice(x.start, (x.start + x.stop) // 2)] = True
    elif side == 1:
        keep[z, slice(y.start, int(y.start + 0.45 * (y.stop - y.start))), x] = True
    else:
        keep[slice((z.start + z.stop) // 2, z.stop), y, x] = True
    out = labels.copy()
    out[mask & ~keep] = 0
    return out


def island(labels: np.ndarray, ct: np.ndarray | None, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Three loose pieces of 7 mm with vertebra values, 20 mm and more from their vertebra."""
    from scipy.ndimage import distance_transform_edt

    row = _row(labels)
    out, size = labels.copy(), np.maximum(np.round(7 / spacing).astype(int), 2)
    for _ in range(3):
        value = int(rng.choice(row))
        far = (distance_transform_edt(labels != value, sampling=spacing) > 20) & (labels == 0)
        far[-size[0]:], far[:, -size[1]:], far[:, :, -size[2]:] = False, False, False
        places = np.argwhere(far)
        if not len(places):
            return None
        at = places[int(rng.integers(len(places)))]
        part = out[tuple(slice(int(a), int(a + n)) for a, n in zip(at, size, strict=True))]
        part[part == 0] = value
    return out


def missing(labels: np.ndarray, ct: np.ndarray | None, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A vertebra between two others has no mask; every second time the numbers go on as if it were not there."""
    row = _row(labels)
    if len(row) < 5:
        return None
    i = int(rng.integers(1, len(row) - 1))
    out = np.where(labels == row[i], 0, labels)
    if rng.uniform() < 0.5 and all(v <= 24 for v in row):
        below = np.isin(labels, row[i + 1:])
        out = np.where(below, labels - 1, out)
    return out.astype(np.uint8)


def flip(labels: np.ndarray, ct: np.ndarray | None, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """The label map is head down, or left and right of it are exchanged where that can be seen (a CT is there and the spine is not in
    the middle)."""
    if len(_row(labels)) < 3:
        return None
    columns = np.flatnonzero(labels.any(axis=(0, 1)))
    beside = abs((columns[0] + columns[-1]) / 2 - (labels.shape[2] - 1) / 2) * spacing[2]
    if ct is not None and beside > 8 and rng.uniform() < 0.5:
        return labels[:, :, ::-1].copy()
    return labels[::-1].copy()


def sacrum(labels: np.ndarray, ct: np.ndarray | None, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Bone below L5 is labelled L6."""
    import cc3d

    row = _row(labels)
    if ct is None or row[-1] != 24:
        return None
    bottom = label_boxes(labels)[24]
    bone = (ct > 180) & (labels == 0)
    bone[int(0.5 * (bottom[0].start + bottom[0].stop)):] = False
    middle = (bottom[2].start + bottom[2].stop) // 2
    half = int(45 / spacing[2])
    bone[:, :, :max(middle - half, 0)], bone[:, :, middle + half:] = False, False
    bone[:, :max(bottom[1].start - int(10 / spacing[1]), 0)] = False
    bone[:max(bottom[0].start - int(70 / spacing[0]), 0)] = False
    largest = cc3d.largest_k(bone.astype(np.uint8), k=1, connectivity=6) > 0
    if largest.sum() * np.prod(spacing) / 1000 < 25:
        return None
    return np.where(largest, np.uint8(LABEL_OF_NAME["L6"]), labels)


PLANTS: dict[str, Plant] = {"shifted": shifted, "swapped": swapped, "mixed": mixed, "merged": merged, "cut": cut, "island": island,
                            "missing": missing, "flip": flip, "sacrum": sacrum}
