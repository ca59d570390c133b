"""The planned values of stage volume, and the rules that give them."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spineclue_v2.plans.plans import StagePlan

if TYPE_CHECKING:
    from spineclue_v2.planning.planner import SpineCLUEPlanner


@dataclass(frozen=True)
class VolumeNetworkPlan:
    """What the weights are made for."""

    crop_size: tuple[int, int, int]   # voxels (z, y, x) around the middle of the mask
    width: int                        # channels


@dataclass(frozen=True)
class VolumeRun:
    """What may change without invalidating anything. Every trainer needs the first five."""

    batch_size: int
    epochs: int
    iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    optimizer: str = "AdamW"


def plan_volume(planner: SpineCLUEPlanner, stages: Mapping[str, StagePlan]) -> StagePlan:
    """Called by the planner for each dataset, after its own stages; each number comes with its rule."""
    from spineclue_v2.planning.planner import stage_plan
    from spineclue_v2.planning.rules import PlannedValue

    same = "the same as segment's, so that both share one preprocessed folder"
    data = {name: PlannedValue(value, same, {}) for name, value in dataclasses.asdict(stages["segment"].data).items()}
    network = {"crop_size": PlannedValue(stages["identify"].network.crop_size, "as identify: it holds a vertebra's mask", {}),
               "width": PlannedValue(4, "a volume is a sum; more channels have nothing to learn", {})}
    run = {"batch_size": PlannedValue(4, "masks are small", {}), **planner.schedule(0, 1e-2, 0.0, "AdamW")}
    return stage_plan("volume", data, network, run)
