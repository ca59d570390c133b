"""The MR weights on phantoms and real MR that they never saw.

    python -m benchmarks.mr_exam phantoms --weights WORK/weights          # 20 varied phantoms with seeds of their own
    python -m benchmarks.mr_exam vb3 --work WORK --parts 0 1              # each volume by the fold that left it out; or --parts base
    python -m benchmarks.mr_exam border --work WORK --weights WORK/weights --names 05 10 14   # where Dice is lost in volumes of vb3
    python -m benchmarks.mr_exam taichi --data DATA --weights WORK/weights
    python -m benchmarks.mr_exam scan --data DATA        # processor seconds and memory of 512 x 512 x 15, on one thread
    python -m benchmarks.mr_exam tptbox --data DATA --weights WORK/weights

WORK is the folder of recipes.mr_weights; without --weights those of the package are measured. A name is right where the body's centre lies
in the true body of that level.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spineclue_v2 import SpineCLUE
from spineclue_v2.anatomy.structures import VALUE, kind
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_labels, read_volume
from spineclue_v2.results import MRResult
from spineclue_v2.stages.mr.trainer import summarise_dice

FIRST_SEED, PHANTOMS = 7_900_000, 20
NAMES = {value: name for name, value in VALUE.items()}
CLOSE_MM = 4.0
CT_OF_THE_PATIENT = "by_eye/taichi_lumbar_sag.nii.gz"


def model(weights: Path | None) -> SpineCLUE:
    if weights is not None:
        os.environ["SPINECLUE_WEIGHTS"] = str(weights)
    return SpineCLUE.from_pretrained(device="cpu", modality="mr")


def compare(result: MRResult, truth: np.ndarray, wanted: set[str]) -> dict[str, Any]:
    """Dice of the structures of `wanted` that `truth` (values of `structures.VALUE`) holds, and each found body's confidence and whether
    its name is right."""
    found, dice, named = result.labels, {}, []
    for value in np.unique(truth[truth > 0]):
        name = NAMES[int(value)]
        if name in wanted:
            both = np.sum((truth == value) & (found == value))
            dice[name] = float(2 * both / (np.sum(truth == value) + np.sum(found == value)))
    for row in result.structures:
        if row["kind"] == "body" and row["structure"] in wanted:
            true = truth[found == row["label"]]
            counts = np.bincount(true[true > 0], minlength=2) if (true > 0).any() else np.zeros(2, int)
            if counts.sum():      # what the truth leaves out is not judged
                named.append((row["confidence"], NAMES.get(int(counts.argmax()), "") == row["structure"], row["structure"]))
    return {"Dice": dice, "named": named, "anchored": result.numbering_anchored}


def report(rows: dict[str, dict[str, Any]], seconds: list[float]) -> None:
    """One line per case, then means, names and how confidence holds."""
    for case, row in rows.items():
        values = {k: [v for name, v in row["Dice"].items() if kind(name) == k] for k in ("body", "disc")}
        means = ", ".join(f"{k} {np.mean(v):.3f}" for k, v in values.items() if v)
        wrong = [name for _, right, name in row["named"] if not right]
        sys.stdout.write(f"{case}: {means}; names {len(row['named']) - len(wrong)} of {len(row['named'])}"
                         f"{', wrong: ' + ' '.join(wrong) if wrong else ''}; anchored {row['anchored']}\n")
    mean = summarise_dice([row["Dice"] for row in rows.values()])
    named = [entry for row in rows.values() for entry in row["named"]]
    sure = [right for confidence, right, _ in named if confidence >= 0.9]
    whole = sum(all(right for _, right, _ in row["named"]) for row in rows.values())
    confidence, right = (float(np.mean([entry[k] for entry in named])) for k in (0, 1))
    sys.stdout.write(f"{len(rows)} cases: VB {mean['VB'] or 0:.3f}, IVD {mean['IVD'] or float('nan'):.3f}; names right {right:.3f} of "
                     f"{len(named)}, all right in {whole} cases; mean confidence {confidence:.3f}; of {len(sure)} with confidence >= 0.9 "
                     f"right {np.mean(sure) if sure else float('nan'):.3f}; {np.median(seconds):.1f} s a scan (median)\n")


def measure(cases: Iterator[tuple[str, Volume, np.ndarray, SpineCLUE]], wanted: set[str]) -> None:
    rows, seconds = {}, []
    for name, scan, truth, program in cases:
        started = time.perf_counter()
        result = program.predict(scan, modality="mr", keep_scan=False)
        assert isinstance(result, MRResult)
        seconds.append(time.perf_counter() - started)
        rows[name] = compare(result, truth, wanted)
    report(rows, seconds)


def phantoms(weights: Path | None, count: int) -> Iterator[tuple[str, Volume, np.ndarray, SpineCLUE]]:
    from recipes.mr_weights import CONTRASTS
    from spineclue_v2.phantom.mr import sample_mr

    program = model(weights)
    for number in range(count):
        contrast = CONTRASTS[number % len(CONTRASTS)]
        case = sample_mr(FIRST_SEED + number, contrast, varied=True)
        grid = ImageGrid(case.image.shape, case.spacing, (0.0, 0.0, 0.0), np.eye(3))
        yield f"{number} {contrast} from {case.meta['top']}", Volume(case.image, grid), case.labels, program


def vb3(work: Path, parts: list[str]) -> Iterator[tuple[str, Volume, np.ndarray, SpineCLUE]]:
    from recipes.mr_weights import fold_of

    for part in parts:
        program = model(work / f"weights_{part}")
        for path in sorted((work / "raw").glob("*_image.nii.gz")):
            name = path.name.removesuffix("_image.nii.gz")
            if part == "base" or fold_of(name) == int(part):
                yield f"{name} ({part})", read_volume(path), read_labels(work / "raw" / f"{name}_label.nii.gz").array, program


def border(work: Path, weights: Path | None, names: list[str]) -> None:
    """Whether bodies of vb3 are too large, moved, or wrong in the outer slices. The package's own weights have seen these volumes."""
    program, levels = model(weights), [VALUE[name] for name in ("L1", "L2", "L3", "L4", "L5")]

    def dice(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.mean([2 * np.sum((one == v) & (other == v)) / max(1, np.sum(one == v) + np.sum(other == v)) for v in levels]))

    for name in names:
        truth = read_labels(work / "raw" / f"{name}_label.nii.gz").array
        result = program.predict(read_volume(work / "raw" / f"{name}_image.nii.gz"), modality="mr", keep_scan=False)
        assert isinstance(result, MRResult)
        found = np.where(np.isin(result.labels, levels), result.labels, 0)
        shown = np.flatnonzero((truth > 0).any((1, 2)))
        outer, inner = [*shown[:2], *shown[-2:]], shown[2:-2]
        wrong = (found > 0) != (truth > 0)
        moved = {f"{way} {axis}": round(dice(np.roll(found, way, number), truth) - dice(found, truth), 3)
                 for number, axis in ((1, "row"), (2, "column")) for way in (-1, 1)}
        shares = {"truth": np.sum(truth[outer] > 0) / np.sum(truth > 0), "errors": wrong[outer].sum() / wrong.sum()}
        sys.stdout.write(f"{name}: Dice {dice(found, truth):.3f}, volume {np.sum(found > 0) / np.sum(truth > 0):.2f} of the truth; inner "
                         f"slices {dice(found[inner], truth[inner]):.3f}; the two outermost on each side hold {shares['truth']:.2f} of "
                         f"it and {shares['errors']:.2f} of the errors; moved, Dice changes by {moved}; the truth moved by one slice: "
                         f"{dice(np.roll(truth, 1, 0), truth):.3f}\n")


