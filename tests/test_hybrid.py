"""The MR path from raw dataset to label map, on small synthetic scans: plan, both stages, prediction, what bad input says."""
from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spineclue_v2.anatomy.structures import VALUE
from spineclue_v2.api import SpineCLUE
from spineclue_v2.cli._common import main
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_labels, read_volume, write_volume
from spineclue_v2.stages.plan_files import load_plans

NAME = "Dataset601_TinyMR"
EDITS = {"hybrid_2d": {"network": {"encoder": "tu-resnet10t", "decoder_channels": 8, "crop_size": (32, 32)},
                       "run": {"batch_size": 2, "unlabelled_batch_size": 2, "epochs": 2, "iterations_per_epoch": 2,
                               "lr_drop_epochs": (1, 2)}},
         "hybrid_3d": {"network": {"patch_size": (4, 32, 32), "context": (16, 16), "width": 4, "decoder_channels": 8,
                                       "attention_channels": 4},
                       "run": {"batch_size": 2, "epochs": 2, "iterations_per_epoch": 2, "lr_drop_epochs": (1, 2)}}}


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("SPINECLUE_HOME", str(home))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Five labelled and two unlabelled scans, planned by the command and preprocessed with a cut-down plan."""
    from spineclue_v2.dataset_conversion.phantom_mr import convert
    from spineclue_v2.planning.plan_and_preprocess import plan_and_preprocess, preprocess_plans

    folder = tmp_path_factory.mktemp("mr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPINECLUE_HOME", str(folder))
        patch.setenv("spineclue_n_proc_DA", "0")
        for variable in ("spineclue_raw", "spineclue_preprocessed", "spineclue_results", "nnUNet_raw"):
            patch.delenv(variable, raising=False)
        convert(folder / "raw" / NAME, 5, seed=3, unlabelled=2, test=1, plane_mm=3.0, slice_mm=7.0, top="L2")
        assert plan_and_preprocess([601], device="cpu", preprocess=False, progress=False) == {}
        path = folder / "preprocessed" / NAME / "SpineCLUEPlans.json"
        plans = load_plans(path)
        stages = {name: replace(plan, **{group: replace(getattr(plan, group), **values) for group, values in EDITS[name].items()})
                  for name, plan in plans.stages.items()}
        replace(plans, stages=stages).save(path)
        assert preprocess_plans(601, progress=False) == {}
        yield folder


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    for stage in ("hybrid_2d", "hybrid_3d"):
        assert main("train", ["601", stage, "0", "-device", "cpu"]) == 0
    return home


def test_the_plan_follows_names_and_data(home: Path) -> None:
    data = load_plans(home / "preprocessed" / NAME / "SpineCLUEPlans.json").stage("hybrid_3d").data
    assert data.classes[:5] == ("S", "L5", "L4", "L3", "L2")
    assert data.classes[data.classes.index("L5/S"):][:3] == ("L5/S", "L4/L5", "L3/L4")
    assert data.label_values == tuple(VALUE[name] for name in data.classes)
    assert data.spacing_mm == (7.0, 3.0, 3.0)


def test_unlabelled_scans_are_kept_apart(home: Path) -> None:
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset

    fingerprint = load_plans(home / "preprocessed" / NAME / "SpineCLUEPlans.json").stage("hybrid_2d").data_fingerprint
    folder = home / "preprocessed" / NAME / fingerprint
    assert len(PreprocessedDataset(folder).cases) == 5 and PreprocessedDataset(folder / "unlabelled").cases == ["mr_0006", "mr_0007"]


def test_batches_open_a_case_once_and_depend_on_seed_and_number_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spineclue_v2.anatomy.structures import kind
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.stages.mr.data import SliceBatches

    plan = load_plans(home / "preprocessed" / NAME / "SpineCLUEPlans.json").stage("hybrid_2d")
    folder, opened = home / "preprocessed" / NAME / plan.data_fingerprint, []
    image = PreprocessedDataset.image
    monkeypatch.setattr(PreprocessedDataset, "image", lambda self, case: opened.append((self.folder, case)) or image(self, case))
    cases, others = PreprocessedDataset(folder).cases, PreprocessedDataset(folder / "unlabelled").cases
    discs = torch.tensor([False] + [kind(name) == "disc" for name in plan.data.classes])
    makers = [SliceBatches(folder, cases, 7, 20.0, (0.7, 1.35), discs, 0.7, True, folder / "unlabelled", others, (32, 32), 2,
                           True, len(plan.data.classes) + 1, 4, 2, 3, (0.25, 0.5)) for _ in range(2)]
    batches = [makers[0](i) for i in range(4)]
    assert len(opened) == len(set(opened)) <= len(cases) + len(others)
    alone = makers[1](3)
    assert set(alone) == {"image", "target", "first", "second", "mask"} and all(torch.equal(batches[3][key], alone[key]) for key in alone)


def test_validation_says_what_naming_is_worth(trained: Path) -> None:
    for stage, trainer in (("hybrid_2d", "Hybrid2DTrainer"), ("hybrid_3d", "Hybrid3DTrainer")):
        place = trained / "results" / NAME / f"{trainer}__SpineCLUEPlans__{stage}" / "fold_0" / "validation" / "summary.json"
        summary = json.loads(place.read_text())
        assert set(summary["as_voxels_say"]) == {"foreground_mean", "VB", "IVD"} <= set(summary)


def test_predict_writes_labels_on_the_input_grid(trained: Path, tmp_path: Path) -> None:
    scan = trained / "raw" / NAME / "imagesTs" / "mr_0008_0000.nii.gz"
    assert main("predict", ["-d", "601", "-i", str(scan), "-o", str(tmp_path), "-device", "cpu"]) == 0
    labels, image = read_labels(tmp_path / "mr_0008.nii.gz"), read_volume(scan)
    assert labels.geometry.same_grid(image.geometry)
    record = json.loads((tmp_path / "mr_0008.json").read_text())
    assert record["stage"] == "hybrid_3d" and (tmp_path / "mr_0008.png").stat().st_size > 10_000
    ml = float(np.prod(image.spacing)) / 1000
    written = {int(v): round(float((labels.array == v).sum()) * ml, 3) for v in np.unique(labels.array) if v}
    assert {row["label"]: row["volume_ml"] for row in record["structures"]} == pytest.approx(written)
    assert record["review_required"] == any(flag["severity"] == "review" for flag in record["flags"])
    assert "modality_assumed" in {flag["code"] for flag in record["flags"]}
    assert set(record["notes"]) == {flag["message"] for flag in record["flags"]}
    for row in record["structures"]:
        wanted = {"confidence"} if row["kind"] == "body" else {"height_mm", "signal", "signal_to_csf"}
        assert wanted <= set(row) and 0 <= (row.get("confidence") or 0) <= 1


def test_a_localizer_and_a_ct_are_refused_and_nothing_is_written(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    scans = {"localizer": (rng.integers(1, 500, (6, 41, 23)), 12.0), "ct": (rng.normal(0, 300, (6, 41, 23)), 5.0)}
    for name, (array, thick) in scans.items():
        grid = ImageGrid(array.shape, (thick, 2.5, 2.5), (0.0, 0.0, 0.0), np.array([[0, 0, 1.0], [1.0, 0, 0], [0, -1.0, 0]]))
        write_volume(Volume(array.astype(np.int16), grid), tmp_path / f"{name}.nii.gz")
    for name, said in (("localizer", "as a localizer has"), ("ct", "ct.nii.gz is CT")):
        assert main("predict", ["-d", "601", "-i", str(tmp_path / f"{name}.nii.gz"), "-o", str(tmp_path / "out"), "-device", "cpu"]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prediction_does_not_depend_on_how_the_scan_is_stored(trained: Path, tmp_path: Path) -> None:
    from spineclue_v2.inference.model import load_trained
    from spineclue_v2.inference.mr_pipeline import predict_mr_volume

    model = load_trained(trained / "results" / NAME, None, torch.device("cpu"))
    scan = read_volume(trained / "raw" / NAME / "imagesTs" / "mr_0008_0000.nii.gz")
    first, _ = predict_mr_volume(scan, model)
    turned, _ = predict_mr_volume(scan.reoriented("RAS"), model)
    assert np.array_equal(turned.reoriented(scan.geometry.orientation).array, first.array)


def test_where_levels_lay_in_training_goes_with_the_weights(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spineclue_v2.inference.model import load_trained
    from spineclue_v2.inference.mr_pipeline import predict_mr_volume
    from spineclue_v2.stages.mr import labelling
    from spineclue_v2.stages.mr.level_assignment import LevelAssignment

    model, given = load_trained(trained / "results" / NAME, None, torch.device("cpu")), []
    monkeypatch.setattr(labelling, "assign_levels", lambda probability, data, places: given.append(places)
                        or LevelAssignment(probability, {}, False))
    predict_mr_volume(read_volume(trained / "raw" / NAME / "imagesTs" / "mr_0008_0000.nii.gz"), model)
    assert given == [fitted["places"] for fitted in model.stages["hybrid_3d"].fitted]
    middle = given[0]["from_anchor_mm"]
    assert middle["S"] > middle["L5"] + 15 > middle["L4"] + 30 and given[0]["spread_mm"] >= 8.0


def test_branches_agree_on_kinds_as_well_as_names(home: Path, tmp_path: Path) -> None:
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.stages.mr.trainer import Hybrid2DTrainer

    plans, found = load_plans(home / "preprocessed" / NAME / "SpineCLUEPlans.json"), []
    plan = plans.stage("hybrid_2d")
    data = PreprocessedDataset(home / "preprocessed" / NAME / plan.data_fingerprint)
    for weight in (0.0, 1.0, 2.0):
        edited = replace(plans, stages=plans.stages | {"hybrid_2d": replace(plan, run=replace(plan.run, tissue_class_weight=weight))})
        trainer = Hybrid2DTrainer(edited, 0, data, data.cases, [], tmp_path, torch.device("cpu"), seed=1, workers=0)
        batch = trainer.batch_sampler(True)(0)
        torch.manual_seed(0)     # dropout
        found.append(trainer.loss(batch)[1]["cps"])
    assert found[0] < found[1] and found[2] - found[0] == pytest.approx(2 * (found[1] - found[0]), rel=1e-3)


@pytest.mark.parametrize("soft_labels", [True, False])
def test_the_plan_says_whether_shares_or_labels_are_learned(home: Path, tmp_path: Path, soft_labels: bool) -> None:
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.stages.mr.trainer import Hybrid2DTrainer

    plans = load_plans(home / "preprocessed" / NAME / "SpineCLUEPlans.json")
    plan = plans.stage("hybrid_2d")
    data = PreprocessedDataset(home / "preprocessed" / NAME / plan.data_fingerprint)
    edited = replace(plans, stages=plans.stages | {"hybrid_2d": replace(plan, run=replace(plan.run, soft_labels=soft_labels))})
    trainer = Hybrid2DTrainer(edited, 0, data, data.cases, [], tmp_path, torch.device("cpu"), workers=0)
    batch, count = trainer.batch_sampler(False)(0), len(plan.data.classes) + 1
    assert not plan.run.soft_labels and batch["target"].shape == (2, count if soft_labels else 1, 32, 32)
    right = batch["target"] if soft_labels else torch.nn.functional.one_hot(batch["target"][:, 0].long(), count).movedim(-1, 1).float()
    assert torch.isfinite(trainer.loss(trainer.batch_sampler(True)(0))[0])
    trainer.network = lambda image: (None, right)     # an answer without fault
    figures = trainer.validation_metric(batch)
    assert figures["score"] == 1.0 and (figures["loss"] > 0.01) == soft_labels      # what is left of it is the shares' entropy


@pytest.mark.parametrize(("drops", "rates"), [((1, 3), (1e-2, 1e-3, 1e-3, 1e-4)), ((), (1e-2, 7.7e-3, 5.4e-3, 2.9e-3))])
def test_the_learning_rate_drops_where_the_plan_says_or_falls_to_nothing(home: Path, tmp_path: Path, drops: tuple[int, ...],
                                                                         rates: tuple[float, ...]) -> None:
    """Rates of four epochs of two steps."""
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.stages.mr.trainer import Hybrid2DTrainer

    plans = load_plans(home / "preprocessed" / NAME / "SpineCLUEPlans.json")
    plan = plans.stage("hybrid_2d")
    run = replace(plan.run, epochs=4, iterations_per_epoch=2, initial_lr=1e-2, lr_drop_epochs=drops)
    data = PreprocessedDataset(home / "preprocessed" / NAME / plan.data_fingerprint)
    edited = replace(plans, stages=plans.stages | {"hybrid_2d": replace(plan, run=run)})
    trainer = Hybrid2DTrainer(edited, 0, data, data.cases, [], tmp_path, torch.device("cpu"), workers=0)
    found = []
    for _ in range(4):
        found.append(trainer.optimizer.param_groups[0]["lr"])
        for _ in range(2):
            trainer.optimizer.step()
            trainer.scheduler.step()
    assert found == pytest.approx(rates, rel=2e-2)
    assert bool(drops) == (trainer.optimizer.param_groups[0]["lr"] > 0)


def test_one_slice_and_odd_sizes_can_be_predicted(trained: Path, tmp_path: Path) -> None:
    from spineclue_v2.inference.model import load_trained
    from spineclue_v2.inference.mr_pipeline import predict_mr_volume

    model = load_trained(trained / "results" / NAME, None, torch.device("cpu"))
    array = np.random.default_rng(0).integers(1, 500, (3, 41, 23)).astype(np.int16)
    volume = Volume(array, ImageGrid(array.shape, (7.0, 2.5, 2.5), (0.0, 0.0, 0.0), np.array([[0, 0, 1.0], [1.0, 0, 0], [0, -1.0, 0]])))
    labels, _ = predict_mr_volume(volume, model)
    assert labels.array.shape == array.shape


def test_what_only_ct_knows_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan, model = trained / "raw" / NAME / "imagesTs" / "mr_0008_0000.nii.gz", trained / "results" / NAME
    for flags in (["--save_probabilities"], ["--forbid_anomalies"], ["--classifiers", "shape"]):
        assert main("predict", ["-i", str(scan), "-o", str(tmp_path / "out"), "-m", str(model), "-device", "cpu", *flags]) == 2
        assert f"{flags[0]} has no meaning for a model of MR" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    api = SpineCLUE.from_pretrained(model, device="cpu")
    for options in ({"forbid_anomalies": True}, {"classifiers": ("shape",)}):
        with pytest.raises(InputError, match=f"{next(iter(options))} has no meaning for a model of MR"):
            api.predict(scan, **options)


def test_python_gives_what_the_command_writes(trained: Path, tmp_path: Path) -> None:
    """One class for CT and MR; the same labels from a path, an image in memory, and two threads with scans of different sizes."""
    from concurrent.futures import ThreadPoolExecutor

    scan = trained / "raw" / NAME / "imagesTs" / "mr_0008_0000.nii.gz"
    assert main("predict", ["-d", "601", "-i", str(scan), "-o", str(tmp_path / "command"), "-device", "cpu"]) == 0
    api, told = SpineCLUE.from_pretrained(601, device="cpu"), []
    result = api.predict(scan, progress=lambda stage, fraction: told.append((stage, fraction)))
    files = result.save(tmp_path / "python", "mr_0008")
    assert api.modality == "MR" and [stage for stage, _ in told] == ["read", "hybrid_3d", ""] and told[-1][1] == 1
    command, python = ({p.name for p in (tmp_path / name).iterdir()} for name in ("command", "python"))
    assert {name for name in command if not name.endswith((".csv", ".parquet"))} == python and "structures.csv" in command
    assert files["labels"].read_bytes() == (tmp_path / "command" / "mr_0008.nii.gz").read_bytes()
    written, own = (json.loads((tmp_path / place / "mr_0008.json").read_text()) for place in ("command", "python"))
    assert set(written.pop("seconds")) == {"read", "hybrid_3d", "report", "total"} == set(own.pop("seconds")) and written == own
    assert len(result) == len(written["structures"]) and result.structures == tuple(written["structures"])
    volume = read_volume(scan)
    smaller = volume.cropped((0, 0, 0), (*volume.array.shape[:2], volume.array.shape[2] - 6))
    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(lambda image: api.predict(image).labels, (volume.to_sitk(), smaller))
    assert np.array_equal(first, result.labels) and np.array_equal(second, api.predict(smaller).labels)


def test_3d_needs_the_2d_stage_of_its_fold(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", ["601", "hybrid_3d", "1", "-device", "cpu"]) == 2
    assert "spineclue_train 601 hybrid_2d 1 first" in capsys.readouterr().err


def test_the_frozen_branches_are_those_of_the_2d_stage(trained: Path) -> None:
    from spineclue_v2.training.checkpoint import Checkpoint

    results = trained / "results" / NAME
    flat = Checkpoint.load(results / "Hybrid2DTrainer__SpineCLUEPlans__hybrid_2d" / "fold_0" / "checkpoint_final.pth").network
    deep = Checkpoint.load(results / "Hybrid3DTrainer__SpineCLUEPlans__hybrid_3d" / "fold_0" / "checkpoint_final.pth").network
    assert flat and all(torch.equal(deep[f"branches.{name}"], tensor) for name, tensor in flat.items())


def test_a_case_cannot_be_labelled_and_unlabelled(home: Path, tmp_path: Path) -> None:
    import shutil

    from spineclue_v2.dataset.raw import RawDataset
    from spineclue_v2.errors import InputError

    raw = tmp_path / NAME
    shutil.copytree(home / "raw" / NAME, raw)
    shutil.copy(raw / "imagesTr" / "mr_0001_0000.nii.gz", raw / "imagesUl")
    with pytest.raises(InputError, match="mr_0001.*imagesUl"):
        RawDataset(raw)


@pytest.mark.parametrize(("channel", "labels", "is_mr"), [
    ("CT", {"background": 0, "L5": 1, "L5/S": 2}, False), ("T2", {"background": 0, "L5": 1}, True),
    ("scan", {"background": 0, "L5": 1, "disc_L5_S1": 2}, True), ("scan", {"background": 0, "L5": 1}, False)])
def test_modality_is_recognised_by_channel_then_classes(tmp_path: Path, channel: str, labels: dict[str, int], is_mr: bool) -> None:
    from spineclue_v2.dataset.raw import RawDataset
    from spineclue_v2.planning.mr_fingerprint import recognise

    folder = tmp_path / "Dataset602_Any"
    grid = ImageGrid((6, 8, 8), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0), np.eye(3))
    write_volume(Volume(np.ones((6, 8, 8), np.uint8), grid), folder / "labelsTr" / "a.nii.gz")
    write_volume(Volume(np.ones((6, 8, 8), np.int16), grid), folder / "imagesTr" / "a_0000.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": channel}, "labels": labels, "numTraining": 1,
                                                     "file_ending": ".nii.gz"}))
    assert recognise(RawDataset(folder))[0] is is_mr


def test_the_command_says_why_a_dataset_is_taken_as_mr(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    from spineclue_v2.planning.plan_and_preprocess import fingerprint_dataset

    with caplog.at_level(logging.INFO):
        fingerprint_dataset(601, progress=False)
    assert "taken as an MR dataset: channel T2" in caplog.text
