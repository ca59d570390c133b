"""A trained model: the networks of every stage and fold, loaded once and checked against their plan."""
from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..plans.plans import DEFAULT_PLANS_NAME, Plans
from ..stages.converted import Kept, find_kept, keep
from ..stages.engine import uses_openvino
from ..stages.method import method_fingerprint
from ..stages.plan_files import load_plans, plans_from_json
from ..stages.registry import (
    default_trainer_name,
    modality_of,
    pipeline_of,
    stage_folder_name,
    stage_of,
    stages,
    train_command,
    trainer_class,
)
from ..training.stage_model import CHECKPOINT_NAME, StageModel
from ..utilities import paths
from ..utilities.files import read_json
from ..utilities.memory import give_back_memory
from ..utilities.plugins import is_importable

if TYPE_CHECKING:
    import torch

    from ..training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

DATASET_FOLDER = re.compile(r"Dataset\d{3}_")


@dataclass
class Model:
    """The trained stages of one modality and the plans they obey.

    `record`: what outputs say of the model: name, dataset, source, and per stage the model fingerprint and the sha256 of each weights.
    """

    plans: Plans
    device: torch.device
    stages: dict[str, StageModel]
    source: str = ""
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def modality(self) -> str:
        """"CT" or "MR"."""
        return modality_of(self.stages)


@dataclass(frozen=True)
class ModelSource:
    """What a process on another machine needs to load the same model: paths that it must see, and names."""

    device: str | None = None
    folder: str | None = None                 # None: the shipped weights of `modality`
    folds: tuple[str, ...] | None = None
    plans_name: str = DEFAULT_PLANS_NAME
    trainers: tuple[tuple[str, str], ...] | None = None
    checkpoint_name: str = CHECKPOINT_NAME
    modality: str = "CT"                      # of the shipped weights

    def load(self) -> Model:
        """The model, on the best device there (or the one named)."""
        from ..training.device import resolve_device

        device = resolve_device(self.device)
        if self.folder is None:
            return load_shipped(device, self.modality)
        return load_trained(Path(self.folder), list(self.folds) if self.folds else None, device, self.plans_name,
                            dict(self.trainers) if self.trainers else None, self.checkpoint_name)


@cache
def model_of(source: ModelSource) -> Model:
    """`source.load()`, once per process."""
    return source.load()


def load_shipped(device: torch.device, modality: str = "CT") -> Model:
    """The weights that come with the package for "CT" or "MR"."""
    folder = paths.weights_folder()
    missing = [stage.name for stage in pipeline_of(modality) if stage.required and not (folder / f"{stage.name}.pth").exists()]
    if missing:
        raise InputError(f"This installation has no shipped weights of {modality} for {', '.join(missing)}; train your own and pass -d or "
                         "-m.")
    files = {stage.name: [folder / f"{stage.name}.pth"] for stage in pipeline_of(modality) if (folder / f"{stage.name}.pth").exists()}
    return _assemble(files, None, device, "shipped weights")


def load_trained(folder: Path, folds: list[int | str] | None, device: torch.device, plans_name: str = DEFAULT_PLANS_NAME,
                 trainers: dict[str, str] | None = None, checkpoint_name: str = CHECKPOINT_NAME) -> Model:
    """Model of a results folder `DatasetXXX_Name` (or an installed one). `folds` None: every fold that all required stages finished.

    A stage that may be stood in for (geometry) comes with the package's weights where this model has none; `record` says so.
    """
    files = trained_files(folder, folds, plans_name, trainers, checkpoint_name)
    plans = _join({stage: load_plans(found[0].parents[1] / "plans.json") for stage, found in files.items()})
    names = ", ".join(folds_of(files))
    return _assemble(files, plans, device, f"{folder.name}, folds {names}", _stand_ins(files))


