"""The numbers in the code of a stage have a fingerprint, which stands in what is predicted and trained with it."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spineclue_v2.inference.model import load_shipped
from spineclue_v2.stages.identify.decoder_fit import Case, fit_penalties
from spineclue_v2.stages.identify.plan import Penalties
from spineclue_v2.stages.method import constants_of, method_fingerprint
from spineclue_v2.stages.registry import pipeline_of, stage_of


def test_upper_case_literals_count_and_nothing_else():
    assert constants_of("A = 1.5\nB, C = 2, (3,)\nD: int = 4\nlower = 5\ndef f():\n    E = 6\n") == {
        "A": "1.5", "B, C": "(2, (3,))", "D": "4"}


def test_every_stage_has_one_and_another_folder_has_another():
    found = {stage.name: method_fingerprint(stage) for stage in (*pipeline_of("CT"), *pipeline_of("MR"))}
    assert all(len(value) == 16 for value in found.values())
    assert found["heights"] == found["grade"] and found["hybrid_2d"] == found["hybrid_3d"]      # one folder each
    assert found["sacrum"] == found["segment"]
    assert len(set(found.values())) == len(found) - 3
    assert method_fingerprint(replace(stage_of("segment"), predictor=stage_of("localize").predictor)) == found["localize"]


def test_a_prediction_says_which_method_made_it():
    record = load_shipped(torch.device("cpu")).record
    assert record["method"]["heights"] == method_fingerprint(stage_of("heights"))
    assert set(record["method"]) == {*record["weights"], "heights", "sacrum"}


@pytest.mark.parametrize(("names", "learned"), [
    (("T11", "T12", "L1"), set()), (("T12", "T13", "L1"), {"t13", "t13_offset"}), (("L4", "L5", "L6"), {"l6_offset"})])
def test_what_only_a_variant_tells_is_fitted_where_there_is_one(names, learned):
    generator = torch.Generator().manual_seed(0)
    rows = torch.log_softmax(torch.randn(len(names), 25, generator=generator), 1).numpy()
    start = Penalties()
    fitted = fit_penalties([Case(rows, names)], start, iterations=1)
    changed = {name for name in ("t13", "t13_offset", "l6_offset") if getattr(fitted, name) != getattr(start, name)}
    assert changed == learned
