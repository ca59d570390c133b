"""Flags of every command that fans work out (`-np`, `--dask`), and what they mean: one place, so that all of them agree."""
from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager

logger = logging.getLogger(__name__)


def add_workers(parser: argparse.ArgumentParser, progress_flag: str | None = "--no_pbar") -> None:
    """Add `-np` and `--dask`, and nnU-Net's flag that turns the progress bar off (None: the command has its own)."""
    parser.add_argument("-np", type=int, default=None, help="worker processes, 0: work in this process; default: from cores and memory")
    parser.add_argument("--dask", default=None, metavar="ADDRESS", help="work on the Dask cluster whose scheduler is at ADDRESS; its "
                        "workers must see the same folders")
    if progress_flag:
        parser.add_argument(progress_flag, action="store_true", help="no progress bar")


@contextmanager
def workers(args: argparse.Namespace, memory_gb_each: float = 3.0) -> Iterator[tuple[Executor | None, int]]:
    """(executor or None, number of processes) from `-np` and `--dask`, to hand to any function that takes both.

    `memory_gb_each`: free memory that one worker process needs where the user gives no number.
    """
    from ..utilities.parallel import dask_executor, default_processes

    count = default_processes(memory_gb_each) if args.np is None else args.np
    if args.dask:
        with dask_executor(args.dask) as executor:
            yield executor, count
    else:
        yield None, count


def report(failures: Mapping[str, str]) -> int:
    """Exit code 0, or 1 after a table of what failed."""
    if not failures:
        return 0
    lines = "\n".join(f"  {name}: {why}" for name, why in failures.items())
    logger.error("%d case(s) failed, all others are done; the same command retries only these:\n%s", len(failures), lines)
    return 1
