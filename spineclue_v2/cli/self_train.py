"""`spineclue_self_train DATASET`: learn from the scans of imagesUl, where the model agrees with itself."""
from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ._common import INTERRUPTED

if TYPE_CHECKING:
    from ..cross_validation.self_train import Outline
    from ..cross_validation.self_train_proof import Proof

DESCRIPTION = ("Label the scans of imagesUl with the model, keep what is anchored and stays the same when the scan ends elsewhere, train "
               "again with these as further cases, and compare old and new weights on labelled cases left out. CT only. The new weights "
               "have a name of their own; the old ones stay. The same command continues what was interrupted.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="dataset id or name")
    parser.add_argument("-p", default="SpineCLUEPlans", metavar="PLANS", help="plans name of the model, and of the training")
    parser.add_argument("-f", nargs="+", default=None, metavar="FOLD", help="folds; default: all that are trained, of an untrained dataset "
                        "all of the split")
    parser.add_argument("-teacher", default=None, choices=["trained", "shipped"], help="weights that label the scans and that the training "
                        "starts from; default: trained where a fold is, else the package's own")
    parser.add_argument("--share", type=float, default=0.5, help="part of the batches that comes from the added scans")
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done; nothing is written")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from ..cross_validation.agreement import describe
    from ..cross_validation.self_train import outline, self_train
    from ..training.device import resolve_device
    from ..training.trainer import Interrupted

    plan = outline(args.dataset, args.p, args.f, args.teacher, args.share, resolve_device(args.device))
    if args.dry_run:
        print(plan.describe())
        print("Nothing was written (--dry-run).")
        return 0
    try:
        judged, proof = self_train(plan, progress=not args.no_pbar)
    except (Interrupted, KeyboardInterrupt):
        sys.stderr.write("Interrupted; what is done is kept, and the same command continues.\n")
        return INTERRUPTED
    for number, entries in judged.items():
        print(f"Fold {number}: {describe(entries)}")
    print(_verdict(plan, proof))
    return 0


def _verdict(plan: Outline, proof: Proof | None) -> str:
    if proof is None:
        return "No scan is kept, so nothing was trained: the old weights stay."
    lines = [f"{'on cases left out':<20}{'old':>8}{'new':>8}  95 % interval of the difference"]
    for measure, what in (("found", "found"), ("named", "named right"), ("score", "Dice, name right")):
        low, high = proof.interval[measure]
        lines.append(f"{what:<20}{proof.old[measure]:8.4f}{proof.new[measure]:8.4f}  {low:+.4f} to {high:+.4f}")
    if proof.better:
        lines.append(f"It helped: {proof.reason}. Predict with the new weights: spineclue_predict -d {int(plan.raw.name[7:10])} -p "
                     f"{plan.new_name} ...")
    else:
        lines.append(f"The old weights stay: {proof.reason}. Nothing uses those called {plan.new_name} unless they are named with -p.")
    return "\n".join([*lines, f"Report: {plan.work / 'report.json'}"])
