"""spineclue_extract_fingerprint: measure datasets and check their anatomy."""
from __future__ import annotations

import argparse

from ._planning import add_dataset
from ._workers import add_workers, workers

DESCRIPTION = "Measure raw datasets (dataset_fingerprint.json) and check their labels' anatomy."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="also run nnU-Net's own check (recommended once)")
    parser.add_argument("--clean", action="store_true", help="measure every case again")
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    from spineclue_v2.planning.plan_and_preprocess import fingerprint_dataset

    with workers(args) as (executor, count):
        for dataset in args.d:
            fingerprint_dataset(dataset, args.verify_dataset_integrity, count, executor, args.clean, not args.no_pbar)
    return 0
