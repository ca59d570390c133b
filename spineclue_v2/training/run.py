"""From a dataset, a stage and a fold to a finished training: find the plan and the data, check that they agree, train, validate."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .. import paths
from ..dataset import PreprocessedDataset, fold_cases, load_splits
from ..errors import InputError
from ..plans import DEFAULT_PLANS_NAME, Plans
from ..stages import trainer_class
from ..storage import read_json
from .device import resolve_device


def train(dataset: str | int, stage: str, fold: int | str, trainer: str | None = None, plans_name: str = DEFAULT_PLANS_NAME,
          device: str | None = None, num_gpus: int = 1, pretrained_weights: str | None = None, resume: bool = False,
          only_validate: bool = False, validate_best: bool = False, save_probabilities: bool = False) -> tuple[Path, dict[str, Any]]:
    """Train and validate; returns the fold's folder and its validation summary. See `spineclue_train -h`."""
    if resume and only_validate:
        raise InputError("--c continues a training, --val only validates a finished one; give one of them.")
    name = paths.dataset_name(dataset)
    fold = parse_fold(fold)
    base = paths.preprocessed_folder() / name
    plans = Plans.load(base / f"{plans_name}.json")
    kind = trainer_class(stage, trainer)
    folder = paths.results_folder() / name / f"{kind.__name__}__{plans_name}__{stage}"
    data = PreprocessedDataset(base / plans.stage(stage).data_fingerprint)
    patients = patients_of(base)
    train_cases, val_cases = fold_cases(load_splits(base, data.cases, patients), fold, data.cases, patients)
    where = resolve_device(device)
    if num_gpus != 1:
        raise InputError(f"-num_gpus is {num_gpus}; a training runs on one GPU so far. Train folds side by side instead, one per GPU "
                         "(CUDA_VISIBLE_DEVICES=0 spineclue_train ... 0).")
    run = kind(plans, fold, data, train_cases, val_cases, folder / f"fold_{fold}", where)
    _copy_descriptions(base, folder, plans, stage)
    if only_validate:
        run.load(run.folder / ("checkpoint_best.pth" if validate_best else "checkpoint_final.pth"))
    else:
        if pretrained_weights and not resume:
            run.load_pretrained(_pretrained(pretrained_weights, stage))
        run.run(resume)
        if validate_best:
            run.load(run.folder / "checkpoint_best.pth")
    return run.folder, run.perform_validation(save_probabilities)


def parse_fold(fold: int | str) -> int | str:
    """0, '0' or 'all'; anything else is an InputError."""
    if str(fold) == "all":
        return "all"
    if not str(fold).isdigit():
        raise InputError(f"Fold '{fold}' is unknown; expected a number or all.")
    return int(fold)


def patients_of(base: Path) -> dict[str, str]:
    """case -> patient from the preprocessed folder's dataset.json; empty when it names none."""
    return read_json(base / "dataset.json", "dataset description").get("patients") or {}


def _pretrained(text: str, stage: str) -> Path:
    return paths.weights_folder() / f"{stage}.pth" if text == "shipped" else Path(text)


def _copy_descriptions(base: Path, folder: Path, plans: Plans, stage: str) -> None:
    """plans.json, dataset.json and the fingerprint beside the folds, so that the folder describes itself.

    Folds of one stage must share their model: a plan whose model fingerprint differs from the stored one is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / "plans.json"
    if stored.exists() and any(folder.glob("fold_*/checkpoint_*.pth")):
        found, wanted = Plans.load(stored).stage(stage).model_fingerprint, plans.stage(stage).model_fingerprint
        if found != wanted:
            raise InputError(f"{folder} holds folds trained with model fingerprint {found}, the plan now has {wanted}; move that folder "
                             "away, or plan under another name with -overwrite_plans_name.")
    plans.save(stored)
    for name in ("dataset.json", "dataset_fingerprint.json"):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)

