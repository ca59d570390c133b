"""Vertebral gaps: how many vertebrae lie between two located ones, by their distance and not by their position in the list."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .vertebra import Vertebra

GAP_RANGE_MM = (13.0, 45.0)
"""Distance of consecutive body centres that can occur (measured extremes over C1..L6 of VerSe and VID, adults)."""

NEIGHBOURS = 3


def vertebral_gaps(centres: np.ndarray) -> np.ndarray:
    """(n, 3) body centres in LPS mm, cranio-caudal -> (n - 1,) gaps in units of the gap expected there.

    1 where the next vertebra was found, 2 where one between was missed, 0.5 where a false one lies between. Expected is the
    median of the up to three gaps on each side, which a few missed or extra ones do not move, held within `GAP_RANGE_MM`.
    """
    centres = np.asarray(centres, dtype=float).reshape(-1, 3)
    gaps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    expected = np.empty_like(gaps)
    for i, gap in enumerate(gaps):
        around = np.concatenate([gaps[max(i - NEIGHBOURS, 0):i], gaps[i + 1:i + 1 + NEIGHBOURS]])
        expected[i] = np.clip(np.median(around) if len(around) else gap, *GAP_RANGE_MM)
    return gaps / expected


def round_positions(steps: np.ndarray) -> np.ndarray:
    """(n - 1,) steps -> (n,) whole positions from 0; each step is rounded and at least 1, so that no two coincide."""
    whole = np.maximum(np.rint(np.asarray(steps, dtype=float)), 1).astype(int)
    return np.concatenate([[0], np.cumsum(whole)])


def sort_cranio_caudal(centres: np.ndarray) -> np.ndarray:
    """Order (n,) of body centres (n, 3) LPS mm along the spine: from the most cranial one, each time the nearest of those below or
    beside it.

    Sorting by height alone would fail where a strong kyphosis or an oblique scan brings neighbours to the same height.
    """
    left = sorted(range(len(centres)), key=lambda i: -centres[i][2])
    ordered = left[:1]
    left = left[1:]
    while left:
        here = np.asarray(centres[ordered[-1]])
        # Height counts double: the next vertebra is below, a skipped one would otherwise be appended at the very end.
        cost = [np.linalg.norm(np.asarray(centres[i]) - here) + 2 * (centres[left[0]][2] - centres[i][2]) for i in left]
        ordered.append(left.pop(int(np.argmin(cost))))
    return np.array(ordered, dtype=int)


def order_cranio_caudal(vertebrae: Sequence[Vertebra]) -> list[Vertebra]:
    """Vertebrae that have body centres, in the order of the spine."""
    return [vertebrae[i] for i in sort_cranio_caudal(np.array([v.body_centre for v in vertebrae]).reshape(-1, 3))]
