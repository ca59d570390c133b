"""`spineclue_suggest`: the unlabelled cases that are worth labelling next."""
from __future__ import annotations

import argparse

DESCRIPTION = ("Rank the unlabelled scans of a dataset (imagesUl) by what labels of them would teach: those that the model doubts, and "
               "those with levels that few labelled cases show. Needs their predictions.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="dataset id (501) or name")
    parser.add_argument("-n", type=int, default=10, help="how many cases")
    parser.add_argument("-i", default=None, metavar="PREDICTIONS", help="folder that spineclue_predict wrote for imagesUl; default: "
                        "predictionsUl in the results folder of the dataset")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from spineclue_v2.planning.suggest import suggest

    from ..dataset.raw import RawDataset
    from ..errors import InputError
    from ..utilities import paths

    if args.n < 1:
        raise InputError(f"-n is {args.n}; give at least 1.")
    raw = RawDataset(paths.raw_folder() / paths.dataset_name(args.dataset, paths.raw_folder()))
    folder = Path(args.i) if args.i is not None else paths.results_folder() / raw.name / "predictionsUl"
    chosen = suggest(raw, folder, args.n)
    print("case  worth  doubt  rarity  levels")
    for entry in chosen:
        levels = f"{entry.levels[0]} to {entry.levels[-1]}" if entry.levels else "none found"
        print(f"{entry.case}  {entry.worth:.3f}  {entry.doubt:.3f}  {entry.rarity:.3f}  {levels}")
    return 0
