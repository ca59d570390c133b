"""Can the confidences be believed? Calibration of the names, and of the flag 'numbering not anchored'."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .metrics import ratio

COVERAGES = (0.5, 0.8, 0.9, 0.95, 1.0)


def expected_calibration_error(confidence: Any, correct: Any, bins: int = 15) -> float:
    """ECE (Guo et al. 2017, Eq. 5): |accuracy - confidence| per equal-width bin (lower, upper], averaged by count."""
    confidence, correct = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    if not confidence.size:
        return float("nan")
    bin_index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.abs(np.bincount(bin_index, correct - confidence, minlength=bins))
    return float(gap.sum() / confidence.size)


def risk_coverage(confidence: Any, correct: Any) -> dict[str, Any]:
    """Risk-coverage curve (Geifman and El-Yaniv 2017): answering only above a threshold, how many of the answers are wrong.

    Returns `coverage` and `risk` (one entry per distinct confidence, falling threshold), `aurc` (area under the curve as the
    step sum) and `risk_at`, the smallest-coverage risk at coverages 0.5 ... 1.0.
    """
    confidence, correct = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
    if not confidence.size:
        return {"coverage": [], "risk": [], "aurc": float("nan"), "risk_at": {}}
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~correct[order])
    # Equal confidences can only be answered together: keep the last position of each run.
    last = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    coverage = (last + 1) / confidence.size
    risk = wrong[last] / (last + 1)
    at = {f"{c:g}": float(risk[np.searchsorted(coverage, c - 1e-12)]) for c in COVERAGES}
    return {"coverage": coverage.tolist(), "risk": risk.tolist(), "aurc": float(np.sum(np.diff(coverage, prepend=0.0) * risk)),
            "risk_at": at}


def anchoring(anchored: Sequence[bool], right: Sequence[bool]) -> dict[str, float]:
    """How well the per-scan flag tells right numberings from wrong ones.

    `right[i]`: every matched vertebra of scan i carries its right name. `coverage` is the share of anchored scans, `risk` the
    share of wrong ones among them, `flagged_of_wrong` the share of wrong scans that were flagged as not anchored.
    """
    pairs = list(zip(anchored, right, strict=True))
    count = {(a, r): sum((bool(x), bool(y)) == (a, r) for x, y in pairs) for a in (True, False) for r in (True, False)}
    return {"scans": len(pairs), "anchored_right": count[True, True], "anchored_wrong": count[True, False],
            "not_anchored_right": count[False, True], "not_anchored_wrong": count[False, False],
            "coverage": ratio(count[True, True] + count[True, False], len(pairs)),
            "risk": ratio(count[True, False], count[True, True] + count[True, False]),
            "flagged_of_wrong": ratio(count[False, False], count[False, False] + count[True, False])}
