"""The trainings of the study: which there are, and each one trained, continued or found finished."""
from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..dataset.preprocessed import PreprocessedDataset
from ..errors import InputError
from ..plans.plans import Plans
from ..stages.appearance.trainer import AppearanceTrainer
from ..stages.identify.plan import IdentifyNetwork, IdentifyRun
from ..stages.identify.trainer import IdentifyTrainer
from ..training.checkpoint import Checkpoint
from .comparisons import CTTrainer, ResNeXtTrainer, TransformerTrainer

logger = logging.getLogger(__name__)

FIRST_SEED = 1234
TEMPERATURES = (0.05, 0.1, 0.2, 0.5)
FINAL, LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"


def as_planned(run: IdentifyRun) -> IdentifyRun:
    return run


def plain(run: IdentifyRun) -> IdentifyRun:
    """The same number of steps, all of them with cross entropy alone and the rate meant for a whole network."""
    return replace(run, contrastive_epochs=0, classifier_epochs=run.contrastive_epochs + run.classifier_epochs,
                   loss_weights=(0.0, 0.0, 1.0), freeze_backbone=False, classifier_lr=run.contrastive_lr)


@dataclass(frozen=True)
class Training:
    """One network of the study: its trainer, and what differs from the plan."""

    title: str
    trainer: type[IdentifyTrainer] | type[AppearanceTrainer]
    run: Callable[[IdentifyRun], IdentifyRun] = as_planned
    network: Callable[[IdentifyNetwork], IdentifyNetwork] = lambda network: network


TRAININGS = {
    "ct": Training("ResNet on the CT, cross entropy", CTTrainer, plain),
    "mask": Training("ResNet on the mask, cross entropy", IdentifyTrainer, plain),
    "contrastive": Training("contrastive, then classifier, as planned", IdentifyTrainer),
    "resnext": Training("ResNeXt on the mask, cross entropy", ResNeXtTrainer, plain),
    "vit": Training("vision transformer on the mask, cross entropy", TransformerTrainer, plain),
    "appearance": Training("appearance classifier on the CT around", AppearanceTrainer),
}
"""What the tables and pictures need. A budget is equal in steps; a contrastive step sees two views of each mask."""

EXTRAS = ("objective", "loss", "temperature", "freeze", "width")


def extra_trainings(names: Sequence[str], plan: Any) -> dict[str, Training]:
    """Further contrastive trainings that differ from the plan in one number each; `names` from `EXTRAS`."""
    run, network, found = plan.run, plan.network, {}
    if "objective" in names:
        found["cross_entropy"] = _change("classifier phase with cross entropy alone", loss_weights=(0.0, 0.0, 1.0))
    if "loss" in names:
        other = "in" if run.contrastive_loss == "out" else "out"
        found[f"loss_{other}"] = _change(f"contrastive loss '{other}' instead of '{run.contrastive_loss}'", contrastive_loss=other)
    if "temperature" in names:
        for value in TEMPERATURES:
            if value != run.temperature:
                found[f"temperature_{value:g}"] = _change(f"temperature {value:g} instead of {run.temperature:g}", temperature=value)
    if "freeze" in names:
        words = {True: "frozen", False: "fine-tuned"}
        found[words[not run.freeze_backbone]] = _change(f"backbone {words[not run.freeze_backbone]} instead of "
                                                         f"{words[run.freeze_backbone]}", freeze_backbone=not run.freeze_backbone)
    if "width" in names:
        for value in (max(4, network.width // 2), network.width * 2):
            found[f"width_{value}"] = Training(f"width {value} instead of {network.width}", IdentifyTrainer,
                                               network=partial(replace, width=value))
    return found


def _change(title: str, **values: Any) -> Training:
    return Training(title, IdentifyTrainer, lambda run: replace(run, **values))


def train_or_load(name: str, training: Training, plans: Plans, dataset: PreprocessedDataset, cases: tuple[list[str], list[str]],
            folder: Path, *, fold: int | str, seed: int, device: torch.device, workers: int | None = None
            ) -> IdentifyTrainer | AppearanceTrainer:
    """The trainer of `training` with its final weights: trained now, continued, or read when it is finished.

    `folder` is that of the fold and seed; weights of another plan, of other cases or of another seed there are an InputError.
    """
    plans = _plans_of(training, plans)
    own_folder = folder / name
    trainer = training.trainer(plans, fold, dataset, *cases, own_folder, device, seed=FIRST_SEED + seed, workers=workers)
    for file in (own_folder / FINAL, own_folder / LATEST):
        if file.exists():
            _check_same(file, plans, training.trainer.stage, cases)
    if (own_folder / FINAL).exists() and not (own_folder / LATEST).exists():
        trainer.history = trainer.load(own_folder / FINAL).meta["history"]
        return trainer
    logger.info("Training %s (%s), fold %s, seed %d.", name, training.title, fold, seed)
    trainer.run(resume=(own_folder / LATEST).exists())
    return trainer


def _plans_of(training: Training, plans: Plans) -> Plans:
    """The plans with what this training changes; every training has the same number of steps."""
    identify = plans.stage("identify")
    stages = plans.stages | {"identify": replace(identify, run=training.run(identify.run), network=training.network(identify.network))}
    if training.trainer.stage == "appearance":
        own = plans.stage("appearance")
        steps = {"epochs": identify.run.contrastive_epochs + identify.run.classifier_epochs,
                 "iterations_per_epoch": identify.run.iterations_per_epoch}
        stages["appearance"] = replace(own, run=replace(own.run, **steps))
    return replace(plans, stages=stages)


def _check_same(file: Path, plans: Plans, stage: str, cases: tuple[list[str], list[str]]) -> None:
    meta = Checkpoint.load(file).meta
    wanted = json.loads(json.dumps(plans.to_json()["stages"][stage]))
    same_plan = meta.get("plans", {}).get("stages", {}).get(stage) == wanted
    if not same_plan or (meta.get("train_cases"), meta.get("val_cases")) != cases:
        raise InputError(f"{file} was trained with {'other cases' if same_plan else 'another plan'} than this study has; give another "
                         f"folder with -o, or delete {file.parent}.")
