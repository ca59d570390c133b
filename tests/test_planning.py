"""Fingerprint, anatomy checks, rules, memory model, planners, and the commands that run them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocks import BODY, STEP, lumbar_dataset, spine, write_dataset
from example_fingerprint import fingerprint
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_table import against_the_paper, for_other_datasets

from spineclue_v2.cli._common import main
from spineclue_v2.dataset import PreprocessedDataset, RawDataset
from spineclue_v2.errors import InputError
from spineclue_v2.geometry import Geometry
from spineclue_v2.planning import memory, rules
from spineclue_v2.planning import plan_and_preprocess as steps
from spineclue_v2.planning.fingerprint import extract_fingerprint, load_fingerprint, measure_case
from spineclue_v2.planning.integrity import are_neighbours, check_case, missing_levels, table
from spineclue_v2.planning.planner import SpineCLUEPlanner, find_planner
from spineclue_v2.planning.rules import Facts
from spineclue_v2.plans import GROUP_TYPES, GROUPS, STAGES, IdentifyNetwork, LocalizeNetwork, Plans, SegmentNetwork
from spineclue_v2.volume import Volume

LUMBAR = ["T12", "L1", "L2", "L3", "L4", "L5"]


# ---- fingerprint ------------------------------------------------------------------------------------------------------------
def test_the_fingerprint_knows_the_blocks(tmp_path: Path) -> None:
    raw = RawDataset(lumbar_dataset(tmp_path / "Dataset501_Lumbar"))
    found = extract_fingerprint(raw, tmp_path / "pp", progress=False)
    assert found == load_fingerprint(tmp_path / "pp")
    assert found["spacings"][1] == pytest.approx([2.1, 1.5, 1.5]) and found["dataset_hash"] == raw.content_hash()
    part = found["spine"]
    assert (part["num_cases"], part["num_vertebrae"], part["num_touching_border"]) == (3, 18, 0)
    assert part["spacing_between_mm"]["p50"] == pytest.approx(STEP, abs=1)
    assert part["body_height_mm"]["p50"] == pytest.approx(BODY[0], abs=2.2)
    assert part["extent_mm"]["lr"]["p50"] == pytest.approx(BODY[2], abs=2) and set(part["levels"]) == set(LUMBAR)
    assert part["pairs"]["L1-L2"]["count"] == part["pairs"]["T12-L1"]["count"] == 3 and part["transitions"] == {}
    assert found["cases"]["case_00"]["levels"] == LUMBAR and found["checks"] == []
    hu = found["foreground_intensity_properties_per_channel"]["0"]
    assert hu["mean"] == pytest.approx(400, abs=1) and hu["std"] == pytest.approx(8, abs=1)
    assert hu["percentile_00_5"] == pytest.approx(400 - 2.58 * 8, abs=3)


def test_one_new_case_costs_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spineclue_v2.planning import fingerprint as module

    measured: list[str] = []
    original = module.measure_case
    monkeypatch.setattr(module, "measure_case", lambda *a: (measured.append(a[2]), original(*a))[1])
    folder = lumbar_dataset(tmp_path / "Dataset501_Lumbar", 2)
    first = extract_fingerprint(RawDataset(folder), tmp_path / "pp", progress=False)
    assert measured == ["case_00", "case_01"]
    lumbar_dataset(folder, 3)
    extract_fingerprint(RawDataset(folder), tmp_path / "pp", progress=False)
    assert measured[2:] == ["case_00", "case_01", "case_02"] or measured[2:] == ["case_02"]
    count = len(measured)
    again = extract_fingerprint(RawDataset(folder), tmp_path / "pp", progress=False)
    assert len(measured) == count and again["spine"]["num_cases"] == 3 and first["spine"]["num_cases"] == 2


@pytest.mark.parametrize("orientation", ["RAI", "PIR", "ASL"])
def test_measures_do_not_depend_on_the_storage_order(tmp_path: Path, orientation: str) -> None:
    ct, labels, _ = spine(LUMBAR[:3])
    names = {i: i for i in range(29)}
    write_dataset(
        tmp_path / "Dataset501_A", {"a": (ct, labels), "b": (ct.reoriented(orientation), labels.reoriented(orientation))}
    )
    raw = RawDataset(tmp_path / "Dataset501_A")
    a, b = (measure_case(raw.image(c), raw.label(c), c, names) for c in ("a", "b"))
    assert b["orientation"] == orientation and a["fov_mm"] == pytest.approx(b["fov_mm"])
    for name in LUMBAR[:3]:
        assert a["vertebrae"][name]["extent_mm"] == pytest.approx(b["vertebrae"][name]["extent_mm"])
        assert a["vertebrae"][name]["body_centre_mm"] == pytest.approx(b["vertebrae"][name]["body_centre_mm"], abs=1.01)


def flipped(volume: Volume, axis: int) -> Volume:
    return Volume(np.ascontiguousarray(np.flip(volume.array, axis)), volume.geometry)


def erased(labels: Volume, value: int) -> Volume:
    return Volume(np.where(labels.array == value, 0, labels.array), labels.geometry)


def islands(labels: Volume, value: int, size: int) -> Volume:
    array = labels.array.copy()
    array[4 : 4 + size, 2 : 2 + size, 2 : 2 + size] = value
    return Volume(array, labels.geometry)


CHECKS = [
    ("gap", "warning", lambda lab: erased(lab, 22), "L3 missing between T12 and L5"),
    ("flip", "error", lambda lab: flipped(lab, 0), "head and feet are swapped.*left and right"),
    ("flip", "error", lambda lab: flipped(lab, 1), "front and back are swapped"),
    ("flip", "error", lambda lab: flipped(flipped(lab, 0), 1), "head and feet are swapped: T12 lies below L5$"),
    ("island", "warning", lambda lab: islands(lab, 20, 4), "L1 has 1 island"),
    ("duplicate", "warning", lambda lab: islands(lab, 20, 9), "L1 names two bodies"),
    ("labels", "error", lambda lab: Volume(np.where(lab.array == 22, 77, lab.array).astype(np.uint8), lab.geometry), r"\[77\]"),
    (
        "cut",
        "note",
        lambda lab: Volume(lab.array[:, :, 14:], Geometry(lab.array[:, :, 14:].shape, *dataclasses.astuple(lab.geometry)[1:])),
        "cut by the border",
    ),
]


@pytest.mark.parametrize(("check", "severity", "spoil", "message"), CHECKS)
def test_the_anatomy_tells_what_is_wrong(tmp_path: Path, check: str, severity: str, spoil: Any, message: str) -> None:
    import re

    _, labels, _ = spine(LUMBAR)
    labels = spoil(labels)
    ct = Volume(np.where(labels.array > 0, 400, 0).astype(np.int16), labels.geometry)
    raw = RawDataset(write_dataset(tmp_path / "Dataset501_A", {"bad": (ct, labels), "good": spine(LUMBAR)[:2]}))
    findings = measure_case(raw.image("bad"), raw.label("bad"), "bad", raw.verse_value)["findings"]
    hits = [f for f in findings if f["check"] == check and f["severity"] == severity]
    assert hits and re.search(message, hits[0]["detail"])
    if severity == "error":
        with pytest.raises(InputError, match="case 'bad'"):
            extract_fingerprint(raw, tmp_path / "pp", progress=False)
        assert not (tmp_path / "pp" / "dataset_fingerprint.json").exists()
    else:
        assert extract_fingerprint(raw, tmp_path / "pp", progress=False)["checks"]


def test_labels_on_another_grid_and_unreadable_files_stop(tmp_path: Path) -> None:
    ct, labels, _ = spine(LUMBAR[:2])
    moved = Geometry(labels.geometry.shape, labels.geometry.spacing, (50.0, 0.0, 0.0), np.eye(3))
    raw = RawDataset(write_dataset(tmp_path / "Dataset501_A", {"a": (ct, Volume(labels.array, moved)), "b": (ct, labels)}))
    raw.image("b").write_bytes(b"nothing")
    with pytest.raises(InputError, match="2 error.s. that would spoil training .first: case 'a', .*another grid"):
        extract_fingerprint(raw, tmp_path / "pp", progress=False)


def test_variants_are_no_gaps() -> None:
    assert (
        missing_levels(["T11", "L1"]) == [] and missing_levels(["T12", "T13", "L1"]) == [] and missing_levels(["L5", "L6"]) == []
    )
    assert are_neighbours("T12", "L1") and are_neighbours("T13", "L1") and not are_neighbours("T11", "L1")
    assert missing_levels(["T10", "T12"]) == ["T11"] and missing_levels(["C7", "T3"]) == ["T1", "T2"]
    assert check_case("x", {})[0].check == "empty"


def test_a_skipped_level_shows_in_the_distances() -> None:
    def vertebra(z: float) -> dict[str, Any]:
        return {
            "centroid_mm": [z, 0, 0],
            "body_centre_mm": [z, 0, 0],
            "touches_border": False,
            "thick_in_front_mm": 5.0,
            "component_ml": [30.0],
        }

    heights = {"T10": 200, "T11": 175, "T12": 150, "L1": 100, "L2": 72, "L3": 44}
    findings = check_case("x", {name: vertebra(z) for name, z in heights.items()})
    assert [f.check for f in findings] == ["distance"] and "T12 to L1 50 mm" in findings[0].detail
    assert "T12 to L1" in table(findings)


# ---- rules ------------------------------------------------------------------------------------------------------------------
def facts(**changes: Any) -> Facts:
    return dataclasses.replace(Facts.from_fingerprint(fingerprint()), **changes)


@pytest.mark.parametrize(
    ("choice", "value"),
    [
        (rules.spacing(facts(median_voxel=0.6), 1.0), 1.0),
        (rules.spacing(facts(median_voxel=1.55), 1.0), 1.5),
        (rules.spacing(facts(median_voxel=0.6), 2.0), 2.0),
        (rules.slice_size(facts(fov=(300, 180, 200)), 2.0, 256 * 160), (160, 128)),
        (rules.slice_size(facts(fov=(900, 400, 400)), 1.0, 640 * 640), (640, 320)),
        (rules.slice_size(facts(fov=(900, 400, 400)), 2.0, 256 * 160), (256, 160)),
        (rules.slices_per_plane(facts(fov=(300, 200, 200), extent_p5=(20, 40, 50)), 5, 32), 25),
        (rules.slices_per_plane(facts(fov=(300, 400, 400), extent_p5=(20, 40, 50)), 12, 999), 120),
        (rules.slices_per_plane(facts(fov=(300, 400, 400), extent_p5=(20, 10, 50)), 12, 999), 200),
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
def test_rules_give_known_answers(choice: rules.Choice, value: Any) -> None:
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
    assert rules.tier(device, gb).value.name == name


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
    localize, segment, identify = (plan.stage(s) for s in STAGES)
    assert all(n % 32 == 0 and 32 <= n <= 640 for n in localize.network.slice_size) and 8 <= localize.run.slices_per_plane <= 200
    pooled = 2 ** (len(segment.network.features) - 1)
    assert all(n % pooled == 0 for n in segment.network.crop_size) and all(n % 16 == 0 for n in identify.network.crop_size)
    assert 1.0 <= segment.data.spacing_mm <= max(3.0, voxel + 0.125) and identify.data == segment.data
    assert 2 * localize.run.eps_mm < low
    assert localize.run.eps_mm * localize.run.axis_scale[1] == pytest.approx(rules.REACH_MM, rel=0.01)
    assert Plans.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_small_budget_coarsens_the_segmentation() -> None:
    roomy = SpineCLUEPlanner("raw", fingerprint(), 8, "cuda").plan().stage("segment")
    tight = SpineCLUEPlanner("raw", fingerprint(), 0.3, "cuda").plan().stage("segment")
    assert tight.data.spacing_mm > roomy.data.spacing_mm and "coarsened" in tight.reasons["data.spacing_mm"]["rule"]
    used = memory.segment_bytes(tight.network, 3, tight.run.batch_size, memory.MIXED)
    assert used <= memory.RESERVE * 0.3e9


def test_the_tiny_budget_is_what_a_laptop_can_train() -> None:
    plan = SpineCLUEPlanner("raw", fingerprint(), 1, "cpu").plan()
    localize, segment, identify = (plan.stage(s) for s in STAGES)
    assert (localize.data.spacing_mm, localize.network) == (2.0, LocalizeNetwork("yolo11", "n", (256, 160)))
    assert (segment.data.spacing_mm, identify.network.depth, localize.run.batch_size, segment.run.batch_size) == (1.5, 18, 8, 2)
    channels = len(segment.data.windows_hu) + 1
    assert memory.detector_bytes(localize.network, localize.run.batch_size) < 1e9
    assert memory.segment_bytes(segment.network, channels, segment.run.batch_size) < 1e9
    assert memory.identify_bytes(identify.network, 2 * identify.run.batch_size) < 1.5e9
    assert (identify.run.mc_samples, identify.run.theta, identify.run.hops, identify.run.neighbours) == (20, 0.1, 3, 7)
    assert plan.budget["machine_class"] == "laptop"


def test_the_tables_of_the_documentation_are_what_the_planners_say() -> None:
    text = (Path(__file__).parents[1] / "documentation" / "planning.md").read_text()
    for made in (against_the_paper(), for_other_datasets()):
        assert made in text, "print them with: python tests/planning_table.py"


PAPER = [
    ("localize", "data", "spacing_mm", 1.0),
    ("localize", "network", "slice_size", (640, 640)),
    ("localize", "network", "scale", "x"),
    ("localize", "run", "slices_per_plane", 200),
    ("localize", "run", "batch_size", 64),
    ("localize", "run", "epochs", 500),
    ("localize", "run", "initial_lr", 1e-3),
    ("segment", "data", "spacing_mm", 1.0),
    ("segment", "network", "crop_size", (128, 128, 128)),
    ("segment", "network", "architecture", "TransUNet3D"),
    ("segment", "run", "batch_size", 32),
    ("segment", "run", "epochs", 300),
    ("segment", "run", "initial_lr", 1e-4),
    ("segment", "run", "weight_decay", 1e-4),
    ("identify", "data", "spacing_mm", 1.0),
    ("identify", "network", "crop_size", (48, 96, 96)),
    ("identify", "network", "depth", 101),
    ("identify", "network", "pool_grid", (1, 1, 1)),
    ("identify", "run", "batch_size", 32),
    ("identify", "run", "contrastive_epochs", 500),
    ("identify", "run", "classifier_epochs", 100),
    ("identify", "run", "contrastive_lr", 1e-2),
    ("identify", "run", "classifier_lr", 1e-5),
    ("identify", "run", "contrastive_loss", "in"),
    ("identify", "run", "loss_weights", (0.1, 0.5, 1.0)),
    ("identify", "run", "freeze_backbone", True),
    ("identify", "run", "mc_samples", 20),
    ("identify", "run", "theta", 0.1),
    ("identify", "run", "hops", 3),
    ("identify", "run", "neighbours", 7),
]


@pytest.mark.parametrize(("stage", "group", "field", "value"), PAPER)
def test_the_paper_planner_gives_the_papers_numbers(stage: str, group: str, field: str, value: Any) -> None:
    plan = find_planner("SpineCLUEPaperPlanner")("raw", fingerprint(voxel=0.7), 8, "cuda").plan()
    assert getattr(getattr(plan.stage(stage), group), field) == value and plan.plans_name == "SpineCLUEPaperPlans"
    assert "2401.07271" in plan.stage(stage).reasons[f"{group}.{field}"]["rule"] or group == "data"


@pytest.mark.parametrize(
    ("changes", "voxel"),
    [
        ({"levels": ("T12", "L3", "L5"), "spacing": (28, 33, 42), "fov": (230, 180, 180)}, 0.8),  # lumbar
        ({"levels": ("C2", "C5", "T1"), "spacing": (14, 17, 24), "fov": (180, 200, 200)}, 0.6),  # cervical
        ({"levels": ("T1", "T6", "T12"), "spacing": (18, 24, 32), "fov": (330, 350, 350)}, 1.3),  # chest, 3 mm slices
        ({"channel": "T2", "fov": (300, 80, 250)}, 1.6),  # MR
    ],
)
def test_other_datasets_get_their_own_plan(changes: dict[str, Any], voxel: float) -> None:
    usual = SpineCLUEPlanner("raw", fingerprint(voxel=1.0), 8, "cuda").plan()
    plan = SpineCLUEPlanner("raw", fingerprint(voxel=voxel, **changes), 8, "cuda").plan()
    assert any(getattr(plan.stage(s), g) != getattr(usual.stage(s), g) for s in STAGES for g in GROUPS)
    if changes.get("channel") == "T2":
        assert plan.stage("segment").data.hu_min == 0 and plan.stage("segment").data.windows_hu[0][0] >= -60
    if "C5" in changes.get("levels", ()):
        assert np.prod(plan.stage("segment").network.crop_size) < np.prod(usual.stage("segment").network.crop_size)


def test_planners_are_found_by_name_and_mistakes_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from spineclue_v2.planning import planner as module

    class Mine(SpineCLUEPlanner):
        default_plans_name = "MyPlans"

    class Entry:
        name = "Mine"

        @staticmethod
        def load() -> type:
            return Mine

    monkeypatch.setattr(module, "entry_points", lambda group: [Entry])
    assert find_planner("Mine")("raw", fingerprint(), 1, "cpu").plan().planner == "Mine"
    with pytest.raises(InputError, match="'Yours' is unknown; known: Mine, SpineCLUEPaperPlanner, SpineCLUEPlanner"):
        find_planner("Yours")
    for wrong in ({"device": "tpu"}, {"gpu_memory_target": 0.0}, {"gpu_memory_target": float("nan")}):
        with pytest.raises(InputError):
            SpineCLUEPlanner("raw", fingerprint(), **wrong)


# ---- memory -----------------------------------------------------------------------------------------------------------------
def kept_bytes(module: Any, batch: Any) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass, parameters and buffers left out."""
    import torch

    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    seen: dict[int, tuple[int, Any]] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that addresses are not used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = module.train()(batch)
    del result
    return sum(size for size, _ in seen.values())


