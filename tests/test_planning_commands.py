"""The planning commands, typed as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from blocks import lumbar_dataset
from example_fingerprint import fingerprint
from tiny_dataset import edited

from spineclue_v2.cli._common import main
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.planning import plan_and_preprocess as steps
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.plans.plans import GROUPS
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import CORE_STAGES, stage_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPINECLUE_HOME", str(tmp_path))
    lumbar_dataset(tmp_path / "raw" / "Dataset501_Lumbar", patients={"case_00": "a", "case_01": "a", "case_02": "b"})
    return tmp_path


def test_plan_and_preprocess_from_the_command_line(home: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["-d", "501", "-device", "cpu", "-gpu_memory_target", "1", "-np", "0", "--no_pbar"]
    assert main("plan_and_preprocess", flags) == 0
    folder = home / "preprocessed" / "Dataset501_Lumbar"
    plans = load_plans(folder / "SpineCLUEPlans.json")
    assert json.loads((folder / "dataset.json").read_text())["patients"]["case_01"] == "a"
    for stage in CORE_STAGES:
        assert PreprocessedDataset(folder / plans.stage(stage).data_fingerprint).cases == ["case_00", "case_01", "case_02"]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.b2nd")} | {
        p: p.stat().st_mtime_ns for p in folder.glob("*Plans.json")
    }
    capsys.readouterr()
    assert main("plan_and_preprocess", flags) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    said = capsys.readouterr()
    assert "3 of 3 cases are remembered" in said.err and str(folder) in said.err
    assert "spineclue_train 501 localize 0" in said.out and "memory of a training step" in said.out and "crop_size" in said.out
    assert "memory of a training step" not in said.err
    # What a number is and where it comes from.
    assert main("explain", ["501", "segment.network.crop_size"]) == 0
    said = capsys.readouterr().out
    crop = plans.stage("segment").network.crop_size
    assert said.startswith(f"segment.network.crop_size = {' x '.join(map(str, crop))} voxels") and "largest vertebra" in said
    assert "from: largest_mm" in said
    assert main("explain", ["501", "segment.network.crop_sise"]) == 2
    assert "did you mean 'segment.network.crop_size'?" in capsys.readouterr().err


def test_the_three_parts_and_another_plan(home: Path) -> None:
    assert main("extract_fingerprint", ["-d", "501", "-np", "0", "--no_pbar"]) == 0
    assert main("plan_experiment", ["-d", "501", "-pl", "SpineCLUEPaperPlanner", "-device", "cuda"]) == 0
    assert main("plan_experiment", ["-d", "501", "-device", "cpu", "-overwrite_plans_name", "Tiny"]) == 0
    assert main("preprocess", ["-d", "501", "-plans_name", "Tiny", "-c", "localize", "-np", "0", "--no_pbar"]) == 0
    folder = home / "preprocessed" / "Dataset501_Lumbar"
    assert {p.name for p in folder.glob("*Plans.json")} == {"SpineCLUEPaperPlans.json"} and (folder / "Tiny.json").is_file()
    assert [p.name for p in folder.iterdir() if p.is_dir()] == [
        load_plans(folder / "Tiny.json").stage("localize").data_fingerprint
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
    assert load_plans(path.with_name("SpineCLUEPlans_previous.json")).stage("segment").run.batch_size == 5


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
    for stage in CORE_STAGES:
        for group in GROUPS:
            assert isinstance(getattr(plan.stage(stage), group), stage_of(stage).groups[group])


def test_plans_share_a_folder_exactly_when_their_data_agree(home: Path) -> None:
    """Another batch or network: nothing is preprocessed again; another spacing: its own folder, and the first stays as it is."""
    flags = ["-d", "501", "-device", "cpu", "-np", "0", "--no_pbar"]
    assert main("plan_and_preprocess", flags) == 0
    folder = home / "preprocessed" / "Dataset501_Lumbar"
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*/*")}
    plan = json.loads((folder / "SpineCLUEPlans.json").read_text())
    edits = (("Batch", "run", "batch_size", 3), ("Deep", "network", "depth", 34), ("Coarse", "data", "spacing_mm", 2.5))
    for name, group, field, value in edits:
        content = json.loads(json.dumps(plan)) | {"plans_name": name}
        content["stages"]["identify"][group][field]["value"] = value
        (folder / f"{name}.json").write_text(json.dumps(content))
        assert main("preprocess", ["-d", "501", "-plans_name", name, "-c", "identify", "-np", "0", "--no_pbar"]) == 0
        after = {p: p.stat().st_mtime_ns for p in folder.glob("*/*")}
        assert {p: t for p, t in after.items() if p in before} == before
        new = {p.parent.name for p in after.keys() - before.keys()}
        assert new == ({load_plans(folder / "Coarse.json").stage("identify").data_fingerprint} if name == "Coarse" else set())


def test_weights_of_an_edited_network_are_not_mixed_with_older_ones(home: Path, capsys: pytest.CaptureFixture) -> None:
    """The fingerprint of the folds that are there is compared before anything is trained."""
    assert main("plan_and_preprocess", ["-d", "501", "-device", "cpu", "-np", "0", "--no_pbar"]) == 0
    path = home / "preprocessed" / "Dataset501_Lumbar" / "SpineCLUEPlans.json"
    plans, folder = load_plans(path), home / "results" / "Dataset501_Lumbar" / "IdentifyTrainer__SpineCLUEPlans__identify"
    (folder / "fold_1").mkdir(parents=True)
    (folder / "fold_1" / "checkpoint_final.pth").touch()
    plans.save(folder / "plans.json")
    edited(plans, {"identify": {"network": {"depth": 34}}}).save(path)
    assert main("train", ["501", "identify", "0", "-device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "holds folds trained with model fingerprint" in said and plans.stage("identify").model_fingerprint in said
