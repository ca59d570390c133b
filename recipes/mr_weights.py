"""The shipped MR weights: phantoms of every contrast first, then real water-fat MR. Steps in order, each continued where it was cut:

    python -m recipes.mr_weights data DATA WORK        # WORK/preprocessed: phantoms; WORK/raw: the real volumes of DATA/mr/vb3
    python -m recipes.mr_weights base DATA WORK        # hybrid_2d, hybrid_3d on phantoms alone
    python -m recipes.mr_weights propose DATA WORK     # what vb3 does not label (sacrum, discs, T12) as base sees it; sheets to look at
    python -m recipes.mr_weights 0 DATA WORK           # goes on from base without the volumes of fold 0 (then 1, and all)
    python -m recipes.mr_weights export DATA WORK      # WORK/weights (of all), WORK/weights_0, WORK/weights_1

A figure on a volume of vb3 comes from base or from the fold that left it out. No other real MR is looked at in training.
"""
from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

import numpy as np
import torch

from benchmarks.hybrid import CPU
from spineclue_v2.anatomy.structures import VALUE, kind
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_labels, read_volume, write_volume
from spineclue_v2.plans.data import MRData
from spineclue_v2.plans.plans import Plans, StagePlan
from spineclue_v2.preprocessing.mr import preprocess_mr_case
from spineclue_v2.stages.mr.plan import Hybrid2DNetwork, Hybrid2DRun, Hybrid3DNetwork, Hybrid3DRun
from spineclue_v2.stages.mr.trainer import Hybrid2DTrainer, Hybrid3DTrainer
from spineclue_v2.training import trainer as trainer_module

