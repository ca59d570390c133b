"""Numberings worth considering for a VID scan: which detections are false, and which level the first true one has.

A candidate gives every detection a position in `CHAIN` (C1..L5, L6) or `NONE`. The detector's mistakes are few and of a kind (a body of
the sacrum, a point off the line, a vertebra that VID does not label), so a short list nearly always holds the right numbering.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..anatomy import LEVEL_INDEX, LEVELS
from ..anatomy.vertebral_gaps import vertebral_gaps
from ..stages.geometry.vid_landmarks import VidScan

CHAIN: tuple[str | None, ...] = (*LEVELS, "L6", None)
"""Name per class of a candidate; the last one is a false detection."""
SIXTH, NONE = len(LEVELS), len(LEVELS) + 1
T11, T12, L1 = (LEVEL_INDEX[name] for name in ("T11", "T12", "L1"))
REGION = np.array([0] * 7 + [1] * 12 + [2] * 6)
"""Column of `p_ctl` that belongs to each class of `CHAIN`."""

CANDIDATES = 24
_SETS, _BEAM = 8, 32              # sets of false detections that are tried; partial sets kept while they are made
_STARTS, _RARE_STARTS = 5, 2      # best levels of the first true detection kept per set; with T12 absent or a T13 less
_PENALTY = {"step": 1.5, "L6": 3.0, "T13": 3.0, "no_T12": 4.0}
_OFF_LINE_MM = 45.0
_WIDE = 1.6                       # a gap this much over the median may hold a missed vertebra
_WIDE_HERE, _WIDEST_HERE = 1.45, 1.3    # over the gaps around it; the widest two are tried from less on
_MISFIT, _MISFIT_FREE, _MISFIT_MOST = 3.0, 0.25, 0.7    # penalty of a gap's log-misfit to its step, free below, no more above
_CROWDED = 0.65                   # one this much under it holds a false one


@dataclass(frozen=True)
class Seen:
    """What candidates and features share about one scan of n detections, cranio-caudal."""

    scan: VidScan

    @property
    def centres(self) -> np.ndarray:
        return self.scan.landmarks.centres

    @cached_property
    def ctl(self) -> np.ndarray:
        """(n, 3) region probabilities as the detector gave them."""
        return np.nan_to_num(np.asarray(self.scan.landmarks.ctl, dtype=float), nan=0.0)

    @cached_property
    def total(self) -> np.ndarray:
        """(n,) sum of the region probabilities: about 1 for a body, little for a false detection, more between two regions."""
        return self.ctl.sum(axis=1)

    @cached_property
    def sides(self) -> np.ndarray:
        """(2, n, 3) left and right pedicle of each detection, NaN where one is missing. ValueError where the scan has none at all."""
        left, right = self.scan.landmarks.left, self.scan.landmarks.right
        if left is None or right is None:
            raise ValueError(f"scan {self.scan.name} has no pedicles, which the VID method needs")
        return np.stack([left, right])

    @cached_property
    def width(self) -> np.ndarray:
        """(n,) distance of the pedicles in mm, NaN where one is missing."""
        return np.linalg.norm(self.sides[0] - self.sides[1], axis=1)

    @cached_property
    def rank(self) -> np.ndarray:
        """(n,) position 0..1 in the detector's list; 0.5 where the list says nothing."""
        return np.nan_to_num(np.asarray(self.scan.landmarks.rank, dtype=float), nan=0.5)

    @cached_property
    def off_line(self) -> np.ndarray:
        """(n,) distance in mm, left-right or front-back, from the median of up to nine neighbours."""
        n = len(self.centres)
        if n < 4:
            return np.zeros(n)
        flat = self.centres[:, :2]
        return np.array([np.abs(flat[i] - np.median(flat[max(0, i - 4):i + 5], axis=0)).max() for i in range(n)])

    @cached_property
    def false_detection_penalty(self) -> np.ndarray:
        """(n,) penalty of calling a detection false, low where it looks false."""
        n = len(self.centres)
        penalty = np.full(n, 4.0) - 3.0 * (self.total < 0.9) - 1.5 * (self.total < 0.5) - 1.0 * (self.total < 0.3)
        penalty -= 1.0 * np.isnan(self.width) + 1.0 * (self.rank >= 1.0) + 4.0 * (self.off_line > _OFF_LINE_MM)
        penalty[[0, -1]] -= 1.0
        if n > 2:
            gaps = np.linalg.norm(np.diff(self.centres, axis=0), axis=1)
            crowded = gaps < _CROWDED * np.median(gaps)
            penalty -= 2.5 * (np.append(crowded, False) | np.insert(crowded, 0, False))
        return np.where(penalty < -2.0, 0.3 * penalty, np.maximum(penalty, 0.3))


