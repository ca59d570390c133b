"""Cross-validation over all stages: what each stage is judged on, what it refuses, how folds are put together."""
from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import crossval_dataset
import numpy as np
import pytest
import torch
from crossval_dataset import DATASET, FOLDS, NAMES, splits, use_analytic_networks

from spineclue_v2.anatomy import LEVELS
from spineclue_v2.cli import _common
from spineclue_v2.cross_validation import find_best_configuration as best_module
from spineclue_v2.cross_validation import identification_search
from spineclue_v2.cross_validation.identification_search import Settings
from spineclue_v2.cross_validation.model_settings import trained_state
from spineclue_v2.cross_validation.out_of_fold import MissingStage
from spineclue_v2.cross_validation.settings_trial import CaseGain, Verdict, judge, nested_gains
from spineclue_v2.cross_validation.validation import accumulate, key_metric, open_fold, validate_fold
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import read_labels
from spineclue_v2.inference.model import load_trained
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import CORE_STAGES, stage_folder_name, train_command
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.utilities.files import read_json, write_json

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home_once(tmp_path_factory) -> Path:
    return crossval_dataset.make(tmp_path_factory.mktemp("folds"))


@pytest.fixture
def home(home_once, tmp_path, monkeypatch) -> Path:
    """The dataset with its folds; results are the test's own copy."""
    shutil.copytree(home_once / "results", tmp_path / "results")
    monkeypatch.setenv("SPINECLUE_HOME", str(home_once))
    monkeypatch.setenv("spineclue_results", str(tmp_path / "results"))
    use_analytic_networks(monkeypatch)
    return tmp_path


def folder(home: Path, stage: str, fold: int) -> Path:
    return home / "results" / DATASET / stage_folder_name(stage) / f"fold_{fold}"


def validate(stage: str, fold: int = 0) -> dict:
    found = open_fold(DATASET, fold, CPU)
    summary = validate_fold(found, stage)
    write_json(found.folder(stage) / "summary.json", summary)
    return summary


def test_each_stage_is_judged_on_what_the_earlier_ones_found(home):
    located = validate("localize")
    assert located["spineclue"]["f1"] == 1 and set(located["foreground_mean"]) == {"found", "distance_mm"}
    segmented = validate("segment")
    assert segmented["spineclue"]["dice"] > 0.85 and segmented["spineclue"]["f1"] == 1
    assert set(segmented["foreground_mean"]) == {"Dice", "IoU", "FP", "FN", "TP", "TN", "n_pred", "n_ref"}  # nnU-Net's
    named = validate("identify")
    assert {"foreground_mean", "mean", "metric_per_case", "spineclue"} <= set(named)
    assert named["spineclue"]["scans"] == 2 and named["spineclue"]["detection"]["recall"] == 1
    for summary in (located, segmented, named):
        assert [Path(row["prediction_file"]).name.split(".")[0] for row in summary["metric_per_case"]] == splits()[0]["val"]
    # Localize finds but one vertebra of case_0 any more: from one, segment has no direction in which to look for the others.
    place = folder(home, "localize", 0) / "validation" / "case_0.json"
    content = read_json(place)
    write_json(place, content | {"vertebrae": content["vertebrae"][:-2]})
    poorer = validate("segment")
    assert poorer["spineclue"]["missed"] == segmented["spineclue"]["missed"], "findings are kept: nothing was signed anew"
    (folder(home, "segment", 0) / "validation" / "case_0.json").unlink()
    poorer = validate("segment")
    assert poorer["spineclue"]["missed"] == segmented["spineclue"]["missed"] + 2