BODIES = ("S", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9")
DISCS = ("L5/S", "L4/L5", "L3/L4", "L2/L3", "L1/L2", "T12/L1", "T11/T12", "T10/T11", "T9/T10")
CLASSES = (*BODIES, *DISCS)
SPACING_MM = (4.4, 1.5, 1.5)
PHANTOMS, FIRST_SEED = 200, 7_100_000
HELD_OUT = 10                   # phantoms for the curves; no training sees them
CONTRASTS = ("t2", "t1", "t2", "water", "stir", "t2", "t1", "fat", "t2", "water")
REAL_TIMES = 8                  # a real volume is drawn so many times as often as a phantom
EPOCHS = {"base": (32, 6), "fold": (6, 4)}
ITERATIONS, RATES = 100, {"base": (3e-3, 2e-3), "fold": (1e-3, 1e-3)}
DOUBLE = "19"                   # voxel for voxel the same as 18
LABELLED = {"L1": 1, "L2": 2, "L3": 3, "L4": 4, "L5": 5}
MARGIN_VOXELS = 1               # around a labelled body nothing else is proposed to be a body


def plans(part: str) -> Plans:
    """Plan of the shipped weights; `part` ("base" or "fold") says how long and how fast is learned."""
    data = MRData(SPACING_MM, "PIL", (0.5, 99.5), CLASSES, tuple(VALUE[name] for name in CLASSES))
    (long_2d, long_3d), (rate_2d, rate_3d), shapes = EPOCHS[part], RATES[part], (1.0, 20.0, (0.7, 1.35), 0.5)
    run_2d = Hybrid2DRun(6, False, 0, long_2d, ITERATIONS, rate_2d, 1e-4, (), 1.0, 0, 3, (0.25, 0.5), *shapes, 16, 0.25)
    run_3d = Hybrid3DRun(1, long_3d, ITERATIONS, rate_3d, 1e-4, (), 1.0, *shapes, 2, 0.25)
    return Plans("SpineCLUEPlans", "recipes.mr_weights", "Dataset601_ShippedMR", "", {}, {
        "hybrid_2d": StagePlan(data, Hybrid2DNetwork("tu-test_resnet", 64, (1, 2, 4), "detail", 2, (112, 80), 0.1), run_2d),
        "hybrid_3d": StagePlan(data, Hybrid3DNetwork((8, 96, 96), (64, 32), 16, (1, 1, 1, 1), 1, 64, (1, 2, 3), 0.1, "detail", True, True,
                                                     True, 16, 1), run_3d)})


def make_phantoms(work: Path, count: int) -> None:
    """Varied phantoms number 0 to `count` - 1, preprocessed; those that exist are kept."""
    from spineclue_v2.phantom.mr import sample_mr

    data, folder = plans("base").stage("hybrid_2d").data, work / "preprocessed"
    for number in range(count):
        name = f"phantom_{number:04d}"
        if (folder / f"{name}.json").is_file():
            continue
        case = sample_mr(FIRST_SEED + number, CONTRASTS[number % len(CONTRASTS)], varied=True)
        grid = ImageGrid(case.image.shape, case.spacing, (0.0, 0.0, 0.0), np.eye(3))
        for array, what in ((case.image, "image"), (case.labels, "label")):
            write_volume(Volume(array, grid), work / "raw" / f"{what}.nrrd")
        preprocess_mr_case(work / "raw" / "image.nrrd", work / "raw" / "label.nrrd", folder, name, data, class_numbers())


def make_real(source: Path, work: Path) -> list[str]:
    """Images and labels of vb3 (values of `structures.VALUE`) in WORK/raw: one slice of each four, which repeat an acquired one."""
    from scipy.io import loadmat

    names = [path.stem for path in sorted(source.glob("*.mat")) if path.stem != DOUBLE]
    for name in names:
        if (work / "raw" / f"{name}_label.nii.gz").is_file():
            continue
        stored = loadmat(source / f"{name}.mat")
        truth = stored["mask"] if "mask" in stored else stored["GT"]
        grid = ImageGrid((19, 224, 224), (4.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.array([[0, 0, 1.0], [1.0, 0, 0], [0, -1.0, 0]]))
        image, labels = (np.ascontiguousarray(a[:, :, 2::4].transpose(2, 0, 1)) for a in (stored["I"], truth))
        values = np.zeros(6, np.uint8)
        values[list(LABELLED.values())] = [VALUE[level] for level in LABELLED]
        write_volume(Volume(image.astype(np.int16), grid), work / "raw" / f"{name}_image.nii.gz")
        write_volume(Volume(values[labels], grid), work / "raw" / f"{name}_label.nii.gz")
    return names


def class_numbers() -> dict[int, int]:
    return {VALUE[name]: number for number, name in enumerate(CLASSES, 1)}


def fold_of(name: str) -> int:
    """Fold of a volume of vb3, of two."""
    return int(name) % 2


def train(part: str, work: Path, names: list[str]) -> None:
    """Both stages of `part`: "base", a fold's number, or "all"."""
    base = part == "base"
    data = PreprocessedDataset(work / "preprocessed")
    phantoms = [case for case in data.cases if case.startswith("phantom_")]
    real = [] if base else [f"real_{name}" for name in names if part == "all" or fold_of(name) != int(part)]
    cases = phantoms[:-HELD_OUT] + real * REAL_TIMES
    branches = work / part / "hybrid_2d" / "fold" / "checkpoint_final.pth"
    for kind_of in (Hybrid2DTrainer, Hybrid3DTrainer):
        place = work / part / kind_of.stage
        if (place / "fold" / "checkpoint_final.pth").is_file():
            continue
        plan = plans("base" if base else "fold")
        plan.save(place / "plans.json")
        fold = int(part) if part.isdigit() else part
        run = kind_of(plan, fold, data, cases, phantoms[-HELD_OUT:], place / "fold", CPU, workers=0)
        run.branches_checkpoint = lambda: branches
        resume = (place / "fold" / "checkpoint_latest.pth").is_file()
        if not (base or resume):
            run.load_pretrained(work / "base" / kind_of.stage / "fold" / "checkpoint_final.pth")
        run.run(resume)


def propose(work: Path, names: list[str]) -> None:
    """WORK/preprocessed/real_*: the bodies that vb3 labels, and everything else as the networks of base see it."""
    from spineclue_v2.inference.model import load_shipped
    from spineclue_v2.inference.mr_pipeline import predict_mr_volume

    export(work, ("base",))
    os.environ["SPINECLUE_WEIGHTS"] = str(work / "weights_base")
    model = load_shipped(CPU, "MR")
    data = plans("base").stage("hybrid_2d").data
    for name in names:
        scan, truth = read_volume(work / "raw" / f"{name}_image.nii.gz"), read_labels(work / "raw" / f"{name}_label.nii.gz")
        found, _ = predict_mr_volume(scan, model)
        labels = merged(found.array, truth.array)
        write_volume(Volume(labels, scan.geometry), work / "raw" / f"{name}_merged.nii.gz")
        preprocess_mr_case(work / "raw" / f"{name}_image.nii.gz", work / "raw" / f"{name}_merged.nii.gz", work / "preprocessed",
                           f"real_{name}", data, class_numbers())
        sheet(scan, labels, work / "sheets" / f"{name}.png")


def merged(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`found` outside the labelled bodies `truth` (slices, rows, columns), without levels that are labelled and bodies next to these."""
    from scipy import ndimage

    near = ndimage.binary_dilation(truth > 0, iterations=MARGIN_VOXELS)
    bodies = [VALUE[name] for name in CLASSES if kind(name) == "body"]
    labelled = [VALUE[name] for name in LABELLED]
    dropped = np.isin(found, labelled) | (near & np.isin(found, bodies))
    return np.where(truth > 0, truth, np.where(dropped, 0, found)).astype(np.uint8)


def sheet(scan: Volume, labels: np.ndarray, path: Path) -> None:
    from spineclue_v2.export.structures import structure_records
    from spineclue_v2.visualization.mr_report import write_mr_report

    path.parent.mkdir(parents=True, exist_ok=True)
    volume = Volume(labels, scan.geometry)
    write_mr_report(scan, volume, structure_records(volume, {name: VALUE[name] for name in CLASSES}), "PIL", path, path.stem)


def export(work: Path, parts: tuple[str, ...]) -> None:
    """Trained stages in the package's form."""
    from spineclue_v2.model_sharing.export_model import write_shipped_stage

    for part in parts:
        target = work / ("weights" if part == "all" else f"weights_{part}")
        for stage in ("hybrid_2d", "hybrid_3d"):
            place = work / part / stage / "fold" / "checkpoint_final.pth"
            if place.is_file():
                target.mkdir(parents=True, exist_ok=True)
                write_shipped_stage(place, target / f"{stage}.pth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("data", "base", "propose", "0", "1", "all", "export"))
    parser.add_argument("data", type=Path, help="folder of real scans")
    parser.add_argument("work", type=Path)
    parser.add_argument("--phantoms", type=int, default=PHANTOMS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    trainer_module.plot_progress = lambda *_: None
    trainer_module.VALIDATION_BATCHES = 4
    (args.work / "raw").mkdir(parents=True, exist_ok=True)
    names = make_real(args.data / "mr" / "vb3", args.work)
    if args.step == "data":
        make_phantoms(args.work, args.phantoms)
    elif args.step == "propose":
        propose(args.work, names)
    elif args.step == "export":
        export(args.work, ("0", "1", "all"))
    else:
        train(args.step, args.work, names)


if __name__ == "__main__":
    main()
