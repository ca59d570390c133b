"""Weights of the classifiers, learned so that confidence means what it says: the ones under which out-of-fold truth is most likely.

Each classifier comes with its own temperature. What remains is how much each counts beside the others, and how much all of them
together count beside what the decoder knows about order and gaps: one weight per classifier says both.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from ...anatomy import LEVEL_INDEX
from .decoder_fit import Case, mean_log_posterior
from .plan import Penalties

START = {"shape": 1.0, "geometry": 0.45, "appearance": 0.45}
LARGEST = 3.0
PRIOR_SPREAD = 0.5
"""Weights are drawn to `START` as by a Gaussian of this spread: a handful of scans moves them little, a hundred decide alone."""


@dataclass(frozen=True)
class EvidenceRows:
    """One scan that no classifier was trained on.

    `logs`: per classifier (n, 25) log-probabilities over the 24 levels and "not a vertebra", detections in cranio-caudal order.
    `names`: true names, None = false detection. `steps`: (n - 1,) measured steps.
    """

    logs: Mapping[str, np.ndarray]
    names: tuple[str | None, ...]
    steps: np.ndarray


def weigh(logs: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """(n, 25) log-probabilities of the classifiers together: the weighted sum of their logs, rows normalised."""
    total = sum(weights[name] * rows for name, rows in logs.items())
    return total - np.logaddexp.reduce(total, axis=1, keepdims=True)


def fit_weights(scans: Sequence[EvidenceRows], penalties: Penalties | None = None, start: Mapping[str, float] = START) -> dict[str, float]:
    """Weights of the classifiers that `scans` have.

    With `penalties` those under which the decoder finds the true paths most likely: use them before the decoder. Without, those of
    the smallest cross entropy of single rows (variants and false detections left out): use them where no decoder follows.
    """
    if not scans:
        return dict(start)
    names = list(scans[0].logs)
    begin = np.array([start.get(name, 1.0) for name in names])
    cost = _row_cost(scans, names) if penalties is None else _path_cost(scans, names, penalties)

    def loss(values: np.ndarray) -> float:
        return cost(values) + 0.5 * float((((values - begin) / PRIOR_SPREAD) ** 2).sum())

    found = minimize(loss, begin, method="L-BFGS-B", bounds=[(0.0, LARGEST)] * len(names), options={"maxiter": 15, "eps": 1e-3})
    return {name: round(float(value), 3) for name, value in zip(names, found.x, strict=True)}


def _row_cost(scans: Sequence[EvidenceRows], names: Sequence[str]) -> Callable[[np.ndarray], float]:
    stacked = {name: np.concatenate([scan.logs[name] for scan in scans]) for name in names}
    targets = np.array([LEVEL_INDEX.get(name, -1) if name else -1 for scan in scans for name in scan.names])
    known = targets >= 0
    stacked, targets = {name: rows[known] for name, rows in stacked.items()}, targets[known]

    def cost(values: np.ndarray) -> float:
        rows = weigh(stacked, dict(zip(names, values, strict=True)))
        return -float(rows[np.arange(len(targets)), targets].sum())

    return cost


def _path_cost(scans: Sequence[EvidenceRows], names: Sequence[str], penalties: Penalties) -> Callable[[np.ndarray], float]:
    def cost(values: np.ndarray) -> float:
        weights = dict(zip(names, map(float, values), strict=True))
        return -len(scans) * mean_log_posterior(penalties, [Case(weigh(scan.logs, weights), scan.names, scan.steps) for scan in scans])

    return cost
