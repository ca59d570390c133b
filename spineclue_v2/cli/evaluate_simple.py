"""`spineclue_evaluate_simple`: overlap of equal label values, as nnUNetv2_evaluate_simple."""
from __future__ import annotations

import argparse

DESCRIPTION = "Dice and IoU of equal label values of two folders, without any knowledge of spines (nnU-Net's evaluate_simple)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gt_folder", help="folder with reference label maps")
    parser.add_argument("pred_folder", help="folder with predicted label maps of the same names")
    parser.add_argument("-l", type=int, nargs="+", required=True, metavar="LABEL", help="label values to compare")
    parser.add_argument("-il", type=int, default=None, metavar="LABEL", help="reference value whose voxels are ignored")
    parser.add_argument("-o", default=None, metavar="FILE", help="output file (default: pred_folder/summary.json)")
    parser.add_argument("-np", type=int, default=None, help="worker processes; 0: this process; without it as many as fit")
    parser.add_argument("--chill", action="store_true", help="skip references without prediction instead of stopping")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ..evaluation.summary import evaluate_simple
    from ..utilities.parallel import default_processes

    output = Path(args.o) if args.o else Path(args.pred_folder) / "summary.json"
    processes = default_processes() if args.np is None else args.np
    summary, failed = evaluate_simple(args.gt_folder, args.pred_folder, args.l, args.il, output, processes, args.chill)
    print(f"{'label':>6s}{'Dice':>9s}{'IoU':>9s}{'n_ref':>12s}{'n_pred':>12s}")
    for label in args.l:
        mean = summary["mean"][str(label)]
        print(f"{label:6d}{mean['Dice']:9.4f}{mean['IoU']:9.4f}{mean['n_ref']:12.1f}{mean['n_pred']:12.1f}")
    print(f"{len(summary['metric_per_case'])} cases, foreground mean Dice {summary['foreground_mean']['Dice']:.4f}; {output}")
    for case, sentence in failed.items():
        print(f"failed: {case}: {sentence}")
    return 1 if failed else 0
