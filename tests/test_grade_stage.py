"""Stage grade: crops, batches, losses, training from raw dataset to prediction; grades of the dataset; their figures."""
from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_heights import stacked, vertebra
from tiny_dataset import LEVELS, edited

from spineclue_v2.cli._common import main
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.errors import InputError
from spineclue_v2.evaluation import grading
from spineclue_v2.export.case_record import case_record
from spineclue_v2.planning import memory, rules
from spineclue_v2.planning.grade_checks import check_grades
from spineclue_v2.planning.paper_planner import SpineCLUEPaperPlanner
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.plans.plans import Plans
from spineclue_v2.results import SpineResult
from spineclue_v2.stages.grade import trust
from spineclue_v2.stages.grade.body_heights import add_heights
from spineclue_v2.stages.grade.comparison import grade_of
from spineclue_v2.stages.grade.data import GradeBatches, grade_crop, graded_rows, stored_losses
from spineclue_v2.stages.grade.network import build_network
from spineclue_v2.stages.grade.ordinal_fusion import OrdinalFusion, grade_of_probabilities
from spineclue_v2.stages.grade.plan import GradeNetwork
from spineclue_v2.stages.grade.predictor import add_grades
from spineclue_v2.stages.grade.trainer import GradeTrainer, targets
from spineclue_v2.stages.plan_files import load_plans, plans_from_json
from spineclue_v2.stages.registry import CORE_STAGES
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.utilities.files import write_json
from spineclue_v2.visualization.page.content import page_content

CPU = torch.device("cpu")
WINDOWS = ((-60.0, 140.0), (-350.0, 1150.0))
SMALL = GradeNetwork((16, 32, 32), (4, 8), (1, 1), 8, WINDOWS)
EDITS = {"grade": {"network": {"crop_size": (16, 32, 32), "features": (4, 8), "blocks": (1, 1), "projection_dim": 8},
                   "run": {"batch_size": 4, "epochs": 2, "iterations_per_epoch": 2}}}
GRADES = ({"L1": 0, "L2": 1, "L3": 2, "L4": 0}, {"L1": 3, "L2": 0, "L3": 0}, {"L1": 0, "L2": 2, "L4": 1}, {"L2": 0, "L3": 1},
          {"L1": 0, "L3": 3})


# ---- crops ------------------------------------------------------------------------------------------------------------------
def test_a_crop_shows_the_whole_vertebra_at_one_size() -> None:
    for factor in (1.0, 2.0):
        mask, _ = vertebra(26.0, 24.0, 27.0, (1 / factor,) * 3)
        inside = np.argwhere(mask)
        low, high = inside.min(0), inside.max(0) + 1
        tight = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        image = np.where(mask, 400, 40).astype(np.int16)
        crop = grade_crop(image, tight, low, (32, 48, 48), WINDOWS)
        assert crop.shape == (3, 32, 48, 48) and crop.dtype == np.float32 and crop.min() >= 0 and crop.max() <= 1
        zoom = 48 / (1.1 * max(tight.shape[1:]))
        assert crop[2].sum() == pytest.approx(mask.sum() * zoom ** 3, rel=0.03)
        assert not (crop[2][0] > 0.5).any() and not (crop[2][:, 0] > 0.5).any()
        bone, soft = crop[2] > 0.99, (crop[2] < 0.01) & (crop[1] > 0.25)               # air outside the image left out
        assert bone.sum() > 1000 and soft.sum() > 1000
        np.testing.assert_allclose(crop[0][soft], 0.5, atol=0.03)                      # 40 HU in the soft window
        np.testing.assert_allclose(crop[1][bone], 750 / 1500, atol=0.01)               # 400 HU in the bone window


def test_outside_the_scan_is_air() -> None:
    crop = grade_crop(np.full((8, 8, 8), 100, np.int16), np.ones((8, 8, 8), bool), (0, 0, 0), (16, 16, 16), WINDOWS)
    assert crop[0, 0, 0, 0] == 0 and crop[1, 0, 0, 0] == 0 and crop[1, 8, 8, 8] == pytest.approx(0.3, abs=0.01)


