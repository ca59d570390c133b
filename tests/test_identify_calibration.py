"""Weights of the classifiers: a liar gets none, a confident one less, and what is fitted says what it means."""
from __future__ import annotations

import numpy as np
import pytest

from spineclue_v2.anatomy import LEVEL_INDEX, LEVELS, NUM_LEVELS
from spineclue_v2.evaluation.calibration import expected_calibration_error
from spineclue_v2.stages.identify.calibration import LARGEST, START, EvidenceRows, fit_weights, weigh
from spineclue_v2.stages.identify.decoder import Decoder
from spineclue_v2.stages.identify.plan import Penalties


def honest(names: tuple[str, ...], generator: np.random.Generator, sharpness: float = 1.0) -> np.ndarray:
    """Logs (n, 25) that mean what they say at sharpness 1: noise of variance 2 s on logits whose truth is s higher."""
    logits = generator.normal(0, np.sqrt(3.0), (len(names), NUM_LEVELS + 1))
    logits[np.arange(len(names)), [LEVEL_INDEX[name] for name in names]] += 3.0
    logits *= sharpness
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def scans(count: int, make, seed: int = 0) -> list[EvidenceRows]:
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        first = int(generator.integers(0, NUM_LEVELS - 6))
        names = LEVELS[first:first + 6]
        found.append(EvidenceRows(make(names, generator), names, np.ones(5)))
    return found


def test_weighted_is_the_normalised_sum_of_logs():
    generator = np.random.default_rng(1)
    a, b = (np.log(generator.dirichlet(np.ones(25), 3)) for _ in range(2))
    rows = weigh({"shape": a, "geometry": b}, {"shape": 2.0, "geometry": 0.5})
    expected = np.exp(2 * a + 0.5 * b)
    np.testing.assert_allclose(np.exp(rows), expected / expected.sum(1, keepdims=True))


def test_a_honest_classifier_keeps_its_weight_an_overconfident_one_loses_it():
    for sharpness in (1.0, 2.0):
        rows = scans(150, lambda names, g, s=sharpness: {"shape": honest(names, g, s)})
        assert fit_weights(rows)["shape"] == pytest.approx(1 / sharpness, abs=0.08)


def test_a_classifier_that_knows_nothing_gets_next_to_nothing():
    rows = scans(150, lambda names, g: {"shape": honest(names, g), "geometry": np.log(g.dirichlet(np.ones(25), len(names)))})
    weights = fit_weights(rows)
    assert weights["geometry"] < 0.1 and weights["shape"] > 0.8


def test_few_scans_move_the_weights_little_and_none_not_at_all():
    rows = scans(1, lambda names, g: {"shape": honest(names, g), "geometry": honest(names, g)})
    few = fit_weights(rows)
    assert abs(few["shape"] - START["shape"]) < 0.5 and 0 <= few["geometry"] <= LARGEST
    assert fit_weights([]) == START


def test_confidence_after_the_fit_means_what_it_says():
    """Two copies of one classifier count double; fitted on some scans, the decoder's confidence is calibrated on others."""
    def twice(names, generator):
        rows = honest(names, generator)
        return {"shape": rows, "geometry": rows}

    penalties = Penalties()
    weights = fit_weights(scans(40, twice, seed=3), penalties)
    assert weights["shape"] + weights["geometry"] < START["shape"] + START["geometry"]
    decoder, sure, right = Decoder(penalties), [], []
    for scan in scans(150, twice, seed=4):
        numbering = decoder.decode(weigh(scan.logs, weights), scan.steps)
        sure += numbering.confidence.tolist()
        right += [a == b for a, b in zip(numbering.names, scan.names, strict=True)]
    assert expected_calibration_error(sure, right) < 0.06


def test_rows_without_a_level_do_not_count():
    rows = scans(60, lambda names, g: {"shape": honest(names, g)})
    with_variants = [EvidenceRows({"shape": np.concatenate([r.logs["shape"], np.full((2, 25), -np.log(25))])}, (*r.names, "L6", None),
                                 np.ones(7)) for r in rows]
    assert fit_weights(with_variants)["shape"] == pytest.approx(fit_weights(rows)["shape"], abs=1e-3)
