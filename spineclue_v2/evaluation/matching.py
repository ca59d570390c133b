"""Which predicted vertebra belongs to which true one: one-to-one, by overlap where masks exist, else by distance."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_CENTROID_DISTANCE_MM = 20.0
FAR = 1e6


@dataclass(frozen=True)
class Overlaps:
    """Voxel counts between two instance maps on one grid.

    `counts[r, p]` voxels shared by `reference_ids[r]` and `prediction_ids[p]`; sizes are whole instances in voxels.
    """

    reference_ids: tuple[int, ...]
    prediction_ids: tuple[int, ...]
    counts: np.ndarray
    reference_sizes: np.ndarray
    prediction_sizes: np.ndarray

    @property
    def dice(self) -> np.ndarray:
        """Dice of every pair, (len(reference_ids), len(prediction_ids))."""
        total = self.reference_sizes[:, None] + self.prediction_sizes[None, :]
        return 2.0 * self.counts / np.maximum(total, 1)


def count_overlaps(reference: np.ndarray, prediction: np.ndarray) -> Overlaps:
    """Count shared voxels of two instance maps (any shape, equal; whole numbers >= 0, 0 = background) in one pass."""
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    if reference.shape != prediction.shape:
        raise ValueError(f"maps of one grid expected, got shapes {reference.shape} and {prediction.shape}")
    occupied = (reference != 0) | (prediction != 0)
    ref, pred = reference[occupied].astype(np.int64), prediction[occupied].astype(np.int64)
    width = int(pred.max(initial=0)) + 1
    height = int(ref.max(initial=0)) + 1
    table = np.bincount(ref * width + pred, minlength=height * width).reshape(height, width)
    ref_sizes, pred_sizes = table.sum(axis=1), table.sum(axis=0)
    ref_ids = np.flatnonzero(ref_sizes[1:]) + 1
    pred_ids = np.flatnonzero(pred_sizes[1:]) + 1
    return Overlaps(tuple(ref_ids.tolist()), tuple(pred_ids.tolist()), table[np.ix_(ref_ids, pred_ids)],
                    ref_sizes[ref_ids], pred_sizes[pred_ids])


def match_by_dice(dice: Any) -> list[tuple[int, int]]:
    """Pairs (row, column) that maximise the summed Dice, one-to-one (Hungarian); pairs without overlap are left out."""
    from scipy.optimize import linear_sum_assignment

    dice = np.asarray(dice, dtype=float)
    if dice.size == 0:
        return []
    rows, columns = linear_sum_assignment(dice, maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if dice[r, c] > 0]


def match_by_centroid(reference: Any, prediction: Any, max_mm: float = MAX_CENTROID_DISTANCE_MM) -> list[tuple[int, int]]:
    """Pairs (row, column) one-to-one within `max_mm`: as many as possible, then the smallest summed distance.

    `reference` (n, 3) and `prediction` (m, 3) are points in mm, any one frame.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    reference = np.asarray(reference, dtype=float).reshape(-1, 3)
    prediction = np.asarray(prediction, dtype=float).reshape(-1, 3)
    if not len(reference) or not len(prediction):
        return []
    distance = cdist(reference, prediction)
    near = distance <= max_mm + 1e-6
    rows, columns = linear_sum_assignment(np.where(near, distance, FAR))
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if near[r, c]]
