"""The network of the appearance classifier: a small 3D ResNet on a coarse CT crop."""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...anatomy import NUM_LEVELS
from ...plans.plans import Plans, StagePlan
from ..converted import Graph
from ..identify.network import InceptionStem, ResidualBlock

WIDTHS = (16, 32, 64, 96)
POOL_GRID = (2, 2, 1)
DROPOUT = 0.3


class AppearanceNetwork(nn.Module):
    """CT crop (B, C, z, y, x) in 0..1 -> logits (B, 25) over the 24 levels and "not a vertebra"; with `landmarks` (B, 27), sacrum and
    skull base last."""

    def __init__(self, channels: int, widths: Sequence[int] = WIDTHS, pool_grid: Sequence[int] = POOL_GRID,
                 dropout: float = DROPOUT, landmarks: bool = False):
        super().__init__()
        pairs = zip([widths[0], *widths], widths, strict=False)
        blocks = [ResidualBlock(inputs, outputs, 1 if k == 0 else 2, bottleneck=False) for k, (inputs, outputs) in enumerate(pairs)]
        self.layers = nn.Sequential(InceptionStem(channels, widths[0], 2), *blocks, nn.AdaptiveAvgPool3d(tuple(pool_grid)), nn.Flatten(),
                                    nn.Dropout(dropout),
                                    nn.Linear(widths[-1] * int(np.prod(pool_grid)), NUM_LEVELS + (3 if landmarks else 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class AppearanceEnsemble(nn.Module):
    """Several networks; the logs of their mean probabilities stand for logits (B, classes)."""

    def __init__(self, members: Sequence[AppearanceNetwork]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        logs = torch.stack([member(x).float().log_softmax(1) for member in self.members])
        return logs.logsumexp(0) - math.log(len(self.members))


def network_of_plans(plans: Plans) -> AppearanceNetwork | AppearanceEnsemble:
    """The plan's network with fresh weights."""
    plan = plans.stage("appearance")
    shape = plan.network
    members = [AppearanceNetwork(len(plan.data.windows_hu), shape.widths, shape.pool_grid, shape.dropout, shape.landmarks)
               for _ in range(shape.members)]
    return members[0] if len(members) == 1 else AppearanceEnsemble(members)


def class_logits(network: nn.Module, crops: Tensor) -> Tensor:
    """Crops (B, C, z, y, x) -> logits (B, classes), float32."""
    return network(crops).float()


def graphs(network: nn.Module, plan: StagePlan) -> dict[str, Graph]:  # noqa: ARG001 - as in every stage
    """What a prediction asks of the network."""
    size = (len(plan.data.windows_hu), *plan.network.crop_size)
    return {"class_logits": Graph(class_logits, (torch.zeros(2, *size),), ((-1, *size),), bfloat16=False)}
