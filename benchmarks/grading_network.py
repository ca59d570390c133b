"""Network, heights and both on synthetic CT (documentation/explanation/heights_and_grades.md); the training goes through the
ordinary commands' functions.

    python -m benchmarks.grading_network data -o DIR                  # training, out-of-fold and test scans
    python -m benchmarks.grading_network train -o DIR                 # every arm, CPU
    python -m benchmarks.grading_network table -o DIR                 # true masks: every arm, heights, both
    python -m benchmarks.grading_network predicted -o DIR -arm ARM    # masks predicted with the shipped weights

Scans show T1 to L5 in 1.5 mm voxels, one whole spine each. Training scans are rich in fractures, since a batch holds all grades equally
often; the scans of the fold that is left out, on which network and heights are weighed against each other, and the test scans have them
as seldom as the paper's patients. What exists in DIR is not made again.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.grading import FRACTURED
from benchmarks.held_out import write_scan
from spineclue_v2 import anatomy
from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.dataset.raw import GRADES_FILE, RawDataset
from spineclue_v2.evaluation.grading import summarise
from spineclue_v2.imageio.volume import read_labels, read_volume
from spineclue_v2.inference.bodies import find_bodies, to_vertebra
from spineclue_v2.inference.model import Model, load_shipped, stage_model
from spineclue_v2.plans.plans import Plans, StagePlan
from spineclue_v2.preprocessing.ct import preprocess_dataset
from spineclue_v2.preprocessing.resampling import to_network_space
from spineclue_v2.stages.grade.body_heights import add_heights
from spineclue_v2.stages.grade.comparison import GRADED
from spineclue_v2.stages.grade.data import graded_rows, stored_losses
from spineclue_v2.stages.grade.ordinal_fusion import OrdinalFusion, grade_of_probabilities
from spineclue_v2.stages.grade.plan import GradeNetwork, GradeRun
from spineclue_v2.stages.grade.predictor import add_grades, grade_given
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import stage_folder_name
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.training.stage_model import CHECKPOINT_NAME, StageModel
from spineclue_v2.utilities.files import read_json, write_json

DATASET = "Dataset591_Grades"
SPACING = 1.5                     # of the shipped weights' network space
TRAINING, LEFT_OUT, TEST = 610_000, 620_000, 970_000    # first seeds
BROKEN = 6                        # fractures in every training scan
PLANS = "SpineCLUEPlans"
SILENT = (0.25, 0.25, 0.25, 0.25)   # a network that says nothing
# Smaller than the laptop's plan, which needs an hour of one core: crops of 64 and twice the features.
NETWORK = GradeNetwork((32, 48, 48), (8, 16, 32, 64), (1, 1, 1, 1), 128, ((-60.0, 140.0), (-350.0, 1150.0)))
RUN = GradeRun(12, 16, 25, 1e-3, 1e-4, 1.0, 0.07, True, False)
# All arms see as many crops per step: two views of 12 vertebrae, or one of 24.
ARMS: dict[str, dict[str, Any]] = {
    "contrastive_detached": {"contrastive_weight": 1.0, "detach_classifier": True, "ordinal": False, "batch_size": 12},
    "contrastive_joint": {"contrastive_weight": 1.0, "detach_classifier": False, "ordinal": False, "batch_size": 12},
    "cross_entropy": {"contrastive_weight": 0.0, "detach_classifier": False, "ordinal": False, "batch_size": 24},
    "cross_entropy_ordinal": {"contrastive_weight": 0.0, "detach_classifier": False, "ordinal": True, "batch_size": 24},
}


def draw(seed: int, fractures: int | None) -> Any:
    """One scan; `fractures` None: as many as patients have."""
    from spineclue_v2.phantom import sample

    if fractures is None:
        fractures = int(np.random.default_rng([seed, 5]).binomial(17, FRACTURED))
    return sample(seed, first="T1", last="L5", spacing=SPACING, wide=False, fractures=fractures)


def make_data(args: argparse.Namespace) -> None:
    """Raw training scans, test scans with their truth, the plan of every arm, preprocessed cases and the split."""
    from spineclue_v2.dataset_conversion.phantom import write_case

    raw = args.o / "raw" / DATASET
    names = {"train": [f"train_{i:03d}" for i in range(args.training)], "val": [f"val_{i:03d}" for i in range(args.left_out)]}
    for part, first, fractures in (("train", TRAINING, BROKEN), ("val", LEFT_OUT, None)):
        for i, name in enumerate(names[part]):
            if not (raw / "imagesTr" / f"{name}_0000.nii.gz").exists():
                write_case(raw, name, draw(first + i, fractures))
    for i in range(args.test):
        name = f"test_{i:03d}"
        if not (args.o / "scans" / f"{name}.nii.gz").exists():
            case = draw(TEST + i, None)
            write_json(args.o / "truth" / f"{name}_grades.json", {k: v for k, v in case.grades.items() if k in GRADED})
            write_scan(args.o, name, case)
    every = [*names["train"], *names["val"]]
    write_json(raw / "dataset.json", {
        "channel_names": {"0": "CT"}, "labels": anatomy.dataset_labels(), "numTraining": len(every), "file_ending": ".nii.gz",
        "name": DATASET, "description": "Synthetic spines with fractures", "patients": {name: name for name in every}})
    data, base = load_shipped(torch.device("cpu")).plans.stage("segment").data, args.o / "preprocessed" / DATASET
    for arm, run in ARMS.items():
        stage = StagePlan(data, NETWORK, replace(RUN, **run, epochs=args.epochs))
        Plans(f"{PLANS}_{arm}", "grading_network", DATASET, "", {}, {"grade": stage}).save(base / f"{PLANS}_{arm}.json")
    write_json(base / "splits_final.json", [names])
    write_json(base / GRADES_FILE, RawDataset(raw).grades)
    shutil.copyfile(raw / "dataset.json", base / "dataset.json")
    failures = preprocess_dataset(RawDataset(raw), load_plans(base / f"{PLANS}_{next(iter(ARMS))}.json"), base, num_processes=0)
    if any(failures.values()):
        raise SystemExit(f"preprocessing failed: {failures}")


def train_arm(args: argparse.Namespace) -> None:
    from spineclue_v2.cross_validation.run_training import train

    for arm in args.arm or ARMS:
        resume = any((args.o / "results" / DATASET).glob(f"*__{PLANS}_{arm}__grade/fold_0/checkpoint_latest.pth"))
        folder, summary = train(DATASET, "grade", 0, plans_name=f"{PLANS}_{arm}", device="cpu", resume=resume)
        print(arm, json.dumps(summary["per_vertebra"]), Checkpoint.load(folder / CHECKPOINT_NAME).meta["fitted"], flush=True)


def trained(home: Path, arm: str) -> tuple[Plans, StageModel] | None:
    """Plans and networks of an arm, if its training is done."""
    folder = home / "results" / DATASET / stage_folder_name("grade", f"{PLANS}_{arm}")
    file = folder / "fold_0" / CHECKPOINT_NAME
    if not file.is_file():
        return None
    plans = load_plans(folder / "plans.json")
    return plans, stage_model("grade", [Checkpoint.load(file)], [file], plans, torch.device("cpu"))


def table(args: argparse.Namespace) -> None:
    """Every graded vertebra of the test scans with its true mask, seen by heights and by every arm that is trained."""
    arms = {arm: found for arm in ARMS if (found := trained(args.o, arm))}
    rows: list[dict[str, Any]] = []
    alone = fitted_heights(args.o)
    print("heights alone, fitted:", alone)
    for path in sorted((args.o / "scans").glob("test_*.nii.gz")):
        case = path.name[:-len(".nii.gz")]
        truth = read_json(args.o / "truth" / f"{case}_grades.json", "grades")
        seen = {arm: {v.level: v for v in found} for arm, found in case_rows(args.o, case, arms).items()}
        for level, grade in truth.items():
            said = {arm: given(found[level], alone) for arm, found in seen.items()}
            rows.append({"patient": case, "level": level, "grade": grade} | said)
    write_json(args.o / "rows.json", rows)
    report(rows, list(arms))


def case_rows(home: Path, case: str, arms: dict[str, tuple[Plans, StageModel]]) -> dict[str, tuple[Vertebra, ...]]:
    """The vertebrae of a test scan, in cranio-caudal order, with heights and the grades of each arm."""
    labels, scan = read_labels(home / "truth" / f"{case}.nii.gz"), read_volume(home / "scans" / f"{case}.nii.gz")
    data = next(iter(arms.values()))[0].stage("grade").data
    view = labels.geometry.reoriented("LPS")[0]
    bodies = sorted(find_bodies(labels, 1.0)[0], key=lambda b: anatomy.ORDER_INDEX[anatomy.NAME_OF_LABEL[b.value]])
    vertebrae = tuple(replace(v, level=anatomy.NAME_OF_LABEL[b.value]) for b in bodies if (v := to_vertebra(b, view, data)) is not None)
    image = to_network_space(scan, data)
    measured = add_heights(vertebrae, image.geometry, scan)
    return {arm: add_grades(measured, image, model, plans.stage("grade"), torch.device("cpu")) for arm, (plans, model) in arms.items()}


def fitted_heights(home: Path) -> OrdinalFusion:
    """Heights alone, their limits fitted to the fold left out as those of both are: what of the gain the network has no part in."""
    base = home / "preprocessed" / DATASET
    plan = load_plans(base / f"{PLANS}_{next(iter(ARMS))}.json").stage("grade")
    data = PreprocessedDataset(base / plan.data_fingerprint)
    rows = graded_rows(data, read_json(base / "splits_final.json", "splits")[0]["val"])
    known = [(grade, loss) for case, level, grade in rows if (loss := stored_losses(data.folder, case).get(level)) is not None]
    grades, losses = zip(*known, strict=True)
    found = OrdinalFusion.fit(grades, np.tile(SILENT, (len(grades), 1)), losses)
    assert found is not None
    return found


def given(v: Vertebra, alone: OrdinalFusion) -> dict[str, tuple[int, float]]:
    """Grade and score (grows with the suspicion) by heights, network and both; grade 0 where they are silent."""
    loss = max(v.heights.loss) if v.heights is not None and v.heights.loss is not None else None
    network, both = v.grade_probabilities, v.combined_grade_probabilities
    fitted = (0, 0.0) if loss is None else (grade_of_probabilities(alone.probabilities(np.array([SILENT]), [loss])[0]), loss)
    return {"heights": (v.heights.grade or 0, loss) if loss is not None else (0, 0.0), "heights, fitted limits": fitted,
            "network": (int(np.argmax(network)), 1 - network[0]) if network else (0, 0.0),
            "both": (grade_given(v), 1 - both[0]) if both else (0, 0.0)}


def report(rows: list[dict[str, Any]], arms: list[str]) -> None:
    for arm in arms:
        for source in rows[0][arm]:
            if source.startswith("heights") and arm != arms[0]:
                continue
            grades, scores = zip(*(row[arm][source] for row in rows), strict=True)
            found = summarise([row["grade"] for row in rows], grades, scores, [row["patient"] for row in rows])
            print(source if source.startswith("heights") else f"{arm} {source}", found["counts"])
            for key in ("macro_f1", "auc_1", "auc_2", "sensitivity_at_specificity_0.99", "sensitivity", "specificity"):
                low, high = found["interval"]["per_vertebra"][key]
                print(f"   {key} {found['per_vertebra'][key]:.3f} ({low:.3f}-{high:.3f})", end="")
            print("\n   recall", {k: round(v, 2) for k, v in found["per_vertebra"]["recall"].items()},
                  "of grade 1", np.round(found["interval"]["per_vertebra"]["recall_1"], 2).tolist(), flush=True)


def predicted(args: argparse.Namespace) -> None:
    """The test scans through the whole pipeline, shipped weights and the arm's grades; spineclue_evaluate's report."""
    from spineclue_v2.cli.evaluate import table as lines
    from spineclue_v2.evaluation.summary import evaluate
    from spineclue_v2.inference.predict_folder import predict

    model: Model = load_shipped(torch.device("cpu"))
    found = trained(args.o, args.arm[0]) if args.arm else None
    if found is not None:
        plans, stage = found
        model.stages["grade"], model.plans = stage, replace(model.plans, stages=model.plans.stages | plans.stages)
    outcome = predict(args.o / "scans", args.o / "predicted", model, continue_prediction=True, report=False)
    print("failed", [name for name, why in outcome.items() if why] or "none")
    print("\n".join(lines(evaluate(args.o / "truth", args.o / "predicted", args.o / "summary.json", num_processes=0))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "train", "table", "predicted"])
    parser.add_argument("-o", required=True, type=Path)
    parser.add_argument("-arm", nargs="+", choices=list(ARMS), help="train: all when left out; predicted: one, heights alone when left out")
    parser.add_argument("-training", type=int, default=80, help="training scans")
    parser.add_argument("-left_out", type=int, default=50, help="scans on which network and heights are weighed")
    parser.add_argument("-test", type=int, default=60, help="test scans")
    parser.add_argument("-epochs", type=int, default=4, help="of 25 iterations")
    args = parser.parse_args()
    for variable in ("spineclue_raw", "spineclue_preprocessed", "spineclue_results", "nnUNet_raw"):
        os.environ.pop(variable, None)
    os.environ |= {"SPINECLUE_HOME": str(args.o), "spineclue_n_proc_DA": "0"}
    torch.set_num_threads(1)
    {"data": make_data, "train": train_arm, "table": table, "predicted": predicted}[args.what](args)


if __name__ == "__main__":
    main()
