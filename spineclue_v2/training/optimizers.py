"""Optimisers and the one schedule, as the plan names them."""
from __future__ import annotations

from collections.abc import Iterable

import torch

from ..errors import InputError
from ..plans.fields import OPTIMIZERS

SGD_MOMENTUM = 0.9
POWER = 0.9               # nnU-Net's


def build_optimizer(name: str, parameters: Iterable[torch.nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    """The optimiser `name` ("AdamW", "Adam", "SGD" with a momentum of 0.9) of `parameters` with learning rate and weight decay.

    Adam and SGD add the decay to the gradient, AdamW shrinks the weights by it (Loshchilov and Hutter, arXiv 1711.05101).
    """
    if name == "AdamW":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    if name == "Adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    if name == "SGD":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=SGD_MOMENTUM)
    raise InputError(f"Optimiser '{name}' is unknown; known: {', '.join(OPTIMIZERS)}.")


def poly_schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.PolynomialLR:
    """The learning rate falls to 0 over `steps` as (1 - t) ^ 0.9."""
    return torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=max(1, steps), power=POWER)
