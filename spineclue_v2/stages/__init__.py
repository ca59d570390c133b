"""The stages of the pipeline. Each has the same four files: network, data, trainer, predictor."""
from __future__ import annotations

from typing import Any

DEFAULT_TRAINER = {
    "localize": "spineclue_v2.stages.localize.trainer:LocalizeTrainer",
    "segment": "spineclue_v2.stages.segment.trainer:SegmentTrainer",
    "identify": "spineclue_v2.stages.identify.trainer:IdentifyTrainer",
    "grade": "spineclue_v2.stages.grade.trainer:GradeTrainer",
    "hybrid_2d": "spineclue_v2.stages.hybrid.trainer:Hybrid2DTrainer",
    "hybrid_3d": "spineclue_v2.stages.hybrid.trainer:Hybrid3DTrainer",
}


def build_network(stage: str, plan: Any) -> Any:
    """The network of a stage as its StagePlan `plan` says, with fresh weights: `build_network(plan.network, CT windows)` of the
    `network.py` beside the stage's trainer."""
    import importlib

    package = DEFAULT_TRAINER[stage].rpartition(".trainer:")[0]
    return importlib.import_module(f"{package}.network").build_network(plan.network, len(plan.data.windows_hu))


def trainer_class(stage: str, name: str | None = None) -> Any:
    """Trainer class of a stage: the default, one of its module by name, or one from the entry points `spineclue_v2.trainers`."""
    import importlib
    from importlib.metadata import entry_points

    from ..errors import InputError

    if stage not in DEFAULT_TRAINER:
        raise InputError(f"There is no stage '{stage}'; known: {', '.join(DEFAULT_TRAINER)}.")
    module_name, default = DEFAULT_TRAINER[stage].split(":")
    module = importlib.import_module(module_name)
    wanted = name or default
    found = getattr(module, wanted, None)
    if found is None:
        for point in entry_points(group="spineclue_v2.trainers"):
            if point.name == wanted:
                found = point.load()
    if found is None or getattr(found, "stage", None) != stage:
        known = [key for key, value in vars(module).items() if getattr(value, "stage", None) == stage]
        raise InputError(f"Stage '{stage}' has no trainer '{wanted}'; known: {', '.join(known)}, "
                         "and entry points of the group spineclue_v2.trainers.")
    return found


def default_trainer_name(stage: str) -> str:
    """Name of the trainer that `spineclue_train` takes without -tr."""
    return DEFAULT_TRAINER[stage].split(":")[1]
