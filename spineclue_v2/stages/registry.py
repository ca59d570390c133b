"""The stages of the pipeline. Each has the same files: plan, network, data, trainer, predictor."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import InputError
from ..plans.data import Data, MRData
from ..plans.plans import DEFAULT_PLANS_NAME
from .grade.plan import GradeNetwork, GradeRun
from .identify.plan import IdentifyNetwork, IdentifyRun
from .localize.plan import LocalizeNetwork, LocalizeRun
from .mr.plan import Hybrid2DNetwork, Hybrid2DRun, Hybrid3DNetwork, Hybrid3DRun
from .segment.plan import SegmentNetwork, SegmentRun

CORE_STAGES = ("localize", "segment", "identify")

MR_STAGES = ("hybrid_2d", "hybrid_3d")


GROUP_TYPES: dict[str, dict[str, type]] = {
    "localize": {"data": Data, "network": LocalizeNetwork, "run": LocalizeRun},
    "segment": {"data": Data, "network": SegmentNetwork, "run": SegmentRun},
    "identify": {"data": Data, "network": IdentifyNetwork, "run": IdentifyRun},
    "grade": {"data": Data, "network": GradeNetwork, "run": GradeRun},
    "hybrid_2d": {"data": MRData, "network": Hybrid2DNetwork, "run": Hybrid2DRun},
    "hybrid_3d": {"data": MRData, "network": Hybrid3DNetwork, "run": Hybrid3DRun},
}

STAGES = tuple(GROUP_TYPES)  # every stage there is; a plan holds those of one family

# Stages that make a model together: (those it cannot do without, those it may have besides).
FAMILIES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ((CORE_STAGES, ("grade",)), (MR_STAGES[:1], MR_STAGES[1:]))

DEFAULT_TRAINER = {
    "localize": "spineclue_v2.stages.localize.trainer:LocalizeTrainer",
    "segment": "spineclue_v2.stages.segment.trainer:SegmentTrainer",
    "identify": "spineclue_v2.stages.identify.trainer:IdentifyTrainer",
    "grade": "spineclue_v2.stages.grade.trainer:GradeTrainer",
    "hybrid_2d": "spineclue_v2.stages.mr.trainer:Hybrid2DTrainer",
    "hybrid_3d": "spineclue_v2.stages.mr.trainer:Hybrid3DTrainer",
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


def family_of(stages: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(mandatory, optional) stages of the family that `stages` belong to; the core family when there are none."""
    present = set(stages)
    for required, optional in FAMILIES:
        if present & {*required, *optional}:
            return required, optional
    return FAMILIES[0]


def is_whole_model(stages: Iterable[str]) -> bool:
    """True when `stages` are all mandatory ones of a family and nothing but its optional ones besides."""
    present = set(stages)
    required, optional = family_of(present)
    return set(required) <= present <= {*required, *optional}


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
