"""Penalties are learned: what happens often becomes cheap, what never happens dear."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spineclue_v2.anatomy import EMITTING_LEVEL, LEVEL_INDEX, LEVELS
from spineclue_v2.stages.identify.decoder_fit import Case, fit_penalties, mean_log_posterior
from spineclue_v2.stages.identify.plan import Penalties


def case(names, seed, sharpness=3.0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1, (len(names), 25))
    for i, name in enumerate(names):
        logits[i, 24 if name is None else LEVEL_INDEX[EMITTING_LEVEL[name]]] += sharpness
    return Case(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), tuple(names), np.ones(len(names) - 1))


def cases(with_l6, sharpness=3.0):
    regular = [case(LEVELS[first:first + 7], first, sharpness) for first in range(10, 18)]
    sixth = [case([*LEVELS[-6:], "L6"], seed) for seed in range(100, 100 + with_l6)]
    return regular + sixth


def test_fitting_raises_the_likelihood_and_learns_the_share_of_an_anomaly():
    dear, cheap = Penalties(l6=-8.0), Penalties(l6=0.0)
    many = fit_penalties(cases(6), dear, names=("l6",), iterations=6)
    # Weak evidence: with strong evidence no L6 would be believed at any penalty, and the penalty could not be learned.
    none = fit_penalties(cases(0, sharpness=0.5), cheap, names=("l6",), iterations=6)
    assert many.l6 > dear.l6 + 1 and none.l6 < cheap.l6 - 1
    assert mean_log_posterior(many, cases(6)) > mean_log_posterior(dear, cases(6)) + 0.05
    assert replace(many, l6=dear.l6) == dear


def test_overconfident_evidence_is_tempered():
    seen_one_lower = [replace(case(LEVELS[k + 1:k + 8], k), names=tuple(LEVELS[k:k + 7])) for k in (8, 10, 12)]
    sure = cases(0) + seen_one_lower
    fitted = fit_penalties(sure, Penalties(), names=("evidence",), iterations=6)
    assert fitted.evidence < 0.8
    assert mean_log_posterior(fitted, sure) > mean_log_posterior(Penalties(), sure)


def test_weights_count_and_an_impossible_truth_is_bounded():
    good, impossible = cases(0)[0], case(["L2", "L1"], 5)
    assert mean_log_posterior(Penalties(), [impossible]) == -20.0
    assert mean_log_posterior(Penalties(), [good, impossible], [1.0, 0.0]) == pytest.approx(mean_log_posterior(Penalties(), [good]))
    assert fit_penalties([]) == Penalties()
