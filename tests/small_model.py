"""An untrained model of tiny networks, as a results folder that training would have left behind."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from example_fingerprint import fingerprint

from spineclue_v2 import anatomy
from spineclue_v2.inference.model import build_network
from spineclue_v2.model_sharing.export_model import export_model
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.plans.plans import Plans
from spineclue_v2.stages.registry import CORE_STAGES, stage_folder_name
from spineclue_v2.training.checkpoint import Checkpoint, weights_sha256
from spineclue_v2.utilities.files import write_json

DATASET = "Dataset501_Example"
CARD = f"{DATASET}/card__SpineCLUEPlans"  # folder of an export that describes it
CASES = {"train": ["anna_smith_1", "anna_smith_2", "bert_jones"], "val": ["carla_doe"]}


def small_plans() -> Plans:
    """The planner's CPU plan at 2 mm with fewer channels."""
    plans = SpineCLUEPlanner("raw", fingerprint(), 1, "cpu").plan()
    edits: dict[str, dict[str, Any]] = {"localize": {"slice_size": (64, 64)},
                                        "segment": {"features": (4, 8), "blocks": (1, 1), "crop_size": (32, 48, 48)},
                                        "identify": {"width": 4, "hidden": 16, "projection_dim": 8, "crop_size": (32, 48, 48)}}
    for stage, edit in edits.items():
        plan = plans.stages[stage]
        plans.stages[stage] = replace(plan, data=replace(plan.data, spacing_mm=2.0), network=replace(plan.network, **edit))
    return plans


def write_results(results: Path, folds: tuple[int, ...] = (0,), plans: Plans | None = None, dataset: str = DATASET) -> Path:
    """`results`/DATASET with freshly drawn networks for every stage and fold; returns that folder."""
    plans, upstream = plans or small_plans(), {fold: {} for fold in folds}  # type: ignore[var-annotated]
    for number, stage in enumerate(CORE_STAGES):
        write_stage(results / dataset, stage, plans, folds, number, upstream)
    return results / dataset


def write_stage(results: Path, stage: str, plans: Plans, folds: tuple[int, ...] = (0,), number: int = 0,
                upstream: dict[int, dict[str, str]] | None = None) -> None:
    """Freshly drawn networks of one stage, as its training would have left them in the dataset's `results`."""
    folder, upstream = results / stage_folder_name(stage), upstream or {fold: {} for fold in folds}
    plans.save(folder / "plans.json")
    write_json(folder / "dataset.json", {"channel_names": {"0": "CT"}, "labels": anatomy.dataset_labels(), "numTraining": 4,
                                         "file_ending": ".nii.gz", "licence": "CC BY 4.0",
                                         "patients": {case: case[:5] for part in CASES.values() for case in part}})
    write_json(folder / "dataset_fingerprint.json", fingerprint() | {"cases": {case: {} for case in CASES["train"]}})
    for fold in folds:
        torch.manual_seed(10 * fold + number)
        network = build_network(stage, plans)
        meta = {"stage": stage, "trainer": stage_folder_name(stage).split("__")[0], "fold": fold, "epoch": 7, "best_ema": 0.5,
                "history": {"train_loss": [1.0] * 7}, "plans": plans.to_json(),
                "fitted": {"temperature": 1.5} | ({"upstream": upstream[fold]} if stage == "identify" else {}),
                "model_fingerprint": plans.stage(stage).model_fingerprint, "train_cases": CASES["train"], "val_cases": CASES["val"]}
        if stage != "identify":
            upstream[fold][stage] = weights_sha256(network.state_dict())
        optimizer = {"optimizer": {"state": {0: torch.zeros(1000)}}}
        extra = {"phi": torch.rand(plans.stage(stage).run.neighbours, 24, 24)} if stage == "identify" else {}
        Checkpoint(network.state_dict(), meta, extra, optimizer).save(folder / f"fold_{fold}" / "checkpoint_final.pth")
        write_json(folder / f"fold_{fold}" / "validation" / "summary.json",
                   {"stage": stage, "f1": 0.25 + fold / 8, "metric_per_case": [{"case": "carla_doe", "Dice": 0.5}]})


def export_fold(results: Path, fold: int, target: Path) -> Path:
    """One fold of the model in `results` as a ZIP."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("spineclue_results", str(results))
        return export_model(501, target, [fold], half=True)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
