"""What each part of SSHSNet is worth, at a size that two CPU cores carry; documentation/explanation/spine_mr.md holds the tables.

    python -m benchmarks.hybrid phantoms --seeds 1 2        # five arms on MR phantoms, 5 labelled + 40 unlabelled
    python -m benchmarks.hybrid placed --seeds 1            # 3D with patches placed anywhere instead of on classes
    python -m benchmarks.hybrid vb3 --folds 0 1 --data DIR  # real MR, 4 labelled + 12 unlabelled, CPS against supervised
    python -m benchmarks.hybrid worst                       # pictures of the worst case of vb3: what was found, and the truth
    python -m benchmarks.hybrid ceiling                     # Dice that the truth itself keeps on the grid of the 2D branches
    python -m benchmarks.hybrid paper                       # the paper's size builds and takes a step
    python -m benchmarks.hybrid volume                      # one 512 x 512 x 15 scan

Each run writes its own JSON below --out and is not repeated; the tables are printed from what is there.
"""
from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from spineclue_v2.anatomy.structures import VALUE, in_order
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.plans.data import MRData
from spineclue_v2.plans.plans import Plans, StagePlan
from spineclue_v2.preprocessing.mr import class_of_value, preprocess_mr_case, preprocess_mr_dataset
from spineclue_v2.stages.mr.plan import Hybrid2DNetwork, Hybrid2DRun, Hybrid3DNetwork, Hybrid3DRun
from spineclue_v2.stages.mr.soft_labels import soft_labels_of_pixels
from spineclue_v2.stages.mr.trainer import Hybrid2DTrainer, Hybrid3DTrainer, dice_per_class, summarise_dice
from spineclue_v2.stages.plan_files import plans_from_json
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.utilities.files import write_json

