"""The network of stage volume."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from spineclue_v2.plans.plans import Plans


class VolumeNetwork(nn.Module):
    """Masks (B, 1, z, y, x), 0 or 1 -> logarithm of their volumes in ml (B,).

    The logarithm of the sum, which a voxel's volume turns into ml, and a small correction that is learnt.
    """

    def __init__(self, width: int, voxel_ml: float):
        super().__init__()
        self.voxel_ml = voxel_ml
        self.layers = nn.Sequential(nn.Conv3d(1, width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, 1))

    def forward(self, masks: Tensor) -> Tensor:
        counted = (masks.sum((1, 2, 3, 4)) * self.voxel_ml).clamp(min=self.voxel_ml)
        return torch.log(counted) + 0.1 * torch.tanh(self.layers(masks)[:, 0])


def build_network(plans: Plans) -> VolumeNetwork:
    """The plan's network with fresh weights."""
    plan = plans.stage("volume")
    return VolumeNetwork(plan.network.width, plan.data.spacing_mm ** 3 / 1000)