def _stand_ins(files: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """Shipped weights of stages that a trained model lacks and that the package may stand in for."""
    found = {}
    for stage in pipeline_of(modality_of(files)):
        file = paths.weights_folder() / f"{stage.name}.pth"
        if stage.shipped_stands_in and stage.name not in files and file.exists():
            logger.info("Stage %s was not trained with this model; the package's own weights of it stand in.", stage.name)
            found[stage.name] = [file]
    return found


def trained_files(folder: Path, folds: list[int | str] | None, plans_name: str = DEFAULT_PLANS_NAME,
                  trainers: dict[str, str] | None = None, checkpoint_name: str = CHECKPOINT_NAME) -> dict[str, list[Path]]:
    """Checkpoints of every stage, one per fold, in the layout `TRAINER__PLANS__STAGE/fold_X/CHECKPOINT`; InputError names the missing.

    The stages are the required ones of the modality whose folders are there, and each optional one that has finished all of the folds.
    """
    def command(stage: str, fold: str) -> str:
        return train_command(folder.name, stage, fold, plans_name, (trainers or {}).get(stage))

    if not folder.is_dir():
        raise InputError(f"Model folder {folder} does not exist; train with spineclue_train, or give -m the folder of a model.")
    _check_stages_known(folder, plans_name, checkpoint_name)
    places = {name: folder / stage_folder_name(name, plans_name, (trainers or {}).get(name))
              for name, stage in stages().items() if stage.trainable}
    if not DATASET_FOLDER.match(folder.name) and not any(folder.glob("*__*__*")):
        raise InputError(f"{folder} is no folder of a model (no TRAINER__PLANS__STAGE is in it); give -m a folder DatasetXXX_Name of "
                         "trained results.")
    _warn_of_moved_trainers(folder, plans_name)
    modality = modality_of([name for name, place in places.items() if place.is_dir()])
    pipeline = [stage for stage in pipeline_of(modality) if stage.trainable]
    stage_folders = {stage.name: places[stage.name] for stage in pipeline if stage.required}
    for name, place in stage_folders.items():
        if not place.is_dir():
            raise InputError(f"{folder} has no {place.name}; train stage {name} first: {command(name, 'FOLD')}"
                             f"{_other_trainers(folder, name, plans_name)}.")
    chosen = list(dict.fromkeys(map(str, folds))) if folds is not None else _finished(folder, stage_folders, checkpoint_name)
    for stage in pipeline:
        missing = [fold for fold in chosen if not (places[stage.name] / f"fold_{fold}" / checkpoint_name).exists()]
        if stage.required:
            continue
        if not missing:
            stage_folders[stage.name] = places[stage.name]
        elif places[stage.name].is_dir():
            logger.warning("Stage %s is left out: fold %s is not finished (%s).", stage.name, missing[0], command(stage.name, missing[0]))
    files = {stage.name: [stage_folders[stage.name] / f"fold_{fold}" / checkpoint_name for fold in chosen]
             for stage in pipeline if stage.name in stage_folders}
    for name, wanted in files.items():
        for file in wanted:
            if not file.exists():
                raise InputError(f"Fold {file.parent.name[5:]} of stage {name} was never trained to its end ({file} is missing); "
                                 f"run {command(name, file.parent.name[5:])}.")
    return files


def _check_stages_known(folder: Path, plans_name: str, checkpoint_name: str) -> None:
    """InputError for a trained stage of a package that cannot be used here: left out, the model would be another one than was trained."""
    for place in sorted(folder.glob(f"*__{plans_name}__*")):
        name = place.name.rpartition("__")[2]
        if name in stages() or not any(place.glob(f"fold_*/{checkpoint_name}")):
            continue
        try:
            plan = read_json(place / "plans.json", "plan")
            package = plan["stages"][name]["package"]
        except (InputError, KeyError, TypeError):
            package = None
        whose = f" of package '{package}'" if isinstance(package, str) else ""
        try:
            stage_of(name)
        except InputError as error:
            raise InputError(f"{place} is of stage '{name}'{whose}, which cannot be used here: {error} To predict without that stage, move "
                             "the folder away.") from error


def _warn_of_moved_trainers(folder: Path, plans_name: str) -> None:
    """Version 0.1 kept the appearance classifier as a trainer of identify; its weights have another form now and are not used."""
    owner = _default_trainers()
    for place in sorted(folder.glob(f"*__{plans_name}__*")):
        trainer, stage = place.name.split("__")[0], place.name.rpartition("__")[2]
        if (now := owner.get(trainer, stage)) != stage and any(place.glob("fold_*")):
            logger.warning("%s is left out: since version 0.2 %s belongs to stage %s, not to %s; train it again with %s.", place,
                           trainer, now, stage, train_command(folder.name, now, "FOLD", plans_name))


def _default_trainers() -> dict[str, str]:
    """{default trainer: its stage}."""
    return {default_trainer_name(name): name for name, stage in stages().items() if stage.trainable}


def _other_trainers(folder: Path, stage: str, plans_name: str) -> str:
    """The end of a sentence: which other trainers have trained this stage."""
    owner = _default_trainers()
    found = sorted(place.name.split("__")[0] for place in folder.glob(f"*__{plans_name}__{stage}")
                   if owner.get(place.name.split("__")[0], stage) == stage)
    return f", or choose the trainer that did with -tr {stage}={found[0]}" if found else ""


def _finished(folder: Path, stage_folders: Mapping[str, Path], checkpoint_name: str) -> list[str]:
    """Folds that every one of these stages has finished; InputError without any."""
    done = [{p.parent.name[5:] for p in place.glob(f"fold_*/{checkpoint_name}")} for place in stage_folders.values()]
    folds = sorted(set.intersection(*done))
    if not folds:
        raise InputError(f"{folder} has no fold that every stage has finished; train the missing ones or choose with -f.")
    return folds


def folds_of(files: Mapping[str, list[Path]]) -> list[str]:
    """The folds of `trained_files`, as text; every stage has the same."""
    return [file.parent.name[5:] for file in next(iter(files.values()))]


def _join(parts: Mapping[str, Plans]) -> Plans:
    """One plan of each stage's own; what is not a stage's comes from the first."""
    return replace(next(iter(parts.values())), stages={stage: plans.stage(stage) for stage, plans in parts.items()})


def _assemble(files: Mapping[str, list[Path]], plans: Plans | None, device: torch.device, source: str,
              stand_ins: Mapping[str, list[Path]] | None = None) -> Model:
    everything = {**files, **(stand_ins or {})}
    loaded = {stage: [_saved(file, stage, device) for file in wanted] for stage, wanted in everything.items()}
    own = {stage: plans_from_json(saved[0].meta["plans"], str(everything[stage][0])) for stage, saved in loaded.items()
           if plans is None or stage not in plans.stages}
    plans = _join(own) if plans is None else replace(plans, stages=plans.stages | {name: part.stage(name) for name, part in own.items()})
    if "segment" in plans.stages:
        _check_one_space(plans, source)
    ordered = [stage.name for stage in pipeline_of(modality_of(loaded)) if stage.name in loaded]
    models = {name: stage_model(name, loaded[name], everything[name], plans, device, convert=True) for name in ordered}
    _warn_about_upstream(models, files)
    record = {"name": plans.plans_name, "dataset": plans.dataset_name, "source": source,
              "fingerprints": {name: plans.stage(name).model_fingerprint for name in ordered},
              "weights": {name: models[name].sha256 for name in ordered},
              "method": {stage.name: method_fingerprint(stage) for stage in pipeline_of(modality_of(loaded))
                         if stage.name in loaded or not stage.trainable}}
    if stand_ins:
        record["shipped_stands_in"] = sorted(stand_ins)
    del loaded              # what was read from the files, of which the networks have what they need
    give_back_memory()
    return Model(plans, device, models, source, record)


def load_stage(file: Path, stage: str, device: torch.device) -> tuple[StageModel, Plans]:
    """One stage alone from a file of weights that holds its own plan, and that plan."""
    saved = _saved(file, stage, device)
    plans = plans_from_json(saved.meta["plans"], str(file))
    return stage_model(stage, [saved], [file], plans, device), plans


def load_stand_in(stage: str, device: torch.device) -> StageModel | None:
    """The package's own weights of a stage that may be stood in for; None for other stages and where they are not installed."""
    file = paths.weights_folder() / f"{stage}.pth"
    return load_stage(file, stage, device)[0] if stage_of(stage).shipped_stands_in and file.exists() else None


def _saved(file: Path, stage: str, device: torch.device) -> Checkpoint | Kept:
    """What was kept of a file of weights where OpenVINO computes, else its checkpoint."""
    kept = find_kept(file) if file.exists() and stage_of(stage).graphs is not None and uses_openvino(device) else None
    if kept is not None:
        return kept
    from ..training.checkpoint import Checkpoint

    return Checkpoint.load(file, device)


def stage_model(stage: str, saved: Sequence[Checkpoint | Kept], files: list[Path], plans: Plans, device: torch.device,
                convert: bool = False) -> StageModel:
    """The networks of one stage, each with its own checkpoint's weights (`files`: where those came from). `convert`: those that OpenVINO
    computes are converted now, where they never were: not worth its seconds for weights that are soon others."""
    found = []
    for one, file in zip(saved, files, strict=True):
        _check_fingerprint(one, plans, stage, file)
        check_package(one.meta, file)
        found.append(_loaded(stage, one, file, plans, device, convert))
    return StageModel([part[0] for part in found], [one.meta.get("fitted", {}) for one in saved], [part[1] for part in found],
                      [part[2] for part in found])


def _loaded(stage: str, saved: Checkpoint | Kept, file: Path, plans: Plans, device: torch.device, convert: bool
            ) -> tuple[Any, dict[str, Any], str]:
    """A network, what its checkpoint holds beside it, and the sha256 of its weights."""
    if isinstance(saved, Kept):
        return saved.network(partial(_module, stage, file, plans, device)), dict(saved.extra), saved.sha256
    from ..training.checkpoint import weights_sha256

    network, sha256 = _module_of(stage, saved, file, plans, device), weights_sha256(saved.network)
    kept = _convert(stage, saved, network, file, plans, sha256) if convert and uses_openvino(device) else None
    if kept is None:
        return network, dict(saved.extra), sha256
    return kept.network(partial(_module, stage, file, plans, device)), dict(kept.extra), sha256


def _module(stage: str, file: Path, plans: Plans, device: torch.device) -> torch.nn.Module:
    from ..training.checkpoint import Checkpoint

    return _module_of(stage, Checkpoint.load(file, device), file, plans, device)


def _module_of(stage: str, checkpoint: Checkpoint, file: Path, plans: Plans, device: torch.device) -> torch.nn.Module:
    from ..training.checkpoint import load_weights

    network = build_network(stage, plans, checkpoint.meta.get("trainer")).to(device)
    load_weights(network, checkpoint, file, take=True)
    return network.eval()


def _convert(stage: str, checkpoint: Checkpoint, network: torch.nn.Module, file: Path, plans: Plans, sha256: str) -> Kept | None:
    """The network as OpenVINO has it; None of a stage or a trainer whose networks PyTorch computes, and where OpenVINO does not take it."""
    make = stage_of(stage).graphs
    if make is None or checkpoint.meta.get("trainer") not in (None, default_trainer_name(stage)):
        return None
    graphs = stage_of(stage).part(make)(network, plans.stage(stage))
    if not graphs:
        return None
    logger.info("OpenVINO converts the network of stage %s, once for these weights.", stage)
    try:
        return keep(file, network, graphs, checkpoint.meta, checkpoint.extra, sha256)
    except Exception as error:  # whatever OpenVINO finds strange in a network, PyTorch computes it
        logger.warning("OpenVINO does not take the network of stage %s (%s: %s); PyTorch computes instead.", stage, type(error).__name__,
                       str(error).strip().splitlines()[0] if str(error).strip() else "")
        return None


def check_package(meta: Mapping[str, Any], place: str | Path) -> None:
    """InputError where the checkpoint with this description, at `place`, was trained by a trainer whose package is not installed."""
    package = meta.get("package")
    if package is not None and not is_importable(str(package)):
        raise InputError(f"{place} was trained by {meta.get('trainer')} of package {str(package)[:100]!r}, which is not installed; its "
                         "network cannot be built without that package, so install it.")


def build_network(stage: str, plans: Plans, trainer: str | None = None) -> torch.nn.Module:
    """The network of a stage as its plan says, with fresh weights: the one that `trainer` (a class name) builds, by default the stage's."""
    if trainer in (None, default_trainer_name(stage)):
        return stage_of(stage).build_network(plans)
    return trainer_class(stage, trainer).build_network(plans)


def _check_one_space(plans: Plans, source: str) -> None:
    """Masks go from segment to identify and grade as they are: all must have been trained in the same network space."""
    spaces = {does: (plans.stage(stage).data.spacing_mm, plans.stage(stage).data.orientation)
              for stage, does in (("segment", "segments"), ("identify", "identifies"), ("grade", "grades")) if stage in plans.stages}
    for does, (spacing, orientation) in spaces.items():
        first = spaces["segments"]
        if (spacing, orientation) != first:
            raise InputError(f"The model of {source} segments at {first[0]:g} mm {first[1]} but {does} at {spacing:g} mm "
                             f"{orientation}; give both stages the same spacing and orientation in the plan and train again.")


def _warn_about_upstream(stages: Mapping[str, StageModel], files: Mapping[str, list[Path]]) -> None:
    """Temperature and fusion of identify were fitted to what this fold's earlier stages found: others make its confidence less apt."""
    for number, fitted in enumerate(stages["identify"].fitted if "identify" in stages else ()):
        for stage, wanted in fitted.get("upstream", {}).items():
            file = files["identify"][number]
            if stages[stage].sha256[number] != wanted and file.parent.name.startswith("fold_"):
                trainer, plans_name, _ = file.parents[1].name.split("__")
                again = train_command(file.parents[2].name, "identify", file.parent.name[5:], plans_name, trainer, "--val")
                logger.warning("%s was fitted to other weights of stage %s than those in use; fit it anew with %s.", file, stage, again)


def _check_fingerprint(checkpoint: Checkpoint | Kept, plans: Plans, stage: str, file: Path) -> None:
    if checkpoint.meta.get("stage") != stage:
        raise InputError(f"Checkpoint {file} is of stage '{checkpoint.meta.get('stage')}', expected '{stage}'.")
    found, wanted = checkpoint.meta.get("model_fingerprint"), plans.stage(stage).model_fingerprint
    if found != wanted:
        raise InputError(f"Checkpoint {file} was trained with model fingerprint {found}, its plan has {wanted}; restore the plan "
                         f"it was trained with, or train stage {stage} again.")
