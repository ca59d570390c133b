"""The network of the ribs classifier: one linear layer, for there are few real scans to learn from."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ...plans.plans import Plans, StagePlan
from ..converted import Graph
from .features import feature_count
from .groups import GROUPS


class RibsClassifier(nn.Module):
    """`features.inputs_of` (B, features) -> logits (B, groups)."""

    def __init__(self, features: int):
        super().__init__()
        self.linear = nn.Linear(features, len(GROUPS))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def network_of_plans(plans: Plans) -> torch.nn.Module:
    """The plan's network with fresh weights."""
    return RibsClassifier(feature_count(len(plans.stage("ribs").network.thresholds_hu)))


def group_logits(network: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs (B, features) -> logits (B, groups), float32."""
    return network(inputs).float()


def graphs(network: nn.Module, plan: StagePlan) -> dict[str, Graph]:  # noqa: ARG001 - as in every stage
    """What a prediction asks of the network."""
    features = feature_count(len(plan.network.thresholds_hu))
    return {"group_logits": Graph(group_logits, (torch.zeros(2, features),), ((-1, features),), bfloat16=False)}
