"""A training that is stopped and continued: the same numbers, the plan's rates, and what cannot be continued is refused."""
from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from test_bad_commands import Trap
from tiny_dataset import DATASET, edited, same, trainer

from spineclue_v2.cli import _common
from spineclue_v2.cross_validation.run_training import train
from spineclue_v2.errors import InputError
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import default_trainer_name, trainer_class
from spineclue_v2.training.checkpoint import FORMAT, Checkpoint, load_weights
from spineclue_v2.training.trainer import BaseTrainer, Interrupted
from spineclue_v2.utilities import paths


def stop_after(run: BaseTrainer, steps: int) -> None:
    """Send this process a SIGTERM within step number `steps`."""
    original, done = run.train_step, []

    def step(batch):
        done.append(original(batch))
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return done[-1]

    run.train_step = step


# Two iterations per epoch; identify changes its phase after two epochs: stopped in epoch 0, and on both sides of the change.
@pytest.mark.parametrize("stage, steps, edits", [
    ("localize", 3, {}), ("segment", 1, {}), ("segment", 3, {}),
    ("identify", 1, {}), ("identify", 4, {}), ("identify", 5, {}), ("identify", 5, {"run": {"freeze_backbone": True}}), ("identify", 7, {}),
], ids=lambda value: str(value) if not isinstance(value, dict) else "frozen" if value else "")
def test_a_run_that_was_stopped_and_continued_ends_like_one_that_was_not(tiny, tmp_path, stage, steps, edits):
    whole = uninterrupted(tiny, tmp_path / "whole", stage, edits)
    folder = tmp_path / "cut"
    before = signal.getsignal(signal.SIGTERM)
    first = trainer(tiny, stage, folder, **edits)
    stop_after(first, steps)
    with pytest.raises(Interrupted, match=rf"epoch {steps // 2 + 1} of \d+ of {stage}.*--c"):
        first.run()
    assert signal.getsignal(signal.SIGTERM) is before
    assert Checkpoint.load(folder / "checkpoint_latest.pth").meta["epoch"] == steps // 2
    assert not (folder / "checkpoint_final.pth").exists()
    trainer(tiny, stage, folder, **edits).run(resume=True)
    found = Checkpoint.load(folder / "checkpoint_final.pth")
    same(found, whole)


@pytest.mark.parametrize("hook", ["_validate", "on_train_end"])
def test_a_run_that_is_stopped_after_its_last_step_is_not_taken_for_validated(tiny, tmp_path, hook):
    run = trainer(tiny, "segment", tmp_path)
    original = getattr(run, hook)

    def stopped():
        if run.epoch == run.epochs - 1 or hook == "on_train_end":
            os.kill(os.getpid(), signal.SIGTERM)
        return original()

    setattr(run, hook, stopped)
    with pytest.raises(Interrupted, match="after the last epoch of segment, fold 0; continue with --c"):
        run.run()
    same(Checkpoint.load(tmp_path / "checkpoint_final.pth"), uninterrupted(tiny, tmp_path / "whole", "segment", {}))


