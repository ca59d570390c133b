"""Fit `EvidenceModel`: how much each classifier is worth, from windows of scans that it was not trained on.

Here the numberings are the regular runs C1..L5, so that a window has at most 22 of them and the fit takes seconds. A classifier's
likelihood L of a run, relative to one that knows nothing, counts as `trust * L + (1 - trust)`. `decode_with_trust` does so over all paths.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recipes.decoder_penalties import BY_HAND
from recipes.evidence_windows import Window
from spineclue_v2.anatomy import EMITTING_LEVEL, LEVEL_INDEX, NUM_LEVELS
from spineclue_v2.stages.base import CLASSIFIERS, Evidence
from spineclue_v2.stages.identify.evidence import fold_variants
from spineclue_v2.stages.identify.trust import REGIONS, SHIFTS, EvidenceModel, region_fractions, relative_logs, remove_bias

LANDMARKS = ("sacrum", "skull")
PRIOR, MOST_TRUST, LEAST_POWER = 0.2, 0.95, 0.3
"""Eleven patients without a neck cannot tell that a classifier is never off: chosen by patients left out, six groups."""


def to_json(model: EvidenceModel) -> dict[str, Any]:
    """Plain JSON, four decimals."""
    def tidy(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: tidy(v) for k, v in value.items()}
        return [round(float(v), 4) for v in value] if np.ndim(value) else round(float(value), 4)

    values: dict[str, Any] = tidy(asdict(model))
    return values


def level_probabilities(evidence: Evidence) -> np.ndarray:
    """(n, 24) probabilities given that it is a vertebra. An L6 counts as L5: numberings are regular here."""
    levels = np.exp(fold_variants(evidence)[:, :NUM_LEVELS])
    return levels / levels.sum(1, keepdims=True)


def measured_bias(windows: Sequence[Window], weights: np.ndarray, name: str, prior: float = 3.0) -> dict[str, list[float]]:
    """Fractions of -2 .. 2 by region, from rows with known truth."""
    counts = np.full((3, len(SHIFTS)), 0.0)
    counts[:] = prior * np.array([0.05, 0.2, 0.5, 0.2, 0.05])
    for window, weight in zip(windows, weights, strict=True):
        if name not in window.evidence:
            continue
        levels = level_probabilities(window.evidence[name])
        fractions = region_fractions(levels)
        for i, true in enumerate(window.names):
            if true in LEVEL_INDEX:
                for k, shift in enumerate(SHIFTS):
                    told = LEVEL_INDEX[true] + shift
                    if 0 <= told < NUM_LEVELS:
                        counts[:, k] += weight * fractions[i] * levels[i, told]
    return {region: (row / row.sum()).tolist() for region, row in zip(REGIONS, counts, strict=True)}


@dataclass
class Prepared:
    """Regular windows as padded arrays: `scores` classifier -> (N, 3, 24) sums over rows of fraction of region times log, -inf where no
    run."""

    windows: list[Window]
    n: np.ndarray
    truth: np.ndarray
    possible: np.ndarray
    scores: dict[str, np.ndarray]
    known: dict[str, np.ndarray]
    landmark: dict[str, np.ndarray]

    def take(self, rows: np.ndarray) -> Prepared:
        return Prepared([self.windows[i] for i in rows], self.n[rows], self.truth[rows], self.possible[rows],
                        {k: v[rows] for k, v in self.scores.items()}, {k: v[rows] for k, v in self.known.items()},
                        {k: v[rows] for k, v in self.landmark.items()})


def prepare(windows: Sequence[Window], bias: Mapping[str, Mapping[str, Sequence[float]]]) -> Prepared:
    windows = [w for w in windows if w.regular]
    count = len(windows)
    n = np.array([len(w.names) for w in windows])
    truth = np.array([LEVEL_INDEX[EMITTING_LEVEL[w.names[0]]] for w in windows])
    possible = np.arange(NUM_LEVELS)[None] <= NUM_LEVELS - n[:, None]
    scores = {name: np.zeros((count, 3, NUM_LEVELS)) for name in CLASSIFIERS}
    known = {name: np.array([name in w.evidence for w in windows]) for name in CLASSIFIERS}
    landmark = {name: np.full(count, np.nan) for name in LANDMARKS}
    for i, window in enumerate(windows):
        for name, found in window.evidence.items():
            levels = level_probabilities(found)
            fractions, ratio = region_fractions(levels), relative_logs(remove_bias(levels, bias.get(name)))
            for k in range(NUM_LEVELS - n[i] + 1):
                scores[name][i, :, k] = fractions.T @ ratio[np.arange(n[i]), k + np.arange(n[i])]
            if found.landmarks is not None:
                landmark["sacrum"][i], landmark["skull"][i] = found.landmarks[-1, 0], found.landmarks[0, 1]
    return Prepared(windows, n, truth, possible, scores, known, landmark)


def log_posteriors(cases: Prepared, w: EvidenceModel, use: Sequence[str] = CLASSIFIERS) -> np.ndarray:
    """(N, 24) log posterior of the run that starts at each level, -inf where it would leave the spine."""
    total = np.where(cases.possible, 0.0, -np.inf)
    runs = cases.possible.sum(1)
    for name in use:
        scale = np.array([w.scale[name][region] for region in REGIONS])
        ratio = np.einsum("r,nrk->nk", scale, cases.scores[name]) * (cases.n ** -w.power[name])[:, None]
        ratio = np.where(cases.possible, ratio, -np.inf)
        # relative to the mean over the runs: a classifier that knows nothing has 1 everywhere
        ratio = ratio - (np.logaddexp.reduce(ratio, axis=1) - np.log(runs))[:, None]
        trust = w.trust[name]
        robust = np.logaddexp(np.log(max(trust, 1e-9)) + ratio, np.log(max(1 - trust, 1e-9)))
        total = total + np.where(cases.known[name][:, None] & cases.possible, robust, 0.0)
    for name in LANDMARKS:
        trust = w.landmark.get(name, 0.0)
        seen = ~np.isnan(cases.landmark[name])
        if trust > 0 and seen.any():
            p = np.nan_to_num(cases.landmark[name])[:, None]
            at_end = np.arange(NUM_LEVELS)[None] == (NUM_LEVELS - cases.n[:, None] if name == "sacrum" else 0)
            total = total + np.where(seen[:, None], np.log(trust * np.where(at_end, p, 1 - p) + (1 - trust) * 0.5), 0.0)
    return total - np.logaddexp.reduce(total, axis=1)[:, None]


def fit(cases: Prepared, weights: np.ndarray, use: Sequence[str] = CLASSIFIERS, landmarks: bool = True,
        bias: Mapping[str, Any] | None = None, prior: float = PRIOR, iterations: int = 80) -> EvidenceModel:
    """Model of the best mean log posterior of the truth; `weights` of the cases. Drawn a little to scale 0.5, power 0.5, trust 0.9."""
    import torch
    from scipy.optimize import minimize

    marks, k = LANDMARKS if landmarks else (), len(use)
    begin = np.concatenate([np.full(3 * k, np.log(0.5)), np.full(k, 0.5), np.full(k, 2.2), np.full(len(marks), 2.2)])
    most = np.log(MOST_TRUST / (1 - MOST_TRUST))
    low = np.concatenate([np.full(3 * k, -5.0), np.full(k, LEAST_POWER), np.full(k + len(marks), -3.0)])
    high = np.concatenate([np.full(3 * k, 1.5), np.full(k, 1.2), np.full(k + len(marks), most)])
    cost = _torch_cost(cases, weights, use, marks)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        v = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        total = cost(v) + prior * (v - torch.from_numpy(begin)).square().mean()
        total.backward()
        return float(total.detach()), v.grad.numpy()

    v = minimize(loss, begin, method="L-BFGS-B", jac=True, bounds=list(zip(low, high, strict=True)), options={"maxiter": iterations}).x
    scale, power, trust, mark = v[:3 * k].reshape(k, 3), v[3 * k:4 * k], v[4 * k:5 * k], v[5 * k:]
    return EvidenceModel({name: dict(zip(REGIONS, np.exp(row), strict=True)) for name, row in zip(use, scale, strict=True)},
                   dict(zip(use, power, strict=True)), dict(zip(use, 1 / (1 + np.exp(-trust)), strict=True)),
                   dict(zip(marks, 1 / (1 + np.exp(-mark)), strict=True)), dict(bias or {}), **BY_HAND)


def _torch_cost(cases: Prepared, weights: np.ndarray, use: Sequence[str], marks: Sequence[str]) -> Any:
    """Minus the weighted mean of `log_posteriors` of the truth, as a differentiable function of the parameters."""
    import torch
    from torch.nn.functional import logsigmoid

    possible = torch.from_numpy(cases.possible)
    out = torch.where(possible, 0.0, -torch.inf).double()
    runs, n = possible.sum(1, keepdim=True).double().log(), torch.from_numpy(cases.n).double()[:, None]
    rows, truth = torch.arange(len(cases.n)), torch.from_numpy(cases.truth)
    weight = torch.from_numpy(weights / weights.sum())
    scores = {name: torch.from_numpy(cases.scores[name]) for name in use}
    known = {name: torch.from_numpy(cases.known[name])[:, None] & possible for name in use}
    columns = torch.arange(NUM_LEVELS)[None].double()
    k = len(use)

    def cost(v: torch.Tensor) -> torch.Tensor:
        total = out
        for i, name in enumerate(use):
            ratio = torch.einsum("r,nrk->nk", v[3 * i:3 * i + 3].exp(), scores[name]) * n ** -v[3 * k + i]
            ratio = ratio.masked_fill(~possible, -1e9)
            ratio = ratio - (torch.logsumexp(ratio, 1, keepdim=True) - runs)
            trust = v[4 * k + i]
            total = total + torch.where(known[name], torch.logaddexp(logsigmoid(trust) + ratio, logsigmoid(-trust).expand_as(ratio)), 0.0)
        for i, name in enumerate(marks):
            trust, p = torch.sigmoid(v[5 * k + i]), torch.from_numpy(cases.landmark[name])[:, None]
            at_end = columns == (NUM_LEVELS - n if name == "sacrum" else 0)
            likely = trust * torch.where(at_end, p.nan_to_num(0.5), 1 - p.nan_to_num(0.5)) + (1 - trust) * 0.5
            total = total + torch.where(p.isnan(), 0.0, likely.log())
        value = (total - torch.logsumexp(total, 1, keepdim=True))[rows, truth]
        return -(value.clamp(min=-12.0) * weight).sum()

    return cost


def case_weights(windows: Sequence[Window]) -> np.ndarray:
    """Every patient counts the same, and the few patients without a neck together as much as the many with one."""
    patients = np.array([w.patient for w in windows])
    necks = np.array([p.startswith("pt_") for p in patients])
    weight = np.array([1.0 / (patients == p).sum() for p in patients])
    for group in (necks, ~necks):
        weight[group] /= max(weight[group].sum(), 1e-9)
    return weight


def judge(cases: Prepared, posteriors: np.ndarray, limit: float = 0.05) -> dict[str, float]:
    """Fractions of windows: right, named (of vertebrae), anchored, anchored but wrong; the same counts of whole scans."""
    right = posteriors.argmax(1) == cases.truth
    sure = 1 - np.exp(posteriors.max(1)) <= limit
    whole = np.array([w.whole for w in cases.windows])
    truth = posteriors[np.arange(len(right)), cases.truth]
    return {"windows": len(right), "right": round(float(right.mean()), 3),
            "named": round(float((right * cases.n).sum() / cases.n.sum()), 3),
            "anchored": round(float(sure.mean()), 3), "anchored_wrong": round(float((sure & ~right).mean()), 4),
            "whole": int(whole.sum()), "whole_right": int((whole & right).sum()), "whole_anchored": int((whole & sure).sum()),
            "whole_anchored_wrong": int((whole & sure & ~right).sum()), "ll": round(float(np.maximum(truth, -12).mean()), 3)}


def fitted_on_all(windows: Sequence[Window], use: Sequence[str] = CLASSIFIERS, landmarks: bool = True,
                  biased: Sequence[str] = ("shape",)) -> EvidenceModel:
    """Bias and weights from all regular windows. The shape classifier's mistakes on real masks lean one way."""
    windows = [w for w in windows if w.regular]
    weights = case_weights(windows)
    bias = {name: measured_bias(windows, weights / weights.sum() * len(windows), name) for name in biased if name in use}
    return fit(prepare(windows, bias), weights, use, landmarks, bias)
