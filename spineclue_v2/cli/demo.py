"""`spineclue_demo`: one synthetic scan that was never trained on, labelled with the shipped weights, and how well that went."""
from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = ("Make a synthetic spine that the shipped weights were never trained on, label it and compare the result with the truth: "
               "a first look at everything, without any data.")
HELD_OUT_SEED = 9000  # training phantoms have other seeds
CASE = "demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", default="spineclue_demo", metavar="DIR", help="output folder")
    parser.add_argument("-device", default=None, choices=["cuda", "cpu", "mps"], help="default: the best there is")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED, help="seed of the synthetic spine")


def run(args: argparse.Namespace) -> int:
    from ..evaluation.summary import evaluate
    from ..inference.model import load_shipped
    from ..inference.predict import predict
    from ..training.device import resolve_device
    from .evaluate import table

    output = Path(args.o)
    model = load_shipped(resolve_device(args.device))
    scan, truth = write_phantom(output, args.seed)
    predict(scan, output / "result", model, progress=False)
    summary = evaluate(truth, output / "result" / f"{CASE}.nii.gz", output / "summary.json")
    print("\n".join(table(summary)))
    print(f"\nScan:    {scan}\nLabels:  {output / 'result' / f'{CASE}.nii.gz'}\nPicture: {output / 'result' / f'{CASE}.png'}")
    return 0


def write_phantom(folder: Path, seed: int) -> tuple[Path, Path]:
    """Write the scan and its true labels; returns both paths."""
    import numpy as np

    from ..phantom import sample
    from ..volume import Geometry, Volume, write_volume

    # Coarse and short, so that the demo takes seconds on any machine.
    case = sample(seed, first="T9", last="L5", spacing=1.5)
    geometry = Geometry(case.ct.shape, case.spacing, (0.0, 0.0, 0.0), np.eye(3))
    scan, truth = folder / f"{CASE}.nii.gz", folder / "truth" / f"{CASE}.nii.gz"
    write_volume(Volume(case.ct, geometry), scan)
    write_volume(Volume(case.labels, geometry), truth)
    return scan, truth