SIZES = [(16, 32, 32), (32, 32, 32), (32, 32, 48)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("features", "blocks"), [((12, 24, 48, 96), (1, 1, 1, 1)), ((32, 64, 128, 256), (1, 3, 4, 6))])
def test_memory_of_the_unet(features: tuple, blocks: tuple, size: tuple) -> None:
    import torch

    from spineclue_v2.stages.segment.network import build_network

    plan = SegmentNetwork("ResEnc", size, features, blocks, 7.0)
    network = build_network(plan, 2)
    values, parameters = memory.residual_unet(size, features, blocks, 3)
    assert kept_bytes(network, torch.rand(1, 3, *size)) == pytest.approx(4 * values, rel=0.15)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("depth", "width", "stride", "pool"), [(18, 12, 2, (2, 3, 3)), (101, 16, 4, (1, 1, 1))])
def test_memory_of_the_shape_network(depth: int, width: int, stride: int, pool: tuple, size: tuple) -> None:
    import torch

    from spineclue_v2.stages.identify.network import ShapeNetwork

    plan = IdentifyNetwork(depth, width, stride, size, pool, 256, 128, 0.3)
    network = ShapeNetwork(depth, width, stride, hidden=256, pool_grid=pool)
    values, parameters = memory.shape_network(plan)
    assert kept_bytes(network, torch.rand(4, 1, *size)) == pytest.approx(4 * 4 * values, rel=0.15)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 96)])