def taichi(data: Path, weights: Path | None) -> None:
    """T1 and T2 against points set by eye in the CT of the same patient: residual of each level after a rigid fit of all of them, and of
    each sequence against the other, which share a frame."""
    program, centres = model(weights), {}
    stored = json.loads((data / "ct" / "points_by_eye.json").read_text())[CT_OF_THE_PATIENT]["points"]
    points = {name: np.array(point, float) for name, point in stored}       # S1 is no centre of what is labelled S
    for sequence in ("t1", "t2"):
        result = program.predict(data / "mr" / "taichi" / f"taichi_lumbar_{sequence}_sag.nii.gz")
        centres[sequence] = {row["structure"]: np.array(row["centroid_mm"]) for row in result.structures if row["kind"] == "body"}
        confidence = {row["structure"]: round(row["confidence"], 2) for row in result.structures if row["kind"] == "body"}
        common = [name for name in centres[sequence] if name in points]
        apart = residuals(np.array([centres[sequence][n] for n in common]), np.array([points[n] for n in common]))
        sys.stdout.write(f"{sequence}: {confidence}; anchored {result.numbering_anchored}; mm from the CT's points after a rigid fit: "
                         f"{dict(zip(common, apart.round(1).tolist(), strict=True))}, {np.mean(apart <= CLOSE_MM):.2f} within "
                         f"{CLOSE_MM:g} mm\n")
        for row in result.structures:
            if row["kind"] == "disc":
                sys.stdout.write(f"  {row['structure']}: {row['height_mm']} mm, {row['signal_to_csf']} of the fluid's signal\n")
    both = [name for name in centres["t1"] if name in centres["t2"]]
    sys.stdout.write(f"T1 against T2: {({n: round(float(np.linalg.norm(centres['t1'][n] - centres['t2'][n])), 1) for n in both})} mm\n")