LABELLED, UNLABELLED, TEST = 5, 40, 10
MEASURED = 5           # of the test phantoms: inference takes as long as training here
RAREST = 3
EPOCHS = 8
CPU = torch.device("cpu")
BODIES = ("S", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9")
DISCS = ("L5/S", "L4/L5", "L3/L4", "L2/L3", "L1/L2", "T12/L1", "T11/T12", "T10/T11", "T9/T10")
PHANTOM_CLASSES = (*BODIES[:-2], *DISCS[:-1])      # what the labelled phantoms of this seed show
PHANTOM_MM = (4.4, 1.5, 1.5)
ARMS = ("supervised 2D", "+ CPS", "3D alone", "hybrid, no attention", "full")


def plans(classes: tuple[str, ...], spacing: tuple[float, float, float], steps: tuple[int, int], shares: bool = False) -> Plans:
    """The light plan of the tables: 96 x 64 pixel crops at twice the in-plane spacing, `steps` optimiser steps of 2D and 3D, the weight of
    cross pseudo supervision rising over half of the EPOCHS; `shares`: 2D learns shares of classes."""
    data = MRData(spacing, "PIL", (0.5, 99.5), classes, tuple(VALUE[name] for name in classes))
    half, shapes = EPOCHS // 2, (1.0, 20.0, (0.7, 1.35), 0.7)
    run_2d = Hybrid2DRun(5, shares, 4, EPOCHS, steps[0] // EPOCHS, 3e-3, 1e-4, (round(0.7 * EPOCHS),), 1.0, half, 3, (0.25, 0.5), *shapes,
                         16, 0.25)
    run_3d = Hybrid3DRun(1, half, steps[1] // half, 3e-3, 1e-4, (), 1.0, *shapes, 2, 0.25)
    return Plans("Light", "benchmark", "Dataset601_Benchmark", "", {}, {
        "hybrid_2d": StagePlan(data, Hybrid2DNetwork("tu-test_resnet", 64, (1, 2, 3), "detail", 2, (96, 64), 0.1), run_2d),
        "hybrid_3d": StagePlan(data, Hybrid3DNetwork((8, 96, 96), (48, 16), 16, (1, 1, 1, 1), 1, 64, (1, 2, 3), 0.1, "detail", True, True,
                                                     True, 16, 1), run_3d)})


def changed(base: Plans, stage: str, group: str, **values: object) -> Plans:
    plan = base.stage(stage)
    return replace(base, stages=base.stages | {stage: replace(plan, **{group: replace(getattr(plan, group), **values)})})


def fit(kind_of: type, plan: Plans, data: PreprocessedDataset, train: list[str], test: list[str], folder: Path, seed: int,
        unlabelled: tuple[Path, list[str]] | None = None, branches: Path | None = None) -> dict[str, object]:
    """Train on `train`, measure whole cases of `test` with the last weights; result.json in `folder`, which makes a repeat free."""
    if (folder / "result.json").is_file():
        return json.loads((folder / "result.json").read_text())
    started = time.process_time()
    trainer = kind_of(plan, 0, data, train, [], folder, CPU, seed=seed, workers=0)
    if unlabelled is not None:
        trainer.unlabelled_cases = lambda: unlabelled
    if branches is not None:
        trainer.branches_checkpoint = lambda: branches
    trainer.run()
    trained = time.process_time() - started
    trainer.val_cases = test
    summary = trainer.perform_validation() | {"train_seconds": trained, "test_seconds": time.process_time() - started - trained,
                                              "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    write_json(folder / "result.json", summary)
    return summary


def phantom_data(out: Path, plan: Plans) -> tuple[PreprocessedDataset, list[str], list[str]]:
    """Preprocessed phantoms: dataset, labelled cases, test cases."""
    from spineclue_v2.dataset.raw import RawDataset
    from spineclue_v2.dataset_conversion.phantom_mr import convert

    raw_folder = out / "raw" / "Dataset601_SpinePhantomMR"
    names = convert(raw_folder, LABELLED + TEST, seed=61, unlabelled=UNLABELLED)
    data = plan.stage("hybrid_2d").data
    folder = out / "preprocessed" / plan.stage("hybrid_2d").data_fingerprint
    failures = preprocess_mr_dataset(RawDataset(raw_folder), data, folder, progress=False)
    assert not any(failures.values()), failures
    prepared = PreprocessedDataset(folder)
    labelled = covering(prepared, names, data.classes)
    others = [name for name in names if name not in labelled]
    return prepared, labelled, others[:MEASURED]


def covering(data: PreprocessedDataset, cases: list[str], classes: tuple[str, ...]) -> list[str]:
    """LABELLED of `cases` that show every class at least once: a class without a label cannot be learned by any arm. Rarest first."""
    shown = {case: set(data.properties(case)["structures"]) for case in cases}
    chosen: list[str] = []
    for name in sorted(classes, key=lambda name: sum(name in found for found in shown.values())):
        if not any(name in shown[case] for case in chosen):
            chosen.append(next(case for case in cases if name in shown[case]))
    return (chosen + [case for case in cases if case not in chosen])[:LABELLED]


def rarest(data: PreprocessedDataset, cases: list[str], classes: tuple[str, ...]) -> list[str]:
    """The RAREST classes with the fewest labelled voxels."""
    voxels = {name: sum(data.properties(case)["structures"].get(name, {"voxels": 0})["voxels"] for case in cases) for name in classes}
    return sorted(classes, key=lambda name: voxels[name])[:RAREST]


def phantoms(out: Path, seeds: list[int], steps: tuple[int, int], arms: tuple[str, ...] = ARMS, shares: bool = False) -> None:
    base = plans(PHANTOM_CLASSES, PHANTOM_MM, steps, shares)
    data, train, test = phantom_data(out, base)
    supervised = changed(base, "hybrid_2d", "run", unlabelled_batch_size=0)
    for seed in seeds:
        place = out / "phantoms" / f"seed_{seed}"
        cps = place / "+ CPS" / "checkpoint_final.pth"
        for arm in arms:
            if arm == "supervised 2D":
                row = fit(Hybrid2DTrainer, supervised, data, train, test, place / arm, seed)
            elif arm == "+ CPS":
                row = fit(Hybrid2DTrainer, base, data, train, test, place / arm, seed)
            else:
                edits = {"3D alone": {"use_2d": False}, "hybrid, no attention": {"attention": False}}
                plan = changed(base, "hybrid_3d", "network", **edits.get(arm, {}))
                if arm == "full, placed anywhere":
                    plan = changed(plan, "hybrid_3d", "run", class_centred_fraction=0.0)
                row = fit(Hybrid3DTrainer, plan, data, train, test, place / arm, seed, branches=cps)
            rare = [row["mean"][name] for name in rarest(data, train, PHANTOM_CLASSES) if name in row["mean"]]
            sys.stdout.write(f"seed {seed}, {arm}: VB {row['VB']:.3f}, IVD {row['IVD']:.3f}, rarest {np.mean(rare):.3f} (n = {len(rare)}), "
                             f"{row['train_seconds']:.0f} s\n")
            sys.stdout.flush()


def vb3_data(source: Path, out: Path, plan: Plans) -> tuple[PreprocessedDataset, list[str]]:
    """MyoSegmenTUM's water-fat MR as one slice per acquired one (every fourth is real, the others repeat it); bodies 1..5 = L1..L5."""
    from scipy.io import loadmat

    from spineclue_v2.imageio.volume import ImageGrid, Volume, write_volume

    data, folder = plan.stage("hybrid_2d").data, out / "vb3_preprocessed"
    names = []
    for path in sorted(source.glob("*.mat")):
        if path.stem == "19":      # voxel for voxel the same as 18
            continue
        names.append(path.stem)
        if (folder / f"{path.stem}.json").is_file():
            continue
        stored = loadmat(path)
        truth = stored["mask"] if "mask" in stored else stored["GT"]
        # Stored as (down, back, left); slices 1..4, 5..8, ... are equal.
        grid = ImageGrid((19, 224, 224), (4.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.array([[0, 0, 1.0], [1.0, 0, 0], [0, -1.0, 0]]))
        image, labels = (np.ascontiguousarray(a[:, :, 2::4].transpose(2, 0, 1)) for a in (stored["I"], truth))
        for array, name in ((image.astype(np.int16), "image"), (labels.astype(np.uint8), "label")):
            write_volume(Volume(array, grid), out / "vb3_raw" / f"{path.stem}_{name}.nii.gz")
        numbers = class_of_value({"L1": 1, "L2": 2, "L3": 3, "L4": 4, "L5": 5}, data)
        preprocess_mr_case(*(out / "vb3_raw" / f"{path.stem}_{n}.nii.gz" for n in ("image", "label")), folder, path.stem, data, numbers)
    return PreprocessedDataset(folder), names


def vb3(out: Path, source: Path, folds: list[int], steps: tuple[int, int], methods: tuple[str, ...]) -> None:
    """Five folds in nnU-Net's order; 4 of the training cases keep their labels, the others are only seen."""
    from spineclue_v2.dataset.splits import make_splits

    base = plans(tuple(in_order(["L1", "L2", "L3", "L4", "L5"])), (4.0, 1.167, 1.167), steps)    # 96 rows of 2D show the 224 mm
    data, names = vb3_data(source, out, base)
    supervised = changed(base, "hybrid_2d", "run", unlabelled_batch_size=0)
    for fold in folds:
        split = make_splits(names)[fold]
        chosen = sorted(np.random.default_rng(fold).choice(split["train"], 4, replace=False).tolist())
        others = [case for case in split["train"] if case not in chosen]
        place = out / "vb3" / f"fold_{fold}"
        for method in methods:
            if method == "full":
                row = fit(Hybrid3DTrainer, base, data, chosen, split["val"], place / method, fold,
                          branches=place / "+ CPS" / "checkpoint_final.pth")
            else:
                plan = base if method == "+ CPS" else supervised
                row = fit(Hybrid2DTrainer, plan, data, chosen, split["val"], place / method, fold, (data.folder, others))
            sys.stdout.write(f"fold {fold}, {method}: VB {row['VB']:.3f}, {row['train_seconds']:.0f} s\n")
            sys.stdout.flush()


def worst(out: Path, method: str) -> None:
    """The case of vb3 with the smallest Dice of bodies: out/worst/CASE_found.png and CASE_truth.png, from the weights of its fold."""
    from spineclue_v2.export.structures import structure_records
    from spineclue_v2.imageio.volume import ImageGrid, Volume
    from spineclue_v2.stages.mr.level_assignment import name_levels
    from spineclue_v2.stages.mr.threshold import apply_threshold
    from spineclue_v2.visualization.mr_report import write_mr_report

    results = sorted((out / "vb3").glob(f"*/{method}/result.json"))
    rows = [(float(np.mean(list(row["Dice"].values()))), row["case"], path.parent) for path in results
            for row in json.loads(path.read_text())["metric_per_case"]]
    dice, case, place = min(rows)
    data = PreprocessedDataset(out / "vb3_preprocessed")
    plan = plans_from_json(Checkpoint.load(place / "checkpoint_final.pth", CPU).meta["plans"])
    kind_of = Hybrid3DTrainer if method == "full" else Hybrid2DTrainer
    trainer = kind_of(plan, 0, data, [case], [], place, CPU, workers=0)
    trainer.load(place / "checkpoint_final.pth")
    trainer.network.eval()
    image, mr = data.image(case)[:].astype(np.float32), trainer.plan.data
    grid = ImageGrid.from_json(data.properties(case)["geometry"])
    found = apply_threshold(name_levels(trainer.probability(image), mr, trainer.fitted.get("places")))
    (out / "worst").mkdir(exist_ok=True)
    for name, labels in (("found", found), ("truth", data.labels(case)[:])):
        volume = Volume(labels.astype(np.uint8), grid)
        records = structure_records(volume, {name: number for number, name in enumerate(mr.classes, 1)})
        write_mr_report(Volume(image, grid), volume, records, mr.orientation, out / "worst" / f"{case}_{name}.png", f"{case}, {name}")
    sys.stdout.write(f"Worst of {len(rows)} cases, {method}: {case}, mean Dice {dice:.3f}; pictures in {out / 'worst'}\n")


def ceiling(out: Path) -> None:
    """Mean Dice of the measured phantoms' truth after going to the pixels of the 2D branches and back, and when one voxel off."""
    base = plans(PHANTOM_CLASSES, PHANTOM_MM, (EPOCHS, EPOCHS))
    data, _, test = phantom_data(out, base)
    plan = base.stage("hybrid_2d")
    factor, count, rows = plan.network.in_plane_factor, len(PHANTOM_CLASSES) + 1, {}
    for case in test:
        truth = torch.from_numpy(data.labels(case)[:].astype(np.int64))
        high, wide = truth.shape[1:]
        shares = soft_labels_of_pixels(F.pad(truth, (0, -wide % factor, 0, -high % factor)), factor, count)
        largest = F.one_hot(shares.argmax(1), count).movedim(-1, 1).float()
        for name, pixels in (("share of each class per pixel", shares), ("largest class per pixel", largest)):
            back = F.interpolate(pixels, scale_factor=factor, mode="bilinear", align_corners=False)[..., :high, :wide].argmax(1)
            rows.setdefault(name, []).append(dice_per_class(back.numpy(), truth.numpy(), PHANTOM_CLASSES))
        rows.setdefault("truth moved by one row", []).append(dice_per_class(truth.roll(1, 1).numpy(), truth.numpy(), PHANTOM_CLASSES))
    for name, found in rows.items():
        mean = summarise_dice(found)
        sys.stdout.write(f"{name}: VB {mean['VB']:.3f}, IVD {mean['IVD']:.3f}\n")


def paper_step() -> None:
    """The paper's plan, built as it is; one optimiser step of each stage with one slice or patch instead of 8 + 8 + 8 and 4."""
    from spineclue_v2.inference.model import build_network
    from spineclue_v2.planning.mr_planner import SSHSNetPaperPlanner
    from spineclue_v2.stages.mr.cps import cross_supervision, pseudo_labels
    from spineclue_v2.stages.mr.cutmix import box_mask, mix
    from spineclue_v2.training.device import autocast

    facts = {"num_cases": 172, "num_unlabelled": 43, "slice_mm_p50": 4.4, "in_plane_mm_p50": 0.345, "slices_p50": 15,
             "fov_mm_p95": [300, 300], "structures": {name: {"value": VALUE[name]} for name in (*BODIES, *DISCS)}}
    plan = SSHSNetPaperPlanner(".", {"mr": facts, "dataset_name": "", "dataset_hash": ""}, 32, "cuda").plan()
    for stage in ("hybrid_2d", "hybrid_3d"):
        started = time.process_time()
        network, classes = build_network(stage, plan).train(), len(plan.stage(stage).data.classes) + 1
        parameters = sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6
        optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
        with autocast(CPU):
            if stage == "hybrid_2d":
                size = plan.stage(stage).network.crop_size
                first, second = (torch.randn(2, 3, *size) for _ in range(2))       # two: batch norm of the pooled image needs more than one
                mask = torch.from_numpy(box_mask(size, 3, (0.25, 0.5), np.random.default_rng(0)))[None].expand(2, -1, -1)
                with torch.no_grad():
                    pseudo = [pseudo_labels(branch(first), branch(second), mask) for branch in (network.a, network.b)]
                mixed = mix(first, second, mask)
                loss = cross_supervision(network.a(mixed).float(), network.b(mixed).float(), *pseudo)
            else:
                patch, context = plan.stage(stage).network.patch_size, plan.stage(stage).network.context
                logits = network(torch.randn(1, patch[0] + 2, *(n + 2 * c for n, c in zip(patch[1:], context, strict=True))))
                loss = torch.nn.functional.cross_entropy(logits.float(), torch.randint(classes, (1, *patch)))
        loss.backward()
        optimiser.step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        sys.stdout.write(f"paper's {stage}: {parameters:.1f} M learned parameters, {classes} classes, loss {loss.item():.3f}, "
                         f"{time.process_time() - started:.0f} CPU s, {peak:.1f} GB at most\n")
        sys.stdout.flush()


def volume() -> None:
    """Seconds and memory of one 512 x 512 x 15 scan from array to label map, light plan (weights do not matter)."""
    from spineclue_v2.imageio.volume import ImageGrid, Volume
    from spineclue_v2.inference.model import Model, build_network
    from spineclue_v2.inference.mr_pipeline import predict_mr_volume
    from spineclue_v2.training.stage_model import StageModel

    plan = plans(PHANTOM_CLASSES, PHANTOM_MM, (EPOCHS, EPOCHS))
    stages = {stage: StageModel([build_network(stage, plan).eval()], [{}], [{}], [""]) for stage in plan.stages}
    array = np.random.default_rng(0).integers(0, 900, (15, 512, 512)).astype(np.int16)
    scan = Volume(array, ImageGrid(array.shape, (4.4, 0.6, 0.6), (0.0, 0.0, 0.0), np.array([[0, 0, 1.0], [1.0, 0, 0], [0, -1.0, 0]])))
    started, cpu = time.perf_counter(), time.process_time()
    _, seconds = predict_mr_volume(scan, Model(plan, CPU, stages))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stdout.write(f"512 x 512 x 15: {time.perf_counter() - started:.1f} s, {time.process_time() - cpu:.1f} CPU s on "
                     f"{torch.get_num_threads()} thread(s), {peak:.2f} GB at most; {seconds}\n")


def tables(out: Path) -> None:
    """Mean and range over seeds or folds of everything that was run."""
    for part in ("phantoms", "vb3"):
        found: dict[str, list[dict]] = {}
        for path in sorted((out / part).glob("*/*/result.json")):
            found.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
        for arm, rows in found.items():
            cells = []
            for key in ("VB", "IVD"):
                values = [row[key] for row in rows if row[key] is not None]
                if values:
                    cells.append(f"{key} {np.mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})")
            seconds = np.mean([row["train_seconds"] for row in rows])
            sys.stdout.write(f"{part}: {arm}: {'; '.join(cells)}; n = {len(rows)}; {seconds:.0f} CPU s to train\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["phantoms", "placed", "vb3", "worst", "ceiling", "tables", "paper", "volume"])
    parser.add_argument("--out", type=Path, default=Path("hybrid_benchmark"))
    parser.add_argument("--data", type=Path, help="folder of the .mat files of vb3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--folds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--methods", nargs="+", default=["supervised 2D", "+ CPS"])
    parser.add_argument("--steps", type=int, nargs=2, default=(240, 80), metavar=("2D", "3D"))
    parser.add_argument("--shares", action="store_true", help="phantoms: 2D learns shares of classes; needs its own --out")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what in ("paper", "volume"):
        return paper_step() if args.what == "paper" else volume()
    if args.what == "ceiling":
        return ceiling(args.out)
    if args.what == "worst":
        return worst(args.out, "full")
    if args.what == "phantoms":
        phantoms(args.out, args.seeds, tuple(args.steps), tuple(args.arms), args.shares)
    elif args.what == "placed":
        phantoms(args.out, args.seeds, tuple(args.steps), ("full, placed anywhere",))
    elif args.what == "vb3":
        vb3(args.out, args.data, args.folds, tuple(args.steps), tuple(args.methods))
    tables(args.out)


if __name__ == "__main__":
    main()
