"""Whether the evidence model that a fine-tune plan keeps holds for its own networks: numbered with and without it."""
from __future__ import annotations

import numpy as np
import pytest

from spineclue_v2.anatomy import LEVELS
from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.cross_validation.evidence_check import evidence_warning, judge_evidence
from spineclue_v2.planning.fine_tune import source_plans
from spineclue_v2.results import SpineResult
from spineclue_v2.stages.base import Evidence, NumberingBasis

NAMES = ("T11", "T12", "L1", "L2", "L3")


def result(model: dict, said: tuple[str, ...] = NAMES) -> SpineResult:
    """Five vertebrae 30 mm apart; the only classifier says `said` with 99 %."""
    logs = np.full((len(said), 25), np.log(0.01 / 24))
    for row, name in enumerate(said):
        logs[row, LEVELS.index(name)] = np.log(0.99)
    places = [(0.0, 0.0, -30.0 * row) for row in range(len(said))]
    found = tuple(Vertebra(place, (25.0, 40.0, 50.0), 1.0, body_centre=place) for place in places)
    nothing = (None,) * len(found)
    return SpineResult(found, True, basis=NumberingBasis(found, nothing, nothing, {"shape": Evidence(logs)}, {}, {"shape": 1.0}, model))


@pytest.fixture(scope="module")
def model() -> dict:
    return source_plans("shipped").stage("identify").run.evidence_model


def test_a_case_is_numbered_with_and_without_the_model(model):
    judged = judge_evidence(result(model), NAMES)
    assert judged is not None and judged["with"]["right"] == judged["without"]["right"] == 5
    assert judged["without"]["anchored"] and not judged["without"]["anchored_wrong"]
    lower = judge_evidence(result(model), NAMES[1:] + ("L4",))      # the truth is one level lower than what is said
    assert lower is not None and lower["without"] == {"right": 0, "anchored": True, "anchored_wrong": True}
    assert judge_evidence(result({}), NAMES) is None


def case(with_right: int, with_wrong: bool, without_right: int, without_wrong: bool) -> dict:
    return {"evidence_model": {"with": {"right": with_right, "anchored": True, "anchored_wrong": with_wrong},
                               "without": {"right": without_right, "anchored": True, "anchored_wrong": without_wrong}}}


def test_the_sentence_says_what_to_do_and_only_where_something_is_wrong():
    assert evidence_warning([case(5, False, 5, False)], "P") is None
    assert evidence_warning([case(6, False, 5, True)], "P") is None
    assert evidence_warning([{"case": "a"}], "P") is None
    better = evidence_warning([case(5, True, 6, False)], "identify/plans.json")
    assert better is not None and better.endswith("Set identify.run.evidence_model to {} in identify/plans.json.")
    fewer = evidence_warning([case(4, False, 5, False)], "P")
    assert fewer is not None and "Set identify.run.evidence_model" in fewer
    neither = evidence_warning([case(5, True, 5, True), case(5, False, 5, True)], "P")
    assert neither is not None and "no promise" in neither and "2 cases" in neither
