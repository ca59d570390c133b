"""Plans: typed, readable, and fingerprinted in three groups, field by field."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from example_fingerprint import fingerprint

from spineclue_v2.errors import InputError
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.plans.fields import OneOf
from spineclue_v2.plans.plans import GROUPS, Plans
from spineclue_v2.plans.schema import fields_of
from spineclue_v2.stages.plan_files import load_plans, plans_from_json
from spineclue_v2.stages.registry import CORE_STAGES, is_whole_model, modality_of, stage_names, stage_of, trainer_class

FIELDS = [
    (stage, group, field.name)
    for stage in CORE_STAGES
    for group in GROUPS
    for field in dataclasses.fields(stage_of(stage).groups[group])
    if field.name != "extra"
]
CHOICES = {
    (stage, group, name): entry.values
    for stage, group, name in FIELDS
    for entry in fields_of(stage_of(stage).groups[group])[name].metadata
    if isinstance(entry, OneOf)
}


@pytest.fixture(scope="module")
def plans() -> Plans:
    return SpineCLUEPlanner("raw", fingerprint(), 1, "cpu").plan()


def changed(value: Any, place: tuple[str, ...] = ("",)) -> Any:
    """Another value of the same type that the field at `place` may have."""
    field = place[-1]
    if place in CHOICES:
        return next(choice for choice in CHOICES[place] if choice != value)
    if field in ("slice_size", "crop_size"):
        return tuple(2 * v for v in value)
    if field == "features":
        return tuple(v + 1 for v in value)
    if field == "orientation":
        return "RAS"
    if field == "neighbours":
        return value + 2
    if field == "decoder_penalties":
        return value | {"missed": -1.0}
    if field == "evidence_model":
        return {"doubt": 0.5}
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 + 0.01
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, dict):
        return value | {"new": 1.0}
    return tuple(changed(v) for v in value)


@pytest.mark.parametrize(("stage", "group", "field"), FIELDS)
def test_every_field_invalidates_what_its_group_says(plans: Plans, stage: str, group: str, field: str) -> None:
    """data: the preprocessed folder and the weights; network: this stage's weights; run: nothing. Other stages: never."""
    content = plans.to_json()
    entry = content["stages"][stage][group][field]
    entry["value"] = changed(entry["value"], (stage, group, field))
    edited = plans_from_json(json.loads(json.dumps(content)))
    assert getattr(getattr(edited.stage(stage), group), field) != getattr(getattr(plans.stage(stage), group), field)
    data_differs = edited.stage(stage).data_fingerprint != plans.stage(stage).data_fingerprint
    model_differs = edited.stage(stage).model_fingerprint != plans.stage(stage).model_fingerprint
    assert (data_differs, model_differs) == {"data": (True, True), "network": (False, True), "run": (False, False)}[group]
    for other in set(CORE_STAGES) - {stage}:
        assert edited.stage(other).model_fingerprint == plans.stage(other).model_fingerprint


@pytest.mark.parametrize(("stage", "group", "field"), FIELDS)
def test_a_reason_may_be_rewritten(plans: Plans, stage: str, group: str, field: str) -> None:
    content = plans.to_json()
    assert content["stages"][stage][group][field]["rule"], "every number has its rule beside it"
    content["stages"][stage][group][field]["rule"] = "because I say so"
    edited = plans_from_json(json.loads(json.dumps(content)))
    assert edited == plans and edited.stage(stage).reasons[f"{group}.{field}"]["rule"] == "because I say so"
    assert edited.stage(stage).model_fingerprint == plans.stage(stage).model_fingerprint


def test_round_trip_through_a_file(plans: Plans, tmp_path: Path) -> None:
    plans.save(tmp_path / "plan.json")
    loaded = load_plans(tmp_path / "plan.json")
    assert loaded == plans and loaded.to_json() == plans.to_json()
    assert loaded.stage("segment").data_fingerprint == loaded.stage("identify").data_fingerprint


def test_the_seventh_digit_does_not_count(plans: Plans) -> None:
    content = plans.to_json()
    entry = content["stages"]["segment"]["network"]["heatmap_sigma_mm"]
    entry["value"] *= 1 + 1e-9
    assert plans_from_json(content).stage("segment").model_fingerprint == plans.stage("segment").model_fingerprint
    entry["value"] *= 1.001
    assert plans_from_json(content).stage("segment").model_fingerprint != plans.stage("segment").model_fingerprint