def test_turning_a_crop_turns_what_is_seen() -> None:
    mask = np.zeros((21, 21, 21), bool)
    mask[:, 8:13, 8:13] = mask[10, 10, :] = mask[10, :, 10] = True                      # a tall bar; two thin arms give the box its size
    image = np.where(mask, 300, 0).astype(np.int16)
    quarter = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])                            # z to y
    straight, turned = (grade_crop(image, mask, (0, 0, 0), (32, 32, 32), WINDOWS, turn)[2] for turn in (None, quarter))
    np.testing.assert_allclose(turned, np.rot90(straight, 1, (0, 1)), atol=0.05)


# ---- dataset ----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def graded(tiny: Path, tmp_path: Path) -> Path:
    """The tiny preprocessed dataset with made-up grades and a plan that has the stage."""
    import shutil

    folder = tmp_path / "preprocessed" / tiny.name
    shutil.copytree(tiny, folder)
    cases = sorted(json.loads((folder / "dataset.json").read_text())["patients"])
    write_json(folder / "grades.json", dict(zip(cases, GRADES, strict=True)))
    fingerprint = json.loads((folder / "dataset_fingerprint.json").read_text()) | {"grades": {"0": 9, "1": 3, "2": 2, "3": 2}}
    plans = SpineCLUEPlanner("raw", fingerprint, 1, "cpu").plan()
    old = load_plans(folder / "SpineCLUEPlans.json")
    plans = edited(replace(plans, stages=dict(old.stages) | {"grade": plans.stage("grade")}), EDITS)
    grade = replace(plans.stages["grade"], data=plans.stages["segment"].data)
    replace(plans, stages=plans.stages | {"grade": grade}).save(folder / "SpineCLUEPlans.json")
    return folder


def dataset_of(folder: Path) -> PreprocessedDataset:
    return PreprocessedDataset(folder / load_plans(folder / "SpineCLUEPlans.json").stage("grade").data_fingerprint)


def test_batches_hold_grades_equally_often_and_repeat(graded: Path) -> None:
    dataset = dataset_of(graded)
    rows = graded_rows(dataset, dataset.cases)
    assert len(rows) == sum(map(len, GRADES)) and {grade for *_, grade in rows} == {0, 1, 2, 3}
    make = GradeBatches(dataset.folder, dataset.cases, (16, 32, 32), WINDOWS, 8, seed=3)
    batch, again, other = make(5), GradeBatches(dataset.folder, dataset.cases, (16, 32, 32), WINDOWS, 8, seed=3)(5), make(6)
    assert torch.bincount(batch["grade"][:8]).tolist() == [2, 2, 2, 2] and torch.equal(batch["grade"][:8], batch["grade"][8:])
    assert torch.equal(batch["image"], again["image"]) and not torch.equal(batch["image"], other["image"])
    assert batch["image"].shape == (16, 3, 16, 32, 32) and not torch.equal(batch["image"][:8], batch["image"][8:])
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1


@pytest.mark.parametrize("run", [{}, {"contrastive_weight": 0.0, "detach_classifier": False}, {"ordinal": True}])
def test_training_learns_a_constant_batch(graded: Path, tmp_path: Path, run: dict) -> None:
    plans = edited(load_plans(graded / "SpineCLUEPlans.json"), {"grade": {"run": run | {"initial_lr": 0.01, "epochs": 50}}})
    dataset = dataset_of(graded)
    trainer = GradeTrainer(plans, 0, dataset, dataset.cases[:4], dataset.cases[4:], tmp_path, CPU, workers=0)
    batch = trainer.batch_sampler(True)(0)
    assert len(batch["image"]) == (4 if run.get("contrastive_weight") == 0 else 8)
    trainer.network.train()
    losses = [trainer.train_step(batch) for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0]


def test_detaching_keeps_the_classifier_from_the_encoder(graded: Path, tmp_path: Path) -> None:
    dataset = dataset_of(graded)
    moved = {}
    for detach in (True, False):
        run = {"contrastive_weight": 0.0, "detach_classifier": detach}
        plans = edited(load_plans(graded / "SpineCLUEPlans.json"), {"grade": {"run": run}})
        trainer = GradeTrainer(plans, 0, dataset, dataset.cases, [], tmp_path, CPU, workers=0)
        loss, _ = trainer.loss(trainer.batch_sampler(True)(0))
        loss.backward()
        moved[detach] = any(p.grad is not None and p.grad.abs().sum() > 0 for p in trainer.network.encoder.parameters())
        assert trainer.network.classifier.weight.grad.abs().sum() > 0
    assert moved == {True: False, False: True}


