"""What the VID ranker sees of a candidate numbering: each level's looks, what was called false, and how well the regions fit.

Shapes: m candidates of one scan, n detections in cranio-caudal order. NaN = does not apply.
"""
from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from .candidates import L1, NONE, REGION, SIXTH, T11, T12, Seen

C_TO_T, T_TO_L = range(4, 10), range(14, SIXTH + 1)      # levels around the changes of region
_BY_LEVEL = (
    (0, (*C_TO_T, )), (1, (*C_TO_T, *T_TO_L)), (2, (*T_TO_L, )),                 # logit of cervical, thoracic, lumbar
    (3, (0, 6, 7, *range(15, SIXTH + 1))),                                      # sum of the three
    (4, tuple(range(13, SIXTH + 1))), (5, tuple(range(13, SIXTH + 1))),         # pedicle distance, height of the pedicles
    (6, tuple(range(4, SIXTH + 1))), (7, tuple(range(4, SIXTH + 1))),           # gap below / median gap, its slope
    (8, tuple(range(13, SIXTH + 1))))                                           # gap below in mm
"""(quantity, levels at which it is a feature)."""
_USUAL_GAP_MM = 29.0              # around T12 and L1
_STARTS = np.cumsum([0] + [len(levels) for _, levels in _BY_LEVEL])
_THORACIC, _LUMBAR = (_STARTS[k] + np.array([_BY_LEVEL[k][1].index(level) for level in (T11, T12, L1)]) for k in (1, 2))
ORIGIN_COLUMNS = (*map(int, _THORACIC), *map(int, _LUMBAR), *(int(_STARTS[-1]) + k for k in (3, 9, 10)))
"""Columns of `features` that collections judge differently: thoracic and lumbar looks of T11, T12, L1; last level, L6, L5."""


