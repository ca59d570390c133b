"""Segmentation of phantoms of a new look: shipped weights as they are, fine-tuned on ten, and a network from scratch in equal time.

    python -m benchmarks.fine_tuning -o SCRATCH [--iterations 120]

Fifteen phantoms whose tissues have random intensities (`randomise` 1: the shipped weights saw none), ten to train and five to compare.
All three use the shipped plan's segment network; fine-tuning and scratch take the same number of steps of the same network, so the
same time. The figure is the one of `spineclue_train ... --val`: Dice of single vertebrae, true centres moved by the plan's jitter.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

NAME = "Dataset830_NewLook"
LOOK: dict[str, Any] = {"randomise": 1.0, "short": 5, "wide": False, "spacing": (1.5, 1.5, 1.5), "spine": True}
TRAIN = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, help="scratch folder")
    parser.add_argument("--iterations", type=int, default=120)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    os.environ |= {"spineclue_raw": str(args.o / "raw"), "spineclue_preprocessed": str(args.o / "preprocessed"), "spineclue_n_proc_DA": "0"}

    import torch

    from spineclue_v2 import SpineCLUE
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.dataset.raw import RawDataset
    from spineclue_v2.dataset_conversion.phantom import convert
    from spineclue_v2.plans.plans import Plans
    from spineclue_v2.preprocessing.ct import preprocess_dataset
    from spineclue_v2.stages.segment.trainer import SegmentTrainer
    from spineclue_v2.utilities import paths

    convert(args.o / "raw" / NAME, TRAIN + 5, seed=830, num_processes=0, **LOOK)
    shipped = SpineCLUE.from_pretrained(device="cpu").model.plans
    stage = shipped.stage("segment")
    run = dataclasses.replace(stage.run, epochs=max(1, args.iterations // 20), iterations_per_epoch=20)
    plans = Plans(shipped.plans_name, shipped.planner, NAME, "", {}, {"segment": dataclasses.replace(stage, run=run)})
    folder = args.o / "preprocessed" / NAME
    failed = preprocess_dataset(RawDataset(args.o / "raw" / NAME), plans, folder, progress=False)
    data = PreprocessedDataset(folder / stage.data_fingerprint)
    sys.stdout.write(f"{len(data.cases)} phantoms, failed: {[c for cases in failed.values() for c in cases] or 'none'}\n")
    for arm in ("shipped", "fine-tuned", "from scratch"):
        torch.manual_seed(0)
        trainer = SegmentTrainer(plans, 0, data, data.cases[:TRAIN], data.cases[TRAIN:], args.o / arm.replace(" ", "_"),
                                 torch.device("cpu"))
        if arm != "from scratch":
            trainer.load_pretrained(paths.weights_folder() / "segment.pth")
        started = time.perf_counter()
        if arm != "shipped":
            trainer.run()
        seconds = time.perf_counter() - started
        trainer.network.eval()
        found = trainer.perform_validation()
        sys.stdout.write(f"{arm:14s} {0 if arm == 'shipped' else run.epochs * 20:4d} steps of {run.batch_size}, {seconds:6.0f} s, Dice "
                         f"{found['foreground_mean']['Dice']:.3f} of {sum(len(c['Dice']) for c in found['metric_per_case'])} vertebrae\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