def test_memory_of_the_detector(size: tuple) -> None:
    import torch

    from spineclue_v2.stages.localize.network import SliceDetector

    plan = LocalizeNetwork("yolo11", "n", size)
    network = SliceDetector(plan, 2)
    wanted = memory.detector_bytes(plan, 2) - 16 * memory.DETECTOR_PARAMETERS["n"]
    assert kept_bytes(network, torch.rand(2, 2, *size)) == pytest.approx(wanted, rel=0.15)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(memory.DETECTOR_PARAMETERS["n"], rel=0.02)


# ---- the commands -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPINECLUE_HOME", str(tmp_path))
    lumbar_dataset(tmp_path / "raw" / "Dataset501_Lumbar", patients={"case_00": "a", "case_01": "a", "case_02": "b"})
    return tmp_path


def test_plan_and_preprocess_from_the_command_line(home: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["-d", "501", "-device", "cpu", "-gpu_memory_target", "1", "-np", "0", "--no_pbar"]
    assert main("plan_and_preprocess", flags) == 0
    folder = home / "preprocessed" / "Dataset501_Lumbar"
    plans = Plans.load(folder / "SpineCLUEPlans.json")
    assert json.loads((folder / "dataset.json").read_text())["patients"]["case_01"] == "a"
    for stage in STAGES:
        assert PreprocessedDataset(folder / plans.stage(stage).data_fingerprint).cases == ["case_00", "case_01", "case_02"]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.b2nd")} | {
        p: p.stat().st_mtime_ns for p in folder.glob("*Plans.json")
    }
    capsys.readouterr()
    assert main("plan_and_preprocess", flags) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    said = capsys.readouterr().err
    assert "spineclue_train 501 localize 0" in said and str(folder) in said and "3 of 3 cases are remembered" in said


