"""Network and heights together: an ordinal logistic regression (proportional odds, McCullagh 1980) on one number of each.

P(grade >= k) = sigmoid(slope * (loss + trust * logit - limit_k)): `loss` is the largest missing fraction of height, `logit` the network's
mean log odds of being at least of grade 1, 2 and 3. So the network moves a loss up or down, and limits are fractions of height as Genant's.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...utilities.triples import float_triple
from .comparison import GRADE_LIMITS

SURE = 6.0                          # log odds beyond this say nothing more
# What few rows leave open stays near Genant's limits on the loss, some 2 % of height wide, and a network that is enabled little.
USUAL = (np.log(60.0), 0.0, GRADE_LIMITS[0], *np.log(np.diff(GRADE_LIMITS)))
SPREAD = (1.0, 0.03, 0.05, 0.5, 0.5)


@dataclass(frozen=True)
class OrdinalFusion:
    """`slope` per fraction of height; `trust` fraction of height per log odds of the network; `limits` of grades 1, 2, 3, rising."""

    slope: float
    trust: float
    limits: tuple[float, float, float]

    @staticmethod
    def fit(grades: Sequence[int] | np.ndarray, probabilities: np.ndarray, losses: Sequence[float] | np.ndarray) -> OrdinalFusion | None:
        """Maximum a posteriori on vertebrae that the network was not trained on: Genant grades (n,), the network's probabilities (n, 4),
        largest losses (n,). None without vertebrae of at least two grades."""
        from scipy.optimize import minimize

        true, lost, logits = np.asarray(grades, dtype=int), np.asarray(losses, dtype=float), severity_logit(np.asarray(probabilities))
        if len(np.unique(true)) < 2:
            return None
        centre, spread = np.array(USUAL), np.array(SPREAD)

        def cost(moved: np.ndarray) -> float:
            found = _from_vector(centre + spread * moved).of(logits, lost)[np.arange(len(true)), true]
            return float(0.5 * moved @ moved - np.log(np.maximum(found, 1e-9)).sum())
        return _from_vector(centre + spread * minimize(cost, np.zeros(5), method="L-BFGS-B").x)

    @staticmethod
    def from_json(content: dict[str, Any]) -> OrdinalFusion:
        return OrdinalFusion(float(content["slope"]), float(content["trust"]), float_triple(content["limits"]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"limits": list(self.limits)}

    def probabilities(self, probabilities: np.ndarray, losses: Sequence[float | None]) -> np.ndarray:
        """(n, 4) of both together, from the network's (n, 4); where no loss is known (None) the network's own."""
        probabilities = np.asarray(probabilities, dtype=float)
        known = np.array([loss is not None for loss in losses], dtype=bool)
        result = probabilities.copy()
        result[known] = self.of(severity_logit(probabilities[known]), np.array([loss for loss in losses if loss is not None], dtype=float))
        return result

    def of(self, logits: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """(n, 4) probabilities of grades from the network's `severity_logit` (n,) and the largest losses (n,)."""
        from scipy.special import expit

        reached = expit(self.slope * ((losses + self.trust * logits)[:, None] - np.array(self.limits)))
        padded = np.column_stack([np.ones(len(losses)), reached, np.zeros(len(losses))])
        return padded[:, :-1] - padded[:, 1:]


def severity_logit(probabilities: np.ndarray) -> np.ndarray:
    """Mean log odds (n,) of grade >= 1, >= 2 and >= 3 in probabilities (n, 4): one number that grows with the grade."""
    at_least = np.cumsum(probabilities[:, ::-1], axis=1)[:, 2::-1]
    least = 1 / (1 + np.exp(SURE))
    inside = np.clip(at_least, least, 1 - least)
    return np.log(inside / (1 - inside)).mean(axis=1)


def grade_of_probabilities(probabilities: Sequence[float]) -> int:
    """The grade that half of the probability reaches: the median of an ordered scale."""
    return int((np.cumsum(np.asarray(probabilities)[::-1])[2::-1] >= 0.5).sum())


def _from_vector(values: np.ndarray) -> OrdinalFusion:
    slope, trust, first, second, third = (float(v) for v in values)
    limits = (first, first + float(np.exp(second)), first + float(np.exp(second) + np.exp(third)))
    return OrdinalFusion(float(np.exp(slope)), trust, limits)
