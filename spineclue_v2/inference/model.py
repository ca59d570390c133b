"""A trained model: the networks of every stage and fold, loaded once and checked against their plan."""
from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import paths
from ..errors import InputError
from ..plans import DEFAULT_PLANS_NAME, STAGES, Plans
from ..stages import default_trainer_name
from ..training.checkpoint import Checkpoint, file_sha256, load_weights

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint_final.pth"


@dataclass
class StageModel:
    """Networks of one stage (one per fold) in evaluation mode, with the checkpoints' fitted values and extra tensors."""

    networks: list[torch.nn.Module]
    fitted: list[dict[str, Any]]
    extra: list[dict[str, torch.Tensor]]
    sha256: list[str]


@dataclass
class Model:
    """All stages, the plans they obey, and the geometry witness when its weights are there."""

    plans: Plans
    device: torch.device
    stages: dict[str, StageModel]
    geometry: Any = None
    source: str = ""
    record: dict[str, Any] = field(default_factory=dict)


def stage_folder_name(stage: str, plans_name: str = DEFAULT_PLANS_NAME, trainer: str | None = None) -> str:
    """`TRAINER__PLANS__STAGE` as nnU-Net names its result folders."""
    return f"{trainer or default_trainer_name(stage)}__{plans_name}__{stage}"


def load_shipped(device: torch.device) -> Model:
    """The weights that come with the package."""
    folder = paths.weights_folder()
    missing = [stage for stage in STAGES if not (folder / f"{stage}.pth").exists()]
    if missing:
        raise InputError(f"This installation has no shipped weights for {', '.join(missing)}; train your own and pass -d or -m.")
    return _assemble({stage: [folder / f"{stage}.pth"] for stage in STAGES}, None, device, "shipped weights")


def load_trained(folder: Path, folds: list[int | str] | None, device: torch.device, plans_name: str = DEFAULT_PLANS_NAME,
                 trainers: dict[str, str] | None = None, checkpoint_name: str = CHECKPOINT_NAME) -> Model:
    """Model of a results folder `DatasetXXX_Name` (or an installed one). `folds` None: every fold that all stages finished."""
    files = trained_files(folder, folds, plans_name, trainers, checkpoint_name)
    plans = Plans.load(files["localize"][0].parents[1] / "plans.json")
    for stage, found in files.items():
        plans.stages[stage] = Plans.load(found[0].parents[1] / "plans.json").stage(stage)
    names = ", ".join(file.parent.name[5:] for file in files["localize"])
    return _assemble(files, plans, device, f"{folder.name}, folds {names}")


def trained_files(folder: Path, folds: list[int | str] | None, plans_name: str = DEFAULT_PLANS_NAME,
                  trainers: dict[str, str] | None = None, checkpoint_name: str = CHECKPOINT_NAME) -> dict[str, list[Path]]:
    """Checkpoints of every stage, one per fold, in the layout `TRAINER__PLANS__STAGE/fold_X/CHECKPOINT`; InputError names the missing."""
    if not folder.is_dir():
        raise InputError(f"Model folder {folder} does not exist; train with spineclue_train, or give -m the folder of a model.")
    stage_folders = {stage: folder / stage_folder_name(stage, plans_name, (trainers or {}).get(stage)) for stage in STAGES}
    for stage, place in stage_folders.items():
        if not place.is_dir():
            raise InputError(f"{folder} has no {place.name}; train stage {stage} first: spineclue_train {folder.name[7:10]} {stage} FOLD.")
    if folds is not None:
        folds = list(dict.fromkeys(map(str, folds)))  # the same fold twice would count double in every mean
    else:
        done = [{p.parent.name[5:] for p in place.glob(f"fold_*/{checkpoint_name}")} for place in stage_folders.values()]
        folds = sorted(set.intersection(*done))
        if not folds:
            raise InputError(f"{folder} has no fold that every stage has finished; train the missing ones or choose with -f.")
    files = {stage: [place / f"fold_{fold}" / checkpoint_name for fold in folds] for stage, place in stage_folders.items()}
    for stage, wanted in files.items():
        for file in wanted:
            if not file.exists():
                raise InputError(f"Fold {file.parent.name[5:]} of stage {stage} was never trained to its end ({file} is missing); "
                                 f"run spineclue_train {folder.name[7:10]} {stage} {file.parent.name[5:]}.")
    return files


def _assemble(files: dict[str, list[Path]], plans: Plans | None, device: torch.device, source: str) -> Model:
    loaded = {stage: [Checkpoint.load(file, device) for file in wanted] for stage, wanted in files.items()}
    if plans is None:
        parts = {stage: Plans.from_json(saved[0].meta["plans"], str(files[stage][0])) for stage, saved in loaded.items()}
        plans = parts["localize"]
        for stage in STAGES:
            plans.stages[stage] = parts[stage].stage(stage)
    _check_one_space(plans, source)
    stages = {}
    for stage, checkpoints in loaded.items():
        networks = []
        for checkpoint, file in zip(checkpoints, files[stage], strict=True):
            _check_fingerprint(checkpoint, plans, stage, file)
            network = build_network(stage, plans).to(device)
            load_weights(network, checkpoint, file)
            networks.append(network.eval())
        stages[stage] = StageModel(networks, [c.meta.get("fitted", {}) for c in checkpoints], [c.extra for c in checkpoints],
                                   [file_sha256(file) for file in files[stage]])
    record = {"name": plans.plans_name, "dataset": plans.dataset_name, "source": source,
              "fingerprints": {s: plans.stage(s).model_fingerprint for s in STAGES},
              "weights": {s: stages[s].sha256 for s in STAGES}}
    return Model(plans, device, stages, _geometry_witness(), source, record)


def _check_one_space(plans: Plans, source: str) -> None:
    """Masks go from segment to identify as they are: both must have been trained in the same model space."""
    spaces = [(plans.stage(stage).data.spacing_mm, plans.stage(stage).data.orientation) for stage in ("segment", "identify")]
    if spaces[0] != spaces[1]:
        raise InputError(f"The model of {source} segments at {spaces[0][0]:g} mm {spaces[0][1]} but identifies at {spaces[1][0]:g} mm "
                         f"{spaces[1][1]}; give both stages the same spacing and orientation in the plan and train again.")


def _check_fingerprint(checkpoint: Checkpoint, plans: Plans, stage: str, file: Path) -> None:
    if checkpoint.meta.get("stage") != stage:
        raise InputError(f"Checkpoint {file} is of stage '{checkpoint.meta.get('stage')}', expected '{stage}'.")
    found, wanted = checkpoint.meta.get("model_fingerprint"), plans.stage(stage).model_fingerprint
    if found != wanted:
        raise InputError(f"Checkpoint {file} was trained with model fingerprint {found}, its plan has {wanted}; restore the plan "
                         f"it was trained with, or train stage {stage} again.")


def build_network(stage: str, plans: Plans) -> torch.nn.Module:
    """The network of a stage as its plan says, with fresh weights."""
    plan = plans.stage(stage)
    if stage == "localize":
        from ..stages.localize.network import build_network as build
        return build(plan.network, len(plan.data.windows_hu))
    if stage == "segment":
        from ..stages.segment.network import build_network as build_segment
        return build_segment(plan.network, len(plan.data.windows_hu))
    from ..stages.identify.trainer import build_network as build_identify
    return build_identify(plan.network)


def _geometry_witness() -> Any:
    """The witness trained on real landmarks; without its file identification goes by shape alone."""
    file = paths.weights_folder() / "geometry.pth"
    if not file.exists():
        return None
    from ..stages.identify.geometry import GeometryWitness

    return GeometryWitness.load(file)
