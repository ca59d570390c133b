"""Heights against what they should be: the subject's other vertebrae, or the vertebra's own posterior wall; the grade they imply.

Genant et al. 1993: loss of height below 20 % grade 0, 20-25 % grade 1, 25-40 % grade 2, above 40 % grade 3; wedge (front), biconcave
(middle) or crush (back too). The grade here is arithmetic on three heights and says nothing of the cause.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...anatomy import ANATOMICAL_ORDER, ORDER_INDEX
from ...anatomy.vertebra import BodyHeights
from ...utilities.triples import float_triple

GRADE_LIMITS = (0.20, 0.25, 0.40)
INTACT = 0.12            # neighbours that have lost more do not tell what is normal
REACH = 6                # levels up and down that count as neighbours
DECAY = 3.0              # levels after which a neighbour counts 1/e
ENOUGH = 1.2             # sum of neighbours' weights (about two of the nearest) from which they decide
TALLER = 0.25            # no body is higher than expected by more: its mask holds some of a neighbour's body
CRUSHED_BACK = 0.5       # share of the largest loss that the posterior wall must have lost for a crush

# Course of the heights along the spine (mm): posterior after Panjabi et al. 1991 and 1992; front from the physiological wedging after
# Masharawi et al. 2010 (T9..L5, continued above); middle 0.91 of both, from end plates in CT masks. Only ratios between levels matter.
_POSTERIOR = {"C3": 11.6, "C4": 11.4, "C5": 11.4, "C6": 10.9, "C7": 12.8, "T1": 14.1, "T2": 15.6, "T3": 15.7, "T4": 16.2, "T5": 16.2,
              "T6": 17.4, "T7": 18.2, "T8": 18.7, "T9": 19.3, "T10": 20.2, "T11": 21.3, "T12": 22.7, "T13": 23.3, "L1": 23.8, "L2": 24.3,
              "L3": 23.8, "L4": 24.1, "L5": 22.9, "L6": 22.0}
_FRONT = {"T1": 0.97, "T2": 0.96, "T3": 0.96, "T4": 0.95, "T5": 0.94, "T6": 0.93, "T7": 0.92, "T8": 0.91, "T9": 0.90, "T10": 0.92,
          "T11": 0.88, "T12": 0.90, "T13": 0.91, "L1": 0.92, "L2": 0.96, "L3": 1.0, "L4": 1.04, "L5": 1.16, "L6": 1.2}
USUAL = {name: np.array([back * _FRONT.get(name, 1.0), 0.91 * back * (1 + _FRONT.get(name, 1.0)) / 2, back])
         for name, back in _POSTERIOR.items()}
"""Level -> usual (anterior, middle, posterior) height, mm, of levels that can be measured: C3 downwards."""

GRADED = tuple(name for name in ANATOMICAL_ORDER if name[0] in "TL")
"""Levels that get a grade; Genant's scheme is not made for the cervical spine."""


def compare(levels: Sequence[str | None], heights: Sequence[tuple[float, float, float] | None]) -> list[BodyHeights | None]:
    """Heights (anterior, middle, posterior; mm) of one scan's vertebrae beside what is expected of them; None stays None.

    Expected is, per height, the usual one times the weighted geometric mean of (height / usual) over the neighbours that are intact
    themselves; without enough of them, the usual proportion to the own posterior wall. A vertebra of no known level is compared with
    nothing. Where one is far higher than it can be, its mask and its direct neighbours' are not separated: they are None in the result.
    """
    rows = [(i, level, value) for i, (level, value) in enumerate(zip(levels, heights, strict=True))
            if value is not None and level is not None and level in USUAL]
    known = [i for i, _, _ in rows]
    position = np.array([ORDER_INDEX[level] for _, level, _ in rows], dtype=float)
    measured = np.array([value for _, _, value in rows], dtype=float).reshape(-1, 3)
    usual = np.array([USUAL[level] for _, level, _ in rows]).reshape(-1, 3)
    expected, by_neighbours = _expected(position, measured, usual)
    if (mixed := _mixed_up(position, measured, expected)).any():
        left_out = {known[i] for i in np.flatnonzero(mixed)}
        return compare(levels, [None if i in left_out else value for i, value in enumerate(heights)])
    result: list[BodyHeights | None] = [None if value is None else BodyHeights(*value) for value in heights]
    for i, value, wanted, neighbours in zip(known, measured, expected, by_neighbours, strict=True):
        loss = 1 - value / wanted
        graded = levels[i] in GRADED
        grade = grade_of(float(loss.max()))
        result[i] = BodyHeights(*float_triple(value), float_triple(wanted),
                                "neighbours" if neighbours else "own posterior wall", grade if graded else None,
                                shape_of(loss) if graded and grade else None)
    return result


def _mixed_up(position: np.ndarray, measured: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Bool (n,): bodies that are too high by TALLER, which they must have from a neighbour, and those next to them."""
    rank = np.argsort(np.argsort(position))  # not the position itself: between T12 and L1 there is room for a T13
    high = (measured > (1 + TALLER) * expected).any(axis=1)
    return (np.abs(rank[:, None] - rank[None, high]) <= 1).any(axis=1)


def _expected(position: np.ndarray, measured: np.ndarray, usual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected heights (n, 3) and whether neighbours (True) or the own posterior wall (False) gave them (n,)."""
    ratio = np.log(measured / usual)
    distance = np.abs(position[:, None] - position[None, :])
    weight = np.where((distance > 0) & (distance <= REACH), np.exp(-distance / DECAY), 0.0)
    counted = np.ones(len(position), bool)
    expected, enough = measured.copy(), np.zeros(len(position), bool)
    # First a median, which one crushed neighbour cannot move; then means over those that turned out intact.
    for step in range(4):
        share = weight * counted[None, :]
        enough = share.sum(1) >= ENOUGH
        for i in range(len(position)):
            if not enough[i]:
                expected[i] = usual[i] * measured[i, 2] / usual[i, 2]
            elif step == 0:
                expected[i] = usual[i] * np.exp([_weighted_median(ratio[:, h], share[i]) for h in range(3)])
            else:
                expected[i] = usual[i] * np.exp(share[i] @ ratio / share[i].sum())
        intact = (1 - measured / expected).max(1, initial=-np.inf) < INTACT if len(position) else counted
        if step and (intact == counted).all():
            break
        counted = intact
    return expected, enough


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, 0.5 * total[-1])])


def grade_of(loss: float) -> int:
    """Genant grade (0..3) of the largest loss of height (share of the expected height)."""
    return int(np.searchsorted(GRADE_LIMITS, loss, side="right" if loss < GRADE_LIMITS[2] else "left"))


def shape_of(loss: np.ndarray) -> str:
    """'wedge', 'biconcave' or 'crush' of the losses (anterior, middle, posterior)."""
    if loss[2] >= CRUSHED_BACK * loss.max():
        return "crush"
    return "wedge" if loss[0] >= loss[1] else "biconcave"
