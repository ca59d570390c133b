"""Which stages there are: the package's own, one line each, and those of installed packages (entry points `spineclue_v2.stages`)."""
from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..plans.plans import DEFAULT_PLANS_NAME
from .base import Stage

if TYPE_CHECKING:
    from ..training.trainer import BaseTrainer

OWN = {  # name -> where its Stage is; in the order of prediction
    "localize": "spineclue_v2.stages.localize:STAGE",
    "segment": "spineclue_v2.stages.segment:STAGE",
    "appearance": "spineclue_v2.stages.appearance:STAGE",
    "geometry": "spineclue_v2.stages.geometry:STAGE",
    "identify": "spineclue_v2.stages.identify:STAGE",
    "heights": "spineclue_v2.stages.grade:HEIGHTS",
    "grade": "spineclue_v2.stages.grade:STAGE",
    "hybrid_2d": "spineclue_v2.stages.mr:HYBRID_2D",
    "hybrid_3d": "spineclue_v2.stages.mr:HYBRID_3D",
}
CORE_STAGES = ("localize", "segment", "identify")
"""The paper's three, which every CT model has."""

STAGE_POINTS, TRAINER_POINTS = "spineclue_v2.stages", "spineclue_v2.trainers"


@cache
def stages() -> dict[str, Stage]:
    """Every stage by name, in the order of prediction. InputError for one that cannot be imported, lacks a part, or takes a name twice."""
    found = {}
    for name, text in OWN.items():
        module, _, attribute = text.partition(":")
        found[name] = getattr(importlib.import_module(module), attribute)
    for point in entry_points(group=STAGE_POINTS):
        if point.name in found:
            raise InputError(f"Two stages are called '{point.name}', one of them in {point.value}; rename that one in its package's entry "
                             f"points {STAGE_POINTS}.")
        found = _inserted(found, _loaded(point))
    return found


def _loaded(point: Any) -> Stage:
    try:
        stage = point.load()
    except Exception as error:  # whatever a foreign package does at its import
        raise InputError(f"Stage '{point.name}' of {point.value} cannot be imported ({type(error).__name__}: {error}); repair or "
                         "uninstall that package.") from error
    if not isinstance(stage, Stage) or stage.name != point.name:
        raise InputError(f"Entry point '{point.name}' of {STAGE_POINTS} is {point.value}, which is no Stage of that name; give it a "
                         f"spineclue_v2.Stage(name='{point.name}', ...).")
    return stage.check()


def _inserted(known: dict[str, Stage], stage: Stage) -> dict[str, Stage]:
    """`known` with `stage` behind the one it follows."""
    if not stage.after:
        return known | {stage.name: stage}
    if stage.after not in known:
        raise InputError(f"Stage '{stage.name}' follows '{stage.after}', which is no stage; known: {', '.join(known)}.")
    ordered = {}
    for name, other in known.items():
        ordered[name] = other
        if name == stage.after:
            ordered[stage.name] = stage
    return ordered


def stage_names() -> tuple[str, ...]:
    """Names of the stages that can be trained; no package is imported for it."""
    foreign = [point.name for point in entry_points(group=STAGE_POINTS)]
    return (*(name for name in OWN if name != "heights"), *(name for name in foreign if name not in OWN))


def stage_of(name: str) -> Stage:
    """The stage of that name; InputError names the known ones."""
    known = stages()
    if name not in known:
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
    module_name, _, default = described.trainer.partition(":")
    wanted = name or default
    if wanted == default:
        return described.part(described.trainer)
    module = importlib.import_module(module_name)
    found = getattr(module, wanted, None)
    for point in entry_points(group=TRAINER_POINTS) if found is None else ():
        if point.name == wanted:
            try:
                found = point.load()
            except Exception as error:  # whatever a foreign package does at its import
                raise InputError(f"Trainer '{wanted}' of {point.value} cannot be imported ({type(error).__name__}: {error}); repair that "
                                 "package.") from error
    if found is None or getattr(found, "stage", None) != stage:
        known = [key for key, value in vars(module).items() if getattr(value, "stage", None) == stage]
        known += [point.name for point in entry_points(group=TRAINER_POINTS)]
        raise InputError(f"Stage '{stage}' has no trainer '{wanted}'; known: {', '.join(known)}. Trainers of other packages are found "
                         f"through entry points of the group {TRAINER_POINTS}.")
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
