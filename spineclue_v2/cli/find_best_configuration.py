"""`spineclue_find_best_configuration DATASET`: what to predict with, chosen on cross-validation."""
from __future__ import annotations

import argparse
from typing import Any

DESCRIPTION = ("Choose trainers, plans, fusion and decoder settings on cross-validation (cases no network had seen), and write "
               "inference_information.json and inference_instructions.txt (the commands to predict with). Settings are written into the "
               "model only where their gain is sure.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="dataset id or name")
    parser.add_argument("-p", nargs="+", default=["SpineCLUEPlans"], metavar="PLANS", help="plans to compare")
    parser.add_argument("-tr", nargs="+", default=None, metavar="TRAINER", help="trainers to compare; default: all that have finished")
    parser.add_argument("-f", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD", help="folds")
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")
    parser.add_argument("--dry-run", action="store_true", help="search and report; the model and the two files stay as they are")
    parser.add_argument("--undo", action="store_true", help="take back what an earlier call wrote into the model")


def run(args: argparse.Namespace) -> int:
    from ..cross_validation.find_best_configuration import find_best_configuration, results_place, undo
    from ..errors import InputError
    from ..training.device import resolve_device

    if args.undo:
        if args.dry_run:
            raise InputError("--undo writes and --dry-run does not; give one of them.")
        for folder in undo(args.dataset, args.p):
            print(f"As its training left it: {folder}")
        return 0
    found = find_best_configuration(args.dataset, args.p, args.tr, args.f, resolve_device(args.device), args.dry_run)
    chosen = [f"{stage} {trainer} {found['figures'][stage]:.4f}" for stage, trainer in found["trainers"].items()]
    print(f"{found['plans']}: {', '.join(chosen)}")
    print(_settings_table(found))
    if args.dry_run:
        print("Nothing was written (--dry-run).")
        return 0
    information, instructions = results_place(found["dataset"])
    print(f"All that was compared: {information}\n\n{instructions.read_text(encoding='utf-8')}", end="")
    return 0


def _settings_table(found: dict[str, Any]) -> str:
    """Planned beside chosen settings, the estimate, and what became of them."""
    planned, chosen, estimate = found["settings_planned"], found["settings_chosen"], found["nested_estimate"]
    lines = [f"{'setting':<12}{'planned':<40}chosen"]
    lines += [f"{name:<12}{_short(planned[name]):<40}{_short(chosen[name])}" for name in planned]
    if estimate["cases"]:
        low, high = estimate["interval"]
        lines.append(f"{'ID-rate':<12}{estimate['planned']:<40.4f}{estimate['chosen']:.4f} on cases that had no part in choosing "
                     f"(gain {estimate['chosen'] - estimate['planned']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f})")
    if not estimate["taken"]:
        verdict = "The planned settings stay"
    elif found["written"]:
        verdict = "The chosen settings are in the model now, --undo takes them back"
    else:
        verdict = "The chosen settings would be written"
    return "\n".join([*lines, f"{verdict}: {estimate['reason']}."])


def _short(value: Any) -> str:
    """A setting in a few characters; names with values as name=value."""
    if isinstance(value, dict):
        return " ".join(f"{name}={number:.3g}" for name, number in value.items()) or "default"
    return f"{value:g}"
