"""The geometry network that was trained on landmark files, as a checkpoint of its stage."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spineclue_v2.inference.model import load_stage
from spineclue_v2.plans.data import Data
from spineclue_v2.plans.plans import Plans, StagePlan
from spineclue_v2.stages.geometry.network import GeometryNetwork
from spineclue_v2.stages.geometry.plan import GeometryNetworkPlan, GeometryRun
from spineclue_v2.stages.geometry.training import NUM_SAMPLED_SPINES, SCHEDULE
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.training.stage_model import StageModel


def write_geometry(network: GeometryNetwork, fitted: Mapping[str, Any], file: Path) -> None:
    """Write `network` with `fitted` (inputs, about, temperature) as `geometry.pth`; the plan tells how it was trained."""
    shape = network.shape
    plan = StagePlan(Data(1.5), GeometryNetworkPlan(shape.width, shape.layers, shape.heads, shape.dropout, len(network.members)),
                     GeometryRun(batch_size=SCHEDULE.batch, epochs=SCHEDULE.epochs, iterations_per_epoch=1,
                                 initial_lr=SCHEDULE.learning_rate, weight_decay=SCHEDULE.weight_decay,
                                 label_smoothing=SCHEDULE.smoothing, sampled_spines=NUM_SAMPLED_SPINES,
                                 window=SCHEDULE.augmentation.window))
    plans = Plans("SpineCLUEPlans", "recipe", "", "", {}, {"geometry": plan})
    meta = {"stage": "geometry", "trainer": "GeometryTrainer", "fold": "all", "plans": plans.to_json(), "fitted": dict(fitted),
            "data_fingerprint": plan.data_fingerprint, "model_fingerprint": plan.model_fingerprint}
    Checkpoint(network.state_dict(), meta).save(file, half=True)


def read_geometry(file: Path) -> StageModel:
    """The network of such a file on the CPU."""
    import torch

    return load_stage(file, "geometry", torch.device("cpu"))[0]
