"""Network of stage centres: CT windows in, heat maps of vertebral bodies and of the sacrum's upper end out."""
from __future__ import annotations

import torch

from ...plans.plans import Plans, StagePlan
from ..converted import Graph
from ..segment.network import residual_encoder_unet


def network_of_plans(plans: Plans) -> torch.nn.Module:
    """(B, windows, z, y, x) -> logits (B, 2, z, y, x) of the plan's U-Net with fresh weights: `row.BODY`, then the sacrum."""
    plan = plans.stage("centres")
    return residual_encoder_unet(plan.network.features, plan.network.blocks, len(plan.data.windows_hu))


def heat(network: torch.nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """Patches (B, windows, z, y, x) -> heat maps 0..1 (B, 2, z, y, x), float32."""
    return network(patches).float().sigmoid()


def graphs(network: torch.nn.Module, plan: StagePlan) -> dict[str, Graph]:  # noqa: ARG001 - as in every stage
    """What a prediction asks of the network."""
    size = (len(plan.data.windows_hu), *plan.network.patch_size)
    return {"heat": Graph(heat, (torch.zeros(1, *size),), ((-1, *size),))}
