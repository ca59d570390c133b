"""The tables of documentation/explanation/planning.md, made from the planners: `python tests/planning_table.py` prints them."""

from __future__ import annotations

import sys
from typing import Any

from example_fingerprint import fingerprint

from spineclue_v2.planning.paper_planner import SpineCLUEPaperPlanner
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.plans.plans import Plans

NUMBERS = """
    localize.data.spacing_mm localize.network.scale localize.network.slice_size localize.run.slice_gap_mm localize.run.batch_size
    localize.run.eps_mm localize.run.axis_scale localize.run.spacing_between_mm segment.data.spacing_mm segment.network.architecture
    segment.network.crop_size segment.network.features segment.network.heatmap_sigma_mm segment.run.batch_size segment.run.optimizer
    segment.run.centre_jitter_mm segment.run.min_volume_ml identify.network.depth identify.network.width identify.network.crop_size
    identify.network.pool_grid identify.run.batch_size identify.run.classifier_batch_size identify.run.optimizer
    identify.run.contrastive_epochs identify.run.contrastive_lr identify.run.classifier_lr identify.run.contrastive_loss
    identify.run.freeze_backbone
    """.split()  # noqa: SIM905 - one name after the other reads better
DATASETS: dict[str, dict[str, Any]] = {
    "whole spine": {},
    "lumbar": {"levels": ("T12", "L3", "L5"), "spacing": (28, 33, 42), "fov": (230, 180, 180), "voxel": 0.8},
    "cervical": {"levels": ("C2", "C5", "T1"), "spacing": (14, 17, 24), "fov": (180, 200, 200), "voxel": 0.6},
    "thoracic, 3 mm": {"levels": ("T1", "T6", "T12"), "spacing": (18, 24, 32), "fov": (330, 350, 350), "voxel": 1.3},
    "lumbar MR": {"levels": ("T12", "L3", "L5"), "spacing": (28, 33, 42), "fov": (300, 80, 250), "voxel": 1.6, "channel": "T2"},
}


def value(plans: Plans, number: str) -> str:
    stage, group, field = number.split(".")
    found = getattr(getattr(plans.stage(stage), group), field)
    return " x ".join(map(str, found)) if isinstance(found, tuple) else str(found)


def table(plans: dict[str, Plans]) -> str:
    lines = ["| number | " + " | ".join(plans) + " |", "|---" * (len(plans) + 1) + "|"]
    lines += ["| `" + n + "` | " + " | ".join(value(p, n) for p in plans.values()) + " |" for n in NUMBERS]
    return "\n".join(lines)


def against_the_paper() -> str:
    plans = {"paper": SpineCLUEPaperPlanner("raw", fingerprint(), 80, "cuda").plan()}
    for name, gb, device in (("80 GB", 80, "cuda"), ("8 GB", 8, "cuda"), ("CPU, 2 GB", 2, "cpu")):
        plans[name] = SpineCLUEPlanner("raw", fingerprint(), gb, device).plan()
    return table(plans)


def for_other_datasets() -> str:
    return table({name: SpineCLUEPlanner("raw", fingerprint(**changes), 8, "cuda").plan() for name, changes in DATASETS.items()})


if __name__ == "__main__":
    sys.stdout.write(against_the_paper() + "\n\n" + for_other_datasets() + "\n")
