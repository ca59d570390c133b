"""Where and in which precision a network runs."""
from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import InputError

if TYPE_CHECKING:
    import torch

SOUND_GRID = 3
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")     # NVIDIA, AMD, and either within Windows


class Processor(str):
    """The CPU where PyTorch is not imported: "cpu", which every function of torch takes for its device, with a device's `type`."""

    __slots__ = ()

    @property
    def type(self) -> str:
        return str(self)


def resolve_device(name: str | None) -> torch.device:
    """Device for 'cuda', 'cpu', 'mps' or None (the best there is); InputError when the one asked for is not there.

    The CPU may be a `Processor`: PyTorch is not imported where no driver of a GPU is installed.
    """
    if "torch" not in sys.modules and (name == "cpu" or (name is None and _has_no_driver())):
        return cast("torch.device", Processor("cpu"))
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name not in ("cuda", "cpu", "mps"):
        raise InputError(f"Device '{name}' is unknown; expected cuda, cpu or mps.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("Device 'cuda' was asked for but torch sees no NVIDIA GPU; add -device cpu.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("Device 'mps' was asked for but torch sees no Apple GPU; add -device cpu.")
    return torch.device(name)


def _has_no_driver() -> bool:
    return sys.platform == "linux" and not any(Path(driver).exists() for driver in DRIVERS)


def items_at_once(planned: int, device: torch.device) -> int:
    """Crops of a 3D network to predict together: as planned on a GPU; one on a CPU, which is as quick so and needs a fraction of the
    memory."""
    return 1 if device.type == "cpu" else planned


def fast_bfloat16() -> bool:
    """True when this CPU multiplies bfloat16 itself (AMX, or AVX-512 with BF16 instructions); where it is emulated nothing is gained."""
    import torch

    return torch.backends.mkldnn.is_available() and bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def sound_bfloat16_gradients(smallest_grid: Sequence[int] | None) -> bool:
    """True when bfloat16 gradients can be trusted on this CPU.

    Without AMX oneDNN's bfloat16 weight gradients of 3D convolutions on grids of 2 along an axis (2 x 3 x 3, say) read memory that
    nobody wrote (torch 2.15): other numbers each time, off by orders of magnitude, now and then NaN.

    Args:
        smallest_grid: fewest voxels along each axis that a 3D convolution of the network sees; None: it has none.
    """
    import torch

    return torch.cpu._is_amx_tile_supported() or smallest_grid is None or min(smallest_grid) >= SOUND_GRID


def autocast(device: torch.device, smallest_grid: Sequence[int] | None = None, bfloat16: bool = True) -> Any:
    """Mixed precision that suits the device: float16 on CUDA, bfloat16 on CPUs made for it, none elsewhere.

    Training names the network's `smallest_grid` (see `sound_bfloat16_gradients`); without gradients it does not matter. Networks whose
    output is coordinates say no to `bfloat16`: beyond 128 it knows whole pixels only.
    """
    import torch

    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.float16)
    if bfloat16 and device.type == "cpu" and fast_bfloat16() and sound_bfloat16_gradients(smallest_grid):
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch failed for lack of memory, on whatever device."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory", "not enough memory"))


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
