"""A dataset of five small phantoms with a cut-down plan: every stage trains on it within seconds."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.dataset.splits import fold_cases, load_splits
from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME, Plans
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import trainer_class
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.training.trainer import BaseTrainer

CPU = torch.device("cpu")
DATASET = "Dataset499_Tiny"
LEVELS = ("L1", "L2", "L3", "L4")
PHANTOM: dict[str, Any] = {"first": LEVELS[0], "last": LEVELS[-1], "spacing": (3.0, 3.0, 3.0), "margin": 8.0, "variant": None, "cobb": 0.0,
                           "fractures": {}, "screws": 0, "cement": 0, "wide": False}
SPACING = 4.0
EDITS: dict[str, dict[str, dict[str, Any]]] = {
    "localize": {"network": {"slice_size": (64, 64)}, "run": {"batch_size": 2, "epochs": 2, "iterations_per_epoch": 2}},
    "segment": {"network": {"features": (4, 8), "blocks": (1, 1), "crop_size": (24, 32, 32)},
                "run": {"batch_size": 2, "epochs": 2, "iterations_per_epoch": 2}},
    "identify": {"network": {"width": 4, "hidden": 16, "projection_dim": 8, "crop_size": (16, 32, 32), "pool_grid": (1, 1, 1)},
                 "run": {"batch_size": 4, "contrastive_epochs": 2, "classifier_epochs": 2, "iterations_per_epoch": 2, "mc_samples": 4}},
    "appearance": {"run": {"batch_size": 4, "epochs": 4, "iterations_per_epoch": 2}},
    "geometry": {"network": {"width": 16, "layers": 1, "members": 2},
                 "run": {"batch_size": 8, "epochs": 2, "iterations_per_epoch": 2, "sampled_spines": 20}},
}


def edited(plans: Plans, edits: dict[str, dict[str, dict[str, Any]]], spacing: float | None = None) -> Plans:
    """A copy of `plans` with some numbers replaced: {stage: {group: {field: value}}}; `spacing` for all stages."""
    stages = dict(plans.stages)
    for stage, groups in edits.items():
        stages[stage] = replace(stages[stage], **{group: replace(getattr(stages[stage], group), **values)
                                                  for group, values in groups.items()})
    if spacing is not None:
        stages = {name: replace(stage, data=replace(stage.data, spacing_mm=spacing)) for name, stage in stages.items()}
    return replace(plans, stages=stages)


def make(home: Path) -> Path:
    """Draw, plan and preprocess the dataset below `home`; returns its preprocessed folder."""
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.dataset.splits import load_splits
    from spineclue_v2.dataset_conversion.phantom import convert
    from spineclue_v2.planning.plan_and_preprocess import fingerprint_dataset, plan_experiment, preprocess_plans

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPINECLUE_HOME", str(home))
        for variable in ("spineclue_raw", "spineclue_preprocessed", "spineclue_results", "nnUNet_raw"):
            patch.delenv(variable, raising=False)
        convert(home / "raw" / DATASET, 5, seed=7, **PHANTOM)
        fingerprint_dataset(DATASET, progress=False)
        plans = edited(plan_experiment(DATASET, gpu_memory_target=1, device="cpu"), EDITS, SPACING)
        folder = home / "preprocessed" / DATASET
        plans.save(folder / f"{DEFAULT_PLANS_NAME}.json")
        assert preprocess_plans(DATASET, progress=False) == {}
        load_splits(folder, PreprocessedDataset(folder / plans.stage("segment").data_fingerprint).cases)
    return folder


def trainer(tiny: Path, stage: str, folder: Path, workers: int = 0, kind: type | None = None, **edits: dict) -> BaseTrainer:
    """The stage's trainer on fold 0; `edits`: {group: {field: value}} of its plan."""
    plans = edited(load_plans(tiny / "SpineCLUEPlans.json"), {stage: edits})
    dataset = PreprocessedDataset(tiny / plans.stage(stage).data_fingerprint)
    train_cases, val_cases = fold_cases(load_splits(tiny, dataset.cases), 0)
    return (kind or trainer_class(stage))(plans, 0, dataset, train_cases, val_cases, folder, CPU, workers=workers)


def same(found: Checkpoint, wanted: Checkpoint) -> None:
    """Bit by bit the same weights, extra tensors, fitted values and history (but for the seconds)."""
    for name in ("network", "extra"):
        a, b = getattr(found, name), getattr(wanted, name)
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
    for key in ("fitted", "epoch", "best_ema", "train_cases"):
        assert found.meta[key] == wanted.meta[key]
    for key in set(wanted.meta["history"]) - {"seconds"}:
        assert found.meta["history"][key] == wanted.meta["history"][key]
