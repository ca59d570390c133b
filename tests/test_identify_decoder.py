"""The decoder against trial of every path on short sequences, and its answers on anatomy."""
from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.anatomy import ANATOMICAL_ORDER, LEVEL_INDEX, LEVELS
from spineclue_v2.stages.identify.decoder import Decoder
from spineclue_v2.stages.identify.plan import Penalties

PRICES = Penalties(t13=-2.0, l6=-1.5, missing_t12=-2.5, missed=-1.0, false_detection=0.3, t13_offset=-0.2, l6_offset=0.4)


def routes(upper, lower):
    """Every anatomically possible list of names from `upper` down to `lower`, written out."""
    a, b = ANATOMICAL_ORDER.index(upper), ANATOMICAL_ORDER.index(lower)
    between = ANATOMICAL_ORDER[a + 1:b]
    for absent in ((), ("T13",), ("T12", "T13")):
        if set(absent) <= set(between) | ({"T13"} if "T13" not in between else set()):
            route = [upper, *(name for name in between if name not in absent), lower]
            if ("T11", "T13") not in zip(route, route[1:], strict=False):
                yield tuple(route)


def weight_of_pair(upper, lower, step, penalties):
    total = 0.0
    for route in set(routes(upper, lower)):
        pairs = list(zip(route, route[1:], strict=False))
        cost = penalties.missed * (len(route) - 2)
        cost += penalties.t13 * (("T12", "T13") in pairs) + penalties.l6 * (("L5", "L6") in pairs)
        cost += penalties.missing_t12 * (("T11", "L1") in pairs)
        if not math.isnan(step):
            cost += max(-0.5 * (math.log(step / len(pairs)) / penalties.step_sigma) ** 2, penalties.step_floor)
        total += math.exp(cost)
    return math.log(total)


def weight_of_path(path, log_p, steps, penalties):
    """Log weight of a tuple of names or None, by the definition; None when the order is broken."""
    total, last = 0.0, None
    for i, name in enumerate(path):
        if name is None:
            total += log_p[i, 24] + penalties.false_detection
            continue
        if name == "T13":
            total += log_p[i, LEVEL_INDEX["T12"]] + penalties.t13_offset
        elif name == "L6":
            total += log_p[i, LEVEL_INDEX["L5"]] + penalties.l6_offset
        else:
            total += log_p[i, LEVEL_INDEX[name]]
        if last is not None:
            if ANATOMICAL_ORDER.index(name) <= ANATOMICAL_ORDER.index(path[last]):
                return None
            total += weight_of_pair(path[last], name, sum(steps[last:i]), penalties)
        else:
            total += {"T13": penalties.t13, "L6": penalties.l6}.get(name, 0.0)
        last = i
    return total


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2**31 - 1), st.booleans())
def test_equals_trial_of_every_path(n, seed, with_steps):
    generator = np.random.default_rng(seed)
    log_p = np.log(generator.dirichlet(np.full(25, 0.3), size=n).clip(1e-9))
    log_p[:, LEVEL_INDEX["T11"]:24] += 3.0                # spend the trial where the anomalies are
    steps = generator.uniform(0.5, 2.5, n - 1) if with_steps else np.full(n - 1, np.nan)
    weights = {path: w for path in itertools.product((*ANATOMICAL_ORDER, None), repeat=n)
               if (w := weight_of_path(path, log_p, steps, PRICES)) is not None}
    answer = Decoder(PRICES).decode(log_p, steps)
    paths, values = list(weights), np.array(list(weights.values()))
    assert answer.names == paths[int(values.argmax())]
    share = np.exp(values - np.logaddexp.reduce(values))
    posterior = np.zeros((n, 27))
    best, shifted, unmoored = answer.names, 0.0, 0.0
    for path, p in zip(paths, share, strict=True):
        for i, name in enumerate(path):
            posterior[i, 26 if name is None else ANATOMICAL_ORDER.index(name)] += p
        named = [i for i in range(n) if best[i] is not None]
        shifted += p * any(path[i] not in (best[i], None) for i in named)
        unmoored += p * all(path[i] != best[i] for i in named)
    np.testing.assert_allclose(answer.posterior, posterior, atol=1e-9)
    columns = [26 if b is None else ANATOMICAL_ORDER.index(b) for b in best]
    np.testing.assert_allclose(answer.confidence, posterior[range(n), columns], atol=1e-12)
    if any(best):
        assert answer.shifted == pytest.approx(shifted, abs=1e-9)
        assert answer.unmoored == pytest.approx(unmoored, abs=1e-9)
        assert answer.numbering_anchored == (answer.shifted <= 0.05)
    assert Decoder(PRICES).log_posterior(paths[-1], log_p, steps) == pytest.approx(math.log(share[-1]), abs=1e-6)


def rows(names, confidence=0.9):
    """(n, 25) log-probabilities that favour the given names; '-' = not a vertebra, '?' = no idea."""
    out = np.full((len(names), 25), (1 - confidence) / 24)
    for i, name in enumerate(names):
        if name == "?":
            out[i] = 1 / 25
        else:
            out[i, 24 if name == "-" else LEVEL_INDEX[name]] = confidence
    return np.log(out)


