"""Networks of the evidence recipe and their files: tensors and one JSON text, as `install_evidence` reads them.

A file of the appearance classifier holds one network per fold with its temperature, one of geometry the members of its ensemble.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recipes.geometry_weights import read_geometry
from recipes.install_evidence import read
from spineclue_v2.inference.model import load_stage
from spineclue_v2.plans.data import Data
from spineclue_v2.plans.plans import StagePlan
from spineclue_v2.stages.appearance.network import DROPOUT, POOL_GRID, WIDTHS, AppearanceNetwork
from spineclue_v2.stages.appearance.plan import AppearanceNetworkPlan, AppearanceRun
from spineclue_v2.stages.geometry.network import GeometryNetwork, SequenceNetwork, Shape
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.training.stage_model import StageModel
from spineclue_v2.utilities.files import atomic_path

CPU = torch.device("cpu")
APPEARANCE = StagePlan(Data(1.5), AppearanceNetworkPlan(5.0, (24, 32, 32), WIDTHS, POOL_GRID, DROPOUT, landmarks=True),
                       AppearanceRun(batch_size=32, epochs=1, iterations_per_epoch=500, initial_lr=1e-3, weight_decay=1e-2,
                                     centre_jitter_mm=6.0, false_fraction=0.14))


def fresh_appearance() -> AppearanceNetwork:
    """A network with sacrum and skull base as classes of their own."""
    return AppearanceNetwork(len(APPEARANCE.data.windows_hu), WIDTHS, POOL_GRID, DROPOUT, landmarks=True)


def start_appearance(path: Path) -> AppearanceNetwork:
    """A checkpoint that was trained on phantoms alone; sacrum and skull base start as its "not a vertebra"."""
    checkpoint = Checkpoint.load(path)
    refuse_real(checkpoint, path)
    network = fresh_appearance()
    own = network.state_dict()
    for name, value in own.items():
        given = checkpoint.network[name].to(value.dtype)
        if given.shape != value.shape:
            given = torch.cat([given, given[-1:].repeat(value.shape[0] - given.shape[0], *(1,) * (given.ndim - 1))])
        own[name] = given
    network.load_state_dict(own)
    return network


def start_geometry(path: Path, members: int) -> list[SequenceNetwork]:
    """The first members of a checkpoint that saw neither CSI nor VerSe."""
    refuse_real(Checkpoint.load(path), path)
    return list(read_geometry(path).networks[0].members)[:members]


def refuse_real(checkpoint: Checkpoint, path: Path) -> None:
    """End where a start was itself made by this recipe: its networks saw the patients that a fold leaves out."""
    if "recipe" in checkpoint.meta.get("fitted", {}).get("about", {}):
        raise SystemExit(f"{path} was trained on real patients; start from weights that were not (see recipes/README.md).")


def save(path: Path, networks: Iterable[torch.nn.Module], description: Mapping[str, Any]) -> None:
    """Half-precision tensors under "NUMBER.name", and the description."""
    tensors = {f"{i}.{name}": value.half() if value.is_floating_point() else value
               for i, network in enumerate(networks) for name, value in network.state_dict().items()}
    with atomic_path(path) as temporary:
        torch.save({"tensors": tensors, "description": json.dumps(dict(description), sort_keys=True)}, temporary)


def save_appearance(path: Path, networks: Sequence[AppearanceNetwork], temperatures: Sequence[float], about: Mapping[str, Any]) -> None:
    save(path, networks, {"kind": "spineclue_v2 appearance classifier", "temperatures": list(temperatures), "about": dict(about),
                          "crop": list(APPEARANCE.network.crop_size), "pool_grid": list(POOL_GRID), "classes": 27})


def save_geometry(path: Path, networks: Sequence[SequenceNetwork], about: Mapping[str, Any]) -> None:
    save(path, networks, {"kind": "spineclue_v2 geometry classifier", "shape": asdict(networks[0].shape), "members": len(networks),
                          "inputs": [], "about": dict(about)})


def load_appearance(path: Path) -> tuple[StageModel, StagePlan]:
    """A file of this recipe, or a checkpoint of the package."""
    if is_checkpoint(path):
        model, plans = load_stage(path, "appearance", CPU)
        return model, plans.stage("appearance")
    tensors, description = read(path)
    networks = [loaded(fresh_appearance(), tensors, i) for i in range(len(description["temperatures"]))]
    fitted = [{"temperature": t, "about": description["about"]} for t in description["temperatures"]]
    return StageModel(networks, fitted, [{} for _ in networks], ["" for _ in networks]), APPEARANCE


def load_geometry(path: Path) -> StageModel:
    """A file of this recipe, or a checkpoint of the package."""
    if is_checkpoint(path):
        return read_geometry(path)
    tensors, description = read(path)
    network = GeometryNetwork(Shape(**description["shape"]), description["members"]).eval()
    for i, member in enumerate(network.members):
        loaded(member, tensors, i)
    return StageModel([network], [{"inputs": description["inputs"], "about": description["about"]}], [{}], [""])


def loaded(network: Any, tensors: Mapping[str, torch.Tensor], number: int) -> Any:
    network.load_state_dict({name: tensors[f"{number}.{name}"].to(value.dtype) for name, value in network.state_dict().items()})
    return network.eval()


def is_checkpoint(path: Path) -> bool:
    return "tensors" not in torch.load(path, map_location="cpu", weights_only=True)
