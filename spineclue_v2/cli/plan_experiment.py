"""spineclue_plan_experiment: a plan from an existing fingerprint, or a variant of an existing plan."""
from __future__ import annotations

import argparse

from ._planning import add_dataset, add_planner, device_of, report_on_stdout

DESCRIPTION = "Write a plan for datasets whose fingerprint exists, or with --set a variant of a plan that exists."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser)
    add_planner(parser)
    parser.add_argument("--set", nargs="+", default=None, metavar="PLACE=VALUE",
                        help="numbers that a variant has instead, such as segment.run.batch_size=4; name it with -overwrite_plans_name")
    parser.add_argument("-p", default="SpineCLUEPlans", metavar="PLANS", help="with --set: the plan that the variant inherits from")


def run(args: argparse.Namespace) -> int:
    from spineclue_v2.planning.plan_and_preprocess import plan_experiment
    from spineclue_v2.planning.variants import make_variant

    from ..errors import InputError

    if args.set and (args.pl or args.source or args.gpu_memory_target is not None):
        raise InputError("--set changes numbers of a plan that exists; leave out -pl, --from and -gpu_memory_target, or leave out --set.")
    if args.set and not args.overwrite_plans_name:
        raise InputError("--set makes a variant of a plan, which needs a name of its own; give one with -overwrite_plans_name.")
    with report_on_stdout():
        for dataset in args.d:
            if args.set:
                plans = make_variant(dataset, args.set, args.overwrite_plans_name, args.p)
                name = plans.plans_name
                print(f"Variant {name} of {args.p}. Next: spineclue_preprocess -d {dataset} -plans_name {name} where a data group changed, "
                      f"then spineclue_train {dataset} STAGE FOLD -p {name}")
            else:
                plan_experiment(dataset, args.pl, args.gpu_memory_target, device_of(args), args.overwrite_plans_name, args.source)
    return 0