def test_a_clear_spine_is_read_and_anchored():
    names = ["T10", "T11", "T12", "L1", "L2"]
    answer = Decoder().decode(rows(names), np.ones(4))
    assert list(answer.names) == names
    assert answer.numbering_anchored and answer.margin > 5 and answer.confidence.min() > 0.95


def test_one_wrong_classifier_is_outvoted_and_a_gap_is_kept():
    assert Decoder().decode(rows(["T10", "T11", "L3", "L1", "L2"]), np.ones(4)).names == ("T10", "T11", "T12", "L1", "L2")
    assert Decoder().decode(rows(["T10", "T11", "?", "?", "?"]), [1, 2, 1, 1]).names == ("T10", "T11", "L1", "L2", "L3")


def test_a_false_detection_is_dropped():
    assert Decoder().decode(rows(["L1", "L2", "-", "L3"]), [1, 0.5, 0.5]).names == ("L1", "L2", None, "L3")
    assert Decoder().decode(rows(["-", "-"]), [1]).names == (None, None)
    assert Decoder().decode(rows(["-", "-"]), [1]).margin is None


def test_anomalies_are_named_when_the_evidence_pays_and_never_when_forbidden():
    for seen, expected in ((["T11", "T12", "T12", "L1", "L2", "L3"], ("T11", "T12", "T13", "L1", "L2", "L3")),
                           (["T10", "T11", "L1", "L2", "L3", "L4"], ("T10", "T11", "L1", "L2", "L3", "L4")),
                           (["L1", "L2", "L3", "L4", "L5", "L5"], ("L1", "L2", "L3", "L4", "L5", "L6"))):
        log_p = rows(seen, 0.7)
        assert Decoder().decode(log_p, np.ones(5)).names == expected
        forbidden = Decoder(forbid_anomalies=True).decode(log_p, np.ones(5)).names
        assert forbidden != expected and not set(forbidden) & {"T13", "L6"}
    # L1 next after T11 is no anomaly when T12 was missed, and the gap says so
    assert Decoder(forbid_anomalies=True).decode(rows(["T11", "L1"], 0.7), [2.0]).names == ("T11", "L1")


def test_a_classifier_of_the_variants_counts():
    log_p = rows(["L3", "L4", "L5", "?"])
    variants = np.full((4, 2), -20.0)
    variants[3, 1] = -0.01
    assert Decoder().decode(log_p, np.ones(3), variants).names[3] == "L6"
    variants[:] = np.nan
    unknown, without = Decoder().decode(log_p, np.ones(3), variants), Decoder().decode(log_p, np.ones(3))
    np.testing.assert_allclose(unknown.posterior, without.posterior)


def test_an_undecided_spine_is_not_anchored_and_its_margin_is_nothing():
    uniform = np.log(np.full((6, 25), 1 / 25))
    answer = Decoder().decode(uniform, np.ones(5))
    assert not answer.numbering_anchored and answer.shifted > 0.5 and answer.unmoored > 0.5
    assert abs(answer.margin) < 1e-5


def test_margin_compares_with_the_whole_path_moved():
    names = ["T5", "T6", "T7"]
    log_p = rows(names)
    moved = rows(["T6", "T7", "T8"])
    mixed = np.logaddexp(log_p + math.log(0.8), moved + math.log(0.2))
    answer = Decoder().decode(mixed, np.ones(2))
    own = sum(mixed[i, LEVEL_INDEX[name]] for i, name in enumerate(names))
    other = sum(mixed[i, LEVEL_INDEX[name] + 1] for i, name in enumerate(names))
    assert answer.margin == pytest.approx(own - other)


def test_empty_and_badly_shaped_input():
    answer = Decoder().decode(np.zeros((0, 25)))
    assert answer.names == () and not answer.numbering_anchored
    with pytest.raises(ValueError, match="25"):
        Decoder().decode(np.zeros((2, 24)))
    with pytest.raises(ValueError, match="steps"):
        Decoder().decode(np.zeros((3, 25)), np.ones(3))
    with pytest.raises(ValueError, match="known"):
        Penalties.from_dict({"t14": 1.0})
    assert Penalties.from_dict(PRICES.to_dict()) == PRICES


def test_a_whole_spine_takes_a_few_milliseconds():
    log_p = rows(list(LEVELS), 0.6)
    decoder = Decoder()
    decoder.decode(log_p, np.ones(23))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        decoder.decode(log_p, np.ones(23))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


def test_a_first_vertebra_is_no_variant_for_nothing():
    """A classifier that knows no T13 says the same of it and of T12; as the uppermost one a T13 is as rare as below T12."""
    logs = np.full((3, 25), np.log(0.01))
    logs[[0, 1, 2], [LEVEL_INDEX["T12"], LEVEL_INDEX["L1"], LEVEL_INDEX["L2"]]] = np.log(0.76)
    answer = Decoder(Penalties(t13=-6.0)).decode(logs, np.ones(2))
    assert answer.names == ("T12", "L1", "L2")
    assert answer.confidence[0] > 0.99 and answer.posterior[0, ANATOMICAL_ORDER.index("T13")] < 2 * np.exp(-6.0)
