"""Trainers of stage segment: another schedule, another network. A trainer is a subclass that overrides the hook it is about."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from spineclue_v2.plans.plans import Plans
from spineclue_v2.stages.segment.trainer import SegmentTrainer


class SegmentTrainerCosine(SegmentTrainer):
    """The learning rate falls along a cosine instead of nnU-Net's power of 0.9."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer, _ = super().configure_optimizers()
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, self.epochs * self.iterations))


class DilatedNetwork(nn.Module):
    """Image and heat map (B, C, z, y, x) -> logits (B, 2, z, y, x) at full resolution; each layer sees twice as far as the one before.

    The last channel of the input is the heat map around the located vertebra. The network learns what to change about it, so that a
    short training too gives a mask for each vertebra.
    """

    def __init__(self, channels: int, width: int = 8, layers: int = 4):
        super().__init__()
        inputs = [channels, *[width] * (layers - 1)]
        self.layers = nn.ModuleList(nn.Conv3d(n, width, 3, padding=2 ** k, dilation=2 ** k) for k, n in enumerate(inputs))
        self.head = nn.Conv3d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = torch.relu(layer(y))
        vertebra = 8 * (x[:, -1:] - 0.5)
        return self.head(y) + torch.cat([-vertebra, vertebra], 1)


class SegmentTrainerDilated(SegmentTrainer):
    """Another network. `build_network` is a class method of the plans alone: prediction calls it again, without a training."""

    @classmethod
    def build_network(cls, plans: Plans) -> nn.Module:
        return DilatedNetwork(len(plans.stage("segment").data.windows_hu) + 1)

    def smallest_grid(self) -> tuple[int, ...]:
        return self.training_crop()
