"""Training on several GPUs (or processes): torch's DistributedDataParallel under torchrun, or started here by `-num_gpus`.

Every process makes the whole batch, which is a function of (seed, iteration), and works on its share. So the batch, and where the loss
is a mean over samples the loss curve too, are those of one process. Losses over the whole batch (contrastive, sequences) gather the
outputs of all processes first.
"""
from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from ..errors import InputError

STOPPED = 130
TIMEOUT = timedelta(minutes=30)  # the others wait while the first process validates


def world_size() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 writes files and speaks."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def under_launcher() -> bool:
    """True in a process that torchrun (or `launch`) started: these set all of the variables, while other programs leave some behind."""
    return _number("WORLD_SIZE", 1) > 1 and all(os.environ.get(name) for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))


def rank_of_environment() -> int:
    """The number the launcher gave this process, before it has joined the others."""
    return _number("RANK", 0)


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else otherwise


@contextlib.contextmanager
def join_processes(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that the launcher started; yields this process's device."""
    if not under_launcher():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", _number("LOCAL_RANK", 0))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield device
    # Not after an exception: leaving the group would make the others fail before the cause could be noted.
    distributed.destroy_process_group()


class _Step(nn.Module):
    """The loss as a module's forward pass, so that DDP sees every way in which a trainer uses its network."""

    def __init__(self, network: nn.Module, loss: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.loss(batch)


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """`network` with batch statistics over all processes where the device can do that (CUDA)."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(network) if world_size() > 1 and device.type == "cuda" else network


def parallel_loss(network: nn.Module, loss: Callable[[dict[str, torch.Tensor]], torch.Tensor],
                  device: torch.device) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """`loss`, with the gradients of all processes averaged when it is differentiated."""
    if world_size() == 1:
        return loss
    return nn.parallel.DistributedDataParallel(_Step(network, loss), device_ids=[device.index] if device.type == "cuda" else None,
                                               find_unused_parameters=True)


def shard_of(size: int, part: int, parts: int) -> slice:
    """Which of `size` samples belong to `part`."""
    return slice(size * part // parts, size * (part + 1) // parts)


def gather_rows(rows: torch.Tensor, total: int) -> torch.Tensor:
    """Rows (n, ...) of all processes in their order, (total, ...), with gradients; each has the rows `share_of(total, rank, world)`."""
    count = world_size()
    if count == 1:
        return rows
    sizes = [len(range(total)[shard_of(total, part, count)]) for part in range(count)]
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
    return torch.cat([part[:size] for part, size in zip(_AllGather.apply(padded), sizes, strict=True)])


class _AllGather(torch.autograd.Function):
    """(...) -> (processes, ...), differentiable: every process's loss contributes to the gradient of each one's rows."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient[rank()]


def mean_over_processes(value: torch.Tensor) -> float:
    """Mean of a scalar over all processes."""
    if world_size() == 1:
        return float(value)
    value = value.detach().clone()
    distributed.all_reduce(value)
    return float(value) / world_size()


def any_process(flag: bool, device: torch.device) -> bool:
    """True in all processes when it is true in one."""
    if world_size() == 1:
        return flag
    value = torch.tensor(float(flag), device=device)
    distributed.all_reduce(value, op=distributed.ReduceOp.MAX)
    return bool(value > 0)


def launch(count: int, device: torch.device, function: Callable[..., None], *arguments: Any) -> bool:
    """Run `function(*arguments)` in `count` processes that train together; False when they were stopped by SIGTERM.

    A process that raises or dies ends the others; its traceback is raised here. `function` is module-level.
    """
    if device.type == "cuda" and torch.cuda.device_count() < count:
        raise InputError(f"-num_gpus is {count} but torch sees {torch.cuda.device_count()} GPU(s); give that number, or fewer.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    notes = tempfile.TemporaryDirectory(prefix="spineclue_")
    processes = torch.multiprocessing.spawn(_process, (count, port, notes.name, function, arguments), nprocs=count, join=False)

    def forward(*_: Any) -> None:
        for process in processes.processes:
            if process.is_alive():
                process.terminate()

    previous = signal.signal(signal.SIGTERM, forward)
    failed = None
    try:
        while not processes.join(timeout=0.5, grace_period=2):
            failed = _first_failure(Path(notes.name))
            if failed:  # the others may be stuck waiting for it: nobody waits for them
                break
    except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as error:
        if getattr(error, "exit_code", None) == STOPPED:
            return False
        failed = _first_failure(Path(notes.name))
        if failed is None:
            raise
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in processes.processes:
            if process.is_alive():
                process.kill()
        notes.cleanup()
    if failed:
        raise RuntimeError(f"Process {failed[0]} of {count} failed:\n{failed[1]}")
    return True


def _first_failure(notes: Path) -> tuple[str, str] | None:
    """(number, traceback) of the process that failed first: the cause. The others' errors say only that it is gone."""
    reports = sorted((file.stat().st_mtime_ns, file) for file in notes.glob("*.txt"))
    return (reports[0][1].stem, reports[0][1].read_text(encoding="utf-8")) if reports else None


def _process(number: int, count: int, port: int, notes: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    from ..utilities.environment import guard

    guard()
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}
    try:
        function(*arguments)
    except Exception:
        note = Path(notes) / f"{number}.txt"
        note.with_suffix(".part").write_text(traceback.format_exc(), encoding="utf-8")
        note.with_suffix(".part").rename(note)
        raise
