"""How likely a candidate numbering makes the sizes and looks of its vertebrae: one normal distribution over all levels together.

A vertebra may look like an L1 for its size and yet be a T12 of a tall patient: what tells is how sizes go with each other from
level to level. Factor analysis learns that from scans of which each shows some levels only.
"""
from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .candidates import NONE, Seen

LEVELS_SEEN = NONE                # C1..L5 and L6
GEOMETRY, EVERYTHING = (0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5, 6, 7)
"""Columns of `quantities`: without and with the detector's own opinion of the region."""
FACTORS, ROUNDS, PARTS = 16, 30, 4
PRIOR = 60.0                      # scans of which the prior of a loading and of a level's noise is worth
LEAST_SCANS = 5                   # levels seen less often say nothing
FAR, LEAST_NOISE, LOWEST = 4.0, 0.01, -15.0
_PEDICLES_MM = (12.0, 60.0)       # distances beyond are mistakes of the detector
_LOGIT_EDGE = 6.7e-3              # logits within 5: beyond, the detector's certainty says no more


def quantities(seen: Seen, classes: np.ndarray) -> np.ndarray:
    """(m, levels, 8) of each level in candidates (m, n): log pedicle distance, height and depth of the pedicles over the body in mm,
    log gap to the next level, its slope in degrees, logits of cervical, thoracic and lumbar; NaN where unknown."""
    x = seen.centres
    m, n = classes.shape
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)     # means of nothing are NaN, which is what is meant
        pedicle = np.nanmean(seen.sides, axis=0) - x
        usual = (seen.width > _PEDICLES_MM[0]) & (seen.width < _PEDICLES_MM[1])
        width = np.where(usual, np.log(seen.width), np.nan)
        p = np.clip(seen.ctl, _LOGIT_EDGE, 1 - _LOGIT_EDGE)
        own = np.stack([width, pedicle[:, 2], pedicle[:, 1], *np.log(p / (1 - p)).T], axis=1)
    out = np.full((m, NONE + 1, 8), np.nan, dtype=np.float32)
    rows = np.arange(m)[:, None]
    for k, column in zip((0, 1, 2, 5, 6, 7), own.T, strict=True):
        out[rows, classes, k] = column
    at = np.full((m, NONE + 1), -1)
    at[rows, classes] = np.arange(n)
    here, following = at[:, :NONE - 1], at[:, 1:NONE]
    step = x[following] - x[here]
    both = (here >= 0) & (following >= 0)
    out[:, :NONE - 1, 3] = np.log(np.where(both, np.maximum(np.linalg.norm(step, axis=2), 1.0), np.nan))
    out[:, :NONE - 1, 4] = np.where(both, np.degrees(np.arctan2(step[..., 1], -step[..., 2])), np.nan)
    return out[:, :LEVELS_SEEN]


