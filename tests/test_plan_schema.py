"""What a plan's fields say of themselves: units, ranges, old names, free keys; and fingerprints that never change."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from example_fingerprint import fingerprint
from test_hybrid_planning import fingerprint as mr_fingerprint

from spineclue_v2.errors import InputError
from spineclue_v2.planning.mr_planner import SSHSNetPlanner
from spineclue_v2.planning.paper_planner import SpineCLUEPaperPlanner
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.plans.data import Data
from spineclue_v2.plans.plans import FORMAT, GROUPS, Plans
from spineclue_v2.plans.schema import build_group, fields_of, note, old_names
from spineclue_v2.stages.grade.network import build_network as build_grade
from spineclue_v2.stages.grade.plan import GradeNetwork
from spineclue_v2.stages.plan_files import load_plans, plans_from_json
from spineclue_v2.stages.registry import stage_of, stages
from spineclue_v2.stages.segment.network import build_network as build_segment
from spineclue_v2.stages.segment.plan import SegmentNetwork, SegmentRun
from spineclue_v2.utilities import paths

WEIGHTS = Path(__file__).parents[1] / "spineclue_v2" / "weights"
RENAMED = {
    "decoder_prices": "decoder_penalties",
    "witness_weights": "classifier_weights",
    "min_samples_share": "min_samples_fraction",
    "label_shares": "soft_labels",
    "kind_weight": "tissue_class_weight",
    "class_placed_share": "class_centred_fraction",
}
FIELDS = [(kind, name) for stage in stages().values() for kind in stage.groups.values() for name in fields_of(kind)]


def graded() -> dict[str, Any]:
    return fingerprint() | {"grades": {str(grade): 30 for grade in range(4)}}


def shipped(stage: str) -> dict[str, Any]:
    """The plan inside a shipped checkpoint, as version 0.1 wrote it."""
    meta = torch.load(WEIGHTS / f"{stage}.pth", map_location="cpu", weights_only=True)["meta"]
    return json.loads(meta)["plans"]


def with_old_names(plans: Plans) -> dict[str, Any]:
    """`plans` as version 0.1 would have written them."""
    content = json.loads(json.dumps(plans.to_json())) | {"format": 1}
    for stage in content["stages"].values():
        for old, new in RENAMED.items():
            if new in stage["run"]:
                stage["run"][old] = stage["run"].pop(new)
        for new in ("optimizer", "classifier_batch_size"):
            stage["run"].pop(new, None)
    return content


# ---- fingerprints ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["localize", "segment", "identify"])
def test_plans_of_shipped_weights_keep_their_fingerprints(stage: str) -> None:
    content = shipped(stage)
    plans = plans_from_json(content)
    assert {name: {"data": s.data_fingerprint, "model": s.model_fingerprint} for name, s in plans.stages.items()} == content["fingerprints"]


def test_plans_of_today_keep_the_fingerprints_they_were_given_at_first() -> None:
    """Those of version 0.1; stages that it did not have are free to differ."""

    def models(plans: Plans) -> dict[str, str]:
        return {name: plans.stage(name).model_fingerprint for name in ("localize", "segment", "identify", "grade") if name in plans.stages}

    small = SpineCLUEPlanner("raw", fingerprint(), 1, "cpu").plan()
    assert [small.stage(name).data_fingerprint for name in ("localize", "segment")] == ["68a83d87380a4d95", "e507e724e84bfbdc"]
    assert models(small) == {"localize": "b2fed954cd0b8a36", "segment": "e563c221493255a8", "identify": "666c7613f3b91968"}
    assert models(SpineCLUEPlanner("raw", graded(), 8, "cuda").plan()) == {
        "localize": "c463c4867bbfcbba", "segment": "6ee5a18d7274f162", "identify": "daa6b46868bb3cfc", "grade": "cb50e46c9ce7aa55"
    }
    assert models(SpineCLUEPaperPlanner("raw", graded(), 8, "cuda").plan()) == {
        "localize": "66c9219ed8e45b10", "segment": "b5362096a785f40e", "identify": "8a63dd96662cbd61", "grade": "4f890011fbb86f65"
    }


# ---- fields ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=[f"{kind.__name__}.{name}" for kind, name in FIELDS])
def test_every_field_says_what_it_means(kind: type, name: str) -> None:
    info = fields_of(kind)[name]
    assert info.description and len(info.description) > 5 and info.description[-1] not in ".;"
    assert name[-3:] not in ("_mm", "_hu", "_ml") or {"_mm": "mm", "_hu": "HU", "_ml": "ml"}[name[-3:]] == note(info, "unit")


def test_numbers_are_read_as_what_the_fields_are() -> None:
    run = build_group(SegmentRun, dataclasses.asdict(SegmentRun(2, 1, 1, 1e-3, 1e-4, 4, 8.0, 0.5, 0.3)) | {"centre_jitter_mm": 8}, "x")
    assert run.centre_jitter_mm == 8.0 and isinstance(run.centre_jitter_mm, float)
    network = build_group(SegmentNetwork, {"architecture": "ResEnc", "crop_size": [24, 32, 32], "features": [4, 8], "blocks": [1, 1],
                                           "heatmap_sigma_mm": 6.0}, "x")
    assert network == SegmentNetwork("ResEnc", (24, 32, 32), (4, 8), (1, 1), 6.0) and hash(network)
    assert dataclasses.replace(network, blocks=(2, 2)).blocks == (2, 2) and dataclasses.asdict(network)["features"] == (4, 8)
    assert [field.name for field in dataclasses.fields(network)] == ["architecture", "crop_size", "features", "blocks", "heatmap_sigma_mm"]
    for value in (True, "8", None, float("nan")):
        with pytest.raises(InputError, match="x.spacing_mm is"):
            build_group(Data, {"spacing_mm": value}, "x")
    with pytest.raises(ValueError, match="crop_size"):
        dataclasses.replace(network, crop_size=(33, 30, 30))
    with pytest.raises(dataclasses.FrozenInstanceError):
        network.features = (1,)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"features": [8, 16], "blocks": [1, 1, 1]}, "segment.network: features holds 2 and blocks 3 values"),
        ({"crop_size": [33, 30, 30]}, "segment.network: crop_size is 33 x 30 x 30; expected multiples of 8"),
        ({"crop_size": [8, 8, 8]}, "crop_size is 8 x 8 x 8, a single voxel on the coarsest grid"),
        ({"crop_size": [64, 72]}, "crop_size is .64, 72.; expected a list of 3 values"),
        ({"crop_size": [64, 72, 2048]}, "crop_size holds 2048; expected a number of at most 1024"),
        ({"features": [8, 16, -32, 64]}, "features holds -32; expected a number above 0"),
        ({"heatmap_sigma_mm": 0}, "heatmap_sigma_mm is 0; expected a number above 0"),
    ],
)
def test_networks_that_cannot_be_built_are_refused_with_one_sentence(edit: dict[str, Any], message: str) -> None:
    content = json.loads(json.dumps(SpineCLUEPlanner("raw", fingerprint(), 1, "cpu").plan().to_json()))
    content["stages"]["segment"]["network"] |= edit
    with pytest.raises(InputError, match=message) as refusal:
        plans_from_json(content, "plan.json")
    assert str(refusal.value).startswith("plan.json: stages.segment.network") and "\n" not in str(refusal.value)


@pytest.mark.parametrize(("features", "edge"), list(itertools.product(((4, 8), (4, 8, 8)), (2, 3, 4, 6, 8, 10, 15, 16))))
def test_the_plan_accepts_just_the_crops_that_the_networks_take(features: tuple[int, ...], edge: int) -> None:
    values = {"crop_size": (edge,) * 3, "features": features, "blocks": (1,) * len(features)}

    def runs(network: torch.nn.Module, channels: int) -> bool:
        try:
            return bool(network.eval()(torch.zeros(2, channels, edge, edge, edge)).shape)
        except (RuntimeError, ValueError):
            return False

    def accepted(kind: type, **others: Any) -> Any:
        try:
            return build_group(kind, values | others, "x")
        except InputError:
            return None

    fits = edge % 2 ** (len(features) - 1) == 0 and edge > 2 ** (len(features) - 1)
    for architecture in ("ResEnc", "TransUNet3D"):
        found = accepted(SegmentNetwork, architecture=architecture, heatmap_sigma_mm=6.0)
        assert (found is not None) == fits
        assert found is None or runs(build_segment(found, 1), 2)
    if not fits:
        whole = build_segment(SegmentNetwork("ResEnc", (64,) * 3, features, (1,) * len(features), 6.0), 1)
        assert not runs(whole, 2), "a crop was refused that works"
    graded = accepted(GradeNetwork, projection_dim=4, windows_hu=((0.0, 1.0),))
    assert (graded is not None) == (edge % 2 ** len(features) == 0) and (graded is None or runs(build_grade(graded, 1), 2))


@dataclasses.dataclass(frozen=True)
class PlainGroup:
    """As a package may write one that knows nothing of pydantic."""

    steps: int
    rates: tuple[float, ...] = (1.0,)


def test_a_plain_dataclass_is_a_group_too() -> None:
    found = build_group(PlainGroup, {"steps": 3, "rates": [1, 2]}, "x")
    assert type(found) is PlainGroup and found == PlainGroup(3, (1.0, 2.0))
    for values, message in (({"steps": 1.5}, "x.steps is 1.5; expected a whole number"), ({"step": 1}, "key 'step' .did you mean 'steps'"),
                            ({}, "x: missing steps")):
        with pytest.raises(InputError, match=message):
            build_group(PlainGroup, values, "x")


# ---- free keys ------------------------------------------------------------------------------------------------------------------
def test_free_keys_survive_and_invalidate_nothing(tmp_path: Path) -> None:
    plans = SpineCLUEPlanner("raw", fingerprint(), 1, "cpu").plan()
    content = json.loads(json.dumps(plans.to_json()))
    assert "extra" not in content["stages"]["segment"]["run"]
    free = {"warm_up": 3, "tuned": {"value": [1, 2.5, None]}, "why": "mine"}
    content["stages"]["segment"]["run"]["extra"] = {"value": free, "rule": "my trainer's"}
    edited = plans_from_json(content)
    edited.save(tmp_path / "plan.json")
    again = load_plans(tmp_path / "plan.json").stage("segment")
    assert again.run.extra == free and again.reasons["run.extra"]["rule"] == "my trainer's"
    assert again.model_fingerprint == plans.stage("segment").model_fingerprint
    assert again.data_fingerprint == plans.stage("segment").data_fingerprint and again != plans.stage("segment")
    content["stages"]["segment"]["network"]["extra"] = {"mine": 1}
    with pytest.raises(InputError, match="segment.network: unknown key 'extra'; free keys belong into extra of the run group"):
        plans_from_json(content)


# ---- old names ------------------------------------------------------------------------------------------------------------------
def test_the_names_of_version_0_1_stand_beside_their_fields() -> None:
    assert {old: new for stage in stages().values() for kind in stage.groups.values() for old, new in old_names(kind).items()} == RENAMED


@pytest.mark.parametrize("planner", ["ct", "mr"])
def test_old_names_are_read_with_one_warning_a_file(planner: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plans = (SpineCLUEPlanner("raw", graded(), 1, "cpu") if planner == "ct" else SSHSNetPlanner("raw", mr_fingerprint(), 1, "cpu")).plan()
    content = with_old_names(plans)
    (tmp_path / "old.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert load_plans(tmp_path / "old.json") == plans == load_plans(tmp_path / "old.json")
    assert len(caplog.messages) == 1 and str(tmp_path / "old.json") in caplog.text
    assert ("decoder_prices is now decoder_penalties" if planner == "ct" else "kind_weight is now tissue_class_weight") in caplog.text
    load_plans(tmp_path / "old.json").save(tmp_path / "new.json")
    written = json.loads((tmp_path / "new.json").read_text())
    assert written["format"] == FORMAT == 2 and not any(old in json.dumps(written) for old in RENAMED)
    with caplog.at_level(logging.WARNING):
        assert load_plans(tmp_path / "new.json") == plans
    assert len(caplog.messages) == 1


def test_an_old_name_beside_the_new_one_is_a_mistake() -> None:
    content = json.loads(json.dumps(SpineCLUEPlanner("raw", fingerprint(), 1, "cpu").plan().to_json()))
    content["stages"]["localize"]["run"]["min_samples_share"] = 0.3
    with pytest.raises(InputError, match="'min_samples_share' and 'min_samples_fraction' are the same number; keep 'min_samples_fraction'"):
        plans_from_json(content)


def test_shipped_weights_are_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
                                                    ) -> None:
    shutil.copy(WEIGHTS / "localize.pth", tmp_path / "localize.pth")
    monkeypatch.setattr(paths, "weights_folder", lambda: tmp_path)
    content = shipped("localize")
    assert "min_samples_share" in content["stages"]["localize"]["run"] and content["format"] == 1
    with caplog.at_level(logging.WARNING):
        run = plans_from_json(content, str(tmp_path / "localize.pth")).stage("localize").run
    assert caplog.messages == [] and run.min_samples_fraction > 0 and run.optimizer == "AdamW" and run.slice_gap_mm == 4.0
    with caplog.at_level(logging.WARNING):
        plans_from_json(content, str(tmp_path.parent / "another" / "localize.pth"))
    assert len(caplog.messages) == 1


def test_every_group_reads_what_it_writes() -> None:
    for plans in (SpineCLUEPlanner("raw", graded(), 8, "cuda").plan(), SSHSNetPlanner("raw", mr_fingerprint(), 8, "cuda").plan()):
        for name, stage in plans.stages.items():
            for group in GROUPS:
                part = getattr(stage, group)
                assert type(part) is stage_of(name).groups[group]
                assert build_group(type(part), json.loads(json.dumps(dataclasses.asdict(part))), "x") == part
