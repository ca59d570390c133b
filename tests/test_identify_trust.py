"""Classifiers that may be wrong about a whole scan: agreement anchors, contradiction does not, landmarks decide where they are seen."""
import numpy as np
import pytest

from spineclue_v2.anatomy import LEVEL_INDEX, LEVELS
from spineclue_v2.stages.base import Evidence
from spineclue_v2.stages.identify.decoder import Decoder
from spineclue_v2.stages.identify.plan import Penalties
from spineclue_v2.stages.identify.trust import EvidenceModel, decode_with_trust, in_its_place, remove_bias

ALL = ("shape", "geometry", "appearance")
PENALTIES = Penalties(false_detection=-1.0)


def model(trust: float = 0.95, power: float = 0.5, **more) -> EvidenceModel:
    part = {"cervical": 1.0, "thoracic": 1.0, "lumbar": 1.0}
    return EvidenceModel(dict.fromkeys(ALL, part), dict.fromkeys(ALL, power), dict.fromkeys(ALL, trust), **more)


def rows(first: str, count: int, sure: float = 0.9, none: float = 0.01) -> np.ndarray:
    out = np.full((count, 25), (1 - sure - none) / 23)
    out[:, 24] = none
    out[np.arange(count), LEVEL_INDEX[first] + np.arange(count)] = sure
    return np.log(out)


def names(first: str, count: int) -> tuple[str, ...]:
    return LEVELS[LEVEL_INDEX[first]:LEVEL_INDEX[first] + count]


def decode(evidence, **more):
    count = len(next(iter(evidence.values())).logs)
    return decode_with_trust(evidence, np.ones(count - 1), more.pop("model", model()), PENALTIES, **more)


def test_agreement_is_anchored():
    answer = decode({name: Evidence(rows("T9", 7)) for name in ALL})
    assert answer.names == names("T9", 7)
    assert answer.numbering_anchored
    assert answer.shifted < 0.01


def test_contradiction_is_not_anchored_however_sure_each_is():
    evidence = {"shape": Evidence(rows("T9", 7, 0.95)), "geometry": Evidence(rows("T10", 7, 0.95))}
    answer = decode(evidence)
    assert not answer.numbering_anchored
    assert answer.shifted > 0.3
    assert answer.confidence.max() < 0.7


def test_the_plain_decoder_would_have_been_sure():
    """One classifier that is a little surer wins with certainty when logs are added."""
    total = rows("T9", 7, 0.95) + rows("T10", 7, 0.97)
    assert Decoder(PENALTIES).decode(total, np.ones(6)).numbering_anchored


def test_two_against_one_names_with_the_two():
    evidence = {"shape": Evidence(rows("T9", 7)), "geometry": Evidence(rows("T9", 7)), "appearance": Evidence(rows("T10", 7))}
    assert decode(evidence).names == names("T9", 7)


def test_sacrum_below_makes_the_last_one_l5():
    """Shape alone cannot tell T12-L4 from L1-L5 here; a sacrum below the last one does."""
    logs = np.logaddexp(rows("L1", 5, 0.5), rows("T12", 5, 0.5))
    seen = np.full((5, 2), np.nan)
    seen[-1, 0] = 0.98
    with_landmark = decode({"shape": Evidence(logs), "appearance": Evidence(np.zeros((5, 25)) - np.log(25), landmarks=seen)},
                           model=model(landmark={"sacrum": 0.95}))
    seen[-1, 0] = 0.02
    without = decode({"shape": Evidence(logs), "appearance": Evidence(np.zeros((5, 25)) - np.log(25), landmarks=seen)},
                     model=model(landmark={"sacrum": 0.95}))
    assert with_landmark.names == names("L1", 5)
    assert without.names == names("T12", 5)


def test_a_long_row_of_one_opinion_counts_once():
    """With power 1 ten repetitions of a weak opinion are no surer than one; the sum of their logs would be."""
    weak = {"geometry": Evidence(rows("T2", 10, 0.3))}
    assert not decode(weak, model=model(power=1.0)).numbering_anchored
    assert decode(weak, model=model(trust=0.9999, power=0.0)).numbering_anchored


def test_false_detection_is_dropped():
    logs = rows("L1", 6)
    logs[5] = np.log(np.r_[np.full(24, 0.02 / 24), 0.98])
    answer = decode({"appearance": Evidence(logs), "geometry": Evidence(logs)})
    assert answer.names == (*names("L1", 5), None)


def test_l6_needs_its_own_evidence():
    logs = rows("T12", 7)                                    # T12 .. L5 and one more
    logs[6] = logs[5]
    variants = np.full((7, 2), np.nan)
    variants[:, 1] = np.log(1e-3)
    assert decode({"geometry": Evidence(logs, variants)}, model=model(power=0.0)).names[-1] != "L6"
    variants[6, 1] = np.log(0.95)
    logs[6] = np.log(np.full(25, 0.05 / 25))
    assert decode({"geometry": Evidence(logs, variants)}, model=model(power=0.0)).names[-2:] == ("L5", "L6")
    assert "L6" not in decode({"geometry": Evidence(logs, variants)}, model=model(power=0.0), forbid_anomalies=True).names


