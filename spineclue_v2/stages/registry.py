"""Which stages there are: the package's own, one line each, and those of installed packages (entry points `spineclue_v2.stages`)."""
from __future__ import annotations

import difflib
import importlib
import logging
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..plans.plans import DEFAULT_PLANS_NAME
from ..utilities.plugins import OWN_PACKAGE, describe_origin, find_points, load_named, load_point
from .base import Stage

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from ..training.trainer import BaseTrainer

OWN = {  # name -> where its Stage is; in the order of prediction
    "localize": "spineclue_v2.stages.localize:STAGE",
    "centres": "spineclue_v2.stages.centres:STAGE",
    "segment": "spineclue_v2.stages.segment:STAGE",
    "appearance": "spineclue_v2.stages.appearance:STAGE",
    "ribs": "spineclue_v2.stages.ribs:STAGE",
    "geometry": "spineclue_v2.stages.geometry:STAGE",
    "identify": "spineclue_v2.stages.identify:STAGE",
    "sacrum": "spineclue_v2.stages.segment:SACRUM",
    "heights": "spineclue_v2.stages.grade:HEIGHTS",
    "grade": "spineclue_v2.stages.grade:STAGE",
    "hybrid_2d": "spineclue_v2.stages.mr:HYBRID_2D",
    "hybrid_3d": "spineclue_v2.stages.mr:HYBRID_3D",
}
CORE_STAGES = ("localize", "segment", "identify")
"""The paper's three, which every CT model has."""

logger = logging.getLogger(__name__)

STAGE_POINTS, TRAINER_POINTS = "spineclue_v2.stages", "spineclue_v2.trainers"


@cache
def _find_stages() -> tuple[dict[str, Stage], dict[str, str]]:
    """(stages by name in the order of prediction, those that cannot be used by name with the sentence why)."""
    known: dict[str, Stage] = {}
    for name, text in OWN.items():
        module, _, attribute = text.partition(":")
        known[name] = getattr(importlib.import_module(module), attribute)
    refused: dict[str, str] = {}
    waiting: list[Stage] = []
    points = find_points(STAGE_POINTS)
    for name in dict.fromkeys(point.name for point in points):
        same = [point for point in points if point.name == name]
        if len(same) > 1 or name in OWN:
            others = [f"{OWN[name]} of {OWN_PACKAGE} itself"] if name in OWN else []
            refused[name] = (f"Two stages are called '{name}' ({' and '.join([*others, *map(describe_origin, same)])}); uninstall one of "
                             f"the packages, or rename one stage in its entry points {STAGE_POINTS}.")
            continue
        try:
            waiting.append(_load_stage(same[0]))
        except InputError as error:
            refused[name] = str(error)
    ordered, without_place = _place(known, waiting)
    return ordered, refused | without_place


def _load_stage(point: EntryPoint) -> Stage:
    """The checked stage of an entry point. A model is whole without it: those trained before its package came stay usable."""
    stage = load_point(point, "Stage")
    if not isinstance(stage, Stage) or stage.name != point.name:
        raise InputError(f"Entry point '{point.name}' of {STAGE_POINTS} is {describe_origin(point)}, which is no Stage of that name; make "
                         f"it a spineclue_v2.Stage(name='{point.name}', ...), or uninstall that package.")
    return replace(stage.check(), required=False)


def _place(known: dict[str, Stage], waiting: list[Stage]) -> tuple[dict[str, Stage], dict[str, str]]:
    """`known` with each of `waiting` behind the stage that it follows (which may be one of `waiting`), and why some have no place."""
    ordered = list(known.values())
    while waiting:
        names = [stage.name for stage in ordered]
        ready = [stage for stage in waiting if not stage.after or stage.after in names]
        if not ready:
            return {stage.name: stage for stage in ordered}, {
                stage.name: f"Stage '{stage.name}' follows '{stage.after}', which is no stage that can be used; known: {', '.join(names)}."
                for stage in waiting}
        for stage in ready:
            ordered.insert([other.name for other in ordered].index(stage.after) + 1 if stage.after else len(ordered), stage)
        waiting = [stage for stage in waiting if stage not in ready]
    return {stage.name: stage for stage in ordered}, {}


@cache
def stages() -> dict[str, Stage]:
    """Every stage by name, in the order of prediction.

    A stage of another package that cannot be used (its package does not import, it lacks a part, its name is taken) is left out with a
    warning, and `stage_of` refuses it: commands that do not need it go on. InputError where the name is one of our own stages, for then
    every model needs it.
    """
    known, refused = _find_stages()
    for name, why in refused.items():
        if name in OWN:
            raise InputError(why)
        logger.warning("%s Whatever needs no stage '%s' goes on without it.", why, name)
    return known


