"""From a dataset, a stage and a fold to a finished training: find the plan and the data, check that they agree, train, validate."""
from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dataset.preprocessed import PreprocessedDataset
from ..dataset.splits import fold_cases, load_splits, parse_fold, patients_of
from ..errors import InputError
from ..plans.plans import DEFAULT_PLANS_NAME, Plans
from ..stages.method import method_fingerprint
from ..stages.plan_files import load_plans
from ..stages.registry import CORE_STAGES, stage_of, trainer_class
from ..training.added_cases import AddedCases
from ..training.checkpoint import Checkpoint
from ..training.device import resolve_device
from ..training.distributed import STOPPED, join_processes, launch, rank, rank_of_environment, under_launcher
from ..training.trainer import Interrupted
from ..utilities import paths
from ..utilities.files import write_json
from .evidence_check import evidence_warning
from .model_settings import restore

if TYPE_CHECKING:
    from .out_of_fold import OutOfFold

logger = logging.getLogger(__name__)


def train(dataset: str | int, stage: str, fold: int | str, trainer: str | None = None, *, plans_name: str = DEFAULT_PLANS_NAME,
          device: str | None = None, num_gpus: int = 1, pretrained_weights: str | None = None, resume: bool = False,
          only_validate: bool = False, validate_best: bool = False, save_probabilities: bool = False,
          validate: bool = True, tensorboard: bool = False, added: AddedCases | None = None) -> tuple[Path, dict[str, Any]]:
    """Train and validate; returns the fold's folder and its validation summary. See `spineclue_train -h`.

    `num_gpus` above 1 starts as many processes that train together; under torchrun this is one of them, and only the first one
    validates (the others' summary is empty). `added`: cases to learn from beside those of the fold.
    """
    if resume and only_validate:
        raise InputError("--c continues a training, --val only validates a finished one; give one of them.")
    name = paths.dataset_name(dataset)
    fold = parse_fold(fold)
    base = paths.preprocessed_folder() / name
    plans = load_plans(base / f"{plans_name}.json")
    stage_of(stage).load_parts()
    kind = trainer_class(stage, trainer)
    if save_probabilities and stage != "identify":
        raise InputError(f"--npz keeps the level probabilities of stage identify; {kind.__name__} of stage {stage} has none, so "
                         "leave it out.")
    folder = paths.results_folder() / name / f"{kind.__name__}__{plans_name}__{stage}"
    if only_validate and (folder / "plans.json").is_file():
        # What is predicted with: theta, hops and neighbours may have been chosen since the training.
        plans = replace(plans, stages=plans.stages | {stage: load_plans(folder / "plans.json").stage(stage)})
    data = PreprocessedDataset(base / plans.stage(stage).data_fingerprint)
    patients = patients_of(base)
    train_cases, val_cases = fold_cases(load_splits(base, data.cases, patients), fold, data.cases, patients)
    if num_gpus < 1:
        raise InputError(f"-num_gpus is {num_gpus}; expected 1 or more.")
    several = num_gpus > 1 and not under_launcher() and not only_validate
    if several and plans.stage(stage).run.batch_size % num_gpus:
        raise InputError(f"A batch of {plans.stage(stage).run.batch_size} cannot be shared evenly by {num_gpus} processes; change "
                         f"-num_gpus, or batch_size in stage {stage} of the plan.")
    with join_processes(resolve_device(device)) as where:
        run = kind(plans, fold, data, train_cases, val_cases, folder / f"fold_{fold}", where)
        run.watch.tensorboard, run.added = tensorboard, added
        checkpoint = run.folder / ("checkpoint_best.pth" if validate_best else "checkpoint_final.pth")
        found = _out_of_fold(name, stage, fold, where, plans_name, kind.__name__, checkpoint.name)
        run.upstream, run.method = found, method_fingerprint(stage_of(stage))
        if not only_validate:
            if rank() == 0:
                _copy_descriptions(base, folder, plans, stage)
            if several:
                # The processes write the checkpoint; this one validates it.
                again = {"trainer": trainer, "plans_name": plans_name, "device": device, "pretrained_weights": pretrained_weights,
                         "resume": resume, "tensorboard": tensorboard, "added": added}
                if not launch(num_gpus, where, _train_together, (name, stage, fold), again):
                    raise Interrupted(f"Stopped in {stage}, fold {fold}; continue with --c.")
            else:
                if pretrained_weights is None and not resume and "from" in plans.budget:
                    logger.warning("This plan is for a training that starts from weights, and no -pretrained_weights are given: its rates "
                                   "and lengths are too small for a new network. Add -pretrained_weights %s, or plan without --from.",
                                   plans.budget["from"])
                if pretrained_weights and not resume:
                    run.load_pretrained(_find_pretrained(pretrained_weights, stage))
                run.run(resume)
        if rank() != 0 or not validate:
            return run.folder, {}
        if only_validate or several or validate_best:
            run.load(checkpoint)
        return run.folder, _validate(run, found, checkpoint, save_probabilities)


