"""Several processes that train together (gloo, CPU) against one; what happens when one fails; memory that runs out."""
from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_dataset import CPU, DATASET, edited, trainer

from spineclue_v2.cli import _common
from spineclue_v2.cross_validation.run_training import train
from spineclue_v2.errors import InputError
from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.training import distributed
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.training.device import fast_bfloat16
from spineclue_v2.training.losses import supervised_contrastive

# bfloat16 rounds differently in batches of other sizes; without it the order of sums is all that differs.
TOLERANCE = 0.03 if fast_bfloat16() else 1e-4
CLASSIFIER = {"run": {"contrastive_epochs": 0, "classifier_epochs": 2, "freeze_backbone": True}, "network": {"dropout": 0.0}}


def contrastive_gradient(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of a linear encoder on the share of this process; all share one encoder and one batch of 7 views."""
    torch.manual_seed(seed)
    encoder, views, levels = torch.nn.Linear(6, 4, bias=False), torch.randn(7, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    mine = distributed.shard_of(7, distributed.rank(), distributed.world_size())

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = distributed.gather_rows(torch.nn.functional.normalize(encoder(batch["image"]), dim=-1), len(levels))
        return supervised_contrastive(rows, levels)

    parallel = distributed.parallel_loss(encoder, loss, CPU)
    value = parallel({"image": views[mine]})
    value.backward()
    return value.detach(), encoder.weight.grad.clone()


def together(tiny: Path, folder: Path) -> None:
    """In each process: gradients through the gathered contrastive loss, then identify's classifier phase."""
    with distributed.join_processes(CPU):
        value, gradient = contrastive_gradient(3)
        torch.save({"value": value, "gradient": gradient}, folder / f"rank_{distributed.rank()}.pt")
        trainer(tiny, "identify", folder / "identify", **CLASSIFIER).run()


def failing(folder: Path) -> None:
    """Process 1 fails while process 0 waits for it."""
    with distributed.join_processes(CPU):
        if distributed.rank() == 1:
            (folder / "failed_at").write_text(str(time.time()))
            raise ZeroDivisionError("the share of doom")
        distributed.any_process(False, CPU)
        time.sleep(300)


def detecting(folder: Path) -> None:
    """Process 0 alone builds a detector, as in the validation of a later stage; the other one has left the group by then."""
    from spineclue_v2.stages.localize.network import build_network
    from spineclue_v2.stages.localize.plan import LocalizeNetwork

    with distributed.join_processes(CPU):
        distributed.any_process(False, CPU)
        if distributed.rank() == 0:
            time.sleep(1)
            build_network(LocalizeNetwork("yolo11", "n", (64, 64)), 2)
            (folder / "built").write_text(os.environ["LOCAL_RANK"])


def test_the_first_process_alone_may_use_the_detector(tmp_path):
    """What torchrun's first process does when it validates segment on what localize found."""
    assert distributed.launch(2, CPU, detecting, tmp_path)
    assert (tmp_path / "built").read_text() == "0"


def test_two_processes_are_one_with_the_same_batch(tiny, tmp_path):
    assert distributed.launch(2, CPU, together, tiny, tmp_path)
    value, gradient = contrastive_gradient(3)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["value"], value)
        torch.testing.assert_close(found["gradient"], gradient)
    alone = trainer(tiny, "identify", tmp_path / "alone", **CLASSIFIER)
    alone.run()
    found, wanted = (Checkpoint.load(tmp_path / name / "checkpoint_final.pth") for name in ("identify", "alone"))
    np.testing.assert_allclose(found.meta["history"]["train_loss"], wanted.meta["history"]["train_loss"], rtol=TOLERANCE)
    for key, tensor in wanted.network.items():
        torch.testing.assert_close(found.network[key].float(), tensor.float(), rtol=10 * TOLERANCE, atol=10 * TOLERANCE)


def test_num_gpus_trains_together_and_validates_once(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("spineclue_results", str(tmp_path / "two"))
    assert _common.main("train", [DATASET, "segment", "0", "-device", "cpu", "-num_gpus", "2"]) == 0
    assert capsys.readouterr().out.count("Validation of segment fold 0") == 1
    monkeypatch.setenv("spineclue_results", str(tmp_path / "one"))
    train(DATASET, "segment", 0, device="cpu")
    place = Path(DATASET) / "SegmentTrainer__SpineCLUEPlans__segment" / "fold_0"
    found, wanted = (Checkpoint.load(tmp_path / name / place / "checkpoint_final.pth") for name in ("two", "one"))
    for key in ("train_loss", "val_loss"):
        np.testing.assert_allclose(found.meta["history"][key], wanted.meta["history"][key], rtol=TOLERANCE)
    assert len(list((tmp_path / "two" / place).glob("training_log_*"))) == 1  # only the first process speaks


def test_a_process_that_fails_ends_the_others_with_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="Process 1 of 2 failed(.|\n)*the share of doom") as failure:
        distributed.launch(2, CPU, failing, tmp_path)
    assert time.time() - float((tmp_path / "failed_at").read_text()) < 10
    assert "in failing" in str(failure.value)


