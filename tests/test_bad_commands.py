"""Commands given bad datasets, plans, checkpoints and places: exit code 2, one sentence, nothing half-written."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bad_scans import BAD_SCANS, ct, save

from spineclue_v2 import anatomy
from spineclue_v2.cli import _common
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import CORE_STAGES
from spineclue_v2.utilities import paths

DATASET = "Dataset501_Blocks"


def write_dataset(folder: Path, cases: int = 2) -> Path:
    """A raw dataset of block vertebrae L1..L4 with arches, 2 mm voxels."""
    labels = np.zeros((56, 44, 40), np.uint8)
    for number, level in enumerate(("L4", "L3", "L2", "L1")):
        low = 2 + 13 * number
        labels[low:low + 10, 6:20, 10:30] = anatomy.LABEL_OF_NAME[level]      # body
        labels[low + 3:low + 8, 20:34, 17:23] = anatomy.LABEL_OF_NAME[level]  # arch, towards the back
    for place in ("imagesTr", "labelsTr"):
        (folder / place).mkdir(parents=True)
    for number in range(cases):
        scan = np.where(labels > 0, 400, 40) + np.random.default_rng(number).normal(0, 30, labels.shape)
        save(scan.astype(np.int16), folder / "imagesTr" / f"case{number}_0000.nii.gz", (2.0, 2.0, 2.0))
        save(labels, folder / "labelsTr" / f"case{number}.nii.gz", (2.0, 2.0, 2.0))
    content = {"channel_names": {"0": "CT"}, "labels": anatomy.dataset_labels(), "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def raw() -> Path:
    return write_dataset(paths.raw_folder() / DATASET)


@pytest.fixture(scope="module")
def planned_once(tmp_path_factory) -> Path:
    """A home folder in which the dataset is planned and preprocessed."""
    home = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPINECLUE_HOME", str(home))
        write_dataset(home / "raw" / DATASET)
        assert run("plan_and_preprocess", "-d", "501", "-np", "0", "-device", "cpu", "-gpu_memory_target", "1", "--no_pbar") == 0
    return home


@pytest.fixture
def planned(planned_once) -> Path:
    """A copy of that home, ours to spoil; returns the dataset's preprocessed folder."""
    shutil.copytree(planned_once, paths.home(), dirs_exist_ok=True)
    return paths.preprocessed_folder() / DATASET


