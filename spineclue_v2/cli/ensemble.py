"""`spineclue_ensemble -i FOLDER FOLDER ... -o OUT`: predictions of several models as one."""
from __future__ import annotations

import argparse

DESCRIPTION = ("Merge predictions of the same scans by several models (folders of spineclue_predict --save_probabilities): masks and level "
               "probabilities averaged, the numbering judged anew. Folds of one model need no such step: predict -f takes them together.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", nargs="+", required=True, metavar="FOLDER", help="prediction folders with saved probabilities, two or more")
    parser.add_argument("-o", required=True, help="output folder")
    parser.add_argument("--save_npz", action="store_true", help="write CASE.npz again, to merge further")


def run(args: argparse.Namespace) -> int:
    from ..inference.ensemble import ensemble

    outcome = ensemble(args.i, args.o, args.save_npz)
    failed = {case: why for case, why in outcome.items() if why}
    print(f"{len(outcome) - len(failed)} of {len(outcome)} scans are merged in {args.o}.")
    for case, why in failed.items():
        print(f"  {case}: {why}")
    return 1 if failed else 0
