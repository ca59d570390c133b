"""How far bone reaches to both sides of vertebral bodies.

From the root of the arch bone is followed outwards through a funnel: near the vertebra it is narrower than the step to the next one, so
that a neighbour's processes and ribs stay out of it; further out it falls with the ribs.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ...adapters import crop_and_pad
from ...imageio.volume import Volume

BIN_MM = 6.0
FIRST_MM, LAST_MM = 24.0, 90.0                # lateral distance from the middle of the body that the bins cover
BINS = round((LAST_MM - FIRST_MM) / BIN_MM)
FRONT_MM, BACK_MM, BELOW_MM, ABOVE_MM = 34.0, 60.0, 45.0, 21.0
ROOT_MM, ROOT_BACK_MM = (10.0, 26.0), (0.0, 40.0)   # where bone of the vertebra begins: to the side, and behind the middle of the body
NEAR_MM = 34.0                                # so far out the funnel keeps its height
LOW, HIGH, ROOT = 0.35, 0.45, 0.4             # of the step to the neighbours: its height there, and the root's
FALL_LOW, FALL_HIGH = 1.0, 0.15               # how its lower and upper border fall per mm further out
USUAL_STEP_MM = 25.0                          # of a single vertebra
SEEN, AREA, HEIGHT, DEPTH = range(4)          # last axis of `reaches`
LEAST_SEEN, LEAST_AREA = 0.6, 8.0             # part of a bin inside the field; mm2 of bone that are some
SHAPE_BINS, SHAPE_THRESHOLDS = 7, 2           # where bone runs is read from the inner bins and the lower thresholds
EVERYWHERE = np.ones((3, 3, 3))


def steps_mm(centres: np.ndarray) -> np.ndarray:
    """(n,) mean distance in mm of each centre (n, 3) to its neighbours along the row."""
    if len(centres) < 2:
        return np.full(len(centres), USUAL_STEP_MM)
    gaps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    return np.array([gaps[max(0, k - 1):k + 1].mean() for k in range(len(centres))])


def reaches(volume: Volume, centres_xyz: np.ndarray, thresholds_hu: Sequence[float]) -> np.ndarray:
    """What lies beside each body (n, 2 sides, thresholds, BINS, 4): the part of a bin that the field holds, mm2 of connected bone, its mean
    height in steps between vertebrae and its mean place behind the middle of the body in mm.

    Args:
        volume: int16 HU on an isotropic grid in LPS order (z up, y back, x left).
        centres_xyz: (n, 3) body centres, LPS mm, cranio-caudal.
        thresholds_hu: what counts as bone.
    """
    centres = np.asarray(centres_xyz, dtype=float).reshape(-1, 3)
    out = np.zeros((len(centres), 2, len(thresholds_hu), BINS, 4), np.float32)
    if not len(centres):
        return out
    spacing = float(volume.geometry.spacing[0])
    places = np.rint(volume.geometry.world_to_index(centres)).astype(int)
    before = np.rint(np.array([BELOW_MM, FRONT_MM, LAST_MM]) / spacing).astype(int)
    after = np.rint(np.array([ABOVE_MM, BACK_MM, LAST_MM]) / spacing).astype(int)
    size = before + after + 1
    z, y, x = (np.arange(-a, b + 1) * spacing for a, b in zip(before, after, strict=True))
    shape = volume.array.shape
    for k, (place, step) in enumerate(zip(places, steps_mm(centres), strict=True)):
        box = crop_and_pad(volume.array, place - before, size, pad_value=-1024)
        held = [(first + np.arange(n) >= 0) & (first + np.arange(n) < whole)
                for first, n, whole in zip(place - before, size, shape, strict=True)]
        inside = held[0][:, None, None] & held[1][:, None] & held[2]
        for side in (0, 1):
            half = box[:, :, before[2]:] if side == 0 else box[:, :, before[2]::-1]
            seen = inside[:, :, before[2]:] if side == 0 else inside[:, :, before[2]::-1]
            out[k, side] = _one_side(half, seen, (z, y, x[before[2]:]), float(step), thresholds_hu)
    return out


def _one_side(ct: np.ndarray, inside: np.ndarray, places: tuple[np.ndarray, np.ndarray, np.ndarray], step: float,
              thresholds_hu: Sequence[float]) -> np.ndarray:
    """(thresholds, BINS, 4) of one side: `ct` and `inside` (z, y, x) with x outwards, `places` the mm of each axis."""
    z, y, x = np.meshgrid(*places, indexing="ij", sparse=True)
    further = np.maximum(x - NEAR_MM, 0)
    funnel = (z >= -LOW * step - FALL_LOW * further) & (z <= HIGH * step - FALL_HIGH * further) & (x > 8)
    root = (x > ROOT_MM[0]) & (x < ROOT_MM[1]) & (y > ROOT_BACK_MM[0]) & (y < ROOT_BACK_MM[1]) & (np.abs(z) < ROOT * step)
    number = np.floor((x - FIRST_MM) / BIN_MM).astype(int)
    counted = np.broadcast_to(funnel & (number >= 0) & (number < BINS), ct.shape)
    number = np.broadcast_to(number, ct.shape)
    height, depth = np.broadcast_to(z / step, ct.shape), np.broadcast_to(y, ct.shape)
    area_mm2 = float(places[0][1] - places[0][0]) ** 3 / BIN_MM

    def per_bin(where: np.ndarray, value: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(number[where], None if value is None else value[where], minlength=BINS)[:BINS]

    out = np.zeros((len(thresholds_hu), BINS, 4), np.float32)
    out[:, :, SEEN] = per_bin(counted & inside) / np.maximum(per_bin(counted), 1)
    for k, threshold in enumerate(thresholds_hu):
        pieces, _ = ndimage.label((ct > threshold) & funnel, EVERYWHERE)
        own = np.unique(pieces[np.broadcast_to(root & funnel, ct.shape)])
        bone = counted & np.isin(pieces, own[own > 0])
        voxels = per_bin(bone)
        out[k, :, AREA] = voxels * area_mm2
        out[k, :, HEIGHT] = per_bin(bone, height) / np.maximum(voxels, 1)
        out[k, :, DEPTH] = per_bin(bone, depth) / np.maximum(voxels, 1)
    return out


def inputs_of(found: np.ndarray) -> np.ndarray:
    """`reaches` (n, 2, thresholds, BINS, 4) -> inputs of the network (n, features), alike for both sides: bone or none (0 where the field
    ends) as mean and difference of the sides, and how much of it there is and where."""
    seen, area = found[..., SEEN] > LEAST_SEEN, found[..., AREA]
    bone = area > LEAST_AREA
    there = np.where(bone, 1.0, np.where(seen, -1.0, 0.0))
    shape = np.stack([np.log1p(area / 50), found[..., HEIGHT], (found[..., DEPTH] - 20) / 15], axis=-1) * bone[..., None]
    n = len(found)
    return np.concatenate([there.mean(1).reshape(n, -1), 0.25 * np.abs(there[:, 0] - there[:, 1]).reshape(n, -1),
                           shape.mean(1)[:, :SHAPE_THRESHOLDS, :SHAPE_BINS].reshape(n, -1)], axis=1).astype(np.float32)


def feature_count(thresholds: int) -> int:
    """Inputs of the network for so many thresholds."""
    return 2 * thresholds * BINS + 3 * min(SHAPE_THRESHOLDS, thresholds) * SHAPE_BINS


def narrowed(found: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`reaches` as a narrower field would have them: both sides cut alike, or each for itself, or one not there at all."""
    found = found.copy()
    if rng.random() < 0.5:
        found[:, :, :, int(rng.integers(2, BINS - 2)):] = 0
        return found
    for side in (0, 1):
        if rng.random() < 0.5:
            found[:, side, :, int(rng.integers(1, BINS)):] = 0
        elif rng.random() < 0.08:
            found[:, side] = 0
    return found
