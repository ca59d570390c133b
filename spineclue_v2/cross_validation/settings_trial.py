"""Whether chosen settings of identify are better than the planned ones: a nested estimate with an interval, and a trial run.

Settings that were chosen on some folds are flattered by these folds. So the whole search is repeated without one fold, and what it
chooses there names the cases of the fold left out, through the same code that predicts (Cawley and Talbot 2010, nested
cross-validation). The planned settings name the same cases. The interval of the difference comes from drawing patients anew (bootstrap).
"""
from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..evaluation.instances import match_true_names
from ..stages.identify.fitting import fitted_without
from ..stages.identify.plan import IdentifyRun
from .identification_search import Row, Settings, choose, fitted_fusion
from .model_settings import Fitted
from .out_of_fold import OutOfFold

logger = logging.getLogger(__name__)

DRAWS = 2000
LEVEL = 0.95
MIN_PATIENTS = 6     # of fewer whose names change not even unanimous gains reach 2.5 % in a sign test (2 ** -6 = 0.016)


@dataclass(frozen=True)
class CaseGain:
    """One case under both settings: vertebrae named right (or another sum over them) as planned and as chosen, and all true vertebrae."""

    case: str
    patient: str
    planned: float
    chosen: float
    true: int

    def to_json(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class Verdict:
    """ID-rates of unseen cases as planned and as chosen, the 95 % interval of their difference, and why the choice is taken or not."""

    planned: float
    chosen: float
    interval: tuple[float, float]
    taken: bool
    reason: str
    cases: tuple[CaseGain, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"interval": list(self.interval), "cases": [case.to_json() for case in self.cases]}


def judge(gains: Sequence[CaseGain]) -> Verdict:
    """Take the chosen settings only where the interval of their gain lies above 0 and enough patients speak for it."""
    true = max(1, sum(gain.true for gain in gains))
    planned, chosen = sum(gain.planned for gain in gains) / true, sum(gain.chosen for gain in gains) / true
    low, high = gain_interval(gains)
    changed = len({gain.patient for gain in gains if gain.planned != gain.chosen})
    lost = sum(gain.chosen < gain.planned for gain in gains)
    if chosen <= planned:
        taken, reason = False, "the chosen settings name no more of the cases that had no part in choosing them"
    elif changed < MIN_PATIENTS:
        taken, reason = False, f"names change in {changed} patient(s), and fewer than {MIN_PATIENTS} cannot show a sure gain"
    elif low <= 0:
        taken, reason = False, "the interval of the gain reaches 0"
    else:
        taken, reason = True, f"the interval of the gain lies above 0; {lost} of {len(gains)} cases lose"
    return Verdict(planned, chosen, (low, high), taken, reason, tuple(gains))


def gain_interval(gains: Sequence[CaseGain]) -> tuple[float, float]:
    """95 % interval of the difference of rates, over patients drawn with replacement."""
    patients = sorted({gain.patient for gain in gains})
    if not patients:
        return 0.0, 0.0
    rows = [[gain for gain in gains if gain.patient == patient] for patient in patients]
    more = np.array([sum(gain.chosen - gain.planned for gain in row) for row in rows], dtype=float)
    true = np.array([sum(gain.true for gain in row) for row in rows], dtype=float)
    drawn = np.random.default_rng(0).integers(0, len(patients), (DRAWS, len(patients)))
    rates = more[drawn].sum(1) / np.maximum(1, true[drawn].sum(1))
    low, high = np.percentile(rates, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def nested_gains(opened: Sequence[OutOfFold], states: Mapping[str, Fitted], rows: Sequence[Row], start: Settings) -> list[CaseGain]:
    """Every case by settings that were searched on the other folds, against the planned ones. Two folds at least."""
    gains = []
    for found in opened:
        others = [row for row in rows if row.fold != str(found.fold)]
        settings, _ = choose(others, start)
        phi = fitted_fusion(others, settings).phi.detach().clone()
        logger.info("Without fold %s: theta %g, hops %d, neighbours %d, weights %s.", found.fold, settings.theta, settings.hops,
                    settings.neighbours, {name: round(value, 3) for name, value in settings.weights.items()})
        fitted, extra = states[str(found.fold)]
        for case in found.cases:
            planned, true = count_right(found, case, start, (fitted, extra))
            chosen, _ = count_right(found, case, settings, (fitted, extra), phi)
            gains.append(CaseGain(case, found.patients.get(case, case), planned, chosen, true))
    return gains


def count_right(found: OutOfFold, case: str, settings: Settings, state: Fitted, phi: torch.Tensor | None = None) -> tuple[int, int]:
    """Vertebrae of an unseen case that a model with `settings` names right, and all true ones.

    `phi`: fusion matrices; None for those of the training that did not see the case.
    """
    from ..inference.pipeline import identify_masks

    vertebrae = found.segmented(case)
    true = len(found.data("identify").properties(case)["vertebrae"])
    if not vertebrae:
        return 0, true
    model = found.naming_model(case)
    fitted, extra = fitted_without(case, *state)
    if phi is not None:
        extra = {**extra, "phi": phi}
    stage = model.plans.stage("identify")
    planned = dataclasses.replace(stage, run=with_settings(stage.run, settings))
    own = dataclasses.replace(model.stages["identify"], fitted=[fitted], extra=[extra])
    model = dataclasses.replace(model, plans=dataclasses.replace(model.plans, stages={**model.plans.stages, "identify": planned}),
                                stages={**model.stages, "identify": own})
    result = identify_masks(vertebrae, model, scan=found.volume("segment", case))
    kept = list(result.vertebrae)
    names = match_true_names(kept, found.labels(case)) if kept else []
    return sum(name is not None and name == vertebra.level for name, vertebra in zip(names, kept, strict=True)), true


def with_settings(run: IdentifyRun, settings: Settings) -> IdentifyRun:
    """The run group of identify with these settings."""
    return dataclasses.replace(run, **settings_of_run(settings))


def settings_of_run(settings: Settings) -> dict[str, Any]:
    """Settings under the names of the plan's fields."""
    return {"theta": settings.theta, "hops": settings.hops, "neighbours": settings.neighbours,
            "decoder_penalties": dict(settings.penalties), "classifier_weights": dict(settings.weights)}