def run(command: str, *arguments: object) -> int:
    try:
        return _common.main(command, [str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def refused(capsys, command: str, *arguments: object) -> str:
    """The sentence with which the command refuses its arguments."""
    capsys.readouterr()
    code = run(command, *arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2, lines
    assert len(lines) == 1 and len(lines[0]) < 700
    return lines[0]


PLANNING = ("plan_and_preprocess", "-d", 501, "-np", 0, "-device", "cpu", "-gpu_memory_target", 1, "--no_pbar")


@pytest.mark.parametrize("arguments", [
    ("plan_and_preprocess", "-d", 777), ("preprocess", "-d", 777), ("train", 777, "identify", 0),
    ("plan_experiment", "-d", "Dataset777_None"), ("predict", "-i", "SCAN", "-o", "OUT", "-d", 777),
], ids=lambda a: a[0])
def test_an_unknown_dataset_says_which_are_known(raw, capsys, tmp_path, arguments):
    scan = save(ct(), tmp_path / "scan.nii.gz")
    sentence = refused(capsys, *[{"SCAN": scan, "OUT": tmp_path / "out"}.get(a, a) for a in arguments])
    assert "777" in sentence and DATASET in sentence
    assert not (tmp_path / "out").exists()


def test_labels_on_another_grid_are_refused_by_name(raw, capsys):
    save(np.full((56, 44, 40), 20, np.uint8), raw / "labelsTr" / "case1.nii.gz", (2.0, 2.0, 2.5))
    sentence = refused(capsys, *PLANNING)
    assert "case1" in sentence and "grid" in sentence


def test_label_values_that_dataset_json_does_not_name_are_refused(raw, capsys):
    labels = np.zeros((56, 44, 40), np.uint8)
    labels[5:15, 5:15, 5:15] = 77
    save(labels, raw / "labelsTr" / "case1.nii.gz", (2.0, 2.0, 2.0))
    sentence = refused(capsys, *PLANNING)
    assert "case1" in sentence and "77" in sentence


@pytest.mark.parametrize("spoil, reason", [
    (lambda f: (f / "dataset.json").unlink(), "dataset.json"),
    (lambda f: (f / "dataset.json").write_text("{broken"), "not valid JSON"),
    (lambda f: (f / "dataset.json").write_text('{"labels": {}}'), "channel_names"),
    (lambda f: (f / "labelsTr" / "case1.nii.gz").unlink(), "label map"),
    (lambda f: shutil.rmtree(f / "imagesTr"), "imagesTr"),
    (lambda f: (f / "dataset.json").write_text((f / "dataset.json").read_text().replace('"numTraining": 2', '"numTraining": 5')),
     "numTraining"),
], ids=["no dataset.json", "broken dataset.json", "keys missing", "label missing", "no images", "wrong number"])
def test_incomplete_datasets_are_refused(raw, capsys, spoil, reason):
    spoil(raw)
    assert reason in refused(capsys, *PLANNING)
    assert not list(paths.preprocessed_folder().rglob("*Plans.json"))


def test_planners_budgets_and_trainers_that_do_not_exist(raw, planned, capsys):
    assert "SpineCLUEPlanner" in refused(capsys, "plan_experiment", "-d", 501, "-pl", "SpineCLUEPlaner")
    assert "positive" in refused(capsys, "plan_experiment", "-d", 501, "-gpu_memory_target", -1)
    assert "NoSuchTrainer" in refused(capsys, "train", 501, "identify", 0, "-tr", "NoSuchTrainer")
    assert "Fold" in refused(capsys, "train", 501, "identify", "first", "-device", "cpu")
    assert "invalid choice" in refused(capsys, "train", 501, "identity", 0)


def test_training_without_plan_or_data_says_what_to_run(raw, planned, capsys):
    plan = planned / "SpineCLUEPlans.json"
    for folder in planned.iterdir():
        if folder.is_dir() and list(folder.glob("*.b2nd")):
            shutil.rmtree(folder)
    assert "spineclue_p" in refused(capsys, "train", 501, "identify", 0, "-device", "cpu")
    plan.unlink()
    assert "spineclue_plan" in refused(capsys, "train", 501, "identify", 0, "-device", "cpu")
    assert not list(paths.results_folder().rglob("*.pth"))


@pytest.mark.parametrize("edit, reason", [
    (lambda stage: stage["run"].__setitem__("batch_sise", {"value": 2}), "did you mean 'batch_size'"),
    (lambda stage: stage["run"].__setitem__("batch_size", {"value": "two"}), "batch_size"),
    (lambda stage: stage["network"].clear(), "missing"),
], ids=["unknown key", "wrong type", "emptied"])
def test_a_plan_that_was_edited_wrongly(planned, capsys, edit, reason):
    file = planned / "SpineCLUEPlans.json"
    content = json.loads(file.read_text())
    edit(content["stages"]["identify"])
    file.write_text(json.dumps(content))
    assert reason in refused(capsys, "train", 501, "identify", 0, "-device", "cpu")


@pytest.fixture(scope="module")
def trained_once(planned_once) -> Path:
    """A results folder with freshly initialised networks as fold 0: enough for whatever is refused before they are asked."""
    from spineclue_v2.inference.model import build_network
    from spineclue_v2.stages.registry import stage_folder_name
    from spineclue_v2.training.checkpoint import Checkpoint

    plans = load_plans(planned_once / "preprocessed" / DATASET / "SpineCLUEPlans.json")
    results = planned_once.parent / "trained" / DATASET
    for stage in CORE_STAGES:
        folder = results / stage_folder_name(stage)
        plans.save(folder / "plans.json")
        meta = {"stage": stage, "model_fingerprint": plans.stage(stage).model_fingerprint}
        Checkpoint(build_network(stage, plans).state_dict(), meta).save(folder / "fold_0" / "checkpoint_final.pth")
    return results


@pytest.fixture
def checkpoints(planned, trained_once) -> dict[str, Path]:
    """A copy of those folders, ours to spoil; the checkpoint of each stage."""
    shutil.copytree(trained_once, paths.results_folder() / DATASET)
    return {stage: next((paths.results_folder() / DATASET).glob(f"*__{stage}/fold_0/checkpoint_final.pth")) for stage in CORE_STAGES}


def test_models_that_were_never_trained(planned, capsys, tmp_path):
    scan = save(ct(), tmp_path / "scan.nii.gz")
    assert "spineclue_train" in refused(capsys, "predict", "-i", scan, "-o", tmp_path / "out", "-d", 501, "-device", "cpu")
    assert not (tmp_path / "out").exists()


def test_folds_that_were_never_trained(checkpoints, capsys, tmp_path):
    scan = save(ct(), tmp_path / "scan.nii.gz")
    predict = ("predict", "-i", scan, "-o", tmp_path / "out", "-d", 501, "-device", "cpu")
    sentence = refused(capsys, *predict, "-f", 3)
    assert "old 3" in sentence and "spineclue_train 501" in sentence
    checkpoints["segment"].unlink()
    assert "no fold that every stage has finished" in refused(capsys, *predict)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["half", "text", "empty", "other stage", "other plan", "code"])
def test_broken_or_foreign_checkpoints(checkpoints, capsys, tmp_path, how):
    import torch

    from spineclue_v2.training.checkpoint import Checkpoint

    file, reason = checkpoints["localize"], "damaged"
    if how == "other stage":
        file.write_bytes(checkpoints["identify"].read_bytes())
        reason = "stage 'identify'"
    elif how == "other plan":
        checkpoint = Checkpoint.load(file)
        reason = checkpoint.meta["model_fingerprint"]
        checkpoint.meta["model_fingerprint"] = "0123456789abcdef"
        checkpoint.save(file)
    elif how == "code":
        torch.save({"network_weights": {}, "meta": Trap(tmp_path / "sprung")}, file)
    else:
        file.write_bytes({"half": file.read_bytes()[:5000], "text": b"no checkpoint", "empty": b""}[how])
    scan = save(ct(), tmp_path / "scan.nii.gz")
    sentence = refused(capsys, "predict", "-i", scan, "-o", tmp_path / "out", "-d", 501, "-device", "cpu")
    assert str(file) in sentence and reason in sentence
    assert how != "other plan" or "0123456789abcdef" in sentence
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out").exists()


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "the trap is sprung")


@pytest.fixture(scope="module")
def untrained_model(trained_once):
    import torch

    from spineclue_v2.inference.model import load_trained

    return load_trained(trained_once, ["0"], torch.device("cpu"))


@pytest.fixture
def ready(planned, untrained_model, monkeypatch) -> tuple[str, ...]:
    """Arguments of a prediction with an untrained model, loaded once for all tests."""
    from spineclue_v2.inference import model

    (paths.results_folder() / DATASET).mkdir(parents=True)
    monkeypatch.setattr(model, "load_trained", lambda *a, **k: untrained_model)
    return ("-d", "501", "-f", "0", "-device", "cpu", "--disable_progress_bar", "--no_report")


def results(folder: Path) -> list[str]:
    """Files of `folder` that belong to a case."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and not p.name.startswith(("plans", "predict_args")))


def test_predicting_any_bad_scan_alone_is_refused_and_writes_no_result(ready, capsys, tmp_path):
    for kind, (make, _) in BAD_SCANS.items():
        folder = tmp_path / kind.replace(" ", "_")
        folder.mkdir()
        sentence = refused(capsys, "predict", "-i", make(folder), "-o", tmp_path / "out", *ready)
        assert sentence.count("\n") == 0, kind
    assert results(tmp_path / "out") == []


def test_a_bad_scan_among_others_is_listed_at_the_end(ready, capsys, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a", "c"):
        save(ct((30, 40, 40)), scans / f"{name}.nii.gz", (3.0, 3.0, 3.0))
    (scans / "b.nii.gz").write_text("no scan")
    assert run("predict", "-i", scans, "-o", tmp_path / "out", *ready) == 1
    said = capsys.readouterr()
    assert "b.nii.gz is no NIfTI file" in said.out + said.err
    assert {"a.nii.gz", "a.json", "c.nii.gz", "c.json"} <= set(results(tmp_path / "out"))
    assert not [name for name in results(tmp_path / "out") if name.startswith(("b", "."))]


def test_places_and_parts_that_cannot_be(ready, capsys, tmp_path):
    scan = save(ct(), tmp_path / "scan.nii.gz")
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")  # the superuser ignores permissions, but not this
    for output in (occupied, occupied / "below"):
        assert str(occupied) in refused(capsys, "predict", "-i", scan, "-o", output, *ready)
    assert "-part_id" in refused(capsys, "predict", "-i", scan, "-o", tmp_path / "out", *ready, "-num_parts", 2, "-part_id", 2)
    assert "add -o FOLDER" in refused(capsys, "predict", "-i", scan)
    assert "not allowed with" in refused(capsys, "predict", "-i", scan, "-o", "out", "-d", 501, "-m", "model")
    assert occupied.read_text() == "a file"


def test_a_device_that_is_not_there(ready, capsys, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    scan = save(ct(), tmp_path / "scan.nii.gz")
    sentence = refused(capsys, "predict", "-i", scan, "-o", tmp_path / "out", "-d", 501, "-device", "cuda")
    assert "-device cpu" in sentence


ON_FULL_DISK = """
import resource, sys
from spineclue_v2.cli._common import main
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
sys.exit(main(sys.argv[1], sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a Unix matter")
def test_planning_on_a_full_disk(raw):
    result = subprocess.run([sys.executable, "-c", ON_FULL_DISK, *map(str, PLANNING)], capture_output=True, encoding="utf-8")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1 and errors[0].startswith(f"error: Cannot write {paths.preprocessed_folder()}")
    assert [path for path in paths.preprocessed_folder().rglob("*") if path.is_file()] == []


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_older_one(tmp_path):
    program = ("import resource, sys, torch\nfrom pathlib import Path\nfrom spineclue_v2.errors import InputError\n"
               "from spineclue_v2.training.checkpoint import Checkpoint\n"
               "Checkpoint({'w': torch.ones(3)}, {'epoch': 1}).save(Path(sys.argv[1]))\n"
               "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
               "try:\n    Checkpoint({'w': torch.ones(100_000)}, {'epoch': 2}).save(Path(sys.argv[1]))\n"
               "except InputError as error:\n    print(error)\nprint(Checkpoint.load(Path(sys.argv[1])).meta['epoch'])")
    file = tmp_path / "checkpoint_latest.pth"
    result = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    sentence, epoch = result.stdout.splitlines()
    assert sentence.startswith("Cannot write") and str(file) in sentence
    assert epoch == "1"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
