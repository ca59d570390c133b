"""Where in the field of view each level lies, as the labels of the training cases have it: a classifier for the count where no sacrum
is seen.

Not in the paper. Examinations of one kind are planned alike: in the water-fat MR of documentation/explanation/spine_mr.md a level lies
within a fifth of a level's height of the same position in every scan. Where fields of view differ the spread grows and the classifier
falls silent by itself; a few cases may hide that, so it is enabled only where no sacrum is found.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...anatomy.structures import kind
from ...plans.data import MRData

ANCHORS = (0.5, 0.0, 1.0)    # of the field's rows: examinations are centred, or reach down, or up, to some level
FEWEST_CASES = 3
LEAST_SPREAD_MM = 8.0    # of a few cases: they may lie alike by chance
MOST = 4.0               # log likelihood at stake: bodies that all plainly say otherwise, in a field that lies otherwise, outvote it


def fit_positional_prior(cases: Iterable[Mapping[str, Any]], data: MRData) -> dict[str, Any]:
    """From the properties of labelled cases, for the anchor in the field (0: its upper end, 1: its lower end) by which they agree best:
    {"anchor": .., "from_anchor_mm": {level: row of its centre from there, caudal positive}, "spread_mm": standard deviation between cases
    of the shift that all levels of a case have in common}; {} of too few cases."""
    cases, step = [case for case in cases if any(kind(name) == "body" for name in case["structures"])], data.spacing_mm[1]
    if len(cases) < FEWEST_CASES:
        return {}
    found = []
    for anchor in ANCHORS:
        # Rows run along the second axis of network space.
        rows = [{name: (float(np.mean([voxel[1] for voxel in there["locations"]])) - anchor * (case["geometry"]["shape"][1] - 1)) * step
                 for name, there in case["structures"].items() if kind(name) == "body"} for case in cases]
        mean = {name: float(np.mean([row[name] for row in rows if name in row])) for row in rows for name in row}
        shifts = [np.mean([row[name] - mean[name] for name in row]) for row in rows]
        found.append({"anchor": anchor, "from_anchor_mm": mean, "spread_mm": max(LEAST_SPREAD_MM, float(np.std(shifts, ddof=1)))})
    return min(found, key=lambda prior: prior["spread_mm"])


def pool_positional_priors(priors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Those of several folds as one: means over the folds with the most frequent anchor; {} where no fold has any."""
    anchors = [p["anchor"] for p in priors if p]
    if not anchors:
        return {}
    anchor = max(ANCHORS, key=anchors.count)
    there = [p for p in priors if p and p["anchor"] == anchor]
    names = {name for p in there for name in p["from_anchor_mm"]}
    return {"anchor": anchor, "spread_mm": float(np.mean([p["spread_mm"] for p in there])),
            "from_anchor_mm": {name: float(np.mean([p["from_anchor_mm"][name] for p in there if name in p["from_anchor_mm"]]))
                               for name in names}}


def vote_by_position(bodies: Sequence[tuple[np.ndarray, ...]], rows: int, chain: Sequence[str], prior: Mapping[str, Any],
                data: MRData) -> tuple[np.ndarray, np.ndarray]:
    """Of `bodies` (voxel indices each) in a field of `rows`: log likelihoods (bodies, levels), at most 0, of being the levels of `chain`
    (from below), and (bodies,) whether one lies beyond its ends, where levels have no class.

    What shifts one body shifts all: together they weigh as one observation. Levels that no training case showed lie where a straight
    line through the others says; without two levels to go by nothing is known.
    """
    learned = prior.get("from_anchor_mm", {})
    known = [j for j, name in enumerate(chain) if name in learned]
    if len(known) < 2:
        return np.zeros((len(bodies), len(chain))), np.zeros(len(bodies), bool)
    slope, start = np.polyfit(known, [learned[chain[j]] for j in known], 1)
    expected = np.array([learned.get(name, start + slope * j) for j, name in enumerate(chain)])
    found = (np.array([at[1].mean() for at in bodies]) - prior["anchor"] * (rows - 1)) * data.spacing_mm[1]
    spread = prior["spread_mm"]
    off = (found[:, None] - expected[None]) / spread
    reach = abs(slope) / 2 + spread
    return -np.minimum(off ** 2 / 2, MOST) / len(bodies), (found > expected[0] + reach) | (found < expected[-1] - reach)