def features(seen: Seen, classes: np.ndarray, plausible: np.ndarray) -> np.ndarray:
    """(m, features) float32 of candidates (m, n) with their plausibility (m,)."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)     # means of nothing are NaN, which is what is meant
        parts = _Parts(seen, classes)
        columns = [parts.by_level(), parts.counts(plausible), parts.false_ones(), parts.regions(), parts.changes(),
                   parts.lower_end(), parts.pedicles_beyond(), parts.whole_scan()]
        out = np.concatenate(columns, axis=1).astype(np.float32)
    return np.where(np.isfinite(out), out, np.nan)


class _Parts:
    """Groups of features, each (m, k)."""

    def __init__(self, seen: Seen, classes: np.ndarray):
        self.seen, self.classes = seen, classes
        self.m, self.n = classes.shape
        self.named = classes != NONE
        self.region = np.where(self.named, REGION[np.minimum(classes, SIXTH)], -1)
        clipped = np.clip(seen.ctl, 1e-3, 1 - 1e-3)
        self.logit = np.log(clipped / (1 - clipped))
        positions = np.arange(self.n)[None]
        self.first = self.named.argmax(axis=1)
        self.last = self.n - 1 - self.named[:, ::-1].argmax(axis=1)
        self.above = ~self.named & (positions < self.first[:, None])
        self.below = ~self.named & (positions > self.last[:, None])
        self.between = ~self.named & ~self.above & ~self.below
        self._gaps()

    def _gaps(self) -> None:
        """(m, n) gap, slope (degrees, backwards positive) and steps to the next named detection."""
        x = self.seen.centres
        following = np.full((self.m, self.n), -1)
        last = np.full(self.m, -1)
        for i in range(self.n - 1, -1, -1):
            following[:, i] = last
            last = np.where(self.named[:, i], i, last)
        step = x[following] - x[None]
        applies = (following >= 0) & self.named
        self.gap = np.where(applies, np.linalg.norm(step, axis=2), np.nan)
        self.slope = np.where(applies, _slope(step), np.nan)
        self.ratio = np.log(self.gap / np.nanmedian(self.gap, axis=1, keepdims=True))
        self.steps = np.where(applies, np.take_along_axis(self.classes, np.maximum(following, 0), axis=1) - self.classes, np.nan)

    def _same(self, values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, (self.m, self.n))

    def by_level(self) -> np.ndarray:
        seen = self.seen
        pedicle = np.nanmean(seen.sides, axis=0) - seen.centres
        quantities = [*(self._same(self.logit[:, k]) for k in range(3)), self._same(seen.total), self._same(seen.width),
                      self._same(pedicle[:, 2]), self.ratio, self.slope, self.gap]
        table = np.full((self.m, NONE + 1, len(quantities)), np.nan)
        rows = np.arange(self.m)[:, None]
        for k, values in enumerate(quantities):
            table[rows, self.classes, k] = values
        return np.concatenate([table[:, list(levels), k] for k, levels in _BY_LEVEL], axis=1)

    def counts(self, plausible: np.ndarray) -> np.ndarray:
        classes, named = self.classes, self.named
        has = {level: (classes == level).any(axis=1) for level in (T12 - 1, T12, L1, SIXTH - 1, SIXTH)}
        return _columns(
            plausible, plausible - plausible.max(), np.where(named, classes, 99).min(axis=1), np.where(named, classes, -1).max(axis=1),
            np.full(self.m, self.n), named.sum(axis=1), self.above.sum(axis=1), self.between.sum(axis=1), self.below.sum(axis=1),
            has[SIXTH], has[SIXTH - 1], has[T12 - 1] & has[L1] & ~has[T12], self._thirteenth(),
            np.nanmax(self.ratio, axis=1), np.nanmin(self.ratio, axis=1), np.nanmax(self.ratio / np.maximum(self.steps, 1), axis=1),
            (np.nan_to_num(self.steps, nan=1.0) > 1).sum(axis=1))

    def _thirteenth(self) -> np.ndarray:
        """(m,) whether one good detection between T12 and L1 is left out: a T13, which VID does not label."""
        positions = np.arange(self.n)[None]
        upper = np.where(self.classes == T12, positions, -9).max(axis=1)
        lower = np.where(self.classes == L1, positions, 99).min(axis=1)
        middle = np.clip(upper + 1, 0, self.n - 1)
        good = (self.seen.total[middle] > 0.9) & (self.seen.off_line[middle] < 40.0)
        return (lower - upper == 2) & good

    def false_ones(self) -> np.ndarray:
        total, rank, off = (self._same(v) for v in (self.seen.total, self.seen.rank, self.seen.off_line))
        out = []
        for mask in (self.named, self.above, self.between, self.below):
            out += [_over(mask, total, np.nanmin), _over(mask, total, np.nanmax)]
            out += [_over(mask, rank, np.nanmax), _over(mask, rank, np.nanmin)]
        return _columns(*out, _over(self.named, off, np.nanmax), _over(self.between, off, np.nanmin), _over(self.above, off, np.nanmin))

    def regions(self) -> np.ndarray:
        """How sure the detector is of the region that a candidate gives, and of the other one where two meet."""
        out = []
        for k in range(3):
            inside, logit = self.region == k, self._same(self.logit[:, k])
            out += [inside.sum(axis=1), _over(inside, logit, np.nanmin), _over(inside, logit, np.nanmean)]
        out += [_over(self.region == k, self._same(self.logit[:, other]), np.nanmax) for k, other in ((0, 1), (1, 0), (1, 2), (2, 1))]
        return _columns(*out)

    def changes(self) -> np.ndarray:
        """The detector's own changes of region (most likely position, and by how much) and what a candidate names there."""
        p = np.log(np.clip(self.seen.ctl, 1e-3, 1.0))
        thoracic_start, thoracic_margin = _change(p[:, 0], np.maximum(p[:, 1], p[:, 2]))
        lumbar_start, lumbar_margin = _change(p[:, 1], p[:, 2])
        lumbar_like = 1 / (1 + np.exp(self.logit[:, 1] - self.logit[:, 2]))
        thoracic = lumbar_start - thoracic_start if 0 < thoracic_start < lumbar_start < self.n else np.nan
        cervical = (self.seen.ctl[:, 0] / np.maximum(self.seen.total, 0.01)).sum()
        const = [lumbar_margin, self.n - lumbar_start, thoracic_margin, thoracic, lumbar_start == 0, lumbar_start == self.n,
                 lumbar_like.sum()]
        return _columns(self._named_from(lumbar_start) - L1 if lumbar_start else np.full(self.m, np.nan),
                        self._named_from(thoracic_start) - 7 if 0 < thoracic_start < self.n else np.full(self.m, np.nan),
                        *(np.full(self.m, float(v)) for v in const),
                        (self.region == 2).sum(axis=1) - lumbar_like.sum(), (self.region == 0).sum(axis=1) - cervical)

    def _named_from(self, first: int) -> np.ndarray:
        """(m,) class of the first named detection at or below `first`, NaN without one."""
        later = self.named[:, first:]
        if later.shape[1] == 0:
            return np.full(self.m, np.nan)
        classes = self.classes[np.arange(self.m), first + later.argmax(axis=1)]
        return np.where(later.any(axis=1), classes, np.nan)

    def lower_end(self) -> np.ndarray:
        """Looks of the last named detection, how the line bends there, and how it goes on to a false one below."""
        seen, last, x = self.seen, self.last, self.seen.centres
        pedicle = np.nanmean(seen.sides, axis=0) - x
        bends = np.full((self.m, 4), np.nan)
        for row in range(self.m):
            named = np.flatnonzero(self.named[row])[-3:]
            if len(named) == 3:
                steps = np.diff(x[named], axis=0)
                if last[row] + 1 < self.n:
                    steps = np.concatenate([steps, x[last[row] + 1][None] - x[named[-1]]])
                logs, slopes = np.log(np.linalg.norm(steps, axis=1)), _slope(steps)
                bends[row, :2] = logs[1] - logs[0], slopes[1] - slopes[0]
                if len(steps) == 3:
                    bends[row, 2:] = logs[2] - logs[1], slopes[2] - slopes[1]
        return np.concatenate([_columns(seen.total[last], seen.width[last], pedicle[last, 2], pedicle[last, 1], seen.rank[last],
                                        self.logit[last, 2], self.logit[last, 1]), bends], axis=1)

    def pedicles_beyond(self) -> np.ndarray:
        """Pedicles detected above the first and below the last named body."""
        height = self.seen.scan.pedicles[:, 2]
        top, bottom = (self.seen.centres[first, 2] for first in (self.first, self.last))
        return _columns(*((height[None] < bottom[:, None] - by).sum(axis=1) for by in (8.0, 20.0)),
                        *((height[None] > top[:, None] + by).sum(axis=1) for by in (12.0, 25.0)))

    def whole_scan(self) -> np.ndarray:
        """Position, height and size of the whole row: how a hospital cuts its scans says which end is likely."""
        x = self.seen.centres
        both = np.array([x[:, 0].mean(), x[:, 1].mean(), np.nanmean(self.seen.width), x[0, 2] - x[-1, 2],
                         (self.seen.off_line > 60.0).sum(), (self.seen.total < 0.9).sum(), len(self.seen.scan.pedicles) - 2 * self.n])
        return np.concatenate([np.tile(both, (self.m, 1)), _columns(x[self.last, 2], x[self.first, 2], self._height_of(L1))], axis=1)

    def _height_of(self, level: int) -> np.ndarray:
        """(m,) height of a level by the levels around it, NaN with fewer than two; where a hospital puts its zero tells the level."""
        height, out = self.seen.centres[:, 2], np.full(self.m, np.nan)
        for row, (classes, named) in enumerate(zip(self.classes, self.named, strict=True)):
            levels, heights = classes[named], height[named]
            if len(levels) > 1:
                end = 0 if level < levels[0] else -1
                beyond = level - levels[end] if level < levels[0] or level > levels[-1] else 0
                out[row] = np.interp(level, levels, heights) - beyond * _USUAL_GAP_MM
        return out


def _columns(*values: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(v, dtype=float) for v in values], axis=1)


def _over(mask: np.ndarray, values: np.ndarray, how: Callable[..., np.ndarray]) -> np.ndarray:
    return how(np.where(mask, values, np.nan), axis=1)


def _slope(step: np.ndarray) -> np.ndarray:
    """Degrees by which a step (..., 3) down the spine leans backwards."""
    return np.degrees(np.arctan2(step[..., 1], -step[..., 2]))


def _change(upper: np.ndarray, lower: np.ndarray) -> tuple[int, float]:
    """Place k at which `upper` above and `lower` from k on have the largest sum, and its lead over the next best."""
    sums = np.concatenate([[0.0], np.cumsum(upper)]) + np.concatenate([np.cumsum(lower[::-1])[::-1], [0.0]])
    ordered = np.sort(sums)
    return int(sums.argmax()), float(ordered[-1] - ordered[-2]) if len(sums) > 1 else 0.0
