"""One dataset's plan for another."""
from __future__ import annotations

import json

import pytest
from tiny_dataset import DATASET, edited

from spineclue_v2.cli import _common
from spineclue_v2.errors import InputError
from spineclue_v2.planning.move_plans import move_plans_between_datasets
from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import CORE_STAGES
from spineclue_v2.utilities.files import write_json

TARGET = "Dataset498_Other"


def test_every_number_moves_and_names_its_new_dataset(tiny, tmp_path, monkeypatch, capsys):
    import shutil

    shutil.copytree(tiny, tmp_path / "preprocessed" / DATASET)
    monkeypatch.setenv("spineclue_preprocessed", str(tmp_path / "preprocessed"))
    target = tmp_path / "preprocessed" / TARGET
    target.mkdir()
    with pytest.raises(InputError, match="has no fingerprint.*spineclue_extract_fingerprint -d 498"):
        move_plans_between_datasets(499, 498)
    write_json(target / "dataset_fingerprint.json", {"dataset_hash": "0123456789abcdef"})
    assert _common.main("move_plans_between_datasets", ["-s", "499", "-t", "498", "-tp", "Moved"]) == 0
    assert "spineclue_preprocess -d 498 -plans_name Moved" in capsys.readouterr().out
    before, after = load_plans(tiny / f"{DEFAULT_PLANS_NAME}.json"), load_plans(target / "Moved.json")
    assert (after.plans_name, after.dataset_name, after.dataset_hash) == ("Moved", TARGET, "0123456789abcdef")
    for stage in CORE_STAGES:
        assert after.stage(stage) == before.stage(stage)
        assert after.stage(stage).model_fingerprint == before.stage(stage).model_fingerprint
    # Again is no harm, another plan of that name is.
    move_plans_between_datasets(499, 498, target_plans="Moved")
    edited(after, {"segment": {"network": {"features": (4, 12)}}}).save(target / "Moved.json")
    with pytest.raises(InputError, match="another plan Moved already; choose another name with -tp"):
        move_plans_between_datasets(499, 498, target_plans="Moved")
    assert json.loads((target / "Moved.json").read_text())["stages"]["segment"]["network"]["features"]["value"] == [4, 12]
