"""The planned values of stage volume, and the rules that give them."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic.dataclasses import dataclass

from spineclue_v2.plans.fields import CONFIG, Amount, Batch, Box, Channels, Count, Run, Whole, planned
from spineclue_v2.plans.plans import StagePlan

if TYPE_CHECKING:
    from spineclue_v2 import SpineCLUEPlanner


@dataclass(frozen=True, config=CONFIG)
class VolumeNetworkPlan:
    """What the weights are made for: other values need another training."""

    crop_size: Annotated[Box, planned("edges (z, y, x) of the crop around the middle of the mask", "voxels")]
    width: Annotated[Channels, planned("channels of the only layer")]


@dataclass(frozen=True, config=CONFIG)
class VolumeRun(Run):
    """What may change without invalidating anything. The training loop reads all five, and the optimiser that `Run` has."""

    batch_size: Annotated[Batch, planned("masks per training step", "masks")]
    epochs: Annotated[Whole, planned("length of the training", "epochs")]
    iterations_per_epoch: Annotated[Count, planned("training steps per epoch", "steps")]
    initial_lr: Annotated[Amount, planned("learning rate of the first step")]
    weight_decay: Annotated[Amount, planned("weight decay of the optimiser")]


def plan_volume(planner: SpineCLUEPlanner, stages: Mapping[str, StagePlan]) -> StagePlan:
    """Called by the planner for each dataset, after its own stages; each number comes with its rule."""
    from spineclue_v2.planning.planner import stage_plan
    from spineclue_v2.planning.rules import PlannedValue

    same = "the same as segment's, so that both share one preprocessed folder"
    data = {name: PlannedValue(value, same, {}) for name, value in dataclasses.asdict(stages["segment"].data).items()}
    network = {"crop_size": PlannedValue(stages["identify"].network.crop_size, "as identify: it holds a vertebra's mask", {}),
               "width": PlannedValue(4, "a volume is a sum; more channels have nothing to learn", {})}
    run = {"batch_size": PlannedValue(4, "masks are small", {}), **planner.schedule(0, 1e-2, 0.0, "a correction that is small")}
    return stage_plan("volume", data, network, run)
