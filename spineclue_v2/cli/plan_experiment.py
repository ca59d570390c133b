"""spineclue_plan_experiment: a plan from an existing fingerprint."""
from __future__ import annotations

import argparse

from ._planning import add_dataset, add_planner, device_of

DESCRIPTION = "Write a plan for datasets whose fingerprint exists."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser)
    add_planner(parser)


def run(args: argparse.Namespace) -> int:
    from spineclue_v2.planning.plan_and_preprocess import plan_experiment

    for dataset in args.d:
        plan_experiment(dataset, args.pl, args.gpu_memory_target, device_of(args), args.overwrite_plans_name)
    return 0
