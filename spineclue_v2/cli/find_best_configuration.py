"""`spineclue_find_best_configuration DATASET`: what to predict with, chosen on cross-validation."""
from __future__ import annotations

import argparse

DESCRIPTION = ("Choose trainers, plans, fusion and decoder settings on cross-validation (cases no network had seen), write them into the "
               "model, and write inference_information.json and inference_instructions.txt (the commands to predict with).")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="dataset id or name")
    parser.add_argument("-p", nargs="+", default=["SpineCLUEPlans"], metavar="PLANS", help="plans to compare")
    parser.add_argument("-tr", nargs="+", default=None, metavar="TRAINER", help="trainers to compare; default: all that have finished")
    parser.add_argument("-f", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD", help="folds")
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")


def run(args: argparse.Namespace) -> int:
    from ..cross_validation.find_best_configuration import find_best_configuration, results_place
    from ..training.device import resolve_device

    found = find_best_configuration(args.dataset, args.p, args.tr, args.f, resolve_device(args.device))
    information, instructions = results_place(found["dataset"])
    chosen = [f"{stage} {trainer} {found['figures'][stage]:.4f}" for stage, trainer in found["trainers"].items()]
    print(f"{found['plans']}: {', '.join(chosen)}")
    before, after = found["settings_tried"][0], [row for row in found["settings_tried"] if row["kept"]][-1]
    print(f"Settings: ID-rate {before['id_rate']:.4f} as planned, {after['id_rate']:.4f} as chosen (folds left out of fitting)")
    print(f"All that was compared: {information}\n\n{instructions.read_text(encoding='utf-8')}", end="")
    return 0
