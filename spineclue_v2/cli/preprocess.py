"""spineclue_preprocess: bring datasets into the model spaces of a plan."""
from __future__ import annotations

import argparse

from ._planning import add_dataset
from ._workers import add_workers, report, workers

DESCRIPTION = "Preprocess datasets as their plan says; finished cases are kept, interrupted ones done again."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument("-plans_name", default="SpineCLUEPlans", metavar="NAME", help="which plan")
    parser.add_argument("-c", nargs="+", default=None, metavar="STAGE", help="stages; default: all of the plan")
    parser.add_argument("--clean", action="store_true", help="preprocess finished cases again")
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    from spineclue_v2.planning.plan_and_preprocess import preprocess_plans

    failures: dict[str, str] = {}
    with workers(args) as (executor, count):
        for dataset in args.d:
            failures |= preprocess_plans(dataset, args.plans_name, args.c, count, executor, args.clean, not args.no_pbar)
    return report(failures)