def test_the_row_follows_the_centres_network_of_the_fold(home, home_once):
    validate("localize")
    place = folder(home, "localize", 0) / "validation" / "case_0.json"
    content = read_json(place)
    left = [vertebra | {"score": 0.4} for vertebra in content["vertebrae"][-1:]]    # one of three, and the detector is not sure of it
    write_json(place, content | {"vertebrae": left})
    before = open_fold(DATASET, 0, CPU)
    signature = before.signature("segment")
    assert len(before.followed("case_0")) == 1 and validate("segment")["spineclue"]["missed"] == 2
    crossval_dataset.train_centres(home_once, home / "results")
    after = open_fold(DATASET, 0, CPU)
    assert len(after.followed("case_0")) == 2 and after.signature("segment") != signature
    assert validate("segment")["spineclue"]["missed"] == 1, "findings of the row without centres are made again"
    checkpoint = Checkpoint.load(folder(home, "centres", 0) / "checkpoint_final.pth")
    checkpoint.meta["train_cases"] = [*checkpoint.meta["train_cases"], "case_0"]
    checkpoint.save(folder(home, "centres", 0) / "checkpoint_final.pth")
    with pytest.raises(InputError, match="was trained on 'case_0'"):
        open_fold(DATASET, 0, CPU).followed("case_0")


def test_findings_belong_to_their_weights(home):
    found = open_fold(DATASET, 0, CPU)
    first = found.segmented("case_0")
    again = open_fold(DATASET, 0, CPU).segmented("case_0")
    assert [v.body_centre for v in first] == [v.body_centre for v in again]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.mask, b.mask)
    file = folder(home, "localize", 0) / "checkpoint_final.pth"
    checkpoint = Checkpoint.load(file)
    checkpoint.network["threshold"] += 0.5  # finds nothing any more
    checkpoint.save(file)
    other = open_fold(DATASET, 0, CPU)
    assert other.signature("segment") != found.signature("segment") and other.segmented("case_0") == []


def test_a_network_that_saw_the_case_is_refused(home):
    file = folder(home, "segment", 0) / "checkpoint_final.pth"
    checkpoint = Checkpoint.load(file)
    checkpoint.meta["train_cases"] = [*checkpoint.meta["train_cases"], "case_3"]
    checkpoint.save(file)
    with pytest.raises(InputError, match="was trained on 'case_3'"):
        validate("identify")
    # The same patient under another name is no other patient.
    found = open_fold(DATASET, 1, CPU)
    found.patients = {"case_0": "anna", "case_1": "anna"}
    with pytest.raises(InputError, match="was trained on 'case_1'"):
        found.segmented("case_4")


def test_a_missing_stage_says_what_to_train_and_all_is_no_cross_validation(home):
    shutil.rmtree(folder(home, "segment", 1))
    with pytest.raises(MissingStage, match="spineclue_train 495 segment 1, then spineclue_train 495 identify 1 --val"):
        validate("identify", 1)
    with pytest.raises(InputError, match="Fold all trains on every case"):
        open_fold(DATASET, "all", CPU)


def test_folds_are_put_together_case_by_case(home, capsys):
    for stage in CORE_STAGES:
        parts = [validate(stage, fold) for fold in FOLDS]
        assert _common.main("accumulate_crossval_results", [DATASET, "-c", stage, "-f", *map(str, FOLDS)]) == 0
        place = home / "results" / DATASET / stage_folder_name(stage) / "crossval_results_folds_0_1_2"
        whole = read_json(place / "summary.json")
        assert len(whole["metric_per_case"]) == 6
        assert sorted(case["case"] for case in whole["spineclue"]["cases"]) == [f"case_{i}" for i in range(6)]
        if stage != "identify":
            for key in ("hits", "missed", "false_positives"):
                assert whole["spineclue"][key] == sum(part["spineclue"][key] for part in parts)
        if stage == "segment":
            rows = [row["Dice"] for part in parts for case in part["metric_per_case"] for row in case["metrics"].values() if row["n_ref"]]
            assert whole["spineclue"]["dice"] == pytest.approx(np.mean(rows))
            # A level that a fold never saw is absent there, as in nnU-Net: NaN, and not counted.
            assert {str(label) for label in (18, 19, 20, 21, 22)} == set(whole["mean"])
        if stage == "identify":
            assert 0 <= key_metric(stage, whole) <= 1 and whole["spineclue"]["vertebrae"] == sum(
                len(NAMES[i % 2:3 + i % 3]) for i in range(6))
            assert read_labels(place / "case_0.nii.gz").array.max() <= 28 and (place / "plans.json").is_file()
    assert "crossval_results_folds_0_1_2" in capsys.readouterr().out


