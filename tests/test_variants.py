"""Variants of plans: what a file leaves out comes from the plan it inherits from; what cannot be set is one sentence."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_fingerprint import fingerprint

from spineclue_v2.cli._common import main
from spineclue_v2.errors import InputError
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.stages.explain_plans import explain
from spineclue_v2.stages.plan_files import load_plans

DATASET = "Dataset501_Variants"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a planned dataset."""
    monkeypatch.setenv("SPINECLUE_HOME", str(tmp_path))
    for variable in ("spineclue_raw", "spineclue_preprocessed", "spineclue_results", "nnUNet_raw"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "preprocessed" / DATASET
    (tmp_path / "raw" / DATASET).mkdir(parents=True)
    SpineCLUEPlanner("raw", fingerprint(), 8, "cuda").plan().save(folder / "SpineCLUEPlans.json")
    return folder


def vary(*settings: str, name: str = "Mine") -> int:
    return main("plan_experiment", ["-d", "501", "--set", *settings, "-overwrite_plans_name", name])


def test_a_variant_says_only_what_differs_and_follows_its_base(base, capsys):
    assert vary("segment.run.batch_size=3", "segment.network.features=[32, 64]", "segment.network.blocks=[1, 1]") == 0
    assert "Variant Mine of SpineCLUEPlans" in capsys.readouterr().out
    plans, mine = load_plans(base / "SpineCLUEPlans.json"), load_plans(base / "Mine.json")
    assert mine.plans_name == "Mine" and mine.stage("segment").run.batch_size == 3 and mine.stage("segment").network.features == (32, 64)
    assert mine.stages.keys() == plans.stages.keys() and mine.stage("identify") == plans.stage("identify")
    assert mine.stage("segment").run.epochs == plans.stage("segment").run.epochs
    assert mine.stage("segment").data_fingerprint == plans.stage("segment").data_fingerprint, "nothing to preprocess again"
    written = json.loads((base / "Mine.json").read_text())
    assert set(written["stages"]) == {"segment"} and set(written["stages"]["segment"]["run"]) == {"batch_size"}
    said = explain(mine, "segment.run.batch_size")
    assert "= 3 crops" in said and "set in this variant of SpineCLUEPlans" in said
    assert f"SpineCLUEPlans {plans.stage('segment').run.batch_size}" in said
    # A variant of a variant, and a base that changes.
    assert main("plan_experiment", ["-d", "501", "--set", "segment.run.epochs=7", "-p", "Mine", "-overwrite_plans_name", "Other"]) == 0
    other = load_plans(base / "Other.json").stage("segment").run
    assert (other.batch_size, other.epochs) == (3, 7)
    assert vary("segment.run.batch_size=4") == 0
    assert load_plans(base / "Other.json").stage("segment").run.batch_size == 4


@pytest.mark.parametrize("setting, message", [
    ("segment.run.batchsize=4", "did you mean 'batch_size'?"),
    ("segment.runs.batch_size=4", "did you mean 'run'?"),
    ("segmant.run.batch_size=4", "did you mean 'segment'?"),
    ("segment.run.batch_size=four", "expected a whole number"),
    ("segment.run.batch_size", "expected stage.group.field=value"),
    ("segment.network.features=[8, 16]", "features holds 2 and blocks"),
    ("segment.network.crop_size=[33, 30, 30]", "expected multiples of"),
], ids=["field", "group", "stage", "type", "no value", "features without blocks", "crop"])
def test_what_cannot_be_set_is_one_sentence_and_no_file(base, capsys, setting, message):
    assert vary(setting) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (base / "Mine.json").exists()


def test_names_and_flags_that_clash(base, capsys):
    assert vary("segment.run.batch_size=3", name="SpineCLUEPlans") == 2
    assert main("plan_experiment", ["-d", "501", "--set", "segment.run.batch_size=3"]) == 2
    assert "-overwrite_plans_name" in capsys.readouterr().err
    assert main("plan_experiment", ["-d", "501", "--set", "segment.run.epochs=3", "-pl", "X", "-overwrite_plans_name", "Y"]) == 2
    load_plans(base / "SpineCLUEPlans.json").save(base / "Full.json")
    assert vary("segment.run.batch_size=3", name="Full") == 2
    assert "is no variant of SpineCLUEPlans" in capsys.readouterr().err


@pytest.mark.parametrize("content, message", [
    ({"inherits_from": "B"}, "A inherits from B inherits from A, in a circle"), ({"inherits_from": "Missing"}, "does not exist"),
    ({"inherits_from": "../B"}, "name of a plan in the same folder"), ({"inherits_from": 3}, "name of a plan in the same folder"),
    ({"inherits_from": "SpineCLUEPlans", "stages": []}, "no 'stages'"),
], ids=["circle", "missing", "path", "number", "no stages"])
def test_inheritance_that_leads_nowhere(base, content, message):
    (base / "A.json").write_text(json.dumps(content))
    (base / "B.json").write_text(json.dumps({"inherits_from": "A"}))
    with pytest.raises(InputError, match=message):
        load_plans(base / "A.json")


def test_a_whole_plan_is_explained(base):
    plans = load_plans(base / "SpineCLUEPlans.json")
    said = explain(plans)
    for stage in plans.stages:
        assert f"{stage}.run.batch_size = " in said
    assert explain(plans, "segment.data").count("what it is:") == 5
