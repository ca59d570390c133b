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


def matrix_bfloat16() -> bool:
    """True when this CPU has matrix tiles (AMX), which make bfloat16 several times faster than float32.

    With AVX-512 alone it is no gain (measured: detector and shape network a third slower, U-Net 10 % faster than float32), and
    oneDNN's bfloat16 weight gradients of 3D convolutions on small grids (2 x 3 x 3, say) read memory that nobody wrote
    (torch 2.15): other numbers each time, off by orders of magnitude, now and then NaN.
    """
    return torch.backends.mkldnn.is_available() and bool(torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device) -> Any:
    """Mixed precision that suits the device: float16 on CUDA, bfloat16 on CPUs with matrix tiles, none elsewhere."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.float16)
    if device.type == "cpu" and matrix_bfloat16():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()
