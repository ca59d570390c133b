"""What computes a network's answers: OpenVINO on CPUs, where it is installed, else PyTorch. Arrays go in, arrays come out.

OpenVINO fuses convolution, norm and activation, which PyTorch runs one by one, and needs no PyTorch once a network is converted
(`converted`). SPINECLUE_ENGINE=torch leaves it out.
"""
from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .converted import ConvertedNetwork

if TYPE_CHECKING:
    import torch

VARIABLE, OPENVINO, TORCH = "SPINECLUE_ENGINE", "openvino", "torch"

Engine = Callable[..., Any]
"""Arrays -> array, or a tuple of arrays where the function gives several. Any number of threads may call it."""


def uses_openvino(device: torch.device) -> bool:
    """Whether networks on this device run through OpenVINO.

    Raises:
        InputError: SPINECLUE_ENGINE names another engine, or asks for OpenVINO where it is not installed.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", TORCH, OPENVINO):
        raise InputError(f"{VARIABLE} is {wanted!r}; expected {TORCH} or {OPENVINO}.")
    if wanted == TORCH or device.type != "cpu":
        return False
    if _installed():
        return True
    if wanted == OPENVINO:
        raise InputError(f"{VARIABLE}={OPENVINO} needs OpenVINO; install it with pip install openvino, or leave the variable out.")
    return False


def _installed() -> bool:
    try:
        return importlib.util.find_spec("openvino") is not None
    except ValueError:      # a module that somebody has replaced by nothing
        return False


def engine_of(network: Any, function: str, device: torch.device, bfloat16: bool = True) -> Engine:
    """`function` of a network as a function of arrays.

    Args:
        network: a converted network, or a module in evaluation mode on `device`.
        function: "module:name" of a function `(network, *tensors) -> tensor or tuple of tensors`; by its name a converted network knows
            it, too.
        device: where the module is.
        bfloat16: whether half precision is good enough, where the processor is made for it.
    """
    module, _, name = function.partition(":")
    if isinstance(network, ConvertedNetwork):
        if name in network.functions:
            return network.engine(name)
        network = network.module()
    from ..training.device import autocast

    torch, call = importlib.import_module("torch"), getattr(importlib.import_module(module), name)

    def run(*arrays: np.ndarray) -> Any:
        with torch.inference_mode(), autocast(device, bfloat16=bfloat16):
            found = call(network, *(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))
        if isinstance(found, tuple):
            return tuple(part.cpu().numpy() for part in found)
        return found.cpu().numpy()

    return run
