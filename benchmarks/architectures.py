"""ResEnc against TransUNet3D at equal training time: `python -m benchmarks.architectures -o DIR --minutes 8 --seeds 0`.

DIR is a folder of recipes.train_shipped (its preprocessed phantoms and its split). Both networks have the shipped plan's crop,
widths and blocks, learn from scratch for the same processor time (the number of steps follows from a few that are timed), and segment
the same left-out phantoms from true centres moved by up to 8 mm. One JSON per run; what is there is not run again.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recipes import train_shipped
from spineclue_v2.stages.plan_files import load_plans

ITERATIONS = 25
TIMED, WARM_UP = 4, 2
CPU = torch.device("cpu")


def run(home: Path, architecture: str, minutes: float, seed: int, cases: int) -> dict[str, float]:
    """Train and measure one network: steps, seconds of a step, Dice of single vertebrae (mean, share under 0.5), seconds per vertebra."""
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.stages.segment.trainer import SegmentTrainer
    from spineclue_v2.utilities.files import write_json

    folder = home / "architectures" / f"{architecture}_{minutes:g}_{seed}"
    if (folder / "result.json").is_file():
        return json.loads((folder / "result.json").read_text())
    base = home / "preprocessed" / train_shipped.DATASET
    plans = load_plans(base / "SpineCLUEPlans.json")
    stage = plans.stage("segment")
    data = PreprocessedDataset(base / stage.data_fingerprint)
    phantoms = [case for case in data.cases if case.startswith("phantom_")]
    train = [case for case in phantoms if not train_shipped.left_out(case)]
    val = [case for case in phantoms if train_shipped.left_out(case)]
    val = [val[i] for i in np.linspace(0, len(val) - 1, cases).round().astype(int)]

    def trainer(epochs: int) -> SegmentTrainer:
        plan = replace(stage, network=replace(stage.network, architecture=architecture),
                       run=replace(stage.run, epochs=epochs, iterations_per_epoch=ITERATIONS))
        changed = replace(plans, stages=plans.stages | {"segment": plan})
        return SegmentTrainer(changed, 0, data, train, [], folder, CPU, seed=seed, workers=0)

    probe = trainer(1)
    maker = probe.batch_sampler(training=True)
    for i in range(WARM_UP + TIMED):
        if i == WARM_UP:
            started = time.process_time()
        probe.train_step(maker(i))
    step = (time.process_time() - started) / TIMED
    learner = trainer(max(1, round(60 * minutes / step / ITERATIONS)))
    started = time.process_time()
    learner.run()
    trained = time.process_time() - started
    learner.val_cases = val
    started = time.process_time()
    summary = learner.perform_validation()
    values = [value for case in summary["metric_per_case"] for value in case["Dice"].values()]
    result = {"steps": learner.epochs * ITERATIONS, "step_s": step, "training_s": trained, "vertebrae": len(values),
              "dice": float(np.mean(values)), "under_half": float(np.mean(np.array(values) < 0.5)),
              "per_vertebra_s": (time.process_time() - started) / len(values),
              "parameters_m": sum(p.numel() for p in learner.network.parameters()) / 1e6}
    write_json(folder / "result.json", result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=8.0, help="of processor time per training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cases", type=int, default=12, help="left-out phantoms that are measured")
    args = parser.parse_args()
    for seed in args.seeds:
        for architecture in ("ResEnc", "TransUNet3D"):
            row = run(args.o, architecture, args.minutes, seed, args.cases)
            sys.stdout.write(f"{architecture}, seed {seed}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
