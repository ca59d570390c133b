"""spineclue_plan_and_preprocess: fingerprint, plan and preprocess datasets."""
from __future__ import annotations

import argparse

from ._planning import add_dataset, add_planner, device_of, report_on_stdout
from ._workers import add_workers, report, workers

DESCRIPTION = "Look at raw datasets, write a plan for each and preprocess them: all that training needs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="also run nnU-Net's own check (recommended once)")
    parser.add_argument("--no_pp", action="store_true", help="fingerprint and plan only")
    parser.add_argument("--clean", action="store_true", help="forget earlier fingerprints and preprocessed cases")
    parser.add_argument("-npfp", type=int, default=None, help="processes for the fingerprint; default: as -np")
    add_planner(parser)
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    from spineclue_v2.planning.plan_and_preprocess import plan_and_preprocess

    with report_on_stdout(), workers(args) as (executor, count):
        return report(plan_and_preprocess(
            args.d, args.pl, gpu_memory_target=args.gpu_memory_target, device=device_of(args), plans_name=args.overwrite_plans_name,
            verify_integrity=args.verify_dataset_integrity, preprocess=not args.no_pp, clean=args.clean, num_processes=count,
            num_processes_fingerprint=args.npfp, executor=executor, progress=not args.no_pbar, source=args.source))