def test_what_cannot_be_shared_says_so(tiny, tmp_path, monkeypatch):
    import shutil

    home = tmp_path / "preprocessed" / DATASET
    shutil.copytree(tiny, home)
    monkeypatch.setenv("spineclue_preprocessed", str(home.parent))
    plan = home / f"{DEFAULT_PLANS_NAME}.json"
    edited(load_plans(plan), {"segment": {"run": {"batch_size": 3}}}).save(plan)
    with pytest.raises(InputError, match="batch of 3 cannot be shared evenly by 2 processes"):
        train(DATASET, "segment", 0, device="cpu", num_gpus=2)
    with pytest.raises(InputError, match="-num_gpus is 0"):
        train(DATASET, "segment", 0, device="cpu", num_gpus=0)
    if torch.cuda.device_count() < 9:
        with pytest.raises(InputError, match="torch sees"):
            distributed.launch(9, torch.device("cuda"), failing, tmp_path)


@pytest.mark.parametrize("total, parts", [(7, 2), (8, 4), (5, 3), (2, 4)])
def test_shares_cover_every_sample_once(total, parts):
    shares = [list(range(total)[distributed.shard_of(total, part, parts)]) for part in range(parts)]
    assert sum(shares, []) == list(range(total)) and max(map(len, shares)) - min(map(len, shares)) <= 1


class Hungry:
    """A loss that finds no memory for more than `limit` samples."""

    def __init__(self, run, limit: int, kind: type[Exception] = torch.OutOfMemoryError) -> None:
        self.loss, self.limit, self.kind, self.failed, self.done = run.loss, limit, kind, 0, 0

    def __call__(self, batch):
        if len(batch["image"]) > self.limit:
            self.failed += 1
            raise self.kind("CUDA out of memory. Tried to allocate 20 GiB")
        self.done += 1
        return self.loss(batch)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_memory_that_runs_out_halves_the_batch_once_and_says_so(tiny, tmp_path, caplog, kind):
    whole = trainer(tiny, "segment", tmp_path / "whole")
    whole.run()
    run = trainer(tiny, "segment", tmp_path / "halved")
    run.loss = hungry = Hungry(run, 1, kind)
    with caplog.at_level(logging.WARNING, "spineclue_v2.training"):
        run.run()
    assert hungry.failed == 1 and hungry.done == 2 * 4  # two epochs of two steps, each in two halves
    assert [r.message for r in caplog.records if r.message.startswith("Out of memory")] == [
        "Out of memory with a batch of 2: from here on it is worked on in two halves."]
    np.testing.assert_allclose(run.history["train_loss"], whole.history["train_loss"], rtol=TOLERANCE)


def test_memory_that_runs_out_twice_is_one_sentence_and_the_run_can_go_on(tiny, tmp_path, monkeypatch, capsys):
    run = trainer(tiny, "segment", tmp_path)
    run.loss = Hungry(run, 0)
    with pytest.raises(InputError, match="ran out of memory with halved batches; plan for less"):
        run.run()
    assert (tmp_path / "checkpoint_latest.pth").exists()


def test_both_views_and_whole_spines_stay_together_in_a_half(tiny, tmp_path):
    run = trainer(tiny, "identify", tmp_path)
    maker = run.batch_sampler(True)
    contrastive, classifier = maker(0), maker(10 ** 6)
    halves = run.micro_batches(contrastive)
    for half in halves:
        count = len(half["level"]) // 2
        assert torch.equal(half["level"][:count], half["level"][count:])
    assert sorted(torch.cat([h["level"] for h in halves]).tolist()) == sorted(contrastive["level"].tolist())
    halves = run.micro_batches(classifier)
    assert torch.equal(torch.cat([h["level"] for h in halves]), classifier["level"])
    assert all(int(h["spine"].min()) == 0 for h in halves)
    assert len(run.micro_batches({k: v[classifier["spine"] == 0] for k, v in classifier.items()})) == 1
