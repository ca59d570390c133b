"""Self-training: what is kept of the unlabelled scans, how it is learned from, and that old weights are never touched."""
from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import crossval_dataset
import numpy as np
import pytest
import torch
from blocks import spine
from crossval_dataset import DATASET, splits, use_analytic_networks, write_model
from tiny_dataset import trainer

from spineclue_v2.anatomy import LABEL_OF_NAME
from spineclue_v2.cli._common import INTERRUPTED, main
from spineclue_v2.cross_validation import agreement, self_train
from spineclue_v2.cross_validation.agreement import Judged, judge_scan, parts, refusal
from spineclue_v2.cross_validation.self_train import LEARNING, continued_plan, outline
from spineclue_v2.cross_validation.self_train_proof import MEASURES, judge
from spineclue_v2.cross_validation.settings_trial import CaseGain
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import Volume, read_labels, write_volume
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import pipeline_of, stage_folder_name
from spineclue_v2.training.added_cases import AddedCases, MixedBatches
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.training.trainer import Interrupted
from spineclue_v2.utilities.files import read_json, write_json

LEVELS = ("T11", "T12", "L1", "L2", "L3", "L4")


# ---- what is kept -------------------------------------------------------------------------------------------------------
def test_two_parts_hold_most_vertebrae_each_and_end_in_the_next_one():
    boxes = {LABEL_OF_NAME[name]: (slice(100 - 10 * i, 108 - 10 * i), slice(0, 5), slice(0, 5)) for i, name in enumerate(LEVELS)}
    (first, top), (bottom, last) = parts(boxes, 130)
    assert (top, bottom) == (130, 0)
    inside = [[name for name in LEVELS if boxes[LABEL_OF_NAME[name]][0].start >= a and boxes[LABEL_OF_NAME[name]][0].stop <= b]
              for a, b in ((first, top), (bottom, last))]
    assert inside == [list(LEVELS[:5]), list(LEVELS[1:])]


def record(**changes: Any) -> dict[str, Any]:
    return {"status": "ok", "numbering_anchored": True, "incomplete": [], "vertebrae": [{"level": name} for name in LEVELS]} | changes


@pytest.mark.parametrize(("changes", "said"), [
    ({"status": "no vertebra found"}, "no vertebra"), ({"numbering_anchored": False}, "not anchored"),
    ({"incomplete": ["L1"]}, "not found"), ({"vertebrae": [{"level": "L1"}] * 3}, "fewer than 4")])
def test_what_is_not_anchored_or_not_whole_is_no_label(changes, said):
    assert refusal(record()) is None
    assert said in (refusal(record(**changes)) or "")


class Labels:
    """What a pipeline gives back, as far as agreement looks at it."""

    def __init__(self, volume: Volume) -> None:
        self.vertebrae, self.volume = volume, volume

    def grids(self) -> tuple[Any, Any]:
        return self.volume.geometry, self.volume.geometry


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    """A scan whose prediction is its truth; `shift` makes parts that do not show the top name their vertebrae so many levels lower."""
    scan, labels, _ = spine(LEVELS, (2.0, 2.0, 2.0))
    write_volume(scan, tmp_path / "a_0000.nii.gz")
    write_volume(labels, tmp_path / "p" / "a.nii.gz")
    write_json(tmp_path / "p" / "a.json", record())
    state = {"shift": 0}

    def part(volume: Volume, *_: Any, **__: Any) -> Labels:
        start = round(float(labels.geometry.world_to_index(volume.geometry.index_to_world((0, 0, 0)))[0]))
        cut = labels.array[start:start + volume.array.shape[0]]
        lacks_top = start + len(cut) < len(labels.array)
        return Labels(Volume(np.where(cut > 0, cut + state["shift"] * lacks_top, 0), volume.geometry))

    monkeypatch.setattr(agreement, "predict_scan", part)
    monkeypatch.setattr(agreement, "label_map", lambda volume, *_: volume.array)
    return lambda shift: (state.update(shift=shift), judge_scan("a", tmp_path / "a_0000.nii.gz", tmp_path / "p", None))[1]


def test_a_scan_is_kept_when_its_parts_get_the_same_names(predicted):
    assert predicted(0) == Judged("a", True, "10 of 10 vertebrae have the same name and place when the scan ends elsewhere", 10, 10)
    assert not (other := predicted(1)).kept and other.agreed == 5


