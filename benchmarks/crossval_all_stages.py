"""Cross-validation from nothing to an ensemble: 20 phantoms, five folds of all stages, find_best, ten other phantoms.

    python -m benchmarks.crossval_all_stages -o SCRATCH [--steps 240 600 400] [--folds 0 1 2 3 4]

Lower thoracic and lumbar phantoms of 4 to 7 vertebrae at 2.5 mm, tiny networks at 3 mm, trained on the CPU (from scratch, but for the
stages named by --pretrained). It shows that the machinery holds together and what an ensemble of folds adds at this size; real scans
need real training. What is done is kept: the same command goes on where it was stopped.
"""
from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2.stages.plan_files import load_plans

DATASET = "Dataset830_Crossval"
LEVELS = ("T9", "T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5")
STAGES = ("localize", "segment", "identify")
EASY: dict[str, Any] = {"spacing": (2.5, 2.5, 2.5), "margin": 10.0, "variant": None, "fractures": {}, "screws": 0, "cement": 0,
                        "wide": False}
FIRST_TRAINING_SEED, FIRST_TEST_SEED = 830_001, 9_400
ITERATIONS = 20


def draw(seed: int) -> Any:
    """A phantom whose uppermost and lowermost level are drawn from the seed."""
    from spineclue_v2.phantom import sample

    rng = np.random.default_rng(seed)
    count = int(rng.integers(4, 8))
    first = int(rng.integers(0, len(LEVELS) - count + 1))
    return sample(seed, first=LEVELS[first], last=LEVELS[first + count - 1], cobb=float(rng.uniform(0, 12)), **EASY)


def make_dataset(cases: int) -> None:
    """Raw dataset, plan with tiny networks, preprocessed cases; what is there stays."""
    from dataclasses import replace

    from spineclue_v2 import anatomy
    from spineclue_v2.dataset_conversion.phantom import write_case
    from spineclue_v2.planning.plan_and_preprocess import fingerprint_dataset, plan_experiment, preprocess_plans
    from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME
    from spineclue_v2.stages.registry import CORE_STAGES
    from spineclue_v2.utilities import paths
    from spineclue_v2.utilities.files import write_json

    raw, base = paths.raw_folder() / DATASET, paths.preprocessed_folder() / DATASET
    if (base / f"{DEFAULT_PLANS_NAME}.json").exists():
        return
    for i in range(cases):
        write_case(raw, f"phantom_{i:02d}", draw(FIRST_TRAINING_SEED + i))
    write_json(raw / "dataset.json", {"channel_names": {"0": "CT"}, "labels": anatomy.dataset_labels(), "numTraining": cases,
                                      "file_ending": ".nii.gz"})
    fingerprint_dataset(DATASET, progress=False)
    plans = plan_experiment(DATASET, gpu_memory_target=1, device="cpu")
    stages = {name: plans.stage(name) for name in CORE_STAGES}
    edits: dict[str, dict[str, dict[str, Any]]] = {
        "localize": {"network": {"slice_size": (96, 64)},
                     "run": {"batch_size": 8, "iterations_per_epoch": ITERATIONS, "slice_gap_mm": 4.0}},
        "segment": {"network": {"features": (16, 32, 32), "blocks": (1, 1, 1), "crop_size": (32, 40, 40)},
                    "run": {"batch_size": 4, "iterations_per_epoch": ITERATIONS}},
        "identify": {"network": {"depth": 18, "width": 16, "stem_stride": 4, "hidden": 64, "projection_dim": 32, "crop_size": (32, 40, 40)},
                     "run": {"batch_size": 16, "iterations_per_epoch": ITERATIONS}}}
    for name, groups in edits.items():
        stages[name] = replace(stages[name], data=replace(stages[name].data, spacing_mm=3.0),
                               **{group: replace(getattr(stages[name], group), **values) for group, values in groups.items()})
    replace(plans, stages=stages).save(base / f"{DEFAULT_PLANS_NAME}.json")
    assert preprocess_plans(DATASET, progress=False) == {}