def _train_together(what: tuple[str, str, int | str], how: dict[str, Any]) -> None:
    """One of several processes of `-num_gpus`."""
    logging.basicConfig(level=logging.INFO if rank_of_environment() == 0 else logging.WARNING, format="%(message)s")
    try:
        train(*what, **how, validate=False)
    except Interrupted:
        raise SystemExit(STOPPED) from None


def _out_of_fold(dataset: str, stage: str, fold: int | str, device: Any, plans_name: str, trainer: str,
                 checkpoint: str) -> OutOfFold | None:
    """What earlier stages found in the validation cases of this fold; None, with the reason, where there is nothing to read."""
    from .validation import open_fold

    if stage not in CORE_STAGES:
        return None
    try:
        found = open_fold(dataset, fold, device, plans_name, {stage: trainer}, {stage: checkpoint})
        found.require(stage)
        found.check_unseen(stage)  # now, not when the training is over
    except InputError as reason:
        logger.warning("%s The metrics will be those of the stage alone, on true input.", reason)
        return None
    return found


def _validate(run: Any, found: OutOfFold | None, checkpoint: Path, save_probabilities: bool) -> dict[str, Any]:
    """validation/summary.json: under `alone` the stage on true input; beside it, where earlier stages are trained, on their findings."""
    from .validation import validate_fold

    if found is not None and run.fitted_to_other_weights():
        logger.info("Earlier stages were trained again since; what was fitted to their findings is fitted anew.")
        run.on_train_end()
        saved = Checkpoint.load(checkpoint)
        saved.extra, saved.meta["fitted"] = run.extra, run.fitted
        saved.save(checkpoint)
    alone = run.perform_validation(save_probabilities)
    if run.stage not in CORE_STAGES:
        summary = alone
    else:
        summary = (validate_fold(found, run.stage) if found is not None else {"stage": run.stage, "fold": run.fold}) | {"alone": alone}
    write_json(run.folder / "validation" / "summary.json", summary)
    if run.stage == "identify" and (said := evidence_warning(summary.get("spineclue", {}).get("cases", []),
                                                             str(run.folder.parent / "plans.json"))):
        logger.warning("%s", said)
    return summary


def _find_pretrained(text: str, stage: str) -> Path:
    return paths.weights_folder() / f"{stage}.pth" if text == "shipped" else Path(text)


def _copy_descriptions(base: Path, folder: Path, plans: Plans, stage: str) -> None:
    """plans.json, dataset.json and the fingerprint beside the folds, so that the folder describes itself.

    Folds of one stage must share their model: a plan whose model fingerprint differs from the stored one is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / "plans.json"
    if stored.exists() and any(folder.glob("fold_*/checkpoint_*.pth")):
        found, wanted = load_plans(stored).stage(stage).model_fingerprint, plans.stage(stage).model_fingerprint
        if found != wanted:
            raise InputError(f"{folder} holds folds trained with model fingerprint {found}, the plan now has {wanted}; move that folder "
                             "away, or plan under another name with -overwrite_plans_name.")
    if stage == "identify" and restore(folder):
        logger.info("Settings that spineclue_find_best_configuration chose for other folds are taken back; run it again in the end.")
    plans.save(stored)
    for name in ("dataset.json", "dataset_fingerprint.json"):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)

