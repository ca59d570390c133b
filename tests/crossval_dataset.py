"""A preprocessed dataset of block spines with trained folds of analytic networks (`analytic`): cross-validation without training."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from analytic import ThresholdDetector, ThresholdSegmenter
from blocks import spine, write_dataset
from tiny_dataset import edited

from spineclue_v2.inference import model as model_module
from spineclue_v2.inference.model import build_network
from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME, Plans
from spineclue_v2.stages.registry import CORE_STAGES, stage_folder_name
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.utilities.files import read_json, write_json

DATASET = "Dataset495_Folds"
NAMES = ("T11", "T12", "L1", "L2", "L3")
FOLDS = (0, 1, 2)
EDITS = {"localize": {"network": {"slice_size": (96, 64)}, "run": {"slice_gap_mm": 4.0}},
         "segment": {"network": {"features": (4, 8), "blocks": (1, 1), "crop_size": (24, 32, 32)}},
         "identify": {"network": {"width": 4, "hidden": 16, "projection_dim": 8, "crop_size": (16, 32, 32), "pool_grid": (1, 1, 1)},
                      "run": {"mc_samples": 4, "classifier_weights": {"geometry": 0.5}}}}


def make(home: Path) -> Path:
    """Draw, plan and preprocess six block spines in three folds below `home`, with a model of each fold; returns the home."""
    from spineclue_v2.planning.plan_and_preprocess import fingerprint_dataset, plan_experiment, preprocess_plans

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPINECLUE_HOME", str(home))
        for variable in ("spineclue_raw", "spineclue_preprocessed", "spineclue_results", "nnUNet_raw"):
            patch.delenv(variable, raising=False)
        cases = {f"case_{i}": spine(NAMES[i % 2:3 + i % 3], (2.5, 2.5, 2.5))[:2] for i in range(6)}
        write_dataset(home / "raw" / DATASET, cases)
        fingerprint_dataset(DATASET, progress=False)
        plans = edited(plan_experiment(DATASET, gpu_memory_target=1, device="cpu"), EDITS, 2.5)
        plans = replace(plans, stages={stage: plans.stage(stage) for stage in CORE_STAGES})
        base = home / "preprocessed" / DATASET
        plans.save(base / f"{DEFAULT_PLANS_NAME}.json")
        assert preprocess_plans(DATASET, progress=False) == {}
        write_json(base / "splits_final.json", splits())
        for stage in CORE_STAGES:
            write_model(home / "results" / DATASET / stage_folder_name(stage), stage, plans)
    return home


def splits() -> list[dict[str, list[str]]]:
    every = [f"case_{i}" for i in range(6)]
    return [{"train": [c for c in every if int(c[-1]) % 3 != fold], "val": [c for c in every if int(c[-1]) % 3 == fold]} for fold in FOLDS]


def write_model(folder: Path, stage: str, plans: Plans, seed: int = 0) -> None:
    """A checkpoint per fold: thresholds that find the blocks for localize and segment, fresh networks for identify."""
    plans.save(folder / "plans.json")
    for fold, split in zip(FOLDS, splits(), strict=True):
        torch.manual_seed(seed + fold)
        network = {"localize": ThresholdDetector(0.25 + 0.01 * fold), "segment": ThresholdSegmenter(0.2 + 0.01 * fold)}.get(stage)
        network = network or build_network(stage, plans)
        meta = {"stage": stage, "model_fingerprint": plans.stage(stage).model_fingerprint, "fold": fold, "epoch": 1, "best_ema": 0.0,
                "history": {}, "plans": plans.to_json(), "fitted": {"temperature": 0.1} if stage == "identify" else {},
                "train_cases": split["train"], "val_cases": split["val"]}
        Checkpoint(network.state_dict(), meta).save(folder / f"fold_{fold}" / "checkpoint_final.pth")


def train_centres(home: Path, results: Path) -> None:
    """Stage centres of fold 0 in `results`: the package's weights after one more step, on the grid of the other stages."""
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.planning.plan_and_preprocess import plan_experiment
    from spineclue_v2.stages.registry import trainer_class
    from spineclue_v2.utilities import paths

    edits = {"centres": {"network": {"patch_size": (32, 16, 16)}, "run": {"epochs": 1, "iterations_per_epoch": 1, "batch_size": 2,
                                                                         "initial_lr": 1e-4}}}
    plans = edited(plan_experiment(DATASET, gpu_memory_target=1, device="cpu", plans_name="WithCentres"), edits, 2.5)
    folder, split = results / DATASET / stage_folder_name("centres"), splits()[0]
    plans.save(folder / "plans.json")
    data = PreprocessedDataset(home / "preprocessed" / DATASET / plans.stage("centres").data_fingerprint)
    trainer = trainer_class("centres")(plans, 0, data, split["train"], split["val"], folder / "fold_0", torch.device("cpu"), workers=0)
    trainer.load_pretrained(paths.weights_folder() / "centres.pth")
    trainer.run(False)


def use_analytic_networks(patch: pytest.MonkeyPatch) -> None:
    """Tell the loader of models about the analytic networks."""
    analytic: dict[str, Callable[[], torch.nn.Module]] = {"localize": ThresholdDetector, "segment": ThresholdSegmenter}
    patch.setattr(model_module, "build_network",
                  lambda stage, plans, trainer=None: analytic[stage]() if stage in analytic else build_network(stage, plans, trainer))


def summary_of(results: Path, stage: str, fold: int) -> dict:
    return read_json(results / DATASET / stage_folder_name(stage) / f"fold_{fold}" / "validation" / "summary.json")
