"""The rules, the planners that put them together, and the tables of the documentation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_fingerprint import fingerprint
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_table import DATASETS, against_the_paper, for_other_datasets
from plugins import found_in, write_package

from spineclue_v2.errors import InputError
from spineclue_v2.planning import memory, rules
from spineclue_v2.planning.planner import SpineCLUEPlanner, find_planner
from spineclue_v2.planning.rules import DatasetStatistics
from spineclue_v2.plans.plans import GROUPS
from spineclue_v2.stages.localize.plan import LocalizeNetwork
from spineclue_v2.stages.plan_files import plans_from_json
from spineclue_v2.stages.registry import CORE_STAGES


def facts(**changes: Any) -> DatasetStatistics:
    return dataclasses.replace(DatasetStatistics.from_fingerprint(fingerprint()), **changes)


@pytest.mark.parametrize(
    ("choice", "value"),
    [
        (rules.spacing(facts(median_voxel=0.6), 1.0), 1.0),
        (rules.spacing(facts(median_voxel=1.55), 1.0), 1.5),
        (rules.spacing(facts(median_voxel=0.6), 2.0), 2.0),
        (rules.slice_size(facts(fov=(300, 180, 200)), 2.0, 256 * 160), (160, 128)),
        (rules.slice_size(facts(fov=(900, 400, 400)), 1.0, 640 * 640), (640, 320)),
        (rules.slice_size(facts(fov=(900, 400, 400)), 2.0, 256 * 160), (256, 160)),
        (rules.slice_gap_mm(facts(extent_p5=(20, 40, 50)), 5), 4.0),
        (rules.slice_gap_mm(facts(extent_p5=(20, 40, 50)), 12), 3.33),
        (rules.slice_gap_mm(facts(extent_p5=(20, 10, 50)), 12), 1.0),
        (rules.eps_mm(facts(spacing_between=(16, 25, 40))), 4.0),
        (rules.axis_scale(4.0), (1.0, 3.0, 3.0)),
        (rules.spacing_between_mm(facts(spacing_between=(16, 25, 40))), (12.0, 50.0)),
        (rules.centre_jitter_mm(facts(spacing_between=(16, 25, 40))), 8.0),
        (rules.centre_jitter_mm(facts(spacing_between=(30, 35, 40))), 10.0),
        (rules.segment_crop(facts(largest=(60, 99, 106), spacing_between=(16, 34, 40)), 1.5, 8.0, 4), (64, 72, 80)),
        (rules.segment_crop(facts(largest=(60, 99, 106), spacing_between=(16, 34, 40)), 1.0, 8.0, 5), (96, 112, 128)),
        (rules.heatmap_sigma_mm(facts(body_height=(12.0, 20.0))), 7.0),
        (rules.heatmap_sigma_mm(facts(body_height=(26.0, 28.0))), 9.0),
        (rules.min_volume_ml(facts(volume_p5=8.0)), 0.8),
        (rules.min_volume_ml(facts(volume_p5=1.0)), 0.3),
        (rules.identify_crop(facts(extent_p95=(60, 95, 104)), 1.5), (48, 64, 80)),
        (rules.identify_crop(facts(extent_p95=(48, 96, 96)), 1.0), (48, 96, 96)),
        (rules.hu_limits(facts(is_ct=True)), (-1024, 3071)),
        (rules.hu_limits(facts(is_ct=False, intensity=(10, 200, 800))), (0, 3200)),
        (rules.windows_hu(facts(is_ct=False, intensity=(10, 200, 800))), ((0.0, 800), (10, 400))),
    ],
)
def test_rules_give_known_answers(choice: rules.PlannedValue, value: Any) -> None:
    assert choice.value == value and choice.rule
    json.dumps(choice.inputs)


@pytest.mark.parametrize(
    ("device", "gb", "name"),
    [
        ("cpu", 64, "laptop"),
        ("mps", 16, "laptop"),
        ("cuda", 2, "laptop"),
        ("cuda", 4, "small"),
        ("cuda", 8, "medium"),
        ("cuda", 16, "large"),
        ("cuda", 80, "workstation"),
    ],
)
def test_the_class_of_machine(device: str, gb: float, name: str) -> None:
    assert rules.profile(device, gb).value.name == name


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.3, 4.0),
    st.floats(60, 900),
    st.floats(100, 500),
    st.floats(12, 35),
    st.sampled_from([(d, g) for d in ("cpu", "cuda") for g in (0.5, 4, 8, 24, 80)]),
)
def test_any_dataset_gets_a_plan_that_can_be_built(voxel: float, length: float, width: float, low: float, budget: tuple) -> None:
    plan = SpineCLUEPlanner(
        "raw", fingerprint(voxel=voxel, fov=(length, width, width), spacing=(low, low + 8, low + 20)), budget[1], budget[0]
    ).plan()
    localize, segment, identify = (plan.stage(s) for s in CORE_STAGES)
    assert all(n % 32 == 0 and 32 <= n <= 640 for n in localize.network.slice_size) and 1 <= localize.run.slice_gap_mm <= 4
    pooled = 2 ** (len(segment.network.features) - 1)
    assert all(n % pooled == 0 for n in segment.network.crop_size) and all(n % 16 == 0 for n in identify.network.crop_size)
    assert 1.0 <= segment.data.spacing_mm <= max(3.0, voxel + 0.125) and identify.data == segment.data
    assert 2 * localize.run.eps_mm < low
    assert localize.run.eps_mm * localize.run.axis_scale[1] == pytest.approx(rules.REACH_MM, rel=0.01)
    assert plans_from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_small_budget_coarsens_the_segmentation() -> None:
    roomy = SpineCLUEPlanner("raw", fingerprint(), 8, "cuda").plan().stage("segment")
    tight = SpineCLUEPlanner("raw", fingerprint(), 0.3, "cuda").plan().stage("segment")
    assert tight.data.spacing_mm > roomy.data.spacing_mm and "coarsened" in tight.reasons["data.spacing_mm"]["rule"]
    used = memory.segment_bytes(tight.network, 3, tight.run.batch_size, memory.MIXED)
    assert used <= memory.RESERVE * 0.3e9


@settings(max_examples=60, deadline=None)
@given(st.floats(1.0, 96.0), st.sampled_from(sorted(DATASETS)))
def test_every_planned_step_fits_its_budget(gb: float, dataset: str) -> None:
    plan = SpineCLUEPlanner("raw", fingerprint(**DATASETS[dataset]), gb, "cuda").plan()
    assert all(step <= gb for step in plan.budget["training_step_gb"].values()) and len(plan.budget["training_step_gb"]) == 3


def test_the_tiny_budget_is_what_a_laptop_can_train() -> None:
    plan = SpineCLUEPlanner("raw", fingerprint(), 1, "cpu").plan()
    localize, segment, identify = (plan.stage(s) for s in CORE_STAGES)
    assert (localize.data.spacing_mm, localize.network) == (2.0, LocalizeNetwork("yolo11", "n", (256, 160)))
    assert (segment.data.spacing_mm, identify.network.depth, localize.run.batch_size, segment.run.batch_size) == (1.5, 18, 8, 2)
    channels = len(segment.data.windows_hu) + 1
    assert memory.detector_bytes(localize.network, localize.run.batch_size) < 1e9
    assert memory.segment_bytes(segment.network, channels, segment.run.batch_size) < 1e9
    assert memory.identify_bytes(identify.network, 2 * identify.run.batch_size) < 1.5e9
    assert (identify.run.mc_samples, identify.run.theta, identify.run.hops, identify.run.neighbours) == (20, 0.1, 3, 7)
    assert plan.budget["machine_class"] == "laptop"


def test_the_tables_of_the_documentation_are_what_the_planners_say() -> None:
    text = (Path(__file__).parents[1] / "documentation" / "explanation" / "planning.md").read_text()
    for made in (against_the_paper(), for_other_datasets()):
        assert made in text, "print them with: python tests/planning_table.py"


@pytest.mark.parametrize(
    ("changes", "voxel"),
    [
        ({"levels": ("T12", "L3", "L5"), "spacing": (28, 33, 42), "fov": (230, 180, 180)}, 0.8),  # lumbar
        ({"levels": ("C2", "C5", "T1"), "spacing": (14, 17, 24), "fov": (180, 200, 200)}, 0.6),  # cervical
        ({"levels": ("T1", "T6", "T12"), "spacing": (18, 24, 32), "fov": (330, 350, 350)}, 1.3),  # thoracic, 3 mm slices
        ({"channel": "T2", "fov": (300, 80, 250)}, 1.6),  # MR
    ],
)
def test_other_datasets_get_their_own_plan(changes: dict[str, Any], voxel: float) -> None:
    usual = SpineCLUEPlanner("raw", fingerprint(voxel=1.0), 8, "cuda").plan()
    plan = SpineCLUEPlanner("raw", fingerprint(voxel=voxel, **changes), 8, "cuda").plan()
    assert any(getattr(plan.stage(s), g) != getattr(usual.stage(s), g) for s in CORE_STAGES for g in GROUPS)
    if changes.get("channel") == "T2":
        assert plan.stage("segment").data.hu_min == 0 and plan.stage("segment").data.windows_hu[0][0] >= -60
    if "C5" in changes.get("levels", ()):
        assert np.prod(plan.stage("segment").network.crop_size) < np.prod(usual.stage("segment").network.crop_size)


def test_planners_are_found_by_name_and_mistakes_named(tmp_path: Path) -> None:
    source = "from spineclue_v2 import SpineCLUEPlanner\nclass Mine(SpineCLUEPlanner):\n    default_plans_name = 'MyPlans'\n"
    write_package(tmp_path, "theirs", source, planners="Mine=Mine")
    with found_in(tmp_path):
        planner = find_planner("Mine")("raw", fingerprint(), 1, "cpu")
        assert planner.plan().planner == "Mine" and planner.plans_name == "MyPlans"
        with pytest.raises(InputError, match="'Yours' is unknown; known: .*Mine, .*SpineCLUEPaperPlanner, SpineCLUEPlanner"):
            find_planner("Yours")
    for wrong in ({"device": "tpu"}, {"gpu_memory_target": 0.0}, {"gpu_memory_target": float("nan")}):
        with pytest.raises(InputError):
            SpineCLUEPlanner("raw", fingerprint(), **wrong)
