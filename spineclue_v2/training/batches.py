"""Batches made by worker processes, and what happens when those die: training goes on in this process and says so."""
from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError

logger = logging.getLogger("spineclue_v2.training")

PREFETCHED = 4   # batches per worker


class BatchSource(Dataset):
    """Map-style dataset of whole batches: item i is `make(i)`. Module-level so that worker processes can receive it."""

    def __init__(self, make: Any, length: int) -> None:
        self.make, self.length = make, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = self.make(index)
        if torch.utils.data.get_worker_info() is not None:
            # The loader would do this in a thread of the worker, where a failure (shared memory is full) is seen by nobody and the
            # trainer waits for ever. Here it is an error of the worker, which the trainer gets.
            for tensor in batch.values():
                tensor.share_memory_()
        return batch


def iterate_batches(make: Any, start: int, stop: int, workers: int,
                    on_loss: Callable[[], object] = lambda: None) -> Iterator[dict[str, torch.Tensor]]:
    """Batches `make(start)` to `make(stop - 1)`, a picklable function of the index alone, by `workers` processes (0: by this one).

    Workers that have no shared memory for their batches are given up: the rest is made here, from the same index on, which gives the same
    batches. Workers that die are replaced once; when it happens again the error is raised, for a batch that kills a process would take
    this one along. `on_loss` is called in either case. An error of `make` itself is raised as it is.
    """
    index, replaced = start, False
    while workers and index < stop:
        try:
            for batch in _loaded(make, index, stop, workers):
                yield batch
                index += 1
            return
        except Exception as error:  # a worker was killed, no shared memory, no more open files; or `make` failed
            if isinstance(error, InputError):
                make(index)         # says so in its own words, without the worker's traceback
            if not _is_loss(error):
                raise
            on_loss()
            if replaced and not _no_shared_memory(error):
                raise
            if _no_shared_memory(error):
                logger.warning("A process that makes batches was lost (%s); from batch %d on this process makes them alone, which is "
                               "slower. %s", _cause(error), index, _remedy(error))
                break
            replaced = True
            logger.warning("A process that makes batches was lost (%s); from batch %d on a new one makes them. %s", _cause(error), index,
                           _remedy(error))
    for rest in range(index, stop):
        yield make(rest)


def default_workers() -> int:
    """Processes that make batches: `spineclue_n_proc_DA`, else `nnUNet_n_proc_DA`, else one per core beyond the first, at most 12."""
    for variable in ("spineclue_n_proc_DA", "nnUNet_n_proc_DA"):
        text = os.environ.get(variable)
        if text:
            if not text.isdigit():
                raise InputError(f"{variable} is '{text}'; expected a number of processes.")
            return int(text)
    return min(12, max(1, (os.cpu_count() or 2) - 1))


def _loaded(make: Any, start: int, stop: int, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    loader = DataLoader(BatchSource(make, stop), batch_size=None, sampler=range(start, stop), num_workers=workers,
                        prefetch_factor=PREFETCHED, multiprocessing_context="forkserver")
    yield from loader


def _cause(error: BaseException) -> str:
    """The last line of what torch says, without the worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200].rstrip(".")


def _is_loss(error: BaseException) -> bool:
    """Whether a worker is gone, and not `make` at fault."""
    said = str(error).lower()
    if isinstance(error, OSError | EOFError) and "in dataloader worker process" not in said:
        return True  # the batch that it had sent cannot be fetched from it any more; torch hears of its end later
    return _no_shared_memory(error) or "exited unexpectedly" in said or "killed by signal" in said or "open files" in said


def _no_shared_memory(error: BaseException) -> bool:
    return any(word in str(error).lower() for word in ("shm", "shared memory", "bus error", "no space left"))


def _remedy(error: BaseException) -> str:
    if _no_shared_memory(error):
        return "Shared memory (/dev/shm) is too small; in a container start it with --shm-size 8g or --ipc=host."
    return "Set spineclue_n_proc_DA to fewer processes when memory or open files run out."
