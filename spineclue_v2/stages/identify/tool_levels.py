"""What another tool says about the levels of its own vertebrae: one more classifier, weighed as one opinion on the whole row.

Such tools are right most of the time, and where they are wrong they mostly shift whole rows. Nothing here is fitted: the numbers below are
assumptions. So the tool may decide between names that the other classifiers leave open, but never anchors a numbering: that takes the
other classifiers alone.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...anatomy import EMITTING_LEVEL, LEVEL_INDEX, NUM_LEVELS
from ..base import Evidence
from .trust import REGIONS, RIBS, EvidenceModel

NAME = "tool"
TRUST = 0.85                 # that the row is not shifted as a whole
RIGHT, NEXT = 0.86, 0.05     # of a vertebra's level, and of each of its two neighbours, where the row is not shifted
NOT_A_VERTEBRA = 0.05
SCALE = 3.0                  # nats between a row and the row shifted by one, about three times this: then `TRUST` limits what the tool adds
SUM_NATS = 2.0               # about log(TRUST / (1 - TRUST)): what the tool's row adds in the plain sum of classifiers


RIB_TRUST = 0.8              # that the last or first vertebra with a rib in the tool's map is the last or first with a rib
BOTH_SIDES, ONE_SIDE = 0.9, 0.75


@dataclass(frozen=True)
class RibEnds:
    """Where the tool's ribs end along the row: place of the last and the first vertebra that a rib is attached to while the next one has
    none, and the probability that this is the last (T12) and the first (T1) with a rib. None: the map does not show it."""

    last: tuple[int, float] | None = None
    first: tuple[int, float] | None = None


def tool_evidence(levels: Sequence[str | None], sacrum_below_last: bool | None = None, ribs: RibEnds | None = None) -> Evidence:
    """Evidence of the tool's levels.

    Args:
        levels: by detection in cranio-caudal order, None where the tool has no opinion.
        sacrum_below_last: whether the tool's sacrum follows the last detection; None where it has none.
        ribs: which vertebrae its last and first ribs are attached to.
    """
    n = len(levels)
    rows = np.full((n, NUM_LEVELS), 1.0 / NUM_LEVELS)
    variants = np.full((n, 2), np.nan)
    for i, level in enumerate(levels):
        if level is None:
            continue
        at = LEVEL_INDEX[EMITTING_LEVEL[level]]
        rows[i] = (1 - RIGHT - 2 * NEXT) / NUM_LEVELS
        rows[i, max(at - 1, 0):at + 2] += NEXT
        if level in ("T13", "L6"):
            variants[i, int(level == "L6")] = RIGHT
        else:
            rows[i, at] += RIGHT - NEXT
    logs = np.log(np.concatenate([rows * (1 - NOT_A_VERTEBRA), np.full((n, 1), NOT_A_VERTEBRA)], axis=1))
    landmarks = np.full((n, 4), np.nan)
    if sacrum_below_last is not None and n:
        landmarks[-1, 0] = 0.9 if sacrum_below_last else 0.1
    for column, end in ((2, ribs.last), (3, ribs.first)) if ribs is not None else ():
        if end is not None:
            landmarks[end[0], column] = end[1]
    one_step = np.log((RIGHT + NEXT) / NEXT)
    seen = None if np.isnan(landmarks).all() else landmarks
    return Evidence(logs, np.log(variants), weight=SUM_NATS / (max(n, 1) * one_step), landmarks=seen)


def with_tool(model: EvidenceModel) -> EvidenceModel:
    """The evidence model that also knows what the tool is worth."""
    return replace(model, scale={**model.scale, NAME: dict.fromkeys(REGIONS, SCALE)}, power={**model.power, NAME: 1.0},
                   trust={**model.trust, NAME: TRUST}, landmark={**model.landmark, **dict.fromkeys(RIBS, RIB_TRUST)})
