"""Optimisers and the one schedule, as the plan names them."""
from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

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


def restore_schedule(optimizer: torch.optim.Optimizer, scheduler: Any, state: dict[str, Any] | None, steps: int) -> None:
    """Bring a fresh optimiser and its scheduler to where a checkpoint left them, `steps` after the schedule began.

    `state`: {"optimizer", "scheduler"} of the checkpoint, None of a finished run, which keeps none. Rates, decay and kind stay those of
    the fresh ones, for the plan may have been edited since.
    """
    planned = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    # Moments of Adam mean nothing to SGD, nor the other way round: the plan's optimiser then starts afresh.
    if state is not None and ("betas" in state["optimizer"]["param_groups"][0]) == ("betas" in planned[0]):
        optimizer.load_state_dict(state["optimizer"])
        unedited = all(before.get(key) == value for before, now in zip(optimizer.param_groups, planned, strict=True)
                       for key, value in now.items() if key != "lr")
        if unedited and _schedule(state["scheduler"]) == _schedule(scheduler.state_dict()):
            scheduler.load_state_dict(state["scheduler"])
            return
    # Another plan, or a finished run: the plan's schedule from its start to this epoch.
    for group, values in zip(optimizer.param_groups, planned, strict=True):
        group.update(values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step\\(\\)` before")
        for _ in range(steps):
            scheduler.step()


def _schedule(state: dict[str, Any]) -> dict[str, Any]:
    """What a scheduler's state says of the schedule itself, without how far it has come."""
    return {key: value for key, value in state.items() if not key.startswith("_") and key != "last_epoch"}
