"""Does self-training help on scans of a new look? Old weights, trained on without and with unlabelled scans for the same number of steps.

    python -m benchmarks.self_training -o SCRATCH [--train 10] [--left_out 8] [--unlabelled 40] [--epochs 6]

Phantoms whose tissues have random intensities (`randomise` 1: the shipped weights saw none). One fold: `--train` labelled cases to train
on, `--left_out` labelled ones to compare on. The shipped weights label the scans (`-teacher shipped`), and every stage trains `--epochs` of
`STEPS` steps from them: with the kept scans in half of the batches (the command itself), and without (the control). Labels of the
"unlabelled" phantoms are known here, so what was kept can be counted right or wrong. Synthetic; it says nothing of real scans.
A run that was stopped goes on in the same scratch folder.
"""
from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.fine_tune_roads import LOOK

NAME = "Dataset833_SelfTraining"
STEPS = 10
CONTROL = "Control"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, help="scratch folder; becomes SPINECLUE_HOME")
    parser.add_argument("--train", type=int, default=10)
    parser.add_argument("--left_out", type=int, default=8)
    parser.add_argument("--unlabelled", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    os.environ |= {"SPINECLUE_HOME": str(args.o.resolve()), "spineclue_n_proc_DA": "0"}

    import torch

    from spineclue_v2.cross_validation.self_train import LEARNING, outline, self_train
    from spineclue_v2.cross_validation.self_train_proof import compare, predict_left_out
    from spineclue_v2.inference.model import load_trained

    torch.set_num_threads(1)
    prepare(args.o, args.train, args.left_out, args.unlabelled, args.epochs)
    plan = outline(NAME, folds=[0], teacher="shipped", device=torch.device("cpu"))
    judged, proof = self_train(plan, progress=False)
    kept = [entry for entry in judged["0"] if entry.kept]
    say(f"kept {len(kept)} of {len(judged['0'])}; {count_wrong(args.o, plan, [e.case for e in kept])} of the kept have a wrong name")
    rest = [entry.case for entry in judged["0"] if not entry.kept and entry.asked]
    say(f"anchored, parts disagree: {len(rest)}, of which {count_wrong(args.o, plan, rest)} have a wrong name")
    fold = plan.folds[0]
    train_control(plan, [stage for stage in LEARNING if stage in plan.teacher_files(fold)])
    place = plan.place(fold)
    predict_left_out(plan.raw, fold.left_out, load_trained(args.o / "results" / NAME, [0], plan.device, CONTROL), place / "control")
    for what, found in (("old against self-trained", proof), (
            "old against control", compare(plan.raw, [(fold.left_out, place / "left_out_old", place / "control")])), (
            "control against self-trained", compare(plan.raw, [(fold.left_out, place / "control", place / "left_out_new")]))):
        if found is not None:
            rates = [f"{m} {found.old[m]:.4f} {found.new[m]:.4f} ({low:+.4f} to {high:+.4f})" for m, (low, high) in found.interval.items()]
            say(f"{what}: {'; '.join(rates)}; {found.reason}")


def prepare(scratch: Path, train: int, left_out: int, unlabelled: int, epochs: int) -> None:
    """The dataset with its plan, its one fold, and its unlabelled scans; what is there stays."""
    from spineclue_v2.cross_validation.self_train import LEARNING
    from spineclue_v2.dataset_conversion.phantom import convert
    from spineclue_v2.planning.plan_and_preprocess import fingerprint_dataset, plan_experiment, preprocess_plans
    from spineclue_v2.utilities.files import write_json

    raw, base = scratch / "raw" / NAME, scratch / "preprocessed" / NAME
    names = convert(raw, train + left_out, seed=833, num_processes=0, **LOOK)
    for case in convert(scratch / "unlabelled", unlabelled, seed=834, num_processes=0, **LOOK):
        target = raw / "imagesUl" / f"free_{case}_0000.nii.gz"
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            target.hardlink_to(scratch / "unlabelled" / "imagesTr" / f"{case}_0000.nii.gz")
    if not (base / "splits_final.json").is_file():
        fingerprint_dataset(NAME, progress=False)
        plans = plan_experiment(NAME, gpu_memory_target=1, device="cpu", source="shipped")
        for stage, old in plans.stages.items():
            lengths: dict[str, Any] = {"classifier_epochs": epochs} if stage == "identify" else {"epochs": epochs}
            run = dataclasses.replace(old.run, iterations_per_epoch=STEPS, **lengths)
            plans.stages[stage] = dataclasses.replace(old, run=run)
        plans.save(base / "SpineCLUEPlans.json")
        assert preprocess_plans(NAME, stages=[stage for stage in LEARNING if stage in plans.stages], progress=False) == {}
        write_json(base / "splits_final.json", [{"train": names[:train], "val": names[train:]}])


def train_control(plan: Any, stages: list[str]) -> None:
    """The same training without added scans, under a plan name of its own."""
    from spineclue_v2.cross_validation.run_training import train
    from spineclue_v2.cross_validation.self_train import continued_plan
    from spineclue_v2.stages.registry import stage_folder_name
    from spineclue_v2.utilities import paths

    continued_plan(plan.plans, CONTROL).save(plan.base / f"{CONTROL}.json")
    for stage in stages:
        if not (paths.results_folder() / NAME / stage_folder_name(stage, CONTROL) / "fold_0" / "checkpoint_final.pth").is_file():
            train(NAME, stage, 0, plans_name=CONTROL, device="cpu", pretrained_weights="shipped", validate=False)


def count_wrong(scratch: Path, plan: Any, cases: list[str]) -> int:
    """Cases with a vertebra whose predicted name is not the true one."""
    from spineclue_v2.evaluation.files import CaseFiles
    from spineclue_v2.evaluation.summary import evaluate_files

    wrong = 0
    for case in cases:
        files = CaseFiles(case, scratch / "unlabelled" / "labelsTr" / f"{case.removeprefix('free_')}.nii.gz",
                          plan.place(plan.folds[0]) / "predictions" / f"{case}.nii.gz")
        found = evaluate_files(files)["spineclue"]
        wrong += any(row["predicted"] not in (None, row["level"]) for row in found["vertebrae"])
    return wrong


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