def candidates(seen: Seen, limit: int = CANDIDATES) -> tuple[np.ndarray, np.ndarray]:
    """(m, n) classes of `CHAIN` and (m,) their plausibility by hand-set penalties, best first; m = 0 without detections."""
    n = len(seen.centres)
    if n == 0:
        return np.zeros((0, 0), dtype=int), np.zeros(0)
    share = seen.ctl / np.maximum(seen.total[:, None], 1e-3)
    log_share = np.log(np.clip(share, 3e-3, 1.0))
    found: dict[tuple[int, ...], float] = {}
    for false, penalty in _false_sets(seen).items():
        kept = np.setdiff1d(np.arange(n), false)
        for steps, misfit in _step_patterns(seen.centres[kept]):
            for classes, value in _starts(log_share[kept], steps):
                row = np.full(n, NONE)
                row[kept] = classes
                key = tuple(row.tolist())
                found[key] = max(value - penalty - misfit, found.get(key, -np.inf))
    best = sorted(found.items(), key=lambda item: -item[1])[:limit]
    return np.array([key for key, _ in best], dtype=int).reshape(-1, n), np.array([value for _, value in best])


def _false_sets(seen: Seen) -> dict[tuple[int, ...], float]:
    """The cheapest sets of false detections (indices -> penalty); one or two at an end are always tried."""
    n, penalty = len(seen.centres), seen.false_detection_penalty
    beam: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for i in range(n):
        beam = sorted(beam + [(sum_ + penalty[i], (*indices, i)) for sum_, indices in beam if len(indices) < n - 1])[:_BEAM]
    sets = {indices: sum_ for sum_, indices in beam[:_SETS]}
    for ends in ((n - 1,), (0,), (0, n - 1), (n - 2, n - 1), (0, 1)):
        if len(set(ends)) < n and min(ends) >= 0:
            indices = tuple(sorted(set(ends)))
            sets.setdefault(indices, float(penalty[list(indices)].sum()))
    return sets


def _step_patterns(centres: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """(k - 1,) steps between the k true detections, each with its penalty: all one, and patterns with vertebrae missed in wide gaps.

    Wide by the scan's median gap or, since cervical gaps are half of lumbar ones, by the gaps around.
    """
    ones = np.ones(max(len(centres) - 1, 0), dtype=int)
    if len(centres) < 4:
        return [(ones, 0.0)]
    gaps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    over_all, here = gaps / np.median(gaps), vertebral_gaps(centres)
    patterns = [ones] + [np.where(ratio > wide, np.clip(np.rint(ratio), 2, 6), 1).astype(int)
                         for ratio, wide in ((over_all, _WIDE), (here, _WIDE_HERE))]
    for k in np.argsort(-here)[:2]:
        if here[k] > _WIDEST_HERE:
            patterns.append(np.where(np.arange(len(gaps)) == k, max(2, round(here[k])), 1))
    out: dict[tuple[int, ...], tuple[np.ndarray, float]] = {}
    for steps in patterns:
        misfit = np.abs(np.log(here / steps)) - _MISFIT_FREE
        penalty = _PENALTY["step"] * int((steps > 1).sum()) + _MISFIT * np.clip(misfit, 0.0, _MISFIT_MOST).sum()
        out.setdefault(tuple(steps.tolist()), (steps, float(penalty)))
    return list(out.values())


def _starts(log_share: np.ndarray, steps: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Classes of the k true detections for the most plausible first levels: regular, T12 absent, a T13 that VID leaves out."""
    position = np.concatenate([[0], np.cumsum(steps)])
    out = []
    for variant, many in (("regular", _STARTS), ("no_T12", _RARE_STARTS), ("T13", _STARTS)):
        rows = np.arange(0, SIXTH + 2)[:, None] + position[None]
        if variant == "no_T12":
            passes = (rows == T11).any(axis=1) & (rows >= T12).any(axis=1)
            rows = np.where(rows >= T12, rows + 1, rows)
        elif variant == "T13":
            passes = (rows < L1).any(axis=1) & (rows == L1).any(axis=1) & (rows > L1).any(axis=1)
            rows = np.where(rows == L1, NONE, np.where(rows > L1, rows - 1, rows))
        else:
            passes = np.ones(len(rows), dtype=bool)
        real = rows != NONE if variant == "T13" else np.ones_like(rows, dtype=bool)
        rows = rows[passes & (np.where(real, rows, 0).max(axis=1) <= SIXTH)]
        named = rows != NONE
        each = log_share[np.arange(len(position))[None], REGION[np.minimum(rows, SIXTH)]] * named
        value = each.sum(axis=1) - _PENALTY["L6"] * (rows == SIXTH).any(axis=1) - _PENALTY.get(variant, 0.0)
        order = np.argsort(-value, kind="stable")[:many]
        out += [(rows[i], float(value[i])) for i in order]
    return out
