"""A trained model: the networks of every stage and fold, loaded once and checked against their plan."""
from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..plans.plans import DEFAULT_PLANS_NAME, Plans
from ..stages import registry as stage_registry
from ..stages.plan_files import load_plans, plans_from_json
from ..stages.registry import CORE_STAGES, MR_STAGES, STAGES, family_of, stage_folder_name, train_command
from ..training.checkpoint import Checkpoint, load_weights, weights_sha256
from ..training.stage_model import CHECKPOINT_NAME, StageModel
from ..utilities import paths

logger = logging.getLogger(__name__)



@dataclass
class Model:
    """All stages, the plans they obey, and the geometry and appearance classifiers when their weights are there."""

    plans: Plans
    device: torch.device
    stages: dict[str, StageModel]
    geometry: Any = None
    source: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    appearance: Any = None


@dataclass(frozen=True)
class ModelSource:
    """What a process on another machine needs to load the same model: paths that it must see, and names."""

    device: str | None = None
    folder: str | None = None                 # None: the shipped weights
    folds: tuple[str, ...] | None = None
    plans_name: str = DEFAULT_PLANS_NAME
    trainers: tuple[tuple[str, str], ...] | None = None
    checkpoint_name: str = CHECKPOINT_NAME

    def load(self) -> Model:
        """The model, on the best device there (or the one named)."""
        from ..training.device import resolve_device

        device = resolve_device(self.device)
        if self.folder is None:
            return load_shipped(device)
        return load_trained(Path(self.folder), list(self.folds) if self.folds else None, device, self.plans_name,
                            dict(self.trainers) if self.trainers else None, self.checkpoint_name)


@cache
def model_of(source: ModelSource) -> Model:
    """`source.load()`, once per process."""
    return source.load()


def load_shipped(device: torch.device) -> Model:
    """The weights that come with the package."""
    folder = paths.weights_folder()
    missing = [stage for stage in CORE_STAGES if not (folder / f"{stage}.pth").exists()]
    if missing:
        raise InputError(f"This installation has no shipped weights for {', '.join(missing)}; train your own and pass -d or -m.")
    there = [stage for stage in (*CORE_STAGES, *family_of(CORE_STAGES)[1]) if (folder / f"{stage}.pth").exists()]
    model = _assemble({stage: [folder / f"{stage}.pth"] for stage in there}, None, device, "shipped weights")
    if (folder / "appearance.pth").exists():
        from ..stages.identify.appearance import AppearanceClassifier

        model.appearance = AppearanceClassifier.load(folder / "appearance.pth", device)
    return model


def load_trained(folder: Path, folds: list[int | str] | None, device: torch.device, plans_name: str = DEFAULT_PLANS_NAME,
                 trainers: dict[str, str] | None = None, checkpoint_name: str = CHECKPOINT_NAME) -> Model:
    """Model of a results folder `DatasetXXX_Name` (or an installed one). `folds` None: every fold that all stages finished."""
    files = trained_files(folder, folds, plans_name, trainers, checkpoint_name)
    parts = {stage: load_plans(found[0].parents[1] / "plans.json") for stage, found in files.items()}
    plans = _join(parts)
    names = ", ".join(folds_of(files))
    model = _assemble(files, plans, device, f"{folder.name}, folds {names}")
    if "identify" in files:
        model.appearance = _trained_appearance(folder, files["identify"], plans, plans_name, device)
    return model


def trained_files(folder: Path, folds: list[int | str] | None, plans_name: str = DEFAULT_PLANS_NAME,
                  trainers: dict[str, str] | None = None, checkpoint_name: str = CHECKPOINT_NAME) -> dict[str, list[Path]]:
    """Checkpoints of every stage, one per fold, in the layout `TRAINER__PLANS__STAGE/fold_X/CHECKPOINT`; InputError names the missing.

    The stages are the mandatory ones of the family whose folders are there, and each optional one that has finished all of the folds.
    """
    def command(stage: str, fold: str) -> str:
        return train_command(folder.name, stage, fold, plans_name, (trainers or {}).get(stage))

    if not folder.is_dir():
        raise InputError(f"Model folder {folder} does not exist; train with spineclue_train, or give -m the folder of a model.")
    places = {stage: folder / stage_folder_name(stage, plans_name, (trainers or {}).get(stage)) for stage in STAGES}
    required, optional = family_of(stage for stage, place in places.items() if place.is_dir())
    stage_folders = {stage: places[stage] for stage in required}
    for stage, place in stage_folders.items():
        if not place.is_dir():
            raise InputError(f"{folder} has no {place.name}; train stage {stage} first: {command(stage, 'FOLD')}.")
    if folds is not None:
        folds = list(dict.fromkeys(map(str, folds)))  # the same fold twice would count double in every mean
    else:
        done = [{p.parent.name[5:] for p in place.glob(f"fold_*/{checkpoint_name}")} for place in stage_folders.values()]
        folds = sorted(set.intersection(*done))
        if not folds:
            raise InputError(f"{folder} has no fold that every stage has finished; train the missing ones or choose with -f.")
    for stage in optional:
        missing = [fold for fold in folds if not (places[stage] / f"fold_{fold}" / checkpoint_name).exists()]
        if not missing:
            stage_folders[stage] = places[stage]
        elif places[stage].is_dir():
            logger.warning("Stage %s is left out: fold %s is not finished (%s).", stage, missing[0], command(stage, missing[0]))
    files = {stage: [place / f"fold_{fold}" / checkpoint_name for fold in folds] for stage, place in stage_folders.items()}
    for stage, wanted in files.items():
        for file in wanted:
            if not file.exists():
                raise InputError(f"Fold {file.parent.name[5:]} of stage {stage} was never trained to its end ({file} is missing); "
                                 f"run {command(stage, file.parent.name[5:])}.")
    return files