def test_posterior_rows_sum_to_one():
    answer = decode({"shape": Evidence(rows("C2", 5)), "geometry": Evidence(rows("C3", 5))})
    assert np.allclose(answer.posterior.sum(1), 1.0, atol=1e-6)


def test_bias_is_taken_back():
    """A classifier that says one level too low in most cases: the one above becomes likely."""
    levels = np.exp(rows("C4", 3))[:, :24]
    bias = {part: [0.0, 0.0, 0.2, 0.8, 0.0] for part in ("cervical", "thoracic", "lumbar")}
    moved = remove_bias(levels / levels.sum(1, keepdims=True), bias)
    assert moved[0].argmax() == LEVEL_INDEX["C3"]
    assert np.allclose(moved.sum(1), 1.0)


def test_unknown_entry_is_named():
    with pytest.raises(ValueError, match="powers"):
        EvidenceModel.from_dict({"scale": {}, "powers": {}, "trust": {}})


def test_nothing_found():
    assert decode_with_trust({}, np.zeros(0), model(), PENALTIES).names == ()


def test_a_detection_that_is_half_taken_for_none_is_no_anchor():
    logs = rows("L1", 5)
    logs[2] = np.log(np.exp(logs[2]) * 0.4)
    logs[2, 24] = np.log(0.6)
    evidence = {"geometry": Evidence(logs), "shape": Evidence(rows("L1", 5)), "appearance": Evidence(rows("L1", 5))}
    sure = decode(evidence, model=model(none_weight={"geometry": 0.1}))
    assert sure.names == names("L1", 5) and sure.numbering_anchored
    doubtful = decode(evidence, model=model(none_weight={"geometry": 0.1}, doubt=0.5))
    assert doubtful.names == sure.names and not doubtful.numbering_anchored


def test_a_step_that_only_the_sum_hears_is_named_and_no_anchor():
    """T12 twice, the second one is T13: with rows that count as one opinion, a variant is dearer than what the rows say against it."""
    said = np.concatenate([rows("T10", 3), rows("T12", 4)])
    evidence = {name: Evidence(said) for name in ALL}
    alone = decode(evidence, model=model(power=1.5))
    assert "T13" not in alone.names
    both = decode(evidence, model=model(power=1.5, sum_weight=0.65))
    assert both.names == ("T10", "T11", "T12", "T13", "L1", "L2", "L3") and not both.numbering_anchored
    assert (both.confidence < 1 - 0.3 * alone.shifted).all(), "both readings count"


def test_an_anchor_needs_both_readings():
    evidence = {name: Evidence(rows("T9", 7)) for name in ALL}
    assert decode(evidence, model=model(sum_weight=0.65)).numbering_anchored
    other = evidence | {"foreign": Evidence(rows("T10", 7, 1 - 1e-9, 1e-12))}          # only the sum hears it
    assert decode(other).numbering_anchored
    answer = decode(other, model=model(sum_weight=0.65))
    assert not answer.numbering_anchored and answer.shifted > 0.3


def test_the_sum_obeys_its_weights():
    evidence = {"shape": Evidence(rows("T9", 7)), "geometry": Evidence(rows("T10", 7)), "appearance": Evidence(rows("T10", 7))}
    mostly_sum = model(sum_weight=0.99)
    assert decode(evidence, model=mostly_sum).names == names("T10", 7)
    assert decode(evidence, model=mostly_sum, weights={"geometry": 0.1, "appearance": 0.1}).names == names("T9", 7)


@pytest.mark.parametrize("steps, dropped", [([1.0] * 6, False), ([1.0, 1.0, 0.5, 0.5, 1.0, 1.0], True)])
def test_a_detection_in_its_place_is_no_false_one(steps, dropped):
    """One classifier takes the fourth of seven for no vertebra, and names those below it as if it were none."""
    doubting = np.vstack([rows("T5", 3), np.log([[0.1 / 24] * 24 + [0.9]]), rows("T8", 3)])
    evidence = {"appearance": Evidence(doubting), "geometry": Evidence(rows("T5", 7, 0.06))}
    answer = decode_with_trust(evidence, np.array(steps), model(power=0.0), PENALTIES)
    assert (answer.names[3] is None) == dropped


def test_ribs_without_trust_are_told_and_decide_nothing():
    seen = np.full((6, 4), np.nan)
    seen[2:4, 2] = 0.97, 0.02
    blind, told = ({"appearance": Evidence(rows("T10", 6, 0.3), landmarks=marks)} for marks in (None, seen))
    np.testing.assert_array_equal(decode(told).posterior, decode(blind).posterior)


@pytest.mark.parametrize("steps, inside", [
    ([], [False]), ([1.0], [False, False]), ([1.0] * 3, [False] * 4),
    ([1.0, 1.0, 0.8, 1.0, 1.4, 1.0, 1.0], [False] * 2 + [True] * 2 + [False] * 4)])
def test_a_place_in_the_row_needs_a_usual_step_on_both_sides(steps, inside):
    assert in_its_place(np.array(steps)).tolist() == inside
