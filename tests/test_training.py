"""The training loop on real stages of a tiny dataset: resume, stop, refusals, what it leaves behind."""
from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_dataset import CPU, DATASET, edited, same, trainer

from spineclue_v2.cli import _common
from spineclue_v2.cross_validation.run_training import train
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.errors import InputError
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import default_trainer_name
from spineclue_v2.training.checkpoint import Checkpoint, weights_sha256
from spineclue_v2.training.device import autocast
from spineclue_v2.training.trainer import Interrupted, default_workers
from spineclue_v2.utilities import paths


def test_what_a_finished_training_leaves_behind(tiny, capsys):
    assert _common.main("train", [DATASET, "segment", "0", "-device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "Validation of segment fold 0, the stage alone: Dice" in said.out
    assert "run spineclue_train 499 localize 0, then spineclue_train 499 segment 0 --val" in said.err
    folder = paths.results_folder() / DATASET / "SegmentTrainer__SpineCLUEPlans__segment"
    assert {"plans.json", "dataset.json", "dataset_fingerprint.json"} <= {p.name for p in folder.iterdir()}
    left = {p.name for p in (folder / "fold_0").iterdir()}
    (log,) = [name for name in left if name.startswith("training_log_")]
    assert left == {"checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "progress.csv", "validation", log}
    assert (folder / "fold_0" / "progress.png").read_bytes().startswith(b"\x89PNG")
    said = (folder / "fold_0" / log).read_text()
    assert "epoch 2/2: loss" in said and "Training is done" in said
    assert "Dice of single vertebrae" in said and "waiting for data" in said and "threads" in said
    summary = json.loads((folder / "fold_0" / "validation" / "summary.json").read_text())
    meta = Checkpoint.load(folder / "fold_0" / "checkpoint_final.pth").meta
    # No detector was trained: there is nothing to validate on but the stage's own true input.
    assert set(summary) == {"stage", "fold", "alone"}
    assert [row["case"] for row in summary["alone"]["metric_per_case"]] == meta["val_cases"]
    assert not set(meta["val_cases"]) & set(meta["train_cases"]) and len(meta["train_cases"]) == 4
    assert [len(meta["history"][key]) for key in ("train_loss", "ema_score", "learning_rate")] == [2, 2, 2]
    assert meta["history"]["learning_rate"][0] > meta["history"]["learning_rate"][1]  # poly schedule
    # Validation alone gives the same figures; continuing a finished training trains no more.
    assert _common.main("train", [DATASET, "segment", "0", "-device", "cpu", "--val"]) == 0
    assert json.loads((folder / "fold_0" / "validation" / "summary.json").read_text()) == summary
    before = Checkpoint.load(folder / "fold_0" / "checkpoint_final.pth")
    assert _common.main("train", [DATASET, "segment", "0", "-device", "cpu", "--c"]) == 0
    same(Checkpoint.load(folder / "fold_0" / "checkpoint_final.pth"), before)


def test_the_whole_line_of_stages_is_validated_and_fitted_on_what_was_found(tiny, monkeypatch, capsys):
    from spineclue_v2.anatomy.vertebra import Vertebra
    from spineclue_v2.stages.localize import predictor

    def located(volume, networks, plan, device):
        size, middle = np.array(volume.array.shape), (np.array(volume.array.shape) - 1) / 2
        places = [volume.geometry.index_to_world(middle + (size[0] * share, 0, 0)) for share in (0.3, 0.0, -0.3)]
        return [Vertebra(tuple(map(float, p)), (30.0, 40.0, 40.0), 0.9) for p in places]

    monkeypatch.setattr(predictor, "locate", located)  # two epochs of two steps find nothing
    for stage in ("localize", "segment", "identify"):
        assert _common.main("train", [DATASET, stage, "0", "-device", "cpu"]) == 0
    results = paths.results_folder() / DATASET
    folder = results / "IdentifyTrainer__SpineCLUEPlans__identify" / "fold_0"
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    assert {"foreground_mean", "mean", "metric_per_case", "spineclue", "alone"} <= set(summary)
    files = {stage: results / f"{default_trainer_name(stage)}__SpineCLUEPlans__{stage}" / "fold_0" / "checkpoint_final.pth"
             for stage in ("localize", "segment")}
    upstream = {stage: weights_sha256(Checkpoint.load(file).network) for stage, file in files.items()}
    fitted = Checkpoint.load(folder / "checkpoint_final.pth").meta["fitted"]
    assert fitted["upstream"] == upstream and {k: summary["weights"][k] for k in upstream} == upstream
    # Another segment network: --val fits temperature and fusion anew and says so in the checkpoint.
    file = results / "SegmentTrainer__SpineCLUEPlans__segment" / "fold_0" / "checkpoint_final.pth"
    changed = Checkpoint.load(file)
    next(iter(changed.network.values())).mul_(1.01)
    changed.save(file)
    assert _common.main("train", [DATASET, "identify", "0", "-device", "cpu", "--val"]) == 0
    assert Checkpoint.load(folder / "checkpoint_final.pth").meta["fitted"]["upstream"]["segment"] == weights_sha256(changed.network)
    assert "on what earlier stages found" in capsys.readouterr().out


def test_pretrained_weights_fit_as_far_as_they_do(tiny, tmp_path, caplog):
    old = trainer(tiny, "identify", tmp_path)
    with torch.no_grad():
        for tensor in old.network.parameters():
            tensor.add_(1.0)
    old.checkpoint().save(tmp_path / "old.pth")
    new = trainer(tiny, "identify", tmp_path, network={"hidden": 24})
    fresh = {key: value.clone() for key, value in new.network.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        new.load_pretrained(tmp_path / "old.pth")
    taken, given = new.network.state_dict(), old.network.state_dict()
    fits = [key for key in taken if taken[key].shape == given[key].shape]
    assert 0 < len(fits) < len(taken)
    assert all(torch.equal(taken[key], given[key]) for key in fits)
    assert all(torch.equal(taken[key], fresh[key]) for key in set(taken) - set(fits))
    assert f"{len(fits)} tensors fit, {len(taken) - len(fits)} start fresh" in caplog.text
    with pytest.raises(InputError, match="another stage"):
        trainer(tiny, "segment", tmp_path).load_pretrained(tmp_path / "old.pth")


def test_boxes_keep_full_precision_on_a_processor(tiny, tmp_path):
    # bfloat16 has eight binary digits: a box edge at 200.6 would become 201, millimetres beside the vertebra.
    for stage, allowed in (("localize", False), ("segment", True)):
        run = trainer(tiny, stage, tmp_path / stage)
        assert run.bfloat16 is allowed
    with autocast(CPU, bfloat16=False):
        edge = torch.nn.functional.linear(torch.tensor([[200.6]]), torch.eye(1))
    assert edge.dtype == torch.float32 and float(edge) == pytest.approx(200.6, abs=1e-4)


@pytest.mark.parametrize("channels, grid", [(16, (2, 4, 4)), (32, (2, 3, 3)), (64, (2, 3, 3)), (64, (3, 3, 3)),
                                            (128, (3, 4, 5)), (32, (4, 6, 6))])
def test_gradients_under_autocast_are_gradients(channels, grid):
    # oneDNN's bfloat16 weight gradients on small grids are garbage on some CPUs: those must be left out of training.
    torch.manual_seed(0)
    layer, x = torch.nn.Conv3d(channels, channels, 3, padding=1, bias=False), torch.rand(8, channels, *grid)
    layer(x).square().sum().backward()
    wanted = layer.weight.grad.clone()
    for _ in range(4):
        garbage = torch.full((3_000_000,), 1e6)
        del garbage
        layer.zero_grad()
        with autocast(CPU, grid):
            found = layer(x)
        found.float().square().sum().backward()
        assert (layer.weight.grad - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize("stage", ["segment", "identify"])
def test_validation_cases_without_a_spine_do_not_stop_a_training(tiny, tmp_path, monkeypatch, stage):
    run = trainer(tiny, stage, tmp_path)
    properties = PreprocessedDataset.properties
    monkeypatch.setattr(PreprocessedDataset, "properties", lambda self, case: properties(self, case) | (
        {"vertebrae": {}} if case in run.val_cases else {}))
    assert run.batch_cases(training=False) == run.train_cases
    run.run()
    assert (tmp_path / "checkpoint_final.pth").exists()


class Broken:
    """A batch sampler that raises, or dies as one that runs out of memory does. Module-level: worker processes import it."""

    def __init__(self, how: str, note: Path) -> None:
        self.how, self.note = how, note

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        if not self.note.exists():  # batches are made ahead: a later one must not rewrite the note while it is read
            self.note.write_text(str(time.time()))
        if self.how == "raises":
            raise ZeroDivisionError("the batch of doom")
        os._exit(137)


@pytest.mark.parametrize("how, reason", [("raises", "the batch of doom"), ("dies", "exited unexpectedly|killed")])
def test_a_worker_that_fails_ends_the_run_with_its_reason(tiny, tmp_path, how, reason):
    run = trainer(tiny, "segment", tmp_path, workers=1)
    run.batch_sampler = lambda training: Broken(how, tmp_path / "failed_at")
    with pytest.raises((RuntimeError, ZeroDivisionError), match=reason) as failure:
        run.run()
    assert time.time() - float((tmp_path / "failed_at").read_text()) < 10
    if how == "raises":
        assert "Original Traceback" in str(failure.value) and "in __call__" in str(failure.value)


def test_who_stops_the_workers_too_is_understood(tiny, tmp_path):
    run = trainer(tiny, "segment", tmp_path)

    def batches():
        run._request_stop()
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
        yield

    run._batches = lambda training, start, stop: batches()
    with pytest.raises(Interrupted):
        run.run()


def test_a_loss_that_is_no_number_ends_the_run(tiny, tmp_path):
    run = trainer(tiny, "segment", tmp_path)
    run.loss = lambda batch: (run.network(batch["image"]).sum() * float("nan"), {})
    with pytest.raises(RuntimeError, match="loss of stage segment became nan in epoch 0"):
        run.run()


def test_shared_checkpoints_hold_half_of_the_bytes(tiny, tmp_path):
    run = trainer(tiny, "segment", tmp_path)
    checkpoint = run.checkpoint(with_optimizer=True)
    checkpoint.extra = {"phi": torch.eye(24), "large": torch.tensor([1e6]), "count": torch.tensor([3]), "none": torch.zeros(0)}
    checkpoint.save(tmp_path / "whole.pth")
    checkpoint.save(tmp_path / "half.pth", half=True)
    found = Checkpoint.load(tmp_path / "half.pth")
    assert found.optimizer is None and found.meta == json.loads(json.dumps(checkpoint.meta))
    for key, value in checkpoint.network.items():
        torch.testing.assert_close(found.network[key], value, rtol=1e-3, atol=1e-6)
    assert found.extra["large"].item() == 1e6 and found.extra["count"].dtype == torch.int64
    same(Checkpoint.load(tmp_path / "whole.pth"), checkpoint)


def test_a_fold_beyond_the_splits_does_not_part_patients(tiny, tmp_path, monkeypatch):
    import shutil

    from spineclue_v2.cross_validation import run_training as module

    home = tmp_path / "preprocessed" / DATASET
    shutil.copytree(tiny, home)
    monkeypatch.setenv("spineclue_preprocessed", str(home.parent))
    (home / "splits_final.json").unlink()
    description = json.loads((home / "dataset.json").read_text())
    cases = sorted(description["patients"])
    owner = dict(zip(cases, ["a", "a", "a", "b", "b"], strict=True))
    (home / "dataset.json").write_text(json.dumps(description | {"patients": owner}))

    class Told(Exception):
        pass

    def recorder(plans, fold, data, train_cases, val_cases, folder, device):
        raise Told(train_cases, val_cases)

    monkeypatch.setattr(module, "trainer_class", lambda stage, name: recorder)
    recorder.__name__ = "Recorder"
    for fold in (0, 1, 7, 8, 9):
        with pytest.raises(Told) as told:
            train(DATASET, "segment", fold, device="cpu")
        parts = [{owner[case] for case in part} for part in told.value.args]
        assert sorted(map(sorted, parts)) == [["a"], ["b"]]
        assert sorted(sum(told.value.args, [])) == cases


@pytest.mark.parametrize("only_validate, theta", [(False, 0.1), (True, 0.35)])
def test_a_validation_takes_the_plan_that_predicts(tiny, monkeypatch, only_validate, theta):
    from spineclue_v2.cross_validation import run_training as module

    class Told(Exception):
        pass

    def recorder(plans, *_):
        raise Told(plans)

    monkeypatch.setattr(module, "trainer_class", lambda stage, name: recorder)
    recorder.__name__ = "Recorder"
    chosen = edited(load_plans(tiny / "SpineCLUEPlans.json"), {"identify": {"run": {"theta": 0.35}}})
    chosen.save(paths.results_folder() / DATASET / "Recorder__SpineCLUEPlans__identify" / "plans.json")
    with pytest.raises(Told) as told:
        train(DATASET, "identify", 0, device="cpu", only_validate=only_validate)
    assert told.value.args[0].stage("identify").run.theta == theta


def test_the_number_of_loader_processes(monkeypatch):
    for name in ("spineclue_n_proc_DA", "nnUNet_n_proc_DA"):
        monkeypatch.delenv(name, raising=False)
    assert 1 <= default_workers() <= 12
    monkeypatch.setenv("nnUNet_n_proc_DA", "5")
    assert default_workers() == 5
    monkeypatch.setenv("spineclue_n_proc_DA", "0")
    assert default_workers() == 0
    monkeypatch.setenv("spineclue_n_proc_DA", "many")
    with pytest.raises(InputError, match="spineclue_n_proc_DA is 'many'"):
        default_workers()
