"""Whether headers that contradict the body are noticed: real scans as they are, and with one axis of the header mirrored.

    python -m benchmarks.orientation [--data ../shared/data] [--scans NAME ...] [--axes plain si ap lr]
                                     [--folds folds.json --weights DIR/fold_{}]

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--scans", nargs="+", default=None)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--folds", type=Path, default=None)
    parser.add_argument("--weights", default=None)
    args = parser.parse_args()
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
