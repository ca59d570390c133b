"""Which fusion, weights of the classifiers and decoder penalties: chosen on out-of-fold rows, rated on folds with no part in fitting.

For each candidate the fusion matrices (and the penalties) are fitted on the rows of the other folds and rated on the fold left out.
What is then written into the model is fitted on the rows of all folds.
"""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..anatomy import LEVEL_INDEX
from ..anatomy.vertebral_gaps import round_positions, vertebral_gaps
from ..stages.base import Evidence
from ..stages.identify.calibration import START, EvidenceRows, fit_weights
from ..stages.identify.decoder import Decoder
from ..stages.identify.decoder_fit import Case, fit_penalties, mean_log_posterior
from ..stages.identify.evidence import combine_evidence, shape_logs
from ..stages.identify.fusion import MessageFusion, fit_phi
from ..stages.identify.plan import Penalties

logger = logging.getLogger(__name__)

THETAS = (0.0, 0.05, 0.1, 0.2, 0.4)
HOPS = (1, 2, 3, 5)
NEIGHBOURS = (3, 5, 7, 9)
FITTED = ("weights", "penalties")  # learned from the rows of the other folds, not tried one by one


@dataclass(frozen=True)
class Row:
    """One scan's rows: `probabilities` (n, 24) Monte-Carlo means, `entropy` (n,), `centres` (n, 3) mm, `names` (n,) true names ('' = none),
    `missed` true vertebrae that were not found, `evidence` log rows (n, 25) of each classifier but shape."""

    case: str
    fold: str
    probabilities: np.ndarray
    entropy: np.ndarray
    centres: np.ndarray
    names: np.ndarray
    missed: int
    evidence: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What is chosen: fusion, the weight of every classifier's logs, and the decoder's penalties (empty: its own)."""

    theta: float
    hops: int
    neighbours: int
    weights: Mapping[str, float]
    penalties: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"weights": dict(self.weights), "penalties": dict(self.penalties)}


@dataclass(frozen=True)
class SettingsScore:
    """How settings did on the folds left out: share of true vertebrae named right, and the mean log posterior of the true paths."""

    id_rate: float
    log_posterior: float

    def better_than(self, other: SettingsScore) -> bool:
        return (round(self.id_rate, 9), round(self.log_posterior, 6)) > (round(other.id_rate, 9), round(other.log_posterior, 6))

    def to_json(self) -> dict[str, float]:
        return {"id_rate": self.id_rate, "log_posterior_of_true_paths": self.log_posterior}


def choose(rows: Sequence[Row], start: Settings) -> tuple[Settings, list[dict[str, Any]]]:
    """Settings that do best on held-out folds, and a table of all that was tried. One thing is changed at a time, in the order theta,
    hops, neighbours, weights, penalties; a change is kept when it is better, so that ties leave the plan as it is."""
    best, verdict = start, score_settings(rows, start)
    table = [{"settings": start.to_json(), "kept": True} | verdict.to_json()]
    candidates: list[tuple[str, Sequence[Any]]] = [("theta", THETAS), ("hops", HOPS), ("neighbours", NEIGHBOURS)]
    if any(row.evidence for row in rows):
        candidates.append(("weights", ("fitted",)))
    candidates.append(("penalties", ("fitted",)))
    for name, values in candidates:
        if name in ("hops", "neighbours") and best.theta == 0:
            continue  # without messages these change nothing
        current = best
        for value in values:
            if value == getattr(current, name):
                continue
            fit = name if name in FITTED else None
            tried = current if fit else replace(current, **{name: value})
            found = score_settings(rows, tried, fit)
            kept = found.better_than(verdict)
            if kept:
                best, verdict = (_refit(tried, name, rows) if fit else tried), found
            table.append({"changed": name, "to": value, "kept": kept} | found.to_json())
    return best, table


def score_settings(rows: Sequence[Row], settings: Settings, fit: str | None = None) -> SettingsScore:
    """Each fold by fusion matrices (and what `fit` names, weights or penalties) fitted on the others; a single fold by unlearned ones."""
    right = true = 0
    paths: list[tuple[float, int]] = []
    for fold in sorted({row.fold for row in rows}):
        true += sum(row.missed for row in rows if row.fold == fold)
        own, others = ([r for r in rows if (r.fold == fold) == same and len(r.names)] for same in (True, False))
        if not own:
            continue
        fold_settings = _refit(settings, fit, others) if fit and others else settings
        fusion = fitted_fusion(others, fold_settings)
        penalties = Penalties.from_dict(dict(fold_settings.penalties))
        decoder = Decoder(penalties)
        cases = [_case(row, fold_settings, fusion) for row in own]
        for row, case in zip(own, cases, strict=True):
            names = decoder.decode(case.log_probabilities, case.steps).names
            right += sum(given == name for given, name in zip(names, row.names, strict=True) if name)
            true += sum(bool(name) for name in row.names)
        paths.append((mean_log_posterior(penalties, cases), len(cases)))
    return SettingsScore(right / max(1, true), float(np.average([p for p, _ in paths], weights=[n for _, n in paths])) if paths else 0.0)


def fitted_weights(rows: Sequence[Row], settings: Settings) -> dict[str, float]:
    """Weights of all classifiers from these rows; a classifier that a scan lacks keeps the weight it has."""
    fusion = fitted_fusion(rows, settings)
    common = set.intersection(*(set(row.evidence) for row in rows)) if rows else set()
    scans = [EvidenceRows({name: logs for name, logs in _logs(row, fusion).items() if name == "shape" or name in common},
                          _names(row), vertebral_gaps(row.centres)) for row in rows if len(row.names)]
    return dict(settings.weights) | fit_weights(scans, Penalties.from_dict(dict(settings.penalties)), START | dict(settings.weights))


def fitted_penalties(rows: Sequence[Row], settings: Settings) -> dict[str, float]:
    """The decoder's penalties from the rows of all folds."""
    rows = [row for row in rows if len(row.names)]
    fusion = fitted_fusion(rows, settings)
    penalties = fit_penalties([_case(row, settings, fusion) for row in rows], Penalties.from_dict(dict(settings.penalties)))
    return {name: round(value, 6) for name, value in penalties.to_dict().items()}


