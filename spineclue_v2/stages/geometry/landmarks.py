"""Detections of a scan and the classes they may have; their features where nothing but body centres is known, without PyTorch."""
from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ...anatomy import NUM_LEVELS

NOT_A_VERTEBRA, L6 = NUM_LEVELS, NUM_LEVELS + 1
"""Classes after the 24 levels."""
CLASSES = NUM_LEVELS + 2
UNKNOWN = -1

UNIT_MM = 30.0
"""Distances are divided by this, about one vertebra, to keep features near 1."""

FEATURES = 51
RANK_UNKNOWN, OTHERS_UNKNOWN = 41, (48, 49, 50)     # columns that say so


@dataclass(frozen=True)
class Landmarks:
    """One scan's detections in cranio-caudal order.

    `centres` (n, 3) body centres; `targets` (n,) class per detection (0..23, `NOT_A_VERTEBRA`, `L6`) or None; `left`, `right`
    (n, 3) pedicle centres; `ctl` (n, 3) probabilities of cervical, thoracic, lumbar, need not add up to 1; `extents` (n, 3)
    millimetres (z, y, x); `rank` (n,) place in the detector's own order, 0 = surest .. 1 = least sure. NaN, or None for all,
    where unknown.
    """

    centres: np.ndarray
    targets: np.ndarray | None = None
    left: np.ndarray | None = None
    right: np.ndarray | None = None
    ctl: np.ndarray | None = None
    extents: np.ndarray | None = None
    rank: np.ndarray | None = None


POINTS = ("centres", "left", "right", "ctl", "extents")
"""Fields of three numbers per detection; `rank` has one."""


OPTIONAL = tuple(entry.name for entry in fields(Landmarks) if entry.name not in ("centres", "targets"))


def row_features(centres_xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, FEATURES) of one scan's body centres (n, 3), LPS mm, with everything else unknown, and their arc lengths (n,) from the first.

    Equal to `features.features` and `features.along`, which say what the columns are.
    """
    x = np.asarray(centres_xyz, dtype=np.float32)
    n = len(x)
    unknown = np.float32(np.nan)

    def moved(value: np.ndarray, places: int) -> np.ndarray:
        out = np.full_like(value, unknown)
        out[max(places, 0):n + min(places, 0)] = value[max(-places, 0):n - max(places, 0)]
        return out

    with np.errstate(invalid="ignore", divide="ignore"):
        down = moved(x, -1) - x
        gap = np.linalg.norm(down, axis=1, keepdims=True)
        down = down / gap
        up = moved(down, 1)
        gaps = np.concatenate([moved(gap, places) for places in (2, 1, 0, -1)], axis=1)
        known = np.sort(gap[~np.isnan(gap)])
        typical = known[(len(known) - 1) // 2] if len(known) else unknown     # the lower of two middles, as torch has it
        index = np.arange(n)
        place = np.stack([index, n - 1 - index, np.full(n, n)], axis=1) / 10.0
        ends = np.stack([index == 0, index == n - 1], axis=1)
        ratios = [np.log(gaps / typical), np.log(gaps[:, 2:3] / gaps[:, 1:2])]
        parts = [gaps / UNIT_MM, *ratios, up, down, 3.0 * np.cross(up, down), place, ends]
    found = np.nan_to_num(np.concatenate(parts, axis=1), nan=0.0, posinf=0.0, neginf=0.0).clip(-5.0, 5.0)
    result = np.zeros((n, FEATURES), np.float32)
    result[:, :found.shape[1]] = found
    result[:, [RANK_UNKNOWN, *OTHERS_UNKNOWN]] = 1.0
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(x, axis=0), axis=1))])[:n] / UNIT_MM
    return result, arc.astype(np.float32)