def test_a_plain_value_may_stand_for_a_reasoned_one(plans: Plans) -> None:
    content = plans.to_json()
    content["stages"]["identify"]["run"]["theta"] = 0.2
    assert plans_from_json(content).stage("identify").run.theta == 0.2


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["stages"]["segment"]["run"].update(batchsize=3), "unknown key 'batchsize' .did you mean 'batch_size'"),
        (lambda c: c["stages"]["segment"]["network"].pop("crop_size"), "missing crop_size"),
        (lambda c: c["stages"]["segment"].pop("run"), "segment.run is missing"),
        (lambda c: c["stages"].update(segmnt={}), "unknown stage 'segmnt' .did you mean 'segment'"),
        (lambda c: c["stages"]["identify"]["run"]["mc_samples"].update(value="many"), "mc_samples is 'many'"),
        (lambda c: c["stages"]["identify"]["network"]["crop_size"].update(value=[1, 2]), "crop_size"),
        (lambda c: c["stages"]["localize"]["run"]["batch_size"].update(value=True), "batch_size is True"),
        (lambda c: c["stages"]["identify"]["run"]["neighbours"].update(value=6), "neighbours is 6; expected an odd number"),
        (lambda c: c["stages"]["identify"]["run"]["decoder_penalties"].update(value={"mised": -1.0}), "key 'mised' .did you mean 'missed'"),
        (lambda c: c.update(format=99), "Update spineclue_v2"),
        (lambda c: c.pop("stages"), "no SpineCLUE plan"),
    ],
)
def test_a_mistake_is_named_with_its_place(plans: Plans, edit: Any, message: str) -> None:
    content = json.loads(json.dumps(plans.to_json()))
    edit(content)
    with pytest.raises(InputError, match=message):
        plans_from_json(content)


def test_missing_files_and_stages_say_what_to_run(plans: Plans, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spineclue_plan_and_preprocess"):
        load_plans(tmp_path / "none.json")
    with pytest.raises(InputError, match="no stage 'grade'; it has localize"):
        plans.stage("grade")


def test_the_stages_of_a_model_are_of_one_modality() -> None:
    assert modality_of([]) == modality_of(["segment"]) == "CT" and modality_of(["hybrid_3d", "hybrid_2d"]) == "MR"
    for whole in (CORE_STAGES, (*CORE_STAGES, "grade"), (*CORE_STAGES, "appearance", "geometry"), ["hybrid_2d"],
                  ["hybrid_3d", "hybrid_2d"]):
        assert is_whole_model(whole)
    for stages in ([], ["segment"], ["grade"], ["hybrid_3d"], [*CORE_STAGES, "hybrid_2d"], [*CORE_STAGES, "unknown"]):
        assert not is_whole_model(stages)
    with pytest.raises(InputError, match="CT and of MR"):
        modality_of(["segment", "hybrid_2d"])


def test_every_stage_has_a_trainer_that_is_of_it() -> None:
    assert all(trainer_class(stage).stage == stage for stage in stage_names())
    assert all(stage_of(stage).check() for stage in stage_names())


def test_a_plan_may_hold_a_part_of_the_stages(plans: Plans) -> None:
    """Fingerprints do not depend on what other stages there are."""
    content = json.loads(json.dumps(plans.to_json()))
    content["stages"] = {"segment": content["stages"]["segment"]}
    part = plans_from_json(content)
    assert list(part.stages) == ["segment"]
    assert part.stage("segment").model_fingerprint == plans.stage("segment").model_fingerprint
    with pytest.raises(InputError, match="no stage 'identify'; it has segment"):
        part.stage("identify")


@pytest.mark.parametrize(("entry", "gap"), [({"value": 32, "from": {"fov_p95_mm": 353.7}}, 4.0),
                                            ({"value": 200, "from": {"fov_p95_mm": 320.0}}, 1.6),
                                            (32, 4.0), ({"value": 32}, 4.0)])
def test_plans_that_count_slices_are_read_as_distances(plans: Plans, entry: Any, gap: float) -> None:
    content = plans.to_json()
    run = content["stages"]["localize"]["run"]
    del run["slice_gap_mm"]
    run["slices_per_plane"] = entry
    read = plans_from_json(json.loads(json.dumps(content)))
    assert read.stage("localize").run.slice_gap_mm == pytest.approx(gap)
    assert "slices_per_plane" not in read.to_json()["stages"]["localize"]["run"]
