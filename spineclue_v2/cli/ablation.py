"""`spineclue_ablation`: what every step of identification is worth."""
from __future__ import annotations

import argparse
import sys

from ._common import INTERRUPTED

DESCRIPTION = ("Train and compare the steps of identification on a planned and preprocessed dataset: the paper's ablation table and "
               "what is beyond it, figures per region, parameter curves, confusion matrices, t-SNE of the features. Trainings that "
               "are finished are kept: the same command goes on where it was interrupted.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="dataset id or name")
    parser.add_argument("-f", nargs="+", default=["0"], metavar="FOLD", help="folds to train and measure on, by default: 0")
    parser.add_argument("-p", default="SpineCLUEPlans", help="plans name")
    parser.add_argument("-o", default=None, metavar="FOLDER", help="where everything goes; without it results/DATASET/ablation__PLANS")
    parser.add_argument("--seeds", type=int, default=1, help="repeat every training this often, from other first weights and batches")
    parser.add_argument("--extra", nargs="+", default=[], choices=["objective", "loss", "temperature", "freeze", "width"],
                        help="more trainings: classifier phase with cross entropy alone, the other contrastive loss, other "
                             "temperatures, frozen against fine-tuned, half and double width")
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")


def run(args: argparse.Namespace) -> int:
    from ..ablation.study import ablation
    from ..training.trainer import Interrupted

    try:
        folder, table = ablation(args.dataset, args.f, args.p, args.o, args.seeds, args.extra, args.device)
    except Interrupted as stopped:
        sys.stderr.write(f"{str(stopped).split(';')[0]}; the same command goes on from there.\n")
        return INTERRUPTED
    first = table[0]
    print(f"{first['vertebrae']} vertebrae of {first['scans']} validation scans, {first['seeds']} seed(s); true masks and centres")
    print(f"{'step':16s}{'ID-rate':>9s}{'sd':>8s}{'MSE':>9s}{'all right':>11s}")
    for row in table:
        spread = f"{row['id_rate_sd']:.3f}" if row["id_rate_sd"] != "" else "-"
        print(f"{row['step']:16s}{row['id_rate']:9.3f}{spread:>8s}{row['mse']:9.3f}{row['all_right']:11.3f}")
    print(f"Tables and pictures: {folder}")
    return 0