def test_the_three_parts_and_another_plan(home: Path) -> None:
    assert main("extract_fingerprint", ["-d", "501", "-np", "0", "--no_pbar"]) == 0
    assert main("plan_experiment", ["-d", "501", "-pl", "SpineCLUEPaperPlanner", "-device", "cuda"]) == 0
    assert main("plan_experiment", ["-d", "501", "-device", "cpu", "-overwrite_plans_name", "Tiny"]) == 0
    assert main("preprocess", ["-d", "501", "-plans_name", "Tiny", "-c", "localize", "-np", "0", "--no_pbar"]) == 0
    folder = home / "preprocessed" / "Dataset501_Lumbar"
    assert {p.name for p in folder.glob("*Plans.json")} == {"SpineCLUEPaperPlans.json"} and (folder / "Tiny.json").is_file()
    assert [p.name for p in folder.iterdir() if p.is_dir()] == [
        Plans.load(folder / "Tiny.json").stage("localize").data_fingerprint
    ]


def test_an_edited_plan_is_kept_aside(home: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["-d", "501", "-device", "cpu"]
    main("extract_fingerprint", ["-d", "501", "-np", "0", "--no_pbar"])
    main("plan_experiment", flags)
    path = home / "preprocessed" / "Dataset501_Lumbar" / "SpineCLUEPlans.json"
    content = json.loads(path.read_text())
    content["stages"]["segment"]["run"]["batch_size"]["value"] = 5
    path.write_text(json.dumps(content))
    main("plan_experiment", flags)
    assert "segment.run.batch_size: 5 -> 2" in capsys.readouterr().err
    assert Plans.load(path.with_name("SpineCLUEPlans_previous.json")).stage("segment").run.batch_size == 5


def test_own_splits_of_the_raw_dataset_are_taken_over(home: Path) -> None:
    own = [{"train": ["case_00", "case_01"], "val": ["case_02"]}]
    (home / "raw" / "Dataset501_Lumbar" / "splits_final.json").write_text(json.dumps(own))
    steps.fingerprint_dataset(501, progress=False)
    assert json.loads((home / "preprocessed" / "Dataset501_Lumbar" / "splits_final.json").read_text()) == own


@pytest.mark.parametrize(
    ("command", "flags", "code", "message"),
    [
        ("plan_and_preprocess", ["-d", "777", "-np", "0"], 2, "Dataset 777 was not found"),
        ("plan_experiment", ["-d", "501", "-device", "cpu"], 2, "spineclue_extract_fingerprint"),
        ("preprocess", ["-d", "501", "-np", "0"], 2, "spineclue_plan_and_preprocess"),
        ("plan_and_preprocess", ["-d", "501", "-np", "-3"], 2, "-3; expected 0"),
        ("plan_and_preprocess", ["-d", "501", "-np", "0", "-pl", "Nobody", "--no_pbar"], 2, "Planner 'Nobody' is unknown"),
    ],
)
def test_bad_requests_are_one_sentence(
    home: Path, command: str, flags: list[str], code: int, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(command, flags) == code
    assert message in capsys.readouterr().err


def test_a_failed_case_is_listed_and_the_code_is_one(home: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["-d", "501", "-device", "cpu", "-np", "0", "--no_pbar"]
    main("plan_and_preprocess", [*flags, "--no_pp"])
    (home / "raw" / "Dataset501_Lumbar" / "labelsTr" / "case_01.nii.gz").write_bytes(b"broken")
    assert main("preprocess", ["-d", "501", "-np", "0", "--no_pbar"]) == 1
    said = capsys.readouterr().err
    assert "case_01.nii.gz" in said and "has changed since it was planned" in said


def test_every_group_of_every_stage_is_planned() -> None:
    plan = SpineCLUEPlanner("raw", fingerprint(), 8, "cuda").plan()
    for stage in STAGES:
        for group in GROUPS:
            assert isinstance(getattr(plan.stage(stage), group), GROUP_TYPES[stage][group])
