"""`spineclue_move_plans_between_datasets -s SOURCE -t TARGET`: one dataset's plan for another."""
from __future__ import annotations

import argparse

DESCRIPTION = ("Give one dataset's plan to another, so that weights trained on the first fit the second (pretraining). Afterwards: "
               "spineclue_preprocess of the target, spineclue_train -pretrained_weights.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-s", required=True, metavar="SOURCE", help="dataset (id or name) whose plan is taken")
    parser.add_argument("-t", required=True, metavar="TARGET", help="dataset that gets it; its fingerprint must exist")
    parser.add_argument("-sp", default="SpineCLUEPlans", metavar="NAME", help="name of the source's plan")
    parser.add_argument("-tp", default=None, metavar="NAME", help="name of the plan at the target, default: as -sp")


def run(args: argparse.Namespace) -> int:
    from spineclue_v2.planning.move_plans import move_plans_between_datasets

    path = move_plans_between_datasets(args.s, args.t, args.sp, args.tp)
    print(f"{path}: preprocess with spineclue_preprocess -d {path.parent.name[7:10]} -plans_name {path.stem}")
    return 0