def test_what_cannot_be_put_together_says_what_to_run(home, capsys):
    with pytest.raises(InputError, match="spineclue_train 495 segment 0 --val"):
        accumulate(DATASET, "segment", FOLDS)
    summary = validate("segment", 0)
    write_json(folder(home, "segment", 1) / "validation" / "summary.json", summary)
    with pytest.raises(InputError, match="validated by fold 0 and by fold 1.*give fewer folds with -f"):
        accumulate(DATASET, "segment", (0, 1))
    write_json(folder(home, "segment", 1) / "validation" / "summary.json", {"stage": "segment", "alone": {}})
    assert _common.main("accumulate_crossval_results", [DATASET, "-c", "segment", "-f", "0", "1"]) == 2
    assert "only the metrics of the stage alone" in capsys.readouterr().err


def test_a_validation_of_weights_that_are_gone_is_named(home, caplog):
    for fold in (0, 1):
        validate("segment", fold)
    accumulate(DATASET, "segment", (0, 1))
    assert "other weights" not in caplog.text
    file = folder(home, "localize", 1) / "checkpoint_final.pth"
    checkpoint = Checkpoint.load(file)
    checkpoint.network["threshold"] += 0.5
    checkpoint.save(file)
    accumulate(DATASET, "segment", (0, 1))
    (warning,) = [r.getMessage() for r in caplog.records if "other weights" in r.getMessage()]
    assert "fold 1" in warning and "stage localize" in warning and "spineclue_train 495 segment 1 --val" in warning


def test_a_network_that_does_not_say_what_it_saw_is_refused(home):
    file = folder(home, "segment", 0) / "checkpoint_final.pth"
    checkpoint = Checkpoint.load(file)
    del checkpoint.meta["train_cases"]
    checkpoint.save(file)
    with pytest.raises(InputError, match="does not say which cases it was trained on.*spineclue_train 495 segment 0"):
        validate("identify")


def test_commands_in_messages_name_plans_and_trainer(home):
    assert train_command(DATASET, "segment", 2) == "spineclue_train 495 segment 2"
    assert train_command(DATASET, "segment", 2, "Mine", "SegmentTrainer", "--val") == "spineclue_train 495 segment 2 -p Mine --val"
    wanted = "spineclue_train 495 identify 3 -p Mine -tr OtherTrainer"
    with pytest.raises(InputError, match=f"run {wanted}\\."):
        accumulate(DATASET, "identify", (3,), "Mine", "OtherTrainer")
    found = open_fold(DATASET, 0, CPU, trainers={"segment": "OtherTrainer"})
    with pytest.raises(MissingStage, match="run spineclue_train 495 segment 0 -tr OtherTrainer, then spineclue_train 495 identify 0 --val"):
        found.require("identify")
    results = home / "results" / DATASET
    for stage in ("localize", "segment"):
        shutil.copytree(results / stage_folder_name(stage), results / stage_folder_name(stage, "Mine"))
    with pytest.raises(InputError, match="spineclue_train 495 identify FOLD -p Mine -tr OtherTrainer"):
        load_trained(results, None, CPU, "Mine", {"identify": "OtherTrainer"})


@pytest.fixture
def few_candidates(monkeypatch):
    """A smaller search, and no pictures: what is tried and drawn is tested elsewhere."""
    for name, values in (("THETAS", (0.0, 0.2)), ("HOPS", (1,)), ("NEIGHBOURS", (3, 9))):
        monkeypatch.setattr(identification_search, name, values)
    monkeypatch.setattr("spineclue_v2.visualization.report.write_report", lambda *arguments: None)
    monkeypatch.setattr("spineclue_v2.utilities.parallel.default_processes", lambda *arguments: 0)


ARGUMENTS = [DATASET, "-f", *map(str, FOLDS), "-device", "cpu"]


def contents(place: Path) -> dict[Path, bytes]:
    """Every file that prediction reads, but for the plans of crossval_results, which show the plan before the search."""
    return {p: p.read_bytes() for p in place.rglob("*") if p.suffix in (".json", ".pth", ".txt")
            and not (p.name == "plans.json" and p.parent.name.startswith("crossval"))}


