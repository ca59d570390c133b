"""Weights of stage `grade`: phantoms with masks as the shipped networks make them, then real scans without a fracture beside them.

    python -m recipes.grade_weights data DATA WORK            # WORK/cases, WORK/truth: phantoms, then the real scans of DATA
    python -m recipes.grade_weights base DATA WORK            # phantoms alone; --arm cross_entropy, detached, ordinal for the other losses
    python -m recipes.grade_weights 0 DATA WORK               # goes on from base with the real scans but those of fold 0 (then 1, 2, all)
    python -m recipes.grade_weights table DATA WORK           # fits network and heights together; figures on phantoms and real scans
    python -m recipes.grade_weights export DATA WORK          # WORK/weights/grade.pth

Every step goes on where it was cut. A figure on a real scan comes from base or from the fold that left its patient out.
"""
from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.inference.model import load_shipped
from spineclue_v2.plans.plans import Plans, StagePlan
from spineclue_v2.stages.grade.plan import GradeNetwork, GradeRun
from spineclue_v2.stages.grade.trainer import GradeTrainer
from spineclue_v2.training import trainer as trainer_module

from .folds import FOLDS, PATIENTS
from .grade_data import READ, REAL, make_phantom, make_real, write_grades

CPU = torch.device("cpu")
# Three resolutions: the coarsest grid has four voxels along the spine, on which bfloat16 gradients are sound (twice as fast).
NETWORK = GradeNetwork((32, 48, 48), (8, 24, 64), (1, 1, 1), 64, ((-60.0, 140.0), (-350.0, 1150.0)))
RUN = GradeRun(12, 24, 25, 2e-3, 1e-4, 1.0, 0.07, False, False)
REAL_EPOCHS, REAL_RATE, REAL_TIMES = 4, 5e-4, 3     # a real scan is drawn so many times as often as a phantom
ARMS: dict[str, dict[str, Any]] = {     # all see as many crops per step: two views of 12 vertebrae, or one of 24
    "joint": {}, "detached": {"detach_classifier": True}, "ordinal": {"ordinal": True},
    "cross_entropy": {"contrastive_weight": 0.0, "batch_size": 24}}


def plans(arm: str, part: str, epochs: int) -> Plans:
    """Plan of an arm; `part` "base" for `epochs` of phantoms, anything else for what follows with real scans."""
    data = load_shipped(CPU).plans.stage("segment").data
    run = replace(RUN, **ARMS[arm], epochs=epochs)
    if part != "base":
        run = replace(run, epochs=REAL_EPOCHS, initial_lr=REAL_RATE)
    return Plans("SpineCLUEPlans", "recipes.grade_weights", "Dataset602_ShippedGrades", "", {}, {"grade": StagePlan(data, NETWORK, run)})


def make_data(data: Path, work: Path, counts: dict[str, int]) -> None:
    model = load_shipped(CPU)
    for part, count in counts.items():
        for number in range(count):
            make_phantom(work, part, number, model)
    for name in REAL:
        make_real(work, data, name, model)
    write_grades(work)


def real_cases(part: str) -> list[str]:
    """Real scans that `part` learns from: those of the other folds; none with a reader's grades."""
    return [f"real_{name}" for name, (patient, _) in REAL.items()
            if name not in READ and (part == "all" or PATIENTS[patient][0] != int(part))]


def folder_of(work: Path, arm: str, part: str) -> Path:
    return work / "trained" / arm / part


def train(work: Path, arm: str, part: str, epochs: int) -> None:
    """One training, into WORK/trained/ARM/PART; goes on where it was cut."""
    data = PreprocessedDataset(work / "cases")
    cases = [case for case in data.cases if case.startswith("train_")]
    if part != "base":
        cases += [case for case in real_cases(part) if case in data.cases] * REAL_TIMES
    folder = folder_of(work, arm, part)
    if (folder / "checkpoint_final.pth").is_file():
        return
    trainer = GradeTrainer(plans(arm, part, epochs), part, data, cases, [], folder, CPU, workers=0)
    resume = (folder / "checkpoint_latest.pth").is_file()
    if part != "base" and not resume:
        trainer.load_pretrained(folder_of(work, arm, "base") / "checkpoint_final.pth")
    trainer.run(resume)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("data", "base", *map(str, range(FOLDS)), "all", "table", "export"))
    parser.add_argument("data", type=Path, help="folder of real scans")
    parser.add_argument("work", type=Path)
    parser.add_argument("--arm", choices=list(ARMS), default="joint")
    parser.add_argument("--epochs", type=int, default=RUN.epochs, help="of base")
    parser.add_argument("--phantoms", type=int, nargs=3, default=(80, 20, 40), metavar=("TRAIN", "FIT", "TEST"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    trainer_module.plot_progress = lambda *_: None
    trainer_module.VALIDATION_BATCHES = 1
    if args.step == "data":
        make_data(args.data, args.work, dict(zip(("train", "fit", "test"), args.phantoms, strict=True)))
    elif args.step in ("table", "export"):
        from .grade_figures import export, table

        {"table": table, "export": export}[args.step](args.work, args.arm)
    else:
        train(args.work, args.arm, args.step, args.epochs)


if __name__ == "__main__":
    main()
