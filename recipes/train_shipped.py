"""The recipe of the shipped weights: `python -m recipes.train_shipped -o DIR [-device cuda] [--scale 10] [--real DATA]`.

One command makes the training set (synthetic spines of every kind and, with `--real`, the labelled real scans of that folder), then
trains localize, segment and identify from the shipped weights and exports them to DIR/weights. Steps that are complete are not
repeated, an interrupted training is continued. `--scale 1` is what two CPU cores manage in about two hours; a GPU serves 10 or more.
The plan is the shipped one with longer schedules, so that the weights stay interchangeable.
"""
from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_training import real_cases
from spineclue_v2 import anatomy
from spineclue_v2.stages.plan_files import load_plans, plans_from_json
from spineclue_v2.utilities.files import read_json, write_json

DATASET = "Dataset590_Shipped"
FIRST_SEED = 400_000          # held-out phantoms have seeds below 10,000, converted datasets from 100,001 on
CYCLE, FOLDS = 20, 4          # kinds follow each other in cycles; of four cycles one is left out, for choosing weights
STAGES = ("localize", "segment", "identify")
STEPS = ("data", *STAGES, "export")
TRAINERS = {"segment": "SegmentTrainerSmallCrops"}
EPOCHS = {"localize": 40, "segment": 60, "identify": 16}     # at scale 1, of 25 iterations
RATES = {"localize": 5e-4, "segment": 5e-4, "identify": 4e-4}
CUT_FRACTION = 0.5               # what the border of a scan cuts counts where half of it is left
REAL_WEIGHT = {"localize": 6, "segment": 40, "identify": 1}   # a real scan is drawn so many times as often as a synthetic one


def settings(number: int) -> dict[str, Any]:
    """What `phantom.sample` is asked for in case `number`: kinds follow each other in a fixed cycle of 20."""
    rng = np.random.default_rng([FIRST_SEED, number])
    kind = number % CYCLE
    if kind in (0, 1, 2, 3, 4):                              # the neck down to the upper chest
        first = str(rng.choice(["C1", "C1", "C1", "C2", "C3"]))
        return {"first": first, "last": str(rng.choice(["C6", "C7", "T1", "T2", "T3"])), "wide": bool(rng.random() < 0.2),
                "spacing": float(rng.uniform(0.9, 1.6))}
    if kind == 5:
        return {"short": int(rng.integers(1, 5)), "wide": False, "margin": float(rng.uniform(1, 8))}
    if kind == 6:
        return {"short": int(rng.integers(2, 5)), "first": "T8", "last": "L5", "wide": False, "margin": float(rng.uniform(1, 8))}
    if kind == 7:
        return {"thick": float(rng.uniform(2.5, 5.5))}
    if kind == 8:
        return {"screws": int(rng.integers(2, 6)), "first": "T10", "last": "L5"}
    if kind in (9, 10):
        return {"cobb": float(rng.uniform(20, 65))}
    if kind == 11:
        return {"wide": True}
    if kind == 12:
        return {"spine": False}
    if kind == 13:
        return {"randomise": float(rng.uniform(0.4, 1.0))}
    if kind == 14:
        return {"lesions": int(rng.integers(1, 4)), "cement": int(rng.integers(0, 2)), "age": float(rng.uniform(55, 92)), "dish": 0.7}
    if kind == 15:
        return {"noise": float(rng.uniform(40, 100)), "streaks": float(rng.uniform(0, 1.5)), "kernel": "bone"}
    if kind == 16:
        return {"first": "T1", "last": "T12", "wide": True, "contrast": float(rng.uniform(0, 250))}
    return {}


def left_out(case: str) -> bool:
    """Whether a synthetic case is kept from training."""
    return int(case.split("_")[1]) // CYCLE % FOLDS == FOLDS - 1


def make_data(folder: Path, cases: int, processes: int, first: int = 0) -> None:
    """Synthetic cases number `first` on into raw/DATASET; those that exist are kept."""
    from spineclue_v2.utilities.parallel import run_tasks

    raw = folder / "raw" / DATASET
    tasks = {name: (raw, name, number) for number in range(first, first + cases)
             if not (raw / "imagesTr" / f"{(name := f'phantom_{number:04d}')}_0000.nii.gz").exists()}
    _, failures = run_tasks(make_case, tasks, num_processes=processes if processes > 1 else 0, description="phantoms")
    if failures:
        raise SystemExit(f"phantoms failed: {failures}")


def make_case(raw: Path, name: str, number: int) -> None:
    from spineclue_v2.dataset_conversion.phantom import write_case
    from spineclue_v2.phantom import sample

    write_case(raw, name, sample(FIRST_SEED + number, cut_share=CUT_FRACTION, **settings(number)))


def describe(folder: Path, real: list[str]) -> None:
    """dataset.json of what lies in raw/DATASET."""
    raw = folder / "raw" / DATASET
    names = sorted(path.name[:-len("_0000.nii.gz")] for path in (raw / "imagesTr").glob("*_0000.nii.gz"))
    write_json(raw / "dataset.json", {
        "channel_names": {"0": "CT"}, "labels": anatomy.dataset_labels(), "numTraining": len(names), "file_ending": ".nii.gz",
        "name": DATASET, "description": f"Synthetic spines and {len(real)} real scans", "patients": {name: name for name in names}})


