"""What the planning commands share: their flags, the choice of workers and the table of failures."""
from __future__ import annotations

import argparse
import logging
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


def add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="dataset ids (501) or names (Dataset501_VerSe20)")


def add_planner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-pl", default="SpineCLUEPlanner", metavar="PLANNER", help="planner class")
    parser.add_argument("-gpu_memory_target", type=float, default=None, metavar="GB",
                        help="memory a training may use; default: 8 on a GPU, 1 elsewhere")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default=None,
                        help="device the plan is for; default: cuda where an NVIDIA GPU is found, else mps or cpu")
    parser.add_argument("-overwrite_plans_name", default=None, metavar="NAME", help="the plan's name; default: the planner's own")


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-np", type=int, default=None, help="worker processes, 0: none; default: from cores and memory")
    parser.add_argument("--dask", default=None, metavar="ADDRESS", help="run on the Dask cluster whose scheduler is at ADDRESS")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bar")


def device_of(args: argparse.Namespace) -> str:
    """The device asked for, else the best one there seems to be (without importing torch)."""
    if args.device:
        return args.device
    if shutil.which("nvidia-smi"):
        return "cuda"
    return "mps" if platform.system() == "Darwin" and platform.machine() == "arm64" else "cpu"


@contextmanager
def workers(args: argparse.Namespace) -> Iterator[tuple[Any, int]]:
    """(executor or None, number of processes) from -np and --dask."""
    from spineclue_v2.parallel import dask_executor, default_processes

    count = default_processes() if args.np is None else args.np
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
