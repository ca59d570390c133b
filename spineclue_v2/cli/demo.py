"""`spineclue_demo`: a labelled synthetic scan and its picture, with the weights that come with the package."""
from __future__ import annotations

import argparse

DESCRIPTION = "Make a synthetic CT that no weights were trained on, label it with the shipped weights, compare with the truth, draw it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", default="spineclue_demo", help="output folder")
    parser.add_argument("--seed", type=int, default=9042, help="seed of the synthetic spine (training seeds begin at 100000)")
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")


def run(args: argparse.Namespace) -> int:
    from ..demo import demo

    result = demo(args.o, args.device, args.seed)
    print(f"{'level':<6} {'confidence':>10} {'volume ml':>10} {'body centre mm (x, y, z)':>28}")
    for vertebra in result.record["vertebrae"]:
        centre = ", ".join(f"{c:.0f}" for c in vertebra["body_centre_mm"])
        print(f"{vertebra['level']:<6} {vertebra['confidence']:>10.3f} {vertebra['volume_ml']:>10.1f} {centre:>28}")
    figures = result.figures
    print(f"Against the truth of this synthetic scan: detection F1 {figures['detection']['f1']:.3f}, "
          f"identification rate {figures['id_rate']:.3f}, mean Dice {figures['dice']:.3f}.")
    print(f"Numbering anchored: {'yes' if result.record['numbering_anchored'] else 'no'}; "
          f"{result.record['seconds']['total']:.1f} s from reading the scan to the drawn picture.")
    page = result.picture.with_suffix(".html")
    if page.is_file():
        print(f"Page:    {page}")
    print(f"Picture: {result.picture}\nLabels:  {result.labels}\nScan:    {result.scan}")
    return 0