def plan_and_preprocess(folder: Path, scale: float, processes: int) -> None:
    """The shipped plan with this recipe's schedules; all cases brought into its model spaces."""
    import torch

    from spineclue_v2.dataset.raw import RawDataset
    from spineclue_v2.plans.plans import Plans
    from spineclue_v2.preprocessing.ct import preprocess_dataset
    from spineclue_v2.training.checkpoint import Checkpoint
    from spineclue_v2.utilities import paths

    base = folder / "preprocessed" / DATASET
    stages = {}
    for stage in STAGES:
        saved = Checkpoint.load(paths.weights_folder() / f"{stage}.pth", torch.device("cpu"))
        plan = plans_from_json(saved.meta["plans"]).stage(stage)
        epochs = int(round(EPOCHS[stage] * scale))
        changed = ({"contrastive_epochs": 0, "classifier_epochs": epochs, "classifier_lr": RATES[stage]} if stage == "identify"
                   else {"epochs": epochs, "initial_lr": RATES[stage]})
        stages[stage] = dataclasses.replace(plan, run=dataclasses.replace(plan.run, **changed))
    raw = RawDataset(folder / "raw" / DATASET)
    Plans("SpineCLUEPlans", "train_shipped", DATASET, "", {}, stages).save(base / "SpineCLUEPlans.json")
    shutil.copyfile(raw.folder / "dataset.json", base / "dataset.json")
    failures = preprocess_dataset(raw, load_plans(base / "SpineCLUEPlans.json"), base, num_processes=processes if processes > 1 else 0)
    if any(failures.values()):
        raise SystemExit(f"preprocessing failed: {failures}")


def write_split(base: Path, stage: str, leave_out: list[str]) -> None:
    """Fold 0 of a stage. Validation cases: one cycle of phantoms in four and the real scans of `leave_out`."""
    names = sorted(read_json(base / "dataset.json", "dataset.json")["patients"])
    val = [n for n in names if (left_out(n) if n.startswith("phantom_") else n.removeprefix("real_") in leave_out)]
    train = [n for n in names if n not in val]
    train += [n for n in train if not n.startswith("phantom_")] * (REAL_WEIGHT[stage] - 1)
    write_json(base / "splits_final.json", [{"train": train, "val": val}])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", required=True, type=Path, help="folder for the dataset, the trainings and the weights")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies cases and epochs")
    parser.add_argument("--cases", type=int, default=None, help="synthetic cases, default 120 times --scale")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--real", type=Path, default=None, help="folder of real scans (shared/data); only labelled ones are used")
    parser.add_argument("--leave-out", nargs="*", default=[], help="real scans kept for measuring (verse008 ...)")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--mean", action="store_true", help="export the mean of the trained weights and those they started from")
    parser.add_argument("-device", default=None)
    parser.add_argument("-np", type=int, default=1)
    args = parser.parse_args()
    os.environ["SPINECLUE_HOME"] = str(args.o)
    from spineclue_v2.cross_validation.run_training import train

    if "data" in args.steps:
        make_data(args.o, int(round(120 * args.scale)) if args.cases is None else args.cases, args.np, args.first)
        real = real_cases(args.real, args.o / "raw" / DATASET) if args.real else []
        describe(args.o, real)
        plan_and_preprocess(args.o, args.scale, args.np)
    for stage in STAGES:
        if stage in args.steps:
            write_split(args.o / "preprocessed" / DATASET, stage, args.leave_out)
            results = list((args.o / "results" / DATASET).glob(f"*__{stage}/fold_0/checkpoint_latest.pth"))
            _, summary = train(DATASET, stage, 0, TRAINERS.get(stage), device=args.device, pretrained_weights="shipped",
                               resume=bool(results))
            print(stage, {k: v for k, v in summary.items() if isinstance(v, int | float | dict)})
    if "export" in args.steps:
        from spineclue_v2.model_sharing.export_model import write_shipped_stage

        for stage in STAGES:  # a stage that was not trained keeps the shipped weights
            for found in (args.o / "results" / DATASET).glob(f"*__{stage}/fold_0/checkpoint_final.pth"):
                found = halfway(found, stage) if args.mean else found
                print(write_shipped_stage(found, args.o / "weights" / f"{stage}.pth"))


def halfway(checkpoint: Path, stage: str) -> Path:
    """Writes checkpoint_mean.pth beside `checkpoint`: each weight the mean of the trained and the shipped one, from which it started."""
    from spineclue_v2.training.checkpoint import Checkpoint
    from spineclue_v2.utilities import paths

    trained, start = Checkpoint.load(checkpoint), Checkpoint.load(paths.weights_folder() / f"{stage}.pth")
    means: dict[int, Any] = {}  # networks register some tensors under several names; they stay one tensor
    for name, value in trained.network.items():
        means.setdefault(value.data_ptr(), (value + start.network[name]) / 2 if value.is_floating_point() else value)
    mean = {name: means[value.data_ptr()] for name, value in trained.network.items()}
    target = checkpoint.with_name("checkpoint_mean.pth")
    dataclasses.replace(trained, network=mean).save(target)
    return target


if __name__ == "__main__":
    main()