def test_find_best_keeps_the_plan_and_writes_commands_that_run(home, few_candidates, monkeypatch, capsys):
    """Fresh networks know nothing: whatever the search finds on six cases is no sure gain, so the model stays as it is."""
    results = home / "results" / DATASET
    model = contents(results)
    assert _common.main("find_best_configuration", [*ARGUMENTS, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "The planned settings stay" in said and "Nothing was written" in said and not (results / "inference_information.json").exists()
    assert _common.main("find_best_configuration", ARGUMENTS) == 0
    said, text = capsys.readouterr().out, (results / "inference_instructions.txt").read_text()
    assert text in said and "The planned settings stay" in said
    assert [p for p, content in model.items() if p.read_bytes() != content] == []
    information = read_json(results / "inference_information.json")
    assert information["trainers"]["identify"] == "IdentifyTrainer" and set(information["figures"]) == set(CORE_STAGES)
    assert information["settings"] == information["settings_planned"] and not information["written"]
    kept = [row for row in information["settings_tried"] if row["kept"]]
    assert [row["id_rate"] for row in kept] == sorted(row["id_rate"] for row in kept)
    # Once more gives the same, and validates nothing again.
    before = contents(results)
    monkeypatch.setattr(best_module, "validate_fold", None)
    assert _common.main("find_best_configuration", ARGUMENTS) == 0
    assert [p for p, content in before.items() if p.read_bytes() != content] == []
    # The commands, as they stand.
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) == 2
    for line in lines:
        command, *rest = shlex.split(line)
        assert _common.main(command.removeprefix("spineclue_"), rest) == 0
    predicted = results / "predicted_imagesTr"
    maps = [path for path in predicted.glob("*.nii.gz") if not path.name.endswith("_parts.nii.gz")]
    assert len(maps) == 6 and (predicted / "summary.json").is_file()
    assert read_json(predicted / "case_0.json")["plans"]["source"].endswith("folds 0, 1, 2")


def test_find_best_writes_a_sure_gain_and_undo_takes_it_back(home, few_candidates, monkeypatch, capsys):
    results, place = home / "results" / DATASET, home / "results" / DATASET / stage_folder_name("identify")
    start = load_plans(place / "plans.json").stage("identify").run
    wanted = Settings(0.2, 1, 3, {"shape": 2.0, "geometry": 0.5}, {"t13": -6.0})
    monkeypatch.setattr(best_module, "choose", lambda rows, planned: (wanted, [{"settings": planned.to_json(), "kept": True}]))
    sure = Verdict(0.5, 0.9, (0.1, 0.5), True, "the interval of the gain lies above 0; 0 of 6 cases lose")
    monkeypatch.setattr(best_module, "judge", lambda gains: sure)
    monkeypatch.setattr(best_module, "nested_gains", lambda *arguments: [])
    checkpoints = {fold: Checkpoint.load(folder(home, "identify", fold) / "checkpoint_final.pth") for fold in FOLDS}
    assert _common.main("find_best_configuration", [*ARGUMENTS, "--dry-run"]) == 0
    assert "would be written" in capsys.readouterr().out and load_plans(place / "plans.json").stage("identify").run == start
    assert _common.main("find_best_configuration", ARGUMENTS) == 0
    assert "--undo takes them back" in capsys.readouterr().out
    run = load_plans(place / "plans.json").stage("identify").run
    assert (run.theta, run.hops, run.neighbours, run.classifier_weights, run.decoder_penalties) == (
        0.2, 1, 3, wanted.weights, wanted.penalties)
    phi = [Checkpoint.load(folder(home, "identify", fold) / "checkpoint_final.pth").extra["phi"] for fold in FOLDS]
    assert phi[0].shape == (3, 24, 24) and torch.equal(phi[0], phi[2])
    before = contents(results)
    assert _common.main("find_best_configuration", ARGUMENTS) == 0
    assert [p for p, content in before.items() if p.read_bytes() != content] == [], "once more gives the same"
    capsys.readouterr()
    assert _common.main("find_best_configuration", [DATASET, "--undo"]) == 0
    assert place.name in capsys.readouterr().out and load_plans(place / "plans.json").stage("identify").run == start
    for fold, checkpoint in checkpoints.items():
        now = Checkpoint.load(folder(home, "identify", fold) / "checkpoint_final.pth")
        assert now.meta == checkpoint.meta and now.extra.keys() == checkpoint.extra.keys()
    assert _common.main("find_best_configuration", [DATASET, "--undo"]) == 2
    assert "nothing to undo" in capsys.readouterr().err
    # A later search that is not sure of its choice takes back an earlier one, too.
    assert _common.main("find_best_configuration", ARGUMENTS) == 0
    monkeypatch.setattr(best_module, "judge", lambda gains: replace(sure, taken=False, reason="the interval of the gain reaches 0"))
    assert _common.main("find_best_configuration", ARGUMENTS) == 0
    assert load_plans(place / "plans.json").stage("identify").run == start


def test_settings_of_other_folds_name_the_cases_left_out(home, few_candidates):
    """The nested estimate asks the code that predicts: its count of right names is that of the fold's validation."""
    wanted = {case["case"]: sum(row["predicted"] == row["level"] for row in case["vertebrae"])
              for fold in FOLDS for case in validate("identify", fold)["spineclue"]["cases"]}
    opened = [open_fold(DATASET, fold, CPU) for fold in FOLDS]
    run = opened[0].plan("identify").run
    start = Settings(run.theta, run.hops, run.neighbours, dict(run.classifier_weights), dict(run.decoder_penalties))
    rows = [best_module._row(found, case) for found in opened for case in found.cases]
    gains = nested_gains(opened, {str(found.fold): trained_state(found) for found in opened}, rows, start)
    assert {gain.case: gain.planned for gain in gains} == wanted
    assert {gain.case: gain.true for gain in gains} == {f"case_{i}": len(NAMES[i % 2:3 + i % 3]) for i in range(6)}


def test_a_gain_is_sure_only_when_enough_patients_share_it():
    def gains(*changes: int, patients: int | None = None) -> list[CaseGain]:
        return [CaseGain(f"c{i}", f"p{i % (patients or len(changes))}", 5, 5 + change, 10) for i, change in enumerate(changes)]

    sure = judge(gains(*[3] * 8, *[0] * 4))
    assert sure.taken and sure.planned == 0.5 and sure.chosen == pytest.approx(0.7) and 0 < sure.interval[0] < 0.2 < sure.interval[1]
    assert not judge(gains(5, 5, 5, 5)).taken, "four scans, the number that was seen to do harm"
    assert not judge(gains(*[5] * 12, patients=4)).taken, "twelve scans of four patients are four"
    assert "reaches 0" in judge(gains(*[2, -2] * 10, 1)).reason
    assert "no more" in judge(gains(*[0] * 20)).reason and judge(gains(*[0] * 20)).interval == (0.0, 0.0)


def test_find_best_compares_trainers_and_later_stages_follow_the_choice(home, few_candidates):
    results = home / "results" / DATASET
    # A detector that finds nothing, and a segmenter whose validation was made with it.
    shutil.copytree(results / stage_folder_name("localize"), results / "BlindTrainer__SpineCLUEPlans__localize")
    for fold in FOLDS:
        file = results / "BlindTrainer__SpineCLUEPlans__localize" / f"fold_{fold}" / "checkpoint_final.pth"
        checkpoint = Checkpoint.load(file)
        checkpoint.network["threshold"] += 0.5
        checkpoint.save(file)
        found = open_fold(DATASET, fold, CPU, trainers={"localize": "BlindTrainer"})
        write_json(found.folder("segment") / "summary.json", validate_fold(found, "segment"))
    information = best_module.find_best_configuration(DATASET, folds=FOLDS)
    assert set(information["candidates"]["SpineCLUEPlans"]["identify"]) == {"IdentifyTrainer"}
    assert information["candidates"]["SpineCLUEPlans"]["localize"] == {"LocalizeTrainer": 1.0, "BlindTrainer": 0.0}
    assert information["trainers"]["localize"] == "LocalizeTrainer" and information["figures"]["segment"] > 0.85
    with pytest.raises(InputError, match="Stage localize with SpineCLUEPlans has not finished fold 4.*spineclue_train 495 localize 4"):
        best_module.find_best_configuration(DATASET, folds=(0, 4))
    assert not (results / stage_folder_name("localize") / "crossval_results_folds_0_4").exists()
    for wrong in ("IdentfyTrainer", "AppearanceTrainer"):  # the appearance classifier names no scan by itself
        with pytest.raises(InputError, match=f"'{wrong}' .*there are: BlindTrainer, IdentifyTrainer, LocalizeTrainer, SegmentTrainer"):
            best_module.find_best_configuration(DATASET, trainers=["LocalizeTrainer", wrong], folds=FOLDS)


def test_the_weights_of_all_classifiers_are_searched(monkeypatch):
    """A shape classifier that tends to the next level, and surroundings that do not: the search sees and weighs both."""
    from spineclue_v2.cross_validation.identification_search import Row, Settings, choose, fitted_weights

    rows = []
    monkeypatch.setattr(identification_search, "THETAS", ())  # no messages: the weights alone
    for i in range(6):
        names = np.array(LEVELS[9 + i % 3:15 + i % 3])
        numbers = np.array([LEVELS.index(n) for n in names])
        shape, appearance = np.full((6, 24), 0.03, dtype=np.float32), np.full((6, 25), 0.03)
        shape[np.arange(6), numbers], shape[np.arange(6), numbers + 1] = 0.25, 0.3
        appearance[np.arange(6), numbers] = 0.4
        shape /= shape.sum(1, keepdims=True)
        entropy = -(shape * np.log(shape)).sum(1)
        centres = np.stack([np.zeros(6), np.zeros(6), -30.0 * np.arange(6)], 1)
        rows.append(Row(f"case_{i}", str(i % 3), shape, entropy, centres, names, 0, {"appearance": np.log(appearance)}))
    start = Settings(0.0, 1, 3, {"shape": 1.0, "appearance": 0.2}, {})
    weights = fitted_weights(rows, start)
    assert weights["shape"] != 1.0 and weights["appearance"] > 0.3
    settings, table = choose(rows, start)
    weighed = next(row for row in table if row.get("changed") == "weights")
    assert weighed["kept"] and weighed["log_posterior_of_true_paths"] > table[0]["log_posterior_of_true_paths"]
    assert settings.weights["appearance"] == pytest.approx(weights["appearance"], abs=0.05)


def test_settings_are_judged_on_folds_left_out():
    """Rows on which the shift by one is always right: fusion and decoder cannot be judged by what they were fitted to."""
    from spineclue_v2.cross_validation.identification_search import Row, Settings, choose, score_settings

    rng = np.random.default_rng(0)
    rows = []
    for i in range(6):
        names = np.array(LEVELS[10 + i % 3:16 + i % 3])
        probabilities = np.full((6, 24), 0.02, dtype=np.float32)
        probabilities[np.arange(6), [LEVELS.index(n) for n in names]] = 0.3 + 0.2 * rng.random(6)
        probabilities /= probabilities.sum(1, keepdims=True)
        entropy = -(probabilities * np.log(probabilities)).sum(1)
        centres = np.stack([np.zeros(6), np.zeros(6), -30.0 * np.arange(6)], 1)
        rows.append(Row(f"case_{i}", str(i % 3), probabilities, entropy, centres, names, missed=i % 2))
    start = Settings(0.1, 3, 7, {"geometry": 1.0}, {})
    settings, table = choose(rows, start)
    assert score_settings(rows, start).id_rate == pytest.approx(36 / 39)  # all found are right, three were missed
    assert table[0]["id_rate"] == pytest.approx(36 / 39) and all(row["id_rate"] <= 36 / 39 for row in table)
    assert {row.get("changed") for row in table[1:]} >= {"theta", "penalties"}
    assert not any(row.get("changed") == "weights" for row in table), "no other classifier: nothing to weigh"
    wrong = [Row(r.case, r.fold, r.probabilities, r.entropy, r.centres, np.roll(r.names, 1), 0) for r in rows if r.fold == "0"]
    worse = score_settings([*wrong, *(r for r in rows if r.fold != "0")], start)
    assert worse.id_rate < 0.7 and worse.log_posterior < score_settings(rows, start).log_posterior
    assert settings.penalties == {} or settings.penalties["evidence"] > 0
