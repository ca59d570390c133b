"""What the planning commands share: their flags and the choice of a device."""
from __future__ import annotations

import argparse
import contextlib
import logging
import platform
import shutil
import sys
from collections.abc import Iterator

REPORT = "spineclue_v2.planning.plan_and_preprocess.report"


def add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="dataset ids (501) or names (Dataset501_VerSe20)")


def add_planner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-pl", default=None, metavar="PLANNER",
                        help="planner class; default: SpineCLUEPlanner, for MR datasets SSHSNetPlanner")
    parser.add_argument("-gpu_memory_target", type=float, default=None, metavar="GB",
                        help="memory a training may use; default: 8 on a GPU, 2 elsewhere")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default=None,
                        help="device the plan is for; default: cuda where an NVIDIA GPU is found, else mps or cpu")
    parser.add_argument("-overwrite_plans_name", default=None, metavar="NAME", help="the plan's name; default: the planner's own")
    parser.add_argument("--from", dest="source", default=None, metavar="SOURCE",
                        help="plan for fine-tuning: 'shipped', or the plans.json of the model whose weights you start from")


def device_of(args: argparse.Namespace) -> str:
    """The device asked for, else the best one there seems to be (without importing torch)."""
    if args.device:
        return args.device
    if shutil.which("nvidia-smi"):
        return "cuda"
    return "mps" if platform.system() == "Darwin" and platform.machine() == "arm64" else "cpu"


@contextlib.contextmanager
def report_on_stdout() -> Iterator[None]:
    """While it lasts, the planner's report goes to stdout; what else is said stays on stderr."""
    logger, handler = logging.getLogger(REPORT), logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