# Two iterations per epoch; identify's first phase has two epochs.
@pytest.mark.parametrize("stage, edits, epoch", [
    ("segment", {"epochs": 6}, 2), ("segment", {"epochs": 3, "initial_lr": 5e-4}, 1), ("segment", {"weight_decay": 0.3}, 1),
    ("identify", {"contrastive_epochs": 5}, 1), ("identify", {"classifier_epochs": 6, "classifier_lr": 1e-3}, 3)])
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.filterwarnings("ignore:Detected call")  # no optimiser steps here
def test_a_continued_run_takes_its_rates_from_the_plan(tiny, tmp_path, stage, edits, epoch, finished):
    first = trainer(tiny, stage, tmp_path)
    for first.epoch in range(epoch):
        first.on_epoch_start()
        for _ in range(first.iterations):
            first.scheduler.step()
    first.epoch = epoch
    name = "checkpoint_final.pth" if finished else "checkpoint_latest.pth"
    first.checkpoint(with_optimizer=not finished).save(tmp_path / name)
    whole, again = (trainer(tiny, stage, tmp_path, run=edits) for _ in range(2))
    for whole.epoch in range(epoch):
        whole.on_epoch_start()
        for _ in range(whole.iterations):
            whole.scheduler.step()
    again._resume()
    assert again.scheduler.state_dict() == whole.scheduler.state_dict()
    (found,), (wanted,) = ([{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups]
                           for run in (again, whole))
    assert found == wanted and found["lr"] > 0


def uninterrupted(tiny: Path, folder: Path, stage: str, edits: dict, _known: dict = {}) -> Checkpoint:  # noqa: B006 - shared by all cases
    key = (str(tiny), stage, str(edits))
    if key not in _known:
        run = trainer(tiny, stage, folder, **edits)
        run.run()
        _known[key] = Checkpoint.load(folder / "checkpoint_final.pth")
    return _known[key]


def test_sigterm_is_one_sentence_and_leaves_a_checkpoint(tiny, monkeypatch, capsys):
    original = BaseTrainer.train_step

    def step(self, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(BaseTrainer, "train_step", step)
    assert _common.main("train", [DATASET, "segment", "0", "-device", "cpu"]) == _common.INTERRUPTED
    said = capsys.readouterr().err
    assert "continue with --c" in said and "Traceback" not in said
    folder = paths.results_folder() / DATASET / "SegmentTrainer__SpineCLUEPlans__segment" / "fold_0"
    assert Checkpoint.load(folder / "checkpoint_latest.pth").meta["epoch"] == 0
    assert not (folder / "validation").exists()


def test_an_unfinished_run_is_continued_although_an_older_one_was_finished(tiny, tmp_path):
    run = trainer(tiny, "segment", tmp_path)
    run.folder.mkdir(exist_ok=True)
    run.epoch = 2
    run.checkpoint().save(tmp_path / "checkpoint_final.pth")
    run.epoch = 1
    for key in run.history:
        run.history[key] = [0.5]
    run.checkpoint(with_optimizer=True).save(tmp_path / "checkpoint_latest.pth")
    again = trainer(tiny, "segment", tmp_path)
    again._resume()
    assert again.epoch == 1


@pytest.mark.parametrize("spoil, reason", [
    (lambda file, aside: torch.save({"network_weights": {}, "meta": "{}", "extra": Trap(aside)}, file), "damaged"),
    (lambda file, aside: file.write_bytes(file.read_bytes()[:3000]), "damaged"),
    (lambda file, aside: torch.save(torch.zeros(3), file), "no checkpoint of spineclue_v2"),
    (lambda file, aside: torch.save({"network_weights": {"a": 3}, "meta": "{}"}, file), "no checkpoint of spineclue_v2"),
    (lambda file, aside: torch.save({"network_weights": {}, "meta": "not JSON"}, file), "no checkpoint of spineclue_v2"),
    (lambda file, aside: torch.save({"network_weights": {}, "meta": "{}", "format": FORMAT + 1}, file), f"format {FORMAT + 1}"),
    (lambda file, aside: torch.save({"network_weights": {}, "meta": "{}"}, file), "model fingerprint None"),
], ids=["code", "truncated", "a tensor", "no tensors", "no JSON", "newer", "empty"])
def test_a_checkpoint_that_is_none_is_refused(tiny, tmp_path, spoil, reason):
    run = trainer(tiny, "segment", tmp_path)
    file = tmp_path / "checkpoint_latest.pth"
    run.checkpoint(with_optimizer=True).save(file)
    spoil(file, tmp_path / "sprung")
    with pytest.raises(InputError, match=reason) as refusal:
        run.run(resume=True)
    assert str(file) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_of_another_plan_is_refused(tiny, tmp_path):
    run = trainer(tiny, "segment", tmp_path)
    run.checkpoint(with_optimizer=True).save(tmp_path / "checkpoint_latest.pth")
    wider = trainer(tiny, "segment", tmp_path, network={"features": (4, 12)})
    with pytest.raises(InputError, match=run.plan.model_fingerprint) as refusal:
        wider.run(resume=True)
    assert wider.plan.model_fingerprint in str(refusal.value)
    with pytest.raises(InputError, match="does not fit the plan's network"):
        load_weights(wider.network, run.checkpoint(), tmp_path)
    # What only concerns a run may change in between.
    trainer(tiny, "segment", tmp_path, run={"initial_lr": 1e-4})._resume()


@pytest.mark.parametrize("before, after", [("AdamW", "SGD"), ("SGD", "Adam"), ("Adam", "AdamW")])
def test_another_optimiser_continues_with_the_plans_rates(tiny, tmp_path, before, after):
    run = trainer(tiny, "segment", tmp_path, run={"optimizer": before, "epochs": 1})
    run.run()
    run.checkpoint(with_optimizer=True).save(tmp_path / "checkpoint_latest.pth")
    again = trainer(tiny, "segment", tmp_path, run={"optimizer": after, "epochs": 2, "initial_lr": 0.02})
    again.run(resume=True)
    assert type(again.optimizer).__name__ == after and again.epoch == 2
    assert again.optimizer.param_groups[0]["initial_lr"] == 0.02 and again.history["learning_rate"][1] < 0.02


def test_folds_of_one_stage_share_their_model(tiny, tmp_path, monkeypatch):
    plans = load_plans(tiny / "SpineCLUEPlans.json")
    folder = paths.results_folder() / DATASET / f"{default_trainer_name('segment')}__SpineCLUEPlans__segment"
    edited(plans, {"segment": {"network": {"features": (4, 12)}}}).save(folder / "plans.json")
    (folder / "fold_1").mkdir()
    (folder / "fold_1" / "checkpoint_final.pth").write_bytes(b"another fold")
    with pytest.raises(InputError, match=plans.stage("segment").model_fingerprint):
        train(DATASET, "segment", 0, device="cpu")
    assert not (folder / "fold_0").exists()


def test_what_cannot_be_continued_or_validated_says_what_to_run(tiny):
    with pytest.raises(InputError, match="no checkpoint to continue from"):
        train(DATASET, "segment", 0, device="cpu", resume=True)
    with pytest.raises(InputError, match="does not exist.*spineclue_train"):
        train(DATASET, "segment", 0, device="cpu", only_validate=True)
    with pytest.raises(InputError, match="one of them"):
        train(DATASET, "segment", 0, device="cpu", resume=True, only_validate=True)
    with pytest.raises(InputError, match="--npz keeps the level probabilities of stage identify; SegmentTrainer"):
        train(DATASET, "segment", 0, device="cpu", save_probabilities=True)
    with pytest.raises(InputError, match="--npz .* AppearanceTrainer"):
        train(DATASET, "appearance", 0, device="cpu", save_probabilities=True)
    with pytest.raises(InputError, match="Fold 'first'"):
        train(DATASET, "segment", "first", device="cpu")
    with pytest.raises(InputError, match="no stage 'grading'"):
        trainer_class("grading")
    assert not list(paths.results_folder().rglob("*.pth"))


