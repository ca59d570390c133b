"""One training step of a planned stage on random input, with the stage's own loss: for a test and `benchmarks/paper_steps.py`."""

from __future__ import annotations

from typing import Any

import torch

from spineclue_v2.inference.model import build_network
from spineclue_v2.plans.plans import Plans, StagePlan


def loss_of(stage: str, network: Any, plan: StagePlan, batch: int, size: tuple[int, ...]) -> torch.Tensor:
    """The stage's training loss of `batch` random inputs of `size` pixels or voxels."""
    channels = len(plan.data.windows_hu)
    if stage == "localize":
        return network.loss(torch.rand(batch, channels, *size), torch.arange(batch), torch.tensor([[0.5, 0.5, 0.3, 0.2]] * batch))
    if stage == "segment":
        from spineclue_v2.adapters import dice_and_cross_entropy

        target = torch.rand(batch, 1, *size) > 0.8
        return dice_and_cross_entropy()(network(torch.rand(batch, channels + 1, *size)), target.float())
    from spineclue_v2.training.losses import supervised_contrastive

    masks = (torch.rand(2 * batch, 1, *size) > 0.5).float()          # two views each
    projected = network.project(network.features(masks))
    return supervised_contrastive(projected, torch.arange(batch).repeat(2), plan.run.temperature, plan.run.contrastive_loss)


def one_step(stage: str, plans: Plans, batch: int, size: tuple[int, ...]) -> tuple[float, int]:
    """(loss, parameters that moved) of a network with fresh weights after one AdamW step."""
    torch.manual_seed(0)
    network = build_network(stage, plans).train()
    before = [p.detach().clone() for p in network.parameters()]
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss = loss_of(stage, network, plans.stage(stage), batch, size)
    loss.backward()
    optimiser.step()
    moved = sum(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    return float(loss), moved
