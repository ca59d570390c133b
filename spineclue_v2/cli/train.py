"""`spineclue_train DATASET STAGE FOLD`: train one stage on one fold, in nnU-Net's grammar."""
from __future__ import annotations

import argparse
import sys
from typing import Any

from ..stages.registry import stage_names
from ._common import INTERRUPTED

DESCRIPTION = f"Train a stage ({', '.join(stage_names())}) on a fold (0..4 or all) of a planned and preprocessed dataset."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="dataset id or name")
    parser.add_argument("stage", choices=stage_names(), help="stage to train")
    parser.add_argument("fold", help="0..4, or all")
    parser.add_argument("-tr", default=None, help="trainer class, default: the stage's own")
    parser.add_argument("-p", default="SpineCLUEPlans", help="plans name")
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")
    parser.add_argument("-num_gpus", type=int, default=1, help="GPUs to train on, or under -device cpu processes; torchrun works too")
    parser.add_argument("-pretrained_weights", default=None, help="checkpoint to start from; 'shipped' for the package's own")
    parser.add_argument("--c", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument("--val", action="store_true", help="only run the validation of the finished training")
    parser.add_argument("--val_best", action="store_true", help="validate checkpoint_best instead of checkpoint_final")
    parser.add_argument("--npz", action="store_true", help="identify: keep the validation's level probabilities")


def run(args: argparse.Namespace) -> int:
    from ..cross_validation.run_training import train
    from ..training.trainer import Interrupted

    try:
        folder, summary = train(args.dataset, args.stage, args.fold, trainer=args.tr, plans_name=args.p, device=args.device,
                                num_gpus=args.num_gpus, pretrained_weights=args.pretrained_weights, resume=args.c,
                                only_validate=args.val, validate_best=args.val_best, save_probabilities=args.npz)
    except Interrupted as stopped:
        sys.stderr.write(f"{stopped}\n")
        return INTERRUPTED
    if not summary:  # one of several processes: the first one validates and speaks
        return 0
    if "spineclue" in summary:
        print(f"Validation of {args.stage} fold {args.fold}, on what earlier stages found: " + _line(summary["spineclue"]))
    alone = summary.get("alone", summary)
    print(f"Validation of {args.stage} fold {args.fold}, the stage alone: " + _line(alone | alone.get("foreground_mean", {})))
    print(f"Results: {folder}")
    return 0


def _line(figures: dict[str, Any]) -> str:
    shown = {key: value for key, value in figures.items() if isinstance(value, int | float) and key != "fold"}
    return ", ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items())
