"""spineclue_explain: the numbers of a plan in words."""
from __future__ import annotations

import argparse

DESCRIPTION = "Say what a number of a plan is, which rule gave it, and what the rule looked at."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="dataset id (501) or name")
    parser.add_argument("place", nargs="?", default=None, help="stage, stage.group or stage.group.field, such as "
                        "segment.network.crop_size; default: the whole plan")
    parser.add_argument("-p", default="SpineCLUEPlans", metavar="PLANS", help="plans name")


def run(args: argparse.Namespace) -> int:
    from ..stages.explain_plans import explain
    from ..stages.plan_files import load_plans
    from ..utilities import paths

    print(explain(load_plans(paths.preprocessed_folder() / paths.dataset_name(args.dataset) / f"{args.p}.json"), args.place))
    return 0