# ---- whether it helped --------------------------------------------------------------------------------------------------
def rows(gains: list[float], named: float = 0.0) -> dict[str, list[CaseGain]]:
    return {measure: [CaseGain(f"c{i}", f"p{i}", 4.0, 4.0 + (gain if measure == "score" else named), 5) for i, gain in enumerate(gains)]
            for measure in MEASURES}


@pytest.mark.parametrize(("gains", "named", "better", "said"), [
    ([0.2] * 8, 0.0, True, "lies above 0"), ([0.2] * 5, 0.0, False, "fewer than 6"), ([-0.1] * 8, 0.0, False, "no better"),
    ([1.0, -0.9] * 4, 0.0, False, "reaches 0"), ([0.2] * 8, -0.1, False, "name fewer"), ([0.2] * 6 + [0.0] * 3, 0.0, True, "above 0")])
def test_only_a_sure_gain_without_lost_names_counts(gains, named, better, said):
    proof = judge(rows(gains, named))
    assert proof.better is better and said in proof.reason
    assert proof.new["score"] - proof.old["score"] == pytest.approx(np.mean(gains) / 5)


# ---- learning from added cases ------------------------------------------------------------------------------------------
def test_batches_of_added_cases_have_their_part_and_depend_on_the_index_alone():
    mixed = MixedBatches(lambda i: {"own": i}, lambda i: {"added": i}, 0.25, 5)
    kinds = [next(iter(mixed(i))) for i in range(2000)]
    assert 0.2 < kinds.count("added") / 2000 < 0.3
    assert kinds == [next(iter(mixed(i))) for i in range(2000)]
    with pytest.raises(InputError, match="between 0 and 1"):
        AddedCases(Path(), ("a",), 1.5)


def test_no_stage_of_the_old_model_is_lost():
    """What is neither trained again nor stood in for would be missing in the new model alone. Grades stand in no prediction."""
    lost = [stage.name for stage in pipeline_of("CT") if stage.trainable and not stage.shipped_stands_in and stage.name not in LEARNING]
    assert lost == ["grade"]


@pytest.mark.parametrize("stage", ["localize", "segment", "appearance", "ribs", "identify"])
def test_every_stage_learns_from_added_cases_and_says_so(tiny, tmp_path, stage):
    """The added folder holds one case that is no training case; its batches come from it alone."""
    plans = load_plans(tiny / "SpineCLUEPlans.json")
    fingerprint = plans.stage(stage).data_fingerprint
    for file in (tiny / fingerprint).glob("phantom_0001*"):
        (tmp_path / "added" / fingerprint).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "added" / fingerprint / file.name.replace("phantom_0001", "extra"))
    edits = {"run": {"epochs": 2, "iterations_per_epoch": 2}} if stage == "ribs" else {}
    run = trainer(tiny, stage, tmp_path / "out", **edits)
    run.added = AddedCases(tmp_path / "added", ("extra",), 0.9)
    run.run()
    saved = Checkpoint.load(tmp_path / "out" / "checkpoint_final.pth")
    assert saved.meta["added_cases"] == {"cases": ["extra"], "share": 0.9}
    assert "extra" not in saved.meta["train_cases"] + saved.meta["val_cases"]
    alone = trainer(tiny, stage, tmp_path / "alone", **edits)
    alone.run()
    other = Checkpoint.load(tmp_path / "alone" / "checkpoint_final.pth").network
    assert any(not torch.equal(saved.network[key], other[key]) for key in other)


def test_rates_of_a_plan_from_scratch_fall_and_those_for_fine_tuning_stay(tiny):
    plans = load_plans(tiny / "SpineCLUEPlans.json")
    again = continued_plan(plans, "New")
    assert again.stage("segment").run.initial_lr == pytest.approx(0.1 * plans.stage("segment").run.initial_lr)
    assert continued_plan(again, "Newer").stage("segment").run.initial_lr == again.stage("segment").run.initial_lr
    assert again.stage("segment").model_fingerprint == plans.stage("segment").model_fingerprint


# ---- the command --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def home_once(tmp_path_factory) -> Path:
    return crossval_dataset.make(tmp_path_factory.mktemp("self_train"))


