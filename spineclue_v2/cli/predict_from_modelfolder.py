"""`spineclue_predict_from_modelfolder`: predict with the model in a given folder."""
from __future__ import annotations

import argparse

from .predict import add_input_arguments, add_model_arguments, add_run_arguments
from .predict import run as run_predict

DESCRIPTION = "Find, segment and name the vertebrae of CT scans with the model in a folder (a results folder DatasetXXX_Name)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input_arguments(parser)
    parser.add_argument("-m", required=True, help="folder of the model")
    add_model_arguments(parser)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    args.d = None
    return run_predict(args)