def set_length(steps: dict[str, int]) -> None:
    """Training steps of each stage, in the plan's `run` group; of identify's, two thirds are contrastive."""
    from dataclasses import replace

    from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME
    from spineclue_v2.utilities import paths

    file = paths.preprocessed_folder() / DATASET / f"{DEFAULT_PLANS_NAME}.json"
    plans = load_plans(file)
    for stage, count in steps.items():
        plan, epochs = plans.stage(stage), max(3, count // ITERATIONS)
        if stage == "identify":
            run = replace(plan.run, contrastive_epochs=2 * epochs // 3, classifier_epochs=epochs - 2 * epochs // 3)
        else:
            run = replace(plan.run, epochs=epochs)
        plans.stages[stage] = replace(plan, run=run)
    plans.save(file)


def train_all(stages: list[str], folds: list[str], pretrained: list[str]) -> dict[str, float]:
    """Train what has not been trained; CPU seconds per stage (all its folds, validation included)."""
    from spineclue_v2.cross_validation.run_training import train
    from spineclue_v2.stages.registry import stage_folder_name
    from spineclue_v2.utilities import paths

    spent: dict[str, float] = {}
    for stage in stages:
        started = time.process_time()
        for fold in folds:
            folder = paths.results_folder() / DATASET / stage_folder_name(stage) / f"fold_{fold}"
            if not (folder / "validation" / "summary.json").exists():
                done = (folder / "checkpoint_final.pth").exists()
                resume = not done and (folder / "checkpoint_latest.pth").exists()
                train(DATASET, stage, fold, device="cpu", resume=resume, only_validate=done,
                      pretrained_weights="shipped" if stage in pretrained else None)
        spent[stage] = time.process_time() - started
    return spent


def compare(folder: Path, cases: int, folds: list[str]) -> dict[str, dict[str, float]]:
    """Ten other phantoms: each fold alone, then all together, with the settings that find_best chose."""
    from benchmarks.held_out import write_scan
    from spineclue_v2 import SpineCLUE
    from spineclue_v2.evaluation.summary import evaluate
    from spineclue_v2.inference.predict_folder import predict

    for seed in range(FIRST_TEST_SEED, FIRST_TEST_SEED + cases):
        if not (folder / "test" / "scans" / f"test_{seed}.nii.gz").exists():
            write_scan(folder / "test", f"test_{seed}", draw(seed))
    table: dict[str, dict[str, float]] = {}
    for chosen in [*([fold] for fold in folds), folds]:
        name = "folds " + " ".join(chosen) if len(chosen) > 1 else f"fold {chosen[0]}"
        out = folder / "test" / name.replace(" ", "_")
        model = SpineCLUE.from_pretrained(DATASET, list(chosen), "cpu").model
        started = time.process_time()
        predict(folder / "test" / "scans", out, model, report=False, progress=False)
        seconds = (time.process_time() - started) / cases
        own = evaluate(folder / "test" / "truth", out, out / "summary.json")["spineclue"]
        table[name] = {"F1": own["detection"]["f1"], "Dice": own["dice"], "ID-rate": own["id_rate"], "all right": own["all_right_rate"],
                       "ECE": own["calibration"]["ece"], "CPU s": seconds}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, help="scratch folder; becomes SPINECLUE_HOME")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--test_cases", type=int, default=10)
    parser.add_argument("--folds", nargs="+", default=["0", "1", "2", "3", "4"])
    parser.add_argument("--steps", nargs=3, type=int, default=(240, 600, 400), metavar=STAGES, help="training steps per stage")
    parser.add_argument("--pretrained", nargs="*", default=(), choices=STAGES, help="stages that start from the shipped weights")
    parser.add_argument("--only", nargs="+", choices=(*STAGES, "best", "compare"), default=(*STAGES, "best", "compare"))
    args = parser.parse_args()
    os.environ |= {"SPINECLUE_HOME": str(args.o), "spineclue_n_proc_DA": "0"}
    make_dataset(args.cases)
    set_length(dict(zip(STAGES, args.steps, strict=True)))
    spent = train_all([stage for stage in STAGES if stage in args.only], args.folds, args.pretrained)
    print(json.dumps({"CPU seconds": spent}), flush=True)
    if "best" in args.only:
        from spineclue_v2.cli._common import main as command

        started = time.process_time()
        assert command("find_best_configuration", [DATASET, "-f", *args.folds, "-device", "cpu"]) == 0
        print(f"find_best: {time.process_time() - started:.0f} CPU s", flush=True)
    if "compare" in args.only:
        table = compare(args.o, args.test_cases, args.folds)
        print(f"{'':18s}" + "".join(f"{key:>10s}" for key in next(iter(table.values()))))
        for name, row in table.items():
            print(f"{name:18s}" + "".join(f"{value:10.3f}" for value in row.values()))


if __name__ == "__main__":
    main()