def stage_names() -> tuple[str, ...]:
    """Names of the stages that can be trained; no package is imported for it."""
    foreign = [point.name for point in find_points(STAGE_POINTS)]
    return (*(name for name in OWN if name not in ("sacrum", "heights")), *dict.fromkeys(name for name in foreign if name not in OWN))


def stage_of(name: str) -> Stage:
    """The stage of that name; InputError says why it cannot be used, or names the known ones."""
    known = stages()
    if name not in known:
        if name in _find_stages()[1]:
            raise InputError(_find_stages()[1][name])
        close = difflib.get_close_matches(name, known, n=1)
        raise InputError(f"There is no stage '{name}'{f' (did you mean {close[0]}?)' if close else ''}; known: {', '.join(known)}. "
                         "A stage of another package is there once that package is installed.")
    return known[name]


def pipeline_of(modality: str) -> tuple[Stage, ...]:
    """The stages of a modality in the order of prediction."""
    return tuple(stage for stage in stages().values() if stage.modality == modality)


def modality_of(names: Iterable[str]) -> str:
    """The modality of a model with these stages; CT when there are none. InputError when they are of different ones."""
    found = sorted({stage_of(name).modality for name in names})
    if len(found) > 1:
        raise InputError(f"Stages of CT and of MR do not make one model: {', '.join(names)}.")
    return found[0] if found else "CT"


def is_whole_model(names: Iterable[str]) -> bool:
    """True when `names` are stages of one modality with all that it requires."""
    present = set(names)
    known = stages()
    if not present or not present <= set(known) or len({known[name].modality for name in present}) > 1:
        return False
    return {stage.name for stage in pipeline_of(modality_of(present)) if stage.required} <= present


def trainer_class(stage: str, name: str | None = None) -> type[BaseTrainer]:
    """Trainer class of a stage: the default, one of its module by name, or one from the entry points `spineclue_v2.trainers`."""
    described = stage_of(stage)
    if described.trainer is None:
        raise InputError(f"Stage '{stage}' learns nothing, so it has no trainer; trainable: {', '.join(stage_names())}.")
    default = described.trainer.partition(":")[2]
    wanted = name or default
    found = described.part(described.trainer)
    module = sys.modules[described.trainer.partition(":")[0]]
    if wanted != default:
        found = getattr(module, wanted, None) or load_named(TRAINER_POINTS, wanted, "trainer")
    if found is None:
        known = [key for key, value in vars(module).items() if getattr(value, "stage", None) == stage]
        known += [point.name for point in find_points(TRAINER_POINTS)]
        if wanted == "AppearanceTrainer":
            raise InputError("The appearance classifier is a stage of its own now; train it with spineclue_train DATASET appearance FOLD.")
        raise InputError(f"Stage '{stage}' has no trainer '{wanted}'; known: {', '.join(known)}. Trainers of other packages are found "
                         f"through entry points of the group {TRAINER_POINTS}, once those packages are installed.")
    return _check_trainer(found, wanted, stage)


def _check_trainer(found: Any, name: str, stage: str) -> type[BaseTrainer]:
    """`found` itself; InputError where it is no trainer of that stage, or goes by another name than the one it is found by."""
    from ..training.trainer import BaseTrainer

    if not isinstance(found, type) or not issubclass(found, BaseTrainer):
        raise InputError(f"Trainer '{name}' of stage '{stage}' is {found!r}; expected a subclass of spineclue_v2.BaseTrainer.")
    if found.stage != stage:
        raise InputError(f"Trainer '{name}' trains stage '{found.stage}', not '{stage}'; choose a trainer of that stage with -tr.")
    if found.__name__ != name or "__" in name:
        raise InputError(f"Trainer '{name}' is the class {found.__name__}; folders and checkpoints hold the class's name, so call both "
                         "alike, without a double underscore.")
    return found


def default_trainer_name(stage: str) -> str:
    """Name of the trainer that `spineclue_train` takes without -tr."""
    return (stage_of(stage).trainer or ":").partition(":")[2]


def stage_folder_name(stage: str, plans_name: str = DEFAULT_PLANS_NAME, trainer: str | None = None) -> str:
    """`TRAINER__PLANS__STAGE` as nnU-Net names its result folders."""
    return f"{trainer or default_trainer_name(stage)}__{plans_name}__{stage}"


def train_command(dataset: str, stage: str, fold: int | str, plans_name: str = DEFAULT_PLANS_NAME, trainer: str | None = None,
                  *flags: str) -> str:
    """The command that trains this fold of dataset `DatasetXXX_Name`, for messages; -p and -tr where they are not the default."""
    words = ["spineclue_train", dataset[7:10], stage, str(fold)]
    if plans_name != DEFAULT_PLANS_NAME:
        words += ["-p", plans_name]
    if trainer not in (None, default_trainer_name(stage)):
        words += ["-tr", trainer]
    return " ".join([*words, *flags])
