"""Whether headers that contradict the body are noticed: real scans as they are, and with one axis of the header mirrored.

    python -m benchmarks.orientation [--data ../shared/data] [--scans NAME ...] [--axes plain si ap lr]
                                     [--folds folds.json --weights DIR/fold_{}]

    python -m benchmarks.orientation --masks FILE ... [--reversed]

The second form puts the rules alone to label maps that other people or programs made: as they are, with head and feet mirrored, and with
front and back mirrored. Levels follow the header then, from top to bottom, as the program would give them. --reversed: values count from
L5 = 1 to C1 = 24 (AbdomenAtlas); else they are VerSe's.

With --folds ({scan: fold}) each scan is predicted by the weights of the fold that held its patient out. Prints a line per prediction and
what was flagged per axis.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2.anatomy import NAME_OF_LABEL, ORDER_INDEX, VERTEBRA_LABELS
from spineclue_v2.anatomy.vertebral_gaps import order_cranio_caudal
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_labels
from spineclue_v2.inference.orientation import orientation_flags, process_offsets
from spineclue_v2.visualization.overlay import vertebrae_of

from .real_cases import Scan, load_scans
from .real_exam import fold_of

AXES = {"plain": None, "lr": 0, "ap": 1, "si": 2}        # of the world, LPS
WANTED = {"lr": "left_right", "ap": "front_back", "si": "head_foot"}


def mirrored(path: Path, axis: int | None) -> Any:
    """The image with its header mirrored along a world axis; the voxels stay where they are."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    if axis is not None:
        flip = np.eye(3)
        flip[axis, axis] = -1
        image.SetOrigin((flip @ np.array(image.GetOrigin())).tolist())
        image.SetDirection((flip @ np.array(image.GetDirection()).reshape(3, 3)).ravel().tolist())
    return image


def run(scans: Sequence[Scan], axes: Sequence[str], weights: Path | None) -> list[tuple[str, str, int, list[str]]]:
    """Predictions of one set of weights: (axis, scan, vertebrae, codes) each."""
    from .real_model import Program

    program, rows = Program(weights), []
    for scan in scans:
        for axis in axes:
            result = program.program.predict(mirrored(scan.path, AXES[axis]))
            codes = [flag.code for flag in result.flags if flag.code in ("head_foot", "front_back", "left_right", "no_vertebra",
                                                                         "few_vertebrae")]
            print(f"{axis:5s} {scan.short:26s} {len(result):2d} vertebrae  {' '.join(codes)}", flush=True)
            rows.append((axis, scan.short, len(result), codes))
    return rows


def mirrored_labels(labels: Volume, axis: int | None) -> Volume:
    """The label map with its header mirrored along a world axis, in LPS; levels are given out anew from top to bottom."""
    grid = labels.geometry
    if axis is not None:
        flip = np.eye(3)
        flip[axis, axis] = -1
        grid = ImageGrid(grid.shape, grid.spacing, tuple(flip @ np.array(grid.origin)), flip @ grid.direction)
    view = Volume(labels.array, grid).reoriented("LPS")
    if axis == AXES["si"]:
        values = sorted(set(np.unique(view.array)) & set(VERTEBRA_LABELS), key=lambda value: ORDER_INDEX[NAME_OF_LABEL[int(value)]])
        table = np.arange(256, dtype=np.uint8)
        table[values] = values[::-1]
        view = Volume(table[view.array], view.geometry)
    return view


def judge_masks(paths: Sequence[Path], reverse: bool) -> None:
    for path in paths:
        labels = read_labels(path)
        array = np.where((labels.array > 0) & (labels.array < 25), 25 - labels.array.astype(int), 0) if reverse else labels.array
        array = np.where(np.isin(array, VERTEBRA_LABELS), array, 0).astype(np.uint8)
        for axis in ("plain", "si", "ap"):
            view = mirrored_labels(Volume(array, labels.geometry), AXES[axis])
            vertebrae = order_cranio_caudal(vertebrae_of(view))
            nothing = Volume(np.zeros(view.array.shape, np.int16), view.geometry)
            flags = orientation_flags(vertebrae, view.geometry, nothing)
            offsets = process_offsets(vertebrae, view.geometry)
            said = ", ".join(f"{flag.code} ({flag.observed} against {flag.threshold})" for flag in flags) or "no flag"
            print(f"{axis:5s} {path.name:40s} {len(vertebrae):2d} vertebrae, behind {np.median(offsets[:, 0]):5.1f} mm, processes "
                  f"{np.median(offsets[:, 1]):5.1f} mm  {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--scans", nargs="+", default=None)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--folds", type=Path, default=None)
    parser.add_argument("--weights", default=None)
    parser.add_argument("--masks", nargs="+", type=Path, default=None)
    parser.add_argument("--reversed", action="store_true")
    args = parser.parse_args()
    if args.masks:
        judge_masks(args.masks, args.reversed)
        return
    scans = [s for s in load_scans(args.data) if args.scans is None or any(part in s.name for part in args.scans)]
    folds = json.loads(args.folds.read_text(encoding="utf-8")) if args.folds else {}
    groups: dict[Path | None, list[Scan]] = defaultdict(list)
    for scan in scans:
        groups[Path(args.weights.format(fold_of(scan, folds))) if args.weights else None].append(scan)
    rows = []
    for weights, group in groups.items():
        # A process per set of weights: what is loaded once per process is that set's.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            rows += executor.submit(run, group, args.axes, weights).result()
    for axis in args.axes:
        of = [row for row in rows if row[0] == axis]
        seen = sum(WANTED.get(axis, "") in codes for _, _, _, codes in of)
        other = sum(bool({"head_foot", "front_back", "left_right"} & set(codes)) for _, _, _, codes in of)
        few = sum(count < 3 for _, _, count, _ in of)
        print(f"{axis}: {len(of)} scans, {seen} flagged for this axis, {other} for any, {few} with fewer than three vertebrae")


if __name__ == "__main__":
    main()
