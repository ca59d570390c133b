"""`spineclue_install_model`: put a shared model among the trained ones."""
from __future__ import annotations

import argparse

DESCRIPTION = "Check a ZIP of spineclue_export_model (hashes, names, sizes, contents) and install it into the results folder."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("zip", help="the ZIP")
    parser.add_argument("--overwrite", action="store_true", help="replace another model of the same dataset, trainers and plans")


def run(args: argparse.Namespace) -> int:
    from ..model_sharing.install_model import install_model

    folder = install_model(args.zip, args.overwrite)
    print(f"{args.zip} is installed in {folder}; use it with -d {folder.name}.")
    return 0
