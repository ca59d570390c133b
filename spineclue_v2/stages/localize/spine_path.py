"""One body has one spine: of all clusters the chain in cranio-caudal order that is worth most; hips, shoulders and knees lie beside it."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .clustering import SPACING_PER_HEIGHT, Cluster

LEAST_STEP = 0.35          # of the expected spacing: closer along the spine, two clusters cannot both be vertebrae
SIDE_FRACTION, SIDE_MM = 0.6, 10.0   # sideways step that the steepest curves make: this share of the step along the spine, and the error
LONGEST_STEP_MM = 60.0     # beyond it a longer step buys no more room sideways
LATERAL_PENALTY = 1 / 20.0      # per mm beyond that, in units of a cluster's score
GAP_PRICE, GAP_PRICE_MOST = 0.06, 0.3    # per vertebra missed in between


def find_spine_path(clusters: Sequence[Cluster], spacing_between: tuple[float, float]) -> list[Cluster]:
    """The path (z descending) with the largest sum of scores less the penalties of its steps; empty when there is no cluster.

    A step is penalised for what it goes sideways beyond the steepest curve (left-right, and front-back less strictly) and for the
    vertebrae missing in between. Exact, by dynamic programming.
    """
    ordered = sorted(clusters, key=lambda c: -c.body[0])
    best = np.array([c.score for c in ordered])
    previous = np.full(len(ordered), -1)
    for j, lower in enumerate(ordered):
        for i in range(j):
            penalty = gap_penalty(ordered[i], lower, spacing_between)
            if penalty is not None and best[i] - penalty + lower.score > best[j]:
                best[j], previous[j] = best[i] - penalty + lower.score, i
    path: list[Cluster] = []
    index = int(best.argmax()) if len(ordered) else -1
    while index >= 0:
        path.append(ordered[index])
        index = int(previous[index])
    return path[::-1]


def gap_penalty(upper: Cluster, lower: Cluster, spacing_between: tuple[float, float]) -> float | None:
    """Penalty of the step between two clusters, None where no two vertebrae can lie so."""
    down, back, side = upper.body[0] - lower.body[0], abs(upper.body[1] - lower.body[1]), abs(upper.body[2] - lower.body[2])
    expected = float(np.clip(SPACING_PER_HEIGHT * (upper.body_height + lower.body_height) / 2, *spacing_between))
    length = float(np.hypot(down, back))
    if length < LEAST_STEP * expected:
        return None
    room = SIDE_FRACTION * min(length, LONGEST_STEP_MM) + SIDE_MM
    beyond = max(0.0, side - room) + max(0.0, back - 1.5 * min(max(down, 0.0), LONGEST_STEP_MM) - 1.5 * SIDE_MM)
    return LATERAL_PENALTY * beyond + min(GAP_PRICE_MOST, GAP_PRICE * max(0.0, round(length / expected) - 1))