@dataclass
class Likelihood:
    """Normal distribution of d = levels * quantities values, scaled by `mean` and `spread` (quantities,): `centre`, `noise` (d,), the
    variance of each alone, `loadings` (d, FACTORS); `known` (d,) what enough scans showed."""

    mean: np.ndarray
    spread: np.ndarray
    centre: np.ndarray
    loadings: np.ndarray
    noise: np.ndarray
    known: np.ndarray

    @classmethod
    def fit(cls, table: np.ndarray) -> Likelihood:
        """From (s, levels, quantities) of rightly numbered scans, NaN where unknown, by expectation and maximisation."""
        values = table.reshape(-1, table.shape[2]).astype(float)
        there = np.isfinite(values)
        many = np.maximum(there.sum(axis=0), 1)
        mean = np.where(there, values, 0.0).sum(axis=0) / many
        spread = np.sqrt(np.where(there, (values - mean) ** 2, 0.0).sum(axis=0) / many) + 1e-3
        x = ((table - mean) / spread).reshape(len(table), -1)
        seen = np.isfinite(x)
        x, count, d = np.where(seen, x, 0.0), seen.sum(axis=0), x.shape[1]
        centre = x.sum(axis=0) / np.maximum(count, 1)
        model = cls(mean, spread, centre, np.random.default_rng(0).normal(0.0, 0.1, (d, FACTORS)), np.ones(d), count >= LEAST_SCANS)
        for _ in range(ROUNDS):
            model._improve(x, seen, count)
        return model

    def _improve(self, x: np.ndarray, seen: np.ndarray, count: np.ndarray) -> None:
        """One round: the scans' factors given the loadings, then loadings, centre and noise given the factors."""
        rest = np.where(seen, x - self.centre, 0.0)
        precision, pull = self._factors(rest, seen)
        covariance = np.linalg.inv(precision)
        factors = np.einsum("nij,nj->ni", covariance, pull)
        square = covariance + factors[:, :, None] * factors[:, None, :]
        sums = (seen.T @ square.reshape(len(x), -1)).reshape(-1, FACTORS, FACTORS) + PRIOR / 2 * np.eye(FACTORS)
        self.loadings = np.linalg.solve(sums, (rest.T @ factors)[:, :, None])[:, :, 0]
        rest = np.where(seen, rest - factors @ self.loadings.T, 0.0)
        unsure = (seen.T @ covariance.reshape(len(x), -1)).reshape(-1, FACTORS, FACTORS)
        unsure = np.einsum("dij,di,dj->d", unsure, self.loadings, self.loadings)
        self.noise = np.maximum(((rest ** 2).sum(axis=0) + unsure + 0.3 * PRIOR) / (count + PRIOR), LEAST_NOISE)
        self.centre = self.centre + rest.sum(axis=0) / (count + 0.1 * PRIOR)

    def _factors(self, rest: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, k, k) precision of the factors of each row and (n, k) the pull on them."""
        squares = (self.loadings[:, :, None] * self.loadings[:, None, :]).reshape(len(self.noise), -1) / self.noise[:, None]
        return np.eye(FACTORS) + (seen @ squares).reshape(-1, FACTORS, FACTORS), (rest / self.noise) @ self.loadings

    def log_ratio(self, table: np.ndarray) -> np.ndarray:
        """(m, levels, quantities) -> (m,) log likelihood, less that of vertebrae of no level in particular, so that candidates that
        name more or fewer can be compared. Values far from what a level allows count as `FAR` deviations."""
        x = ((table - self.mean) / self.spread).reshape(len(table), -1)
        seen = np.isfinite(x) & self.known
        reach = FAR * np.sqrt(self.noise + (self.loadings ** 2).sum(axis=1))
        rest = np.where(seen, np.clip(x - self.centre, -reach, reach), 0.0)
        precision, pull = self._factors(rest, seen)
        explained = (pull * np.linalg.solve(precision, pull[:, :, None])[:, :, 0]).sum(axis=1)
        level = (rest ** 2 / self.noise).sum(axis=1) - explained + np.linalg.slogdet(precision)[1] + seen @ np.log(self.noise)
        none = np.where(seen, np.clip(x, -FAR, FAR) ** 2, 0.0).sum(axis=1)
        return (none - level) / 2


@dataclass
class Likelihoods:
    """The same scans seen twice: by geometry alone, and with the detector's opinion."""

    geometry: Likelihood
    everything: Likelihood

    @classmethod
    def fit(cls, table: np.ndarray) -> Likelihoods:
        """From (s, levels, 8) of rightly numbered scans."""
        return cls(*(Likelihood.fit(table[:, :, list(columns)]) for columns in (GEOMETRY, EVERYTHING)))

    @classmethod
    def cross_fit(cls, right: np.ndarray, tables: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
        """(m, 2) `posteriors` of each training scan by distributions learned without it; `right` (s, levels, 8), tables (m, levels, 8)."""
        part = np.random.default_rng(seed).permutation(len(tables)) % PARTS
        models = [cls.fit(right[part != k]) for k in range(PARTS)]
        return [models[k].posteriors(table) for k, table in zip(part, tables, strict=True)]

    def posteriors(self, table: np.ndarray) -> np.ndarray:
        """(m, levels, 8) of a scan's candidates -> (m, 2) log posterior of each candidate, no less than `LOWEST`."""
        out = []
        for model, columns in ((self.geometry, GEOMETRY), (self.everything, EVERYTHING)):
            ratio = model.log_ratio(table[:, :, list(columns)])
            out.append(np.maximum(ratio - np.logaddexp.reduce(ratio), LOWEST))
        return np.stack(out, axis=1).astype(np.float32)

    def tensors(self) -> dict[str, Tensor]:
        return {f"likelihood.{name}.{key}": torch.from_numpy(value).to(torch.bool if key == "known" else torch.float32)
                for name in ("geometry", "everything") for key, value in vars(getattr(self, name)).items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Likelihoods:
        """From what `tensors` gave; KeyError where something is missing."""
        keys = ("mean", "spread", "centre", "loadings", "noise", "known")
        return cls(*(Likelihood(*(tensors[f"likelihood.{name}.{key}"].numpy() for key in keys)) for name in ("geometry", "everything")))
