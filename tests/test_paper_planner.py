"""The paper's plan: its numbers, and networks that are built and trained as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from example_fingerprint import fingerprint
from paper_step import one_step
from tiny_dataset import trainer

from spineclue_v2.inference.model import build_network
from spineclue_v2.planning.paper_planner import SpineCLUEPaperPlanner
from spineclue_v2.planning.planner import SpineCLUEPlanner, find_planner

PAPER = [
    ("localize", "data", "spacing_mm", 1.0),
    ("localize", "network", "slice_size", (640, 640)),
    ("localize", "network", "scale", "x"),
    ("localize", "run", "slice_gap_mm", 3.2),
    ("localize", "run", "batch_size", 64),
    ("localize", "run", "epochs", 500),
    ("localize", "run", "initial_lr", 1e-3),
    ("segment", "data", "spacing_mm", 1.0),
    ("segment", "network", "crop_size", (128, 128, 128)),
    ("segment", "network", "architecture", "TransUNet3D"),
    ("segment", "run", "batch_size", 32),
    ("segment", "run", "epochs", 300),
    ("segment", "run", "initial_lr", 1e-4),
    ("segment", "run", "weight_decay", 1e-4),
    ("segment", "run", "optimizer", "Adam"),
    ("identify", "data", "spacing_mm", 1.0),
    ("identify", "network", "crop_size", (48, 96, 96)),
    ("identify", "network", "depth", 101),
    ("identify", "network", "pool_grid", (1, 1, 1)),
    ("identify", "run", "batch_size", 32),
    ("identify", "run", "classifier_batch_size", 64),
    ("identify", "run", "contrastive_epochs", 500),
    ("identify", "run", "classifier_epochs", 100),
    ("identify", "run", "contrastive_lr", 1e-2),
    ("identify", "run", "classifier_lr", 1e-5),
    ("identify", "run", "contrastive_loss", "in"),
    ("identify", "run", "loss_weights", (0.1, 0.5, 1.0)),
    ("identify", "run", "freeze_backbone", True),
    ("identify", "run", "mc_samples", 20),
    ("identify", "run", "theta", 0.1),
    ("identify", "run", "hops", 3),
    ("identify", "run", "neighbours", 7),
]


@pytest.mark.parametrize(("stage", "group", "field", "value"), PAPER)
def test_the_paper_planner_gives_the_papers_numbers(stage: str, group: str, field: str, value: Any) -> None:
    plan = find_planner("SpineCLUEPaperPlanner")("raw", fingerprint(voxel=0.7), 8, "cuda").plan()
    assert getattr(getattr(plan.stage(stage), group), field) == value and plan.plans_name == "SpineCLUEPaperPlans"
    assert "2401.07271" in plan.stage(stage).reasons[f"{group}.{field}"]["rule"] or group == "data"


def test_optimisers_are_the_papers_and_where_it_names_none_the_plan_says_so() -> None:
    graded = fingerprint() | {"grades": {str(grade): 30 for grade in range(4)}}
    plan = SpineCLUEPaperPlanner("raw", graded, 8, "cuda").plan()
    assert {name: stage.run.optimizer for name, stage in plan.stages.items()} == {
        "localize": "AdamW", "segment": "Adam", "identify": "AdamW", "grade": "SGD", "appearance": "AdamW", "geometry": "AdamW"
    }
    for name in ("localize", "identify"):
        assert "the paper names none" in plan.stage(name).reasons["run.optimizer"]["rule"]
    assert (plan.stage("grade").run.initial_lr, plan.stage("grade").run.weight_decay) == (5e-3, 1e-4)  # Wei et al. 2022
    default = SpineCLUEPlanner("raw", graded, 8, "cuda").plan()
    rules = [entry["rule"] for stage in default.stages.values() for entry in stage.reasons.values()]
    assert not any("1e-2 is for SGD" in rule for rule in rules)


def test_training_draws_the_papers_batches(tiny: Path, tmp_path: Path) -> None:
    run = SpineCLUEPaperPlanner("raw", fingerprint(), 8, "cuda").plan().stage("identify").run
    batches = {"batch_size": run.batch_size, "classifier_batch_size": run.classifier_batch_size}
    made = trainer(tiny, "identify", tmp_path, run=batches | {"contrastive_epochs": 1, "classifier_epochs": 1, "iterations_per_epoch": 2})
    draw, longest = made.batch_sampler(training=True), 4
    assert [len(draw(step)["level"]) for step in (0, 1)] == [2 * 32] * 2 and "spine" not in draw(1)     # two views of each
    assert all(64 <= len(draw(step)["level"]) < 64 + longest and "spine" in draw(step) for step in (2, 3))
    alone = trainer(tiny, "identify", tmp_path, run={"batch_size": 8, "contrastive_epochs": 0}).batch_sampler(training=True)
    assert 8 <= len(alone(0)["level"]) < 8 + longest, "without one of its own the classifier's phase has the same batch"


@pytest.mark.parametrize("stage", ["localize", "segment", "identify"])
@pytest.mark.parametrize(("name", "kind"), [("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD)])
def test_training_takes_the_plans_optimiser(tiny: Path, tmp_path: Path, stage: str, name: str, kind: type) -> None:
    made = trainer(tiny, stage, tmp_path, run={"optimizer": name, "weight_decay": 0.0123})
    assert type(made.optimizer) is kind and made.optimizer.param_groups[0]["weight_decay"] == 0.0123
    if stage == "identify":
        made.on_epoch_start()
        assert made.optimizer.param_groups[0]["lr"] == made.plan.run.contrastive_lr
        made.epoch = made.plan.run.contrastive_epochs
        made.on_epoch_start()
        assert type(made.optimizer) is kind and made.optimizer.param_groups[0]["lr"] == made.plan.run.classifier_lr
    if name == "SGD":
        assert made.optimizer.param_groups[0]["momentum"] == 0.9


def test_the_paper_plan_does_not_shrink_with_the_memory() -> None:
    small, large = (SpineCLUEPaperPlanner("raw", fingerprint(), gb, "cuda").plan() for gb in (2, 80))
    assert {name: stage.model_fingerprint for name, stage in small.stages.items()} == {
        name: stage.model_fingerprint for name, stage in large.stages.items()
    }
    assert small.budget["training_step_gb"] == large.budget["training_step_gb"] and small.budget["training_step_gb"]["segment"] > 80


SMALL = {"localize": (64, 64), "segment": (16, 16, 16), "identify": (16, 16, 16)}


@pytest.mark.parametrize("stage", list(SMALL))
def test_every_stage_is_built_and_takes_a_step(stage: str) -> None:
    """The paper's networks at full width and depth on small input (full size: benchmarks/paper_steps.py)."""
    plan = SpineCLUEPaperPlanner("raw", fingerprint(voxel=0.7), 80, "cuda").plan()
    loss, moved = one_step(stage, plan, 2 if stage == "identify" else 1, SMALL[stage])
    parameters = len(list(build_network(stage, plan).parameters()))
    # What random input does not reach stays: the classifier in contrastive training, detection heads of scales without a box.
    assert 0 < loss < 1e4 and moved > 0.75 * parameters
