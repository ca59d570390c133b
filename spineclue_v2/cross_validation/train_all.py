"""`spineclue_train DATASET all FOLD`: which stages there are to train, and from where each of them goes on."""
from __future__ import annotations

import logging

from ..dataset.splits import parse_fold
from ..errors import InputError
from ..stages.plan_files import load_plans
from ..stages.registry import modality_of, pipeline_of, stage_folder_name
from ..training.stage_model import CHECKPOINT_NAME
from ..utilities import paths

logger = logging.getLogger(__name__)

SHIPPED = "shipped"


def stages_to_train(dataset: str | int, fold: int | str, plans_name: str, trainer: str | None = None,
                    pretrained_weights: str | None = None, resume: bool = False) -> list[tuple[str, str | None, bool]]:
    """(stage, weights to start from, whether it is continued) of the plan's stages in the order of prediction.

    With `resume` a finished stage only repeats its validation where that is missing, and is left out where it has one. InputError for
    what belongs to one stage alone: a trainer's name, or a checkpoint to start from.
    """
    if trainer is not None:
        raise InputError(f"-tr {trainer} trains one stage; leave it out, or train the stages one by one.")
    if pretrained_weights not in (None, SHIPPED):
        raise InputError(f"-pretrained_weights {pretrained_weights} is a checkpoint of one stage; give 'shipped', or train the stages one "
                         "by one.")
    name, number = paths.dataset_name(dataset), parse_fold(fold)
    plans = load_plans(paths.preprocessed_folder() / name / f"{plans_name}.json")
    result: list[tuple[str, str | None, bool]] = []
    for stage in pipeline_of(modality_of(plans.stages)):
        if stage.name not in plans.stages or not stage.trainable:
            continue
        weights = pretrained_weights
        if weights == SHIPPED and not (paths.weights_folder() / f"{stage.name}.pth").is_file():
            logger.warning("The package has no weights of stage %s, which starts from scratch.", stage.name)
            weights = None
        folder = paths.results_folder() / name / stage_folder_name(stage.name, plans_name) / f"fold_{number}"
        started = any((folder / file).is_file() for file in ("checkpoint_latest.pth", CHECKPOINT_NAME))
        done = not (folder / "checkpoint_latest.pth").is_file() and (folder / "validation" / "summary.json").is_file()
        if resume and started and done:
            logger.info("Stage %s of fold %s is finished.", stage.name, number)
            continue
        result.append((stage.name, weights, resume and started))
    return result
