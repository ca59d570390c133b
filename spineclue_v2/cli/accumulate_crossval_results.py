"""`spineclue_accumulate_crossval_results DATASET -c STAGE`: the validations of all folds as one."""
from __future__ import annotations

import argparse

DESCRIPTION = ("Put the validations of a stage's folds together: every case once, judged by networks that have not seen it. Writes "
               "crossval_results_folds_*/summary.json in nnU-Net's form with the vertebra figures under 'spineclue'.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="dataset id or name")
    parser.add_argument("-c", required=True, choices=["localize", "segment", "identify"], help="stage (nnU-Net's configuration)")
    parser.add_argument("-o", default=None, metavar="DIR", help="output folder; default: crossval_results_folds_* beside the folds")
    parser.add_argument("-f", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD", help="folds")
    parser.add_argument("-p", default="SpineCLUEPlans", help="plans name")
    parser.add_argument("-tr", default=None, help="trainer class, default: the stage's own")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ..cross_validation.validation import accumulate, key_metric

    folder, summary = accumulate(args.dataset, args.c, args.f, args.p, args.tr, Path(args.o) if args.o else None)
    print(f"{len(summary['metric_per_case'])} cases of {len(summary['folds'])} folds, {args.c}: {key_metric(args.c, summary):.4f}")
    print(f"All figures: {folder / 'summary.json'}")
    return 0
