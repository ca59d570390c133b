"""`spineclue_train DATASET STAGE FOLD`: train one stage on one fold, in nnU-Net's grammar."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..stages.registry import stage_names
from ._common import INTERRUPTED

DESCRIPTION = f"Train a stage ({', '.join(stage_names())}) on a fold (0..4 or all) of a planned and preprocessed dataset."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="dataset id or name")
    parser.add_argument("stage", choices=[*stage_names(), "all"], help="stage to train; all: those of the plan, in their order")
    parser.add_argument("fold", help="0..4, or all")
    parser.add_argument("-tr", default=None, help="trainer class, default: the stage's own")
    parser.add_argument("-p", default="SpineCLUEPlans", help="plans name")
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")
    parser.add_argument("-num_gpus", type=int, default=1, help="GPUs to train on, or under -device cpu processes; torchrun works too")
    parser.add_argument("-pretrained_weights", default=None, help="checkpoint to start from; 'shipped' for the package's own")
    parser.add_argument("--c", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument("--val", action="store_true", help="only run the validation of the finished training")
    parser.add_argument("--val_best", action="store_true", help="validate checkpoint_best instead of checkpoint_final")
    parser.add_argument("--tensorboard", action="store_true", help="write the epochs for TensorBoard, too (extra tensorboard)")
    parser.add_argument("--npz", action="store_true", help="identify: keep the validation's level probabilities")


def run(args: argparse.Namespace) -> int:
    from ..cross_validation.run_training import train
    from ..cross_validation.train_all import stages_to_train
    from ..training.trainer import Interrupted

    todo = stages_to_train(args.dataset, args.fold, args.p, args.tr, args.pretrained_weights, args.c) if args.stage == "all" else [
        (args.stage, args.pretrained_weights, args.c)]
    for number, (stage, weights, resume) in enumerate(todo, start=1):
        if args.stage == "all":
            print(f"Stage {number} of {len(todo)}: {stage}", flush=True)
        probabilities = args.npz and (args.stage != "all" or stage == "identify")
        try:
            folder, summary = train(args.dataset, stage, args.fold, trainer=args.tr, plans_name=args.p, device=args.device,
                                    num_gpus=args.num_gpus, pretrained_weights=weights, resume=resume, only_validate=args.val,
                                    validate_best=args.val_best, save_probabilities=probabilities, tensorboard=args.tensorboard)
        except Interrupted as stopped:
            sys.stderr.write(f"{stopped}\n")
            return INTERRUPTED
        except KeyboardInterrupt:
            sys.stderr.write(f"Interrupted in {stage}, fold {args.fold}; the last full epoch is kept, continue with --c.\n")
            return INTERRUPTED
        if summary:  # of several processes the first one validates and speaks
            _report(stage, args.fold, folder, summary)
    return 0


def _report(stage: str, fold: str, folder: Path, summary: dict[str, Any]) -> None:
    if "spineclue" in summary:
        print(f"Validation of {stage} fold {fold}, on what earlier stages found: " + _line(summary["spineclue"]))
    alone = summary.get("alone", summary)
    print(f"Validation of {stage} fold {fold}, the stage alone: " + _line(alone | alone.get("foreground_mean", {})))
    print(f"Results: {folder}", flush=True)


def _line(figures: dict[str, Any]) -> str:
    shown = {key: value for key, value in figures.items() if isinstance(value, int | float) and key != "fold"}
    return ", ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items())
