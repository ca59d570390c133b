"""Where and in which precision a network runs."""
from __future__ import annotations

import contextlib
from typing import Any

import torch

from ..errors import InputError


def resolve_device(name: str | None) -> torch.device:
    """Device for 'cuda', 'cpu', 'mps' or None (the best there is); InputError when the one asked for is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name not in ("cuda", "cpu", "mps"):
        raise InputError(f"Device '{name}' is unknown; expected cuda, cpu or mps.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("Device 'cuda' was asked for but torch sees no NVIDIA GPU; add -device cpu.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("Device 'mps' was asked for but torch sees no Apple GPU; add -device cpu.")
    return torch.device(name)


def native_bfloat16() -> bool:
    """True when this CPU multiplies bfloat16 in hardware (otherwise it is slower than float32)."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(device: torch.device) -> Any:
    """Mixed precision that suits the device: float16 on CUDA, bfloat16 on CPUs that have it, none elsewhere."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.float16)
    if device.type == "cpu" and native_bfloat16():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()