@pytest.fixture
def home(home_once, tmp_path, monkeypatch) -> Path:
    """Six labelled block spines with models of three folds, and two unlabelled ones."""
    shutil.copytree(home_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("SPINECLUE_HOME", str(tmp_path))
    monkeypatch.setattr(crossval_dataset, "DATASET", DATASET)
    use_analytic_networks(monkeypatch)
    for name, levels in (("free_0", LEVELS[:5]), ("free_1", LEVELS[1:])):
        write_volume(spine(levels, (2.5, 2.5, 2.5))[0], tmp_path / "raw" / DATASET / "imagesUl" / f"{name}_0000.nii.gz")
    return tmp_path


@pytest.fixture
def stubbed(home, monkeypatch) -> list[tuple[str, int]]:
    """Training that copies the old weights, and untrained names that pass as anchored; the list of (stage, fold) trained."""
    done: list[tuple[str, int]] = []

    def train(dataset, stage, fold, plans_name, pretrained_weights, resume, added, **_):
        folder = home / "results" / DATASET / stage_folder_name(stage, plans_name)
        plans = load_plans(home / "preprocessed" / DATASET / f"{plans_name}.json")
        saved = Checkpoint.load(Path(pretrained_weights))
        assert added.share == 0.5 and (added.base / plans.stage(stage).data_fingerprint / f"{added.cases[0]}.b2nd").is_file()
        saved.meta |= {"plans": plans.to_json(), "added_cases": added.to_json()}
        plans.save(folder / "plans.json")
        saved.save(folder / f"fold_{fold}" / "checkpoint_final.pth")
        done.append((stage, fold))
        if len(done) == 2:
            raise Interrupted("stop")

    monkeypatch.setattr(self_train, "train", train)
    monkeypatch.setattr(agreement, "refusal", lambda _: None)
    monkeypatch.setattr(agreement, "AGREED", 0.0)
    return done


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_dry_run_writes_nothing(home, capsys):
    before = tree(home)
    assert main("self_train", [DATASET, "--dry-run", "-device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "2 unlabelled scans" in said and "Fold 2" in said and "SpineCLUEPlansSelfTrained" in said
    assert tree(home) == before


def test_it_continues_where_it_stopped_and_leaves_the_old_weights_alone(home, stubbed, capsys, monkeypatch):
    before = tree(home / "results")
    command = [DATASET, "-f", "0", "1", "-device", "cpu", "--no_pbar", "-q"]
    assert main("self_train", command) == INTERRUPTED
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(self_train, "judge_scan", None)      # every scan was judged before
    assert main("self_train", command) == 0
    assert stubbed == [("localize", 0), ("segment", 0), ("identify", 0), ("localize", 1), ("segment", 1), ("identify", 1)]
    said = capsys.readouterr().out
    assert "2 of 2 unlabelled scans are kept" in said and "The old weights stay: the new weights are no better" in said
    after = tree(home / "results")
    assert {name: after[name] for name in before} == before
    report = read_json(home / "results" / DATASET / "self_training" / "SpineCLUEPlans" / "report.json")
    assert {entry["case"] for entry in report["folds"]["0"]} == {"free_0", "free_1"}
    assert [case["case"] for case in report["proof"]["cases"]] == splits()[0]["val"] + splits()[1]["val"]
    labels = read_labels(home / "results" / DATASET / "self_training" / "SpineCLUEPlans" / "fold_0" / "predictions" / "free_0.nii.gz")
    assert len(np.unique(labels.array)) == 6
    # Another part of the batches than the finished stages had: said, and nothing trained.
    assert main("self_train", [*command, "--share", "0.3"]) == 2
    assert "another --share" in (said := capsys.readouterr().err) and said.count("\n") == 1 and len(stubbed) == 6
    # Weights that are not those of the predictions any more: said, and nothing mixed.
    write_model(home / "results" / DATASET / stage_folder_name("segment"), "segment",
                replace(load_plans(home / "preprocessed" / DATASET / "SpineCLUEPlans.json")), seed=1)
    file = home / "results" / DATASET / stage_folder_name("segment") / "fold_0" / "checkpoint_final.pth"
    saved = Checkpoint.load(file)
    saved.network["threshold"] += 0.01
    saved.save(file)
    assert main("self_train", command) == 2
    assert "other weights" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_scans_of_patients_left_out_are_not_learned_from(home):
    content = read_json(home / "raw" / DATASET / "dataset.json")
    patients = {f"case_{i}": f"case_{i}" for i in range(6)} | {"free_0": "case_0"}
    write_json(home / "raw" / DATASET / "dataset.json", content | {"patients": patients})
    plan = outline(DATASET, folds=[0, 1])
    assert [sorted(fold.unlabelled) for fold in plan.folds] == [["free_1"], ["free_0", "free_1"]]


def test_nothing_to_learn_from_leaves_all_as_it_is(home, capsys):
    """Untrained names anchor nothing."""
    assert main("self_train", [DATASET, "-f", "0", "-device", "cpu", "--no_pbar", "-q"]) == 0
    said = capsys.readouterr().out
    assert "0 of 2 unlabelled scans are kept (2: its numbering is not anchored)" in said and "the old weights stay" in said
    assert not list((home / "results" / DATASET).glob("*SelfTrained*"))


@pytest.mark.parametrize(("change", "arguments", "said"), [
    ("none", ["--share", "1"], "between 0 and 1"), ("empty", [], "no unlabelled scan"), ("none", ["-f", "all"], "trains on every case"),
    ("none", ["-teacher", "shipped"], "--from shipped"), ("patients", ["-f", "0"], "of patients whom fold 0 leaves out"),
    ("none", ["-p", "Other"], "does not exist")])
def test_bad_input_is_one_sentence(home, change, arguments, said, capsys):
    raw = home / "raw" / DATASET
    if change == "empty":
        shutil.rmtree(raw / "imagesUl")
    if change == "patients":
        write_json(raw / "dataset.json", read_json(raw / "dataset.json") | {"patients": {"free_0": "case_0", "free_1": "case_3"}})
    assert main("self_train", [DATASET, "-device", "cpu", *arguments]) == 2
    assert said in (err := capsys.readouterr().err) and err.count("\n") == 1


@pytest.mark.slow
def test_from_the_packages_weights_to_a_verdict_with_real_networks(tmp_path, monkeypatch, capsys):
    """Everything real but the lengths: four labelled phantoms, two without labels, one fold, two steps per stage."""
    from tiny_dataset import edited

    from spineclue_v2.dataset_conversion.phantom import convert
    from spineclue_v2.planning.plan_and_preprocess import fingerprint_dataset, plan_experiment, preprocess_plans

    monkeypatch.setenv("SPINECLUE_HOME", str(tmp_path))
    monkeypatch.setenv("spineclue_n_proc_DA", "0")
    name, look = "Dataset502_Free", {"first": "T10", "last": "L5", "spacing": (2.0, 2.0, 2.0), "variant": None, "cobb": 0.0,
                                     "fractures": {}, "screws": 0, "cement": 0, "wide": True}
    convert(tmp_path / "raw" / name, 4, seed=11, **look)
    for case in convert(tmp_path / "free", 2, seed=12, **look):
        target = tmp_path / "raw" / name / "imagesUl" / f"free_{case}_0000.nii.gz"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "free" / "imagesTr" / f"{case}_0000.nii.gz", target)
    fingerprint_dataset(name, progress=False)
    lengths: dict[str, Any] = {stage: {"run": {"epochs": 1, "iterations_per_epoch": 2}} for stage in self_train.LEARNING[:-1]}
    lengths["identify"] = {"run": {"classifier_epochs": 1, "iterations_per_epoch": 2}}
    plans = edited(plan_experiment(name, gpu_memory_target=1, device="cpu", source="shipped"), lengths)
    plans.save(tmp_path / "preprocessed" / name / "SpineCLUEPlans.json")
    assert preprocess_plans(name, stages=list(self_train.LEARNING), progress=False) == {}
    command = ["502", "-f", "0", "-device", "cpu", "--no_pbar", "-q"]
    assert main("self_train", command) == 0
    said = capsys.readouterr().out
    report = read_json(tmp_path / "results" / name / "self_training" / "SpineCLUEPlans" / "report.json")
    assert report["teacher"] == "shipped" and any(entry["kept"] for entry in report["folds"]["0"]), said
    assert "The old weights stay" in said and report["proof"]["better"] is False     # one patient left out proves nothing
    scan = tmp_path / "free" / "imagesTr" / "phantom_0001_0000.nii.gz"
    assert main("predict", ["-i", str(scan), "-o", str(tmp_path / "out"), "-d", "502", "-p", "SpineCLUEPlansSelfTrained", "-f", "0",
                            "-device", "cpu"]) == 0