def test_ordinal_targets_fall_with_the_distance() -> None:
    hard, soft = targets(torch.tensor([0, 2]), False), targets(torch.tensor([0, 2]), True)
    assert hard.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    torch.testing.assert_close(soft.sum(1), torch.ones(2))
    assert soft[0].tolist() == sorted(soft[0].tolist(), reverse=True) and soft[1].argmax() == 2
    assert soft[1, 1] / soft[1, 2] == pytest.approx(np.exp(-2), rel=1e-5) and soft[1, 1] == soft[1, 3]


def test_the_stage_trains_and_validates(graded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for name in ("spineclue_raw", "spineclue_results", "nnUNet_raw"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("spineclue_preprocessed", str(graded.parent))
    monkeypatch.setenv("spineclue_results", str(tmp_path))
    monkeypatch.setenv("spineclue_n_proc_DA", "0")
    monkeypatch.setattr(trust, "COARSEST", 1.0)     # the network space of this dataset is too coarse for heights
    assert main("train", ["499", "grade", "0", "-device", "cpu"]) == 0
    assert "macro_f1" in capsys.readouterr().out
    fold = next(tmp_path.glob("*/GradeTrainer__SpineCLUEPlans__grade/fold_0"))
    rows = json.loads((fold / "validation" / "grades.json").read_text())
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(rows) == summary["vertebrae"] > 0 and all(sum(r["probabilities"]) == pytest.approx(1, abs=1e-3) for r in rows)
    fitted = Checkpoint.load(fold / "checkpoint_final.pth").meta["fitted"]
    assert OrdinalFusion.from_json(fitted["combination"]).limits[0] == pytest.approx(0.2, abs=0.15) and "true masks" in fitted["fitted_on"]
    assert set(summary["per_vertebra"]["recall"]) == {"0", "1", "2", "3"}


def test_a_dataset_without_grades_cannot_train_it(tiny: Path, graded: Path, tmp_path: Path) -> None:
    plans = load_plans(graded / "SpineCLUEPlans.json")
    dataset = PreprocessedDataset(tiny / plans.stage("grade").data_fingerprint)
    with pytest.raises(InputError, match="at least two .gradesTr/CASE.json"):
        GradeTrainer(plans, 0, dataset, dataset.cases, [], tmp_path, CPU, workers=0)


def test_the_network_grades_thoracic_and_lumbar_vertebrae() -> None:
    vertebrae, geometry, scan = stacked()
    vertebrae = (replace(vertebrae[0], level="C7"), *vertebrae[1:])

    plan = replace(planned().stage("grade"), network=SMALL)
    model = folds([1.0, 0, 0, 0], [0.0, 0, 1, 0])
    measured = add_heights(vertebrae, geometry, scan)
    found = add_grades(measured, scan, model, plan, CPU)
    assert found[0].grade_probabilities is None and all(v.grade_probabilities == (0.5, 0, 0.5, 0) for v in found[1:])
    assert all(v.combined_grade_probabilities is None for v in found)
    # It sees what it was trained on: the windows of its own plan, not those of the other stages.
    wanted = grade_crop(scan.array, vertebrae[1].mask, vertebrae[1].mask_start, SMALL.crop_size, WINDOWS)
    np.testing.assert_array_equal(model.networks[0].seen[0], wanted)


def folds(*rows: list[float], fitted: dict | None = None):
    """A model whose folds say the same of every vertebra; `seen` is what a fold was shown last."""
    class Fold(torch.nn.Module):
        def __init__(self, row: list[float]) -> None:
            super().__init__()
            self.row = row

        def probabilities(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = x.numpy()
            return torch.tensor(self.row).repeat(len(x), 1)

    return type("Folds", (), {"networks": [Fold(row) for row in rows], "fitted": [fitted or {}] * len(rows)})()


def test_network_and_heights_are_heard_together() -> None:
    """L1 is wedged by 40 %, the others are intact; a network that is unsure leaves it at that, a sure one moves the borderline."""
    vertebrae, geometry, scan = stacked()
    plan = replace(planned().stage("grade"), network=SMALL)
    measured = add_heights(vertebrae, geometry, scan)
    measured = (replace(measured[0], heights=None, height_doubt=trust.BORDER), *measured[1:])
    fitted = {"combination": OrdinalFusion(60.0, 0.02, (0.2, 0.25, 0.4)).to_json()}
    unsure, sure = ([0.5, 0.25, 0.2, 0.05], [0.02, 0.03, 0.05, 0.9])
    found = add_grades(measured, scan, folds(unsure, fitted=fitted), plan, CPU)
    assert found[0].grade_probabilities is found[0].combined_grade_probabilities is None and found[0].grade_doubt == trust.BORDER
    given = [grade_of_probabilities(v.combined_grade_probabilities) for v in found[1:]]
    assert given == [2, 0, 0] and all(sum(v.combined_grade_probabilities) == pytest.approx(1) for v in found[1:])
    content = case_record(SpineResult(found, True))["vertebrae"][1]["grading"]
    assert content["grade"] == 0 and content["combined"]["grade"] == 2 and content["disagrees_with_heights"] is True
    higher = add_grades(measured, scan, folds(sure, fitted=fitted), plan, CPU)
    assert grade_of_probabilities(higher[1].combined_grade_probabilities) == 3
    with_one_fold_less = folds(unsure, sure, fitted=fitted)
    with_one_fold_less.fitted[1] = {}
    assert add_grades(measured, scan, with_one_fold_less, plan, CPU)[1].combined_grade_probabilities is not None


def test_the_record_says_the_worst_grade_and_what_has_none() -> None:
    """L1 is wedged, T12 has no heights, in L2 lies a screw: the patient has the grade of L1, and the other two are named."""
    vertebrae, geometry, scan = stacked()
    screw = scan.array.copy()
    z, y, x = vertebrae[2].mask_box
    screw[z, y, x] = np.where(vertebrae[2].mask, 3000, screw[z, y, x])
    scan = replace(scan, array=screw)
    measured = add_heights(vertebrae, geometry, scan)
    measured = (replace(measured[0], heights=None, height_doubt=trust.BORDER), *measured[1:])
    fitted = {"combination": OrdinalFusion(60.0, 0.02, (0.2, 0.25, 0.4)).to_json()}
    plan = replace(planned().stage("grade"), network=SMALL)
    found = add_grades(measured, scan, folds([0.5, 0.25, 0.2, 0.05], fitted=fitted), plan, CPU)
    content = case_record(SpineResult(found, True))
    levels = [v.level for v in vertebrae]
    assert content["grading"]["graded"] == len(levels) - 2
    assert content["grading"]["not_graded"] == {levels[0]: trust.BORDER, levels[2]: trust.METAL}
    worst = content["vertebrae"][1]
    assert content["grading"]["worst"] == {"level": levels[1], "grade": 2,
                                           "probability": pytest.approx(1 - worst["grading"]["combined"]["probabilities"][0], abs=1e-3)}
    assert content["vertebrae"][2]["grade_doubt"] == trust.METAL and content["vertebrae"][2]["grading"] is None
    assert any("Neither a diagnosis" in remark for remark in content["remarks"])
    said = page_content(content)
    assert f"{len(levels) - 2} of {len(levels)}" in said["remarks"][0] and levels[1] in said["remarks"][0]
    without = case_record(SpineResult(measured, True))
    assert "grading" not in without and all(v["grade_doubt"] is None for v in without["vertebrae"])


def test_weights_of_network_and_heights_are_learnt() -> None:
    rng = np.random.default_rng(3)
    true_loss = np.concatenate([rng.normal(0, 0.05, 400), rng.uniform(0.2, 0.6, 60)])
    grades = np.array([grade_of(loss) for loss in true_loss])
    measured = true_loss + rng.normal(0, 0.06, len(grades))
    logits = -4.0 * np.abs(np.arange(4)[None] - (grades + rng.normal(0, 0.5, len(grades)))[:, None])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    both = OrdinalFusion.fit(grades, probabilities, measured)
    assert OrdinalFusion.from_json(json.loads(json.dumps(both.to_json()))) == both and both.trust > 0.005
    given = [grade_of_probabilities(row) for row in both.probabilities(probabilities, measured)]
    alone = [grade_of(loss) for loss in measured]
    scores = [grading.macro_f1(grades, np.asarray(answer)) for answer in (given, alone, probabilities.argmax(1))]
    assert scores[0] == max(scores) > scores[1] and both.limits == tuple(sorted(both.limits))
    # A network that guesses is not believed.
    guessed = rng.permutation(probabilities)
    assert abs(OrdinalFusion.fit(grades, guessed, measured).trust) < 0.003
    assert OrdinalFusion.fit(np.zeros(9, int), probabilities[:9], measured[:9]) is None


def test_losses_of_stored_cases(graded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "COARSEST", 1.0)
    dataset = dataset_of(graded)
    for case in dataset.cases:
        losses = stored_losses(dataset.folder, case)
        assert set(losses) <= set(LEVELS) and all(-0.3 < loss < 0.3 for loss in losses.values())
    assert losses


# ---- plan -------------------------------------------------------------------------------------------------------------------
def planned(grades: dict[str, int] | None = None, planner=SpineCLUEPlanner, gb: float = 1, device: str = "cpu") -> Plans:
    from example_fingerprint import fingerprint

    return planner("raw", fingerprint() | {"grades": grades or {"0": 900, "1": 30, "2": 20, "3": 10}}, gb, device).plan()


def test_the_stage_is_planned_where_there_is_something_to_learn() -> None:
    assert not rules.can_learn_grades({}) and not rules.can_learn_grades({"0": 5, "1": 0}) and not rules.can_learn_grades({"0": 0, "2": 3})
    assert set(planned({"0": 9, "1": 0, "2": 0, "3": 0}).stages) == {*CORE_STAGES, "centres", "appearance", "ribs", "geometry"}
    plan = planned()
    assert list(plan.stages) == ["localize", "centres", "segment", "appearance", "ribs", "geometry", "identify", "grade"]
    assert plan.stage("grade").data_fingerprint == plan.stage("segment").data_fingerprint
    grade = plan.stage("grade")
    assert all(n % 16 == 0 for n in grade.network.crop_size) and grade.network.crop_size[1] <= 64 and 8 <= grade.run.batch_size <= 12
    assert all(reason["rule"] for reason in grade.reasons.values())
    assert plans_from_json(json.loads(json.dumps(plan.to_json()))) == plan
    # The other stages do not know of it.
    without = planned({"0": 1})
    assert all(plan.stage(s).model_fingerprint == without.stage(s).model_fingerprint for s in CORE_STAGES)
    paper = planned(planner=SpineCLUEPaperPlanner, gb=24, device="cuda").stage("grade")
    assert paper.network.crop_size == (128, 128, 128) and (paper.run.temperature, paper.run.contrastive_weight) == (0.07, 1.0)
    assert planned(gb=24, device="cuda").stage("grade").run.batch_size > 12


def test_memory_is_what_torch_keeps() -> None:
    network = GradeNetwork((32, 48, 48), (16, 32, 64), (1, 1, 1), 128, WINDOWS)
    net, kept = build_network(network, 2), [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in seen:
            seen.add(tensor.untyped_storage().data_ptr())
            kept[0] += tensor.numel() * tensor.element_size()
        return tensor

    seen = {p.untyped_storage().data_ptr() for p in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = net(torch.rand(4, 3, 32, 48, 48)).sum()
    parameters = sum(p.numel() for p in net.parameters()) * memory.OPTIMISER_FLOATS * memory.FLOAT
    assert loss.requires_grad and memory.grade_bytes(network, 4) == pytest.approx(kept[0] + parameters, rel=0.25)


# ---- raw dataset ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def raw(tmp_path: Path) -> Path:
    from blocks import lumbar_dataset

    return lumbar_dataset(tmp_path / "raw" / "Dataset501_Lumbar", 3)


def test_grades_of_a_raw_dataset(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spineclue_v2.planning.plan_and_preprocess import fingerprint_dataset

    plain = RawDataset(raw).content_hash()
    write_json(raw / "gradesTr" / "case_00.json", {"L1": 2, "L2": 0, "T7": 1})
    found = RawDataset(raw)
    assert found.grades == {"case_00": {"L1": 2, "L2": 0, "T7": 1}} and found.content_hash() != plain
    monkeypatch.setenv("SPINECLUE_HOME", str(tmp_path))
    for name in ("spineclue_raw", "spineclue_preprocessed", "spineclue_results", "nnUNet_raw"):
        monkeypatch.delenv(name, raising=False)
    fingerprint_dataset(501, progress=False)
    folder = tmp_path / "preprocessed" / raw.name
    fingerprint = json.loads((folder / "dataset_fingerprint.json").read_text())
    assert fingerprint["grades"] == {"0": 1, "1": 0, "2": 1, "3": 0}
    assert any(f["check"] == "grades" and "T7" in f["detail"] for f in fingerprint["checks"])
    assert json.loads((folder / "grades.json").read_text()) == found.grades


@pytest.mark.parametrize(("files", "said"), [
    ({"case_00": {"L1": 0, "L2": 2}, "case_0l": {"L1": 1}},
     {"case_0l.json": "warning gradesTr holds grades of no case: case_0l.json; .* case_00.json", "case_01": "note 2 of 3 cases have no"}),
    ({"case_00": {"L1": 0}, "case_01": {"L2": 0}, "case_02": {}}, {"case_00": "warning .*: 2 of grade 0; .* not planned"}),
    ({"case_00_0000": {"L1": 0}}, {"case_00_0000.json": "warning gradesTr holds grades of no case"}),
    ({"case_00": {"T7": 1}, "case_01": {"L1": 0}, "case_02": {"L1": 1}}, {"case_00": "warning graded but not in the label map: T7"})])
def test_gaps_in_grades_are_said(raw: Path, files: dict[str, dict[str, int]], said: dict[str, str]) -> None:
    for name, content in files.items():
        write_json(raw / "gradesTr" / f"{name}.json", content)
    found = {f.case: f"{f.severity} {f.detail}" for f in check_grades(RawDataset(raw), {f"case_0{n}": ["L1", "L2"] for n in range(3)})}
    assert sorted(found) == sorted(said) and all(re.match(said[case], found[case]) for case in said), found


@pytest.mark.parametrize("content", [{"L1": 4}, {"L1": -1}, {"L1": "2"}, {"L1": True}, {"S1": 1}, {"L9": 0}, [1, 2], {"L1": 1.0}])
def test_wrong_grades_are_named(raw: Path, content: object) -> None:
    write_json(raw / "gradesTr" / "case_01.json", content)
    with pytest.raises(InputError, match="case_01.json.*no Genant grade"):
        RawDataset(raw).grades  # noqa: B018 - reading is what is tested


def test_the_phantoms_grades_can_be_learnt(tmp_path: Path) -> None:
    from tiny_dataset import PHANTOM

    from spineclue_v2.dataset_conversion.phantom import convert

    convert(tmp_path / "Dataset502_Broken", 1, seed=3, **PHANTOM | {"fractures": {"L2": (3, "wedge")}})
    assert RawDataset(tmp_path / "Dataset502_Broken").grades == {"phantom_0001": {level: 3 * (level == "L2") for level in LEVELS}}


# ---- figures ----------------------------------------------------------------------------------------------------------------
def test_known_figures() -> None:
    true = np.array([0, 0, 0, 0, 1, 1, 2, 3])
    given = np.array([0, 0, 0, 1, 1, 0, 2, 2])
    # F1: grade 0 2*3/(4+4), grade 1 2*1/(2+2), grade 2 2*1/(1+2), grade 3 0
    assert grading.macro_f1(true, given) == pytest.approx((0.75 + 0.5 + 2 / 3 + 0) / 4)
    assert grading.macro_f1(np.array([0, 0]), np.array([0, 0])) == 1.0
    assert grading.grade_recall(true, given) == {"0": 0.75, "1": 0.5, "2": 1.0, "3": 0.0}
    score = np.array([0.1, 0.2, 0.3, 0.6, 0.5, 0.25, 0.8, 0.9])
    positive = true >= 1
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert grading.auc(positive, score) == pytest.approx(np.mean(pairs))
    assert grading.auc(positive, np.ones(8)) == 0.5 and np.isnan(grading.auc(np.ones(8, bool), score))


def test_fixed_points_of_the_curve() -> None:
    positive = np.array([True] * 4 + [False] * 5)
    score = np.array([0.9, 0.8, 0.4, 0.3, 0.85, 0.5, 0.35, 0.2, 0.1])
    assert grading.specificity_at(positive, score, 0.5) == 0.8      # threshold 0.8: one of five negatives above
    assert grading.specificity_at(positive, score, 0.75) == 0.6     # threshold 0.4
    assert grading.specificity_at(positive, score, 1.0) == 0.4
    assert grading.sensitivity_at(positive, score, 1.0) == 0.25     # only 0.9 lies above every negative
    assert grading.sensitivity_at(positive, score, 0.8) == 0.5      # one false alarm allowed: above 0.5
    assert grading.sensitivity_at(positive, score, 0.0) == 1.0


def test_patients_and_their_bootstrap() -> None:
    true, given = [0, 1, 0, 0, 0, 3], [0, 1, 0, 0, 1, 0]
    score = [0.1, 0.6, 0.2, 0.1, 0.4, 0.3]
    found = grading.summarise(true, given, score, ["a", "a", "b", "b", "c", "c"], bootstraps=200)
    assert (found["vertebrae"], found["patients"], found["counts"]) == (6, 3, {"0": 4, "1": 1, "2": 0, "3": 1})
    # worst grade of each patient: true 1, 0, 3; given 1, 0, 1; scores 0.6, 0.2, 0.4
    assert found["per_patient"]["auc_1"] == 1.0 and found["per_patient"]["sensitivity"] == 1.0
    assert found["per_patient"]["recall"]["3"] == 0.0 and found["per_vertebra"]["sensitivity"] == 0.5
    low, high = found["interval"]["per_vertebra"]["sensitivity"]
    assert low <= 0.5 <= high and (low, high) == (0.0, 1.0)
    assert found == grading.summarise(true, given, score, ["a", "a", "b", "b", "c", "c"], bootstraps=200)


def test_evaluate_reports_grades(raw: Path, tmp_path: Path, capsys) -> None:
    import shutil

    out = tmp_path / "out"
    shutil.copytree(raw / "labelsTr", out)
    for number in range(3):
        write_json(raw / "gradesTr" / f"case_{number:02d}.json", {"L1": 2, "L2": 0, "L3": 0})
        vertebrae = [{"level": level, "heights": {"implied_grade": grade, "loss": [loss, 0.0, 0.0]},
                      "grading": {"grade": 0, "probabilities": [0.9, 0.1, 0, 0],
                                  "combined": {"grade": grade, "probabilities": [0.3, 0.1, 0.6, 0]} if level == "L1" else None}}
                     for level, grade, loss in (("L1", 2 if number else 0, 0.3 if number else 0.1), ("L2", 0, 0.05))]
        write_json(out / f"case_{number:02d}.json", {"vertebrae": vertebrae})
    assert main("evaluate", ["-ref", str(raw / "labelsTr"), "-pred", str(out), "-np", "0"]) == 0
    found = json.loads((out / "summary.json").read_text())["spineclue"]["grading"]
    assert found["heights"]["per_vertebra"]["recall"]["2"] == pytest.approx(2 / 3) and found["heights"]["per_vertebra"]["auc_1"] == 1.0
    assert found["heights"]["without_grade"] == 3 and found["network"]["per_vertebra"]["sensitivity"] == 0.0
    assert found["heights"]["patients"] == 3 and found["both"]["per_vertebra"]["recall"] == found["heights"]["per_vertebra"]["recall"]
    assert found["both"]["without_grade"] == 6 and found["both"]["per_vertebra"]["auc_1"] == 1.0
    said = capsys.readouterr().out
    assert "Genant grades by heights: 9 vertebrae" in said and "Genant grades by network" in said
