"""The paper's plan: its numbers, and networks that are built and trained as it says."""

from __future__ import annotations

from typing import Any

import pytest
from example_fingerprint import fingerprint
from paper_step import one_step

from spineclue_v2.inference.model import build_network
from spineclue_v2.planning.planner import SpineCLUEPaperPlanner, find_planner

PAPER = [
    ("localize", "data", "spacing_mm", 1.0),
    ("localize", "network", "slice_size", (640, 640)),
    ("localize", "network", "scale", "x"),
    ("localize", "run", "slices_per_plane", 200),
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
    ("identify", "data", "spacing_mm", 1.0),
    ("identify", "network", "crop_size", (48, 96, 96)),
    ("identify", "network", "depth", 101),
    ("identify", "network", "pool_grid", (1, 1, 1)),
    ("identify", "run", "batch_size", 32),
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