def folds_of(files: dict[str, list[Path]]) -> list[str]:
    """The folds of `trained_files`, as text; every stage has the same."""
    return [file.parent.name[5:] for file in next(iter(files.values()))]


def _join(parts: dict[str, Plans]) -> Plans:
    """One plan of each stage's own; what is not a stage's comes from the first."""
    return replace(next(iter(parts.values())), stages={stage: plans.stage(stage) for stage, plans in parts.items()})


def _assemble(files: dict[str, list[Path]], plans: Plans | None, device: torch.device, source: str) -> Model:
    loaded = {stage: [Checkpoint.load(file, device) for file in wanted] for stage, wanted in files.items()}
    if plans is None:
        parts = {stage: plans_from_json(saved[0].meta["plans"], str(files[stage][0])) for stage, saved in loaded.items()}
        plans = _join(parts)
    if "segment" in plans.stages:
        _check_one_space(plans, source)
    stages = {stage: stage_model(stage, checkpoints, files[stage], plans, device) for stage, checkpoints in loaded.items()}
    _warn_about_upstream(stages, files)
    record = {"name": plans.plans_name, "dataset": plans.dataset_name, "source": source,
              "fingerprints": {s: plans.stage(s).model_fingerprint for s in stages},
              "weights": {s: stages[s].sha256 for s in stages}}
    return Model(plans, device, stages, geometry_classifier(), source, record)


def stage_model(stage: str, checkpoints: list[Checkpoint], files: list[Path], plans: Plans, device: torch.device) -> StageModel:
    """The networks of one stage, each with its own checkpoint's weights (`files`: where those came from)."""
    networks = []
    for checkpoint, file in zip(checkpoints, files, strict=True):
        _check_fingerprint(checkpoint, plans, stage, file)
        network = build_network(stage, plans).to(device)
        load_weights(network, checkpoint, file)
        networks.append(network.eval())
    return StageModel(networks, [c.meta.get("fitted", {}) for c in checkpoints], [c.extra for c in checkpoints],
                      [weights_sha256(c.network) for c in checkpoints])


def _check_one_space(plans: Plans, source: str) -> None:
    """Masks go from segment to identify and grade as they are: all must have been trained in the same network space."""
    spaces = {does: (plans.stage(stage).data.spacing_mm, plans.stage(stage).data.orientation)
              for stage, does in (("segment", "segments"), ("identify", "identifies"), ("grade", "grades")) if stage in plans.stages}
    for does, (spacing, orientation) in spaces.items():
        first = spaces["segments"]
        if (spacing, orientation) != first:
            raise InputError(f"The model of {source} segments at {first[0]:g} mm {first[1]} but {does} at {spacing:g} mm "
                             f"{orientation}; give both stages the same spacing and orientation in the plan and train again.")


def _warn_about_upstream(stages: dict[str, StageModel], files: dict[str, list[Path]]) -> None:
    """Temperature and fusion of identify were fitted to what this fold's earlier stages found: others make its confidence less apt."""
    for number, fitted in enumerate(stages["identify"].fitted if "identify" in stages else ()):
        for stage, wanted in fitted.get("upstream", {}).items():
            file = files["identify"][number]
            if stages[stage].sha256[number] != wanted and file.parent.name.startswith("fold_"):
                trainer, plans_name, _ = file.parents[1].name.split("__")
                again = train_command(file.parents[2].name, "identify", file.parent.name[5:], plans_name, trainer, "--val")
                logger.warning("%s was fitted to other weights of stage %s than those in use; fit it anew with %s.", file, stage, again)


def _check_fingerprint(checkpoint: Checkpoint, plans: Plans, stage: str, file: Path) -> None:
    if checkpoint.meta.get("stage") != stage:
        raise InputError(f"Checkpoint {file} is of stage '{checkpoint.meta.get('stage')}', expected '{stage}'.")
    found, wanted = checkpoint.meta.get("model_fingerprint"), plans.stage(stage).model_fingerprint
    if found != wanted:
        raise InputError(f"Checkpoint {file} was trained with model fingerprint {found}, its plan has {wanted}; restore the plan "
                         f"it was trained with, or train stage {stage} again.")


def build_network(stage: str, plans: Plans) -> torch.nn.Module:
    """The network of a stage as its plan says, with fresh weights."""
    if stage in MR_STAGES:  # the 3D network contains the 2D branches, so it needs both plans
        from ..stages.mr.network import build_network as build

        return build(stage, plans)
    return stage_registry.build_network(stage, plans.stage(stage))


def _trained_appearance(folder: Path, files: list[Path], plans: Plans, plans_name: str, device: torch.device) -> Any:
    """The appearance classifier where it was trained on the same folds as the shape classifier (`files`), else None."""
    place = folder / stage_folder_name("identify", plans_name, "AppearanceTrainer")
    own = [place / file.parent.name / CHECKPOINT_NAME for file in files]
    if not all(file.exists() for file in own):
        return None
    from ..stages.identify.appearance import AppearanceClassifier

    return AppearanceClassifier.from_checkpoints(own, plans.stage("identify").data, device)


def geometry_classifier() -> Any:
    """The classifier trained on real landmarks; without its file identification goes by shape alone."""
    file = paths.weights_folder() / "geometry.pth"
    if not file.exists():
        return None
    from ..stages.geometry.classifier import GeometryClassifier

    return GeometryClassifier.load(file)