def scan(data: Path, weights: Path | None) -> None:
    """What one scan of 512 x 512 x 15 costs: taichi's T2 with its border repeated."""
    torch.set_num_threads(1)
    program, read = model(weights), read_volume(data / "mr" / "taichi" / "taichi_lumbar_t2_sag.nii.gz")
    array = np.pad(read.array, [(0, wanted - length) for wanted, length in zip((15, 512, 512), read.array.shape, strict=True)], mode="edge")
    grid, before = read.geometry, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    large = Volume(array, ImageGrid(array.shape, grid.spacing, grid.origin, grid.direction))
    started = time.process_time()
    result = program.predict(large, modality="mr", keep_scan=False)
    assert isinstance(result, MRResult)
    sys.stdout.write(f"{len(result.structures)} structures; {time.process_time() - started:.1f} processor s; at most "
                     f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB, {before / 1e6:.2f} GB before\n")


def residuals(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """(n,) distances after the rigid motion that fits `moving` (n, 3) to `fixed` best (Kabsch 1976)."""
    a, b = moving - moving.mean(0), fixed - fixed.mean(0)
    u, _, w = np.linalg.svd(a.T @ b)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ w))]) @ w
    return np.linalg.norm(a @ turn - b, axis=1)


def tptbox(data: Path, weights: Path | None) -> None:
    """A crop of three bodies without sacrum: Dice of all bodies and of all discs together, as levels cannot be known."""
    folder = data / "mr" / "tptbox"
    result = model(weights).predict(folder / "sub-mri_label-6_T2w.nii.gz")
    regions = read_labels(folder / "sub-mri_seg-subreg_label-6_msk.nii.gz").array
    found = np.isin(result.labels, [row["label"] for row in result.structures if row["kind"] == "body"])
    discs = np.isin(result.labels, [row["label"] for row in result.structures if row["kind"] == "disc"])
    for name, mask, truth in (("bodies", found, regions == 49), ("discs", discs, regions == 100)):
        sys.stdout.write(f"{name}: Dice {2 * np.sum(mask & truth) / max(1, mask.sum() + truth.sum()):.3f}\n")
    sys.stdout.write(f"{[row['structure'] for row in result.structures]}; anchored {result.numbering_anchored}; "
                     f"flags {[flag.code for flag in result.flags]}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("phantoms", "vb3", "border", "taichi", "scan", "tptbox"))
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--data", type=Path, default=None, help="folder of real scans")
    parser.add_argument("--parts", nargs="+", default=["0", "1"])
    parser.add_argument("--names", nargs="+", default=["05", "10", "14"], help="volumes of vb3 (border)")
    parser.add_argument("--count", type=int, default=PHANTOMS)
    args = parser.parse_args()
    if args.what == "phantoms":
        measure(phantoms(args.weights, args.count), set(VALUE))
    elif args.what == "vb3":
        measure(vb3(args.work, args.parts), {"L1", "L2", "L3", "L4", "L5"})
    elif args.what == "border":
        border(args.work, args.weights, args.names)
    elif args.what == "taichi":
        taichi(args.data, args.weights)
    elif args.what == "scan":
        scan(args.data, args.weights)
    else:
        tptbox(args.data, args.weights)


if __name__ == "__main__":
    main()
