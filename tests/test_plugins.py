"""Packages of other people that are broken: one sentence with the remedy, exit code 2, and only where they are needed."""
from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from plugins import STAGE, found_in, write_package
from small_model import DATASET, write_results
from tiny_dataset import CPU
from tiny_dataset import DATASET as TINY

from spineclue_v2.cli import _common
from spineclue_v2.errors import InputError
from spineclue_v2.inference.model import load_shipped, load_trained
from spineclue_v2.model_sharing.export_model import export_model
from spineclue_v2.model_sharing.install_model import install_model
from spineclue_v2.stages import registry
from spineclue_v2.stages.plan_files import load_plans, plans_from_json
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.utilities import paths
from spineclue_v2.utilities.files import read_json, write_json
from spineclue_v2.utilities.plugins import is_importable


def refused(capsys: pytest.CaptureFixture[str], command: str, *words: str) -> str:
    """The one sentence with which a command ends that exits with 2."""
    assert _common.main(command, list(words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("source, sentence", [
    ("import no_such_library", "Stage 'mine' (theirs:STAGE of package theirs 1.0) cannot be imported (ModuleNotFoundError: No module named "
     "'no_such_library'); repair or uninstall that package"),
    ("raise SystemError('two\\nlines')", "cannot be imported (SystemError: two lines); repair or uninstall that package"),
    ("", "cannot be imported (AttributeError: module 'theirs' has no attribute 'STAGE'"),
    ("STAGE = 'a text'", "is theirs:STAGE of package theirs 1.0, which is no Stage of that name; make it a spineclue_v2.Stage(name='mine'"),
    (STAGE + "STAGE = stage(name='other')", "which is no Stage of that name"),
    (STAGE + "STAGE = stage(modality='PET')", "Stage 'mine' has modality 'PET'; expected CT or MR"),
    (STAGE + "STAGE = stage(**LEARNT | {{'builder': None}})", "Stage 'mine' has a trainer but no builder; a stage that learns needs all"),
    (STAGE + "STAGE = stage(**LEARNT | {{'run': None, 'data': None}})", "has a trainer but no data, run; a stage that learns needs all"),
    (STAGE + "STAGE = stage(**LEARNT | {{'run': dict}})", "for its group run; expected a dataclass of planned values"),
    (STAGE + "STAGE = stage(predictor=print)", "has predictor <built-in function print>; expected a text 'module:name'"),
    (STAGE + "STAGE = stage(after='nothing')", "Stage 'mine' follows 'nothing', which is no stage that can be used; known: localize, "),
    (STAGE + "STAGE = stage(**LEARNT)", "Stage 'mine': theirs:predict cannot be loaded (AttributeError: module 'theirs' has no attribute "
     "'predict'); a stage needs each part that it names"),
    (STAGE + "def predict(*_): pass\ndef build(plans): pass\nTrainer = 7\nSTAGE = stage(**LEARNT)",
     "Trainer 'Trainer' of stage 'mine' is 7; expected a subclass of spineclue_v2.BaseTrainer"),
])
def test_a_stage_that_does_not_work(tmp_path, tiny, capsys, source, sentence):
    write_package(tmp_path, "theirs", source.replace("{package}", "theirs").replace("{name}", "mine").replace("{{", "{").replace("}}", "}"),
                  stages="mine=STAGE")
    with found_in(tmp_path):
        assert sentence in refused(capsys, "train", TINY, "mine", "0", "-device", "cpu")


def test_what_does_not_need_the_stage_goes_on_with_a_warning(tmp_path, caplog):
    write_package(tmp_path, "theirs", "import no_such_library", "mine=STAGE", "Theirs=Theirs", "TheirPlanner=TheirPlanner")
    with found_in(tmp_path), caplog.at_level(logging.WARNING):
        assert list(load_shipped(CPU).stages) == ["localize", "centres", "segment", "appearance", "ribs", "geometry", "identify"]
    (said,) = {record.getMessage() for record in caplog.records if "mine" in record.getMessage()}
    assert "of package theirs 1.0) cannot be imported" in said and said.endswith("Whatever needs no stage 'mine' goes on without it.")


@pytest.mark.parametrize("name, others", [("twin", "theirs:STAGE of package theirs 1.0 and yours:STAGE of package yours 1.0"),
                                          ("segment", "spineclue_v2.stages.segment:STAGE of spineclue_v2 itself and theirs:STAGE")])
def test_two_stages_of_one_name(tmp_path, tiny, capsys, name, others):
    for package in ("theirs", "yours"):
        write_package(tmp_path, package, STAGE.format(name=name, package=package) + "STAGE = stage()", stages=f"{name}=STAGE")
    with found_in(tmp_path):
        said = refused(capsys, "train", TINY, name, "0", "-device", "cpu")
        assert f"Two stages are called '{name}' ({others}" in said and "rename one" in said
        if name == "twin":
            assert [stage.name for stage in registry.pipeline_of("MR")] == ["hybrid_2d", "hybrid_3d"]
        else:  # every model needs that one
            with pytest.raises(InputError, match="Two stages are called 'segment'"):
                registry.pipeline_of("CT")


def test_stages_of_others_find_their_places_whatever_the_order_of_their_packages(tmp_path):
    places = (("aaa", "third", "second"), ("bbb", "second", "segment"), ("ccc", "last", ""), ("ddd", "first", "segment"))
    for package, name, after in places:
        write_package(tmp_path, package, STAGE.format(name=name, package=package) + f"STAGE = stage(after='{after}')", f"{name}=STAGE")
    with found_in(tmp_path):
        names = [stage.name for stage in registry.pipeline_of("CT")]
        assert not any(registry.stage_of(name).required for name in ("first", "second", "third", "last"))
    assert names[2:6] == ["segment", "second", "third", "first"] and names[-1] == "last"


TRAINERS = """
from spineclue_v2.stages.segment.trainer import SegmentTrainer
class Good(SegmentTrainer): pass
class Wrong(SegmentTrainer): stage = "identify"
Alias = Good
"""


@pytest.mark.parametrize("name, sentence", [
    ("Nobody", "Stage 'segment' has no trainer 'Nobody'; known: SegmentTrainer, SegmentTrainerSmallCrops, Alias, Good, No, Wrong. Trainers "
     "of other packages are found through entry points"),
    ("Wrong", "Trainer 'Wrong' trains stage 'identify', not 'segment'"),
    ("Alias", "Trainer 'Alias' is the class Good; folders and checkpoints hold the class's name, so call both alike"),
    ("No", "Trainer 'No' (theirs:No of package theirs 1.0) cannot be imported (AttributeError"),
])
def test_trainers_that_do_not_work(tmp_path, tiny, capsys, name, sentence):
    write_package(tmp_path, "theirs", TRAINERS, trainers="Good=Good Wrong=Wrong Alias=Alias No=No")
    with found_in(tmp_path):
        assert registry.trainer_class("segment", "Good").__name__ == "Good"
        assert sentence in refused(capsys, "train", TINY, "segment", "0", "-tr", name, "-device", "cpu")


def test_planners_that_do_not_work(tmp_path, tiny, capsys):
    write_package(tmp_path, "theirs", "NoPlanner = 7", planners="NoPlanner=NoPlanner Gone=Gone Twin=NoPlanner")
    write_package(tmp_path, "yours", "", planners="Twin=Twin")
    with found_in(tmp_path):
        for name, sentence in (("NoPlanner", "Planner 'NoPlanner' is 7; expected a class with a method plan"),
                               ("Gone", "Planner 'Gone' (theirs:Gone of package theirs 1.0) cannot be imported (AttributeError"),
                               ("Twin", "Two planners are called 'Twin' (theirs:NoPlanner of package theirs 1.0 and yours:Twin"),
                               ("Nobody", "Planner 'Nobody' is unknown; known: FineTunePlanner, Gone, NoPlanner, SSHSNetPaperPlanner, ")):
            assert sentence in refused(capsys, "plan_experiment", "-d", TINY, "-pl", name, "-device", "cpu")


PLANNED = STAGE + """
def predict(findings, model, context): return findings
def plan(planner, stages): return {answer}
STAGE = stage(plan="{package}:plan", **LEARNT)
"""


@pytest.mark.parametrize("answer", ["7", "None", "stages['appearance']"])
def test_a_stage_plans_itself(tmp_path, tiny, answer):
    from spineclue_v2.planning.planner import SpineCLUEPlanner

    write_package(tmp_path, "theirs", PLANNED.format(name="mine", package="theirs", answer=answer), "mine=STAGE")
    with found_in(tmp_path):
        planner = SpineCLUEPlanner("raw", read_json(tiny / "dataset_fingerprint.json"), 1, "cpu")
        if answer == "7":
            with pytest.raises(InputError, match="Stage 'mine': its theirs:plan gave int; expected the StagePlan"):
                planner.plan()
        else:
            plans = planner.plan()
            assert ("mine" in plans.stages) == (answer != "None")
            plans_from_json(json.loads(json.dumps(plans.to_json()))).stage("segment")


def test_a_plan_with_a_stage_of_a_package_that_is_not_here(tmp_path, tiny):
    content = read_json(tiny / "SpineCLUEPlans.json")
    theirs = {"package": "gone_package", "data": {}, "network": {}, "run": {}}
    write_json(tmp_path / "plans.json", content | {"stages": content["stages"] | {"volume": theirs}})
    plans = load_plans(tmp_path / "plans.json")
    assert plans == load_plans(tiny / "SpineCLUEPlans.json") and "volume" not in plans.stages
    with pytest.raises(InputError, match="has stage 'volume' of package 'gone_package', which cannot be used here; install or repair"):
        plans.stage("volume")
    plans.save(tmp_path / "again.json")
    assert read_json(tmp_path / "again.json")["stages"]["volume"] == theirs


@pytest.mark.parametrize("package, is_here", [("numpy", True), ("__main__", True), ("gone_package", False), ("../etc", False)])
def test_whether_a_package_is_here(package, is_here):
    assert is_importable(package) == is_here


def trained_elsewhere(folder: Path) -> Path:
    """The stage folder of segment, as a trainer left it whose package is not here."""
    place = next(folder.glob("*__segment"))
    for file in place.glob("fold_*/checkpoint_final.pth"):
        saved = Checkpoint.load(file)
        saved.meta |= {"trainer": "TheirTrainer", "package": "gone_package"}
        saved.save(file)
    return place.rename(place.with_name("TheirTrainer__SpineCLUEPlans__segment"))


def test_a_model_of_a_trainer_that_is_not_here(capsys):
    folder = write_results(paths.results_folder())
    place = trained_elsewhere(folder)
    with pytest.raises(InputError, match="train stage segment first: spineclue_train 501 segment FOLD, or choose the trainer that did with "
                                         "-tr segment=TheirTrainer"):
        load_trained(folder, None, CPU)
    said = refused(capsys, "export_model", "-d", "501", "-tr", "segment=TheirTrainer", "-o", str(folder / "model.zip"))
    assert f"{place}/fold_0/checkpoint_final.pth was trained by TheirTrainer of package 'gone_package', which is not installed" in said
    assert said.endswith("so install it.")


def test_a_model_with_a_stage_that_is_not_here(tmp_path, capsys):
    folder = write_results(paths.results_folder())
    place = folder / "VolumeTrainer__SpineCLUEPlans__volume"
    write_json(place / "plans.json", {"stages": {"volume": {"package": "gone_package"}}})
    load_trained(folder, None, CPU)  # nothing was trained there yet
    (place / "fold_0").mkdir()
    (place / "fold_0" / "checkpoint_final.pth").touch()
    said = refused(capsys, "predict", "-d", "501", "-i", str(Path(__file__)), "-o", str(tmp_path), "-device", "cpu")
    assert f"{place} is of stage 'volume' of package 'gone_package', which cannot be used here: There is no stage 'volume'" in said
    assert said.endswith("To predict without that stage, move the folder away.")


def test_a_shared_model_that_needs_a_package(tmp_path, monkeypatch):
    import zipfile

    write_results(tmp_path)
    monkeypatch.setenv("spineclue_results", str(tmp_path))
    zipped = export_model(DATASET, tmp_path / "model.zip")
    monkeypatch.setenv("spineclue_results", str(tmp_path / "elsewhere"))
    with zipfile.ZipFile(zipped) as source, zipfile.ZipFile(tmp_path / "theirs.zip", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("manifest.json"):
                manifest = json.loads(content)
                manifest["stages"]["volume"], manifest["packages"] = "VolumeTrainer__SpineCLUEPlans__volume", {"volume": "gone_package"}
                content = json.dumps(manifest).encode()
            target.writestr(name, content)
    with pytest.raises(InputError, match="has a stage of package 'gone_package' that this installation lacks: There is no stage 'volume'"):
        install_model(tmp_path / "theirs.zip")
    monkeypatch.setenv("spineclue_results", str(tmp_path))
    trained_elsewhere(tmp_path / DATASET)
    with pytest.MonkeyPatch.context() as patch:  # exported where the package is
        patch.setattr("spineclue_v2.inference.model.check_package", lambda *_: None)
        patch.setattr("spineclue_v2.inference.model.trainer_class", lambda stage, name: registry.trainer_class(stage))
        zipped = export_model(DATASET, tmp_path / "again.zip", trainers={"segment": "TheirTrainer"})
    with zipfile.ZipFile(zipped) as archive:
        card = archive.read(f"{DATASET}/card__SpineCLUEPlans/MODEL_CARD.md").decode()
        assert json.loads(archive.read(f"{DATASET}/card__SpineCLUEPlans/manifest.json"))["packages"] == {"segment": "gone_package"}
    assert "Stage segment needs the package `gone_package`" in card and f"`spineclue_predict -d {DATASET} -tr segment=TheirTrainer`" in card
    monkeypatch.setenv("spineclue_results", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="fold 0 was trained by TheirTrainer of package 'gone_package', which is not installed"):
        install_model(zipped)
    assert not (tmp_path / "elsewhere" / DATASET).exists()