def fitted_fusion(rows: Sequence[Row], settings: Settings) -> MessageFusion:
    """Fusion with matrices learned from `rows` (unlearned where there are none, or no messages)."""
    fusion = MessageFusion(settings.theta, settings.hops, settings.neighbours)
    scans = [(*_tensors(row), torch.tensor([LEVEL_INDEX.get(str(name), -1) for name in row.names])) for row in rows if len(row.names)]
    if any((scan[3] >= 0).any() for scan in scans) and settings.theta > 0:
        fit_phi(fusion, scans)
    return fusion


def _tensors(row: Row) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    positions = round_positions(vertebral_gaps(row.centres))
    # Values below the least normal float would slow every product down a hundredfold.
    return torch.from_numpy(row.probabilities).clamp(min=1e-9), torch.from_numpy(row.entropy), torch.from_numpy(positions)


def _logs(row: Row, fusion: MessageFusion) -> dict[str, np.ndarray]:
    """(n, 25) log-probabilities of every classifier that the row has."""
    with torch.no_grad():
        fused = fusion(*_tensors(row)).numpy()
    return {"shape": shape_logs(fused), **row.evidence}


def _names(row: Row) -> tuple[str | None, ...]:
    return tuple(str(name) or None for name in row.names)


def _case(row: Row, settings: Settings, fusion: MessageFusion) -> Case:
    evidence = {name: Evidence(logs) for name, logs in _logs(row, fusion).items()}
    log_probabilities, _ = combine_evidence(evidence, settings.weights)
    return Case(log_probabilities, _names(row), vertebral_gaps(row.centres))


def _refit(settings: Settings, fit: str, rows: Sequence[Row]) -> Settings:
    """The settings with what `fit` names (one of `FITTED`) fitted on `rows`."""
    if fit == "weights":
        return replace(settings, weights=fitted_weights(rows, settings))
    return replace(settings, penalties=fitted_penalties(rows, settings))
