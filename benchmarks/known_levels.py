"""What knowledge from outside does to numberings, on windows of the real exam.

    python -m benchmarks.known_levels predict -o DIR [--sample N] [--folds folds.json --weights DIR/fold_{}] [--data ../shared/data]
    python -m benchmarks.known_levels pins -o DIR          one true pin, one wrong pin, and the time of numbering again
    python -m benchmarks.known_levels priors -o DIR        pairs of windows of one scan, moved rigidly, and of other patients

`predict` writes results as `spineclue_predict` does, each scan by the weights of the fold that held its patient out, and goes on where it
was ended; the others read them. They change nothing in DIR.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

from .real_cases import load_scans
from .real_exam import Case, fold_of, list_cases, read, sampled
from .real_model import completed
from .real_windows import make


def predict_cases(cases: Sequence[Case], weights: Path | None, folder: Path) -> None:
    """Results of the windows that are not there yet, with the true points beside them (`CASE_truth.txt`, JSON)."""
    import SimpleITK as sitk
    import torch

    torch.set_num_threads(1)
    held = completed(weights) if weights is not None else None
    if held is not None:
        os.environ["SPINECLUE_WEIGHTS"] = held.name
    from spineclue_v2 import SpineCLUE
    from spineclue_v2.imageio.volume import Volume

    program = SpineCLUE.from_pretrained(device="cpu")
    for number, case in enumerate(cases, start=1):
        made = make(read(case.scan.path), case.scan.points, case.kind, case.name)
        truth = folder / f"{case.name}_truth.txt"
        if made is None or not made.points:
            truth.write_text("null", encoding="utf-8")
            continue
        result = program.predict(Volume.from_sitk(sitk.Cast(made.image, sitk.sitkInt16)), keep_scan=False)
        result.save(folder, case.name, report=False, describe=False)
        points = [{"name": p.name, "place": p.place, "inside": i, "required": p.required}
                  for p, i in zip(made.points, made.inside, strict=True)]
        truth.write_text(json.dumps({"scan": case.scan.name, "patient": case.scan.patient, "kind": case.kind, "points": points}),
                         encoding="utf-8")
        print(f"{number}/{len(cases)} {case.name}: {result!r}", flush=True)


def predict(args: argparse.Namespace) -> None:
    scans = [scan for scan in load_scans(args.data) if args.scans is None or any(part in scan.name for part in args.scans)]
    cases = [c for c in sampled(list_cases(scans, args.only), args.sample) if c.scan.points
             and not (args.o / f"{c.name}_truth.txt").exists()]
    folds = json.loads(args.folds.read_text(encoding="utf-8")) if args.folds else {}
    groups: dict[Path | None, list[Case]] = {}
    for case in cases:
        groups.setdefault(Path(args.weights.format(fold_of(case.scan, folds))) if args.weights else None, []).append(case)
    args.o.mkdir(parents=True, exist_ok=True)
    for weights, group in groups.items():
        process = multiprocessing.get_context("spawn").Process(target=predict_cases, args=(group, weights, args.o))
        process.start()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["predict", "pins", "priors"])
    parser.add_argument("-o", required=True, type=Path, help="folder of the results")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--sample", type=int, default=None, metavar="N", help="a fixed subset of N windows")
    parser.add_argument("--scans", nargs="+", default=None, help="only scans whose path below ct/ contains one of these")
    parser.add_argument("--only", nargs="+", choices=("whole", "windows"), default=["windows"])
    parser.add_argument("--folds", type=Path, default=None, help="JSON {scan: fold}")
    parser.add_argument("--weights", default=None, help="folder of weights; {} stands for the fold")
    parser.add_argument("--pairs", type=int, default=40, help="of windows of one scan")
    args = parser.parse_args()
    if args.what == "predict":
        predict(args)
    elif args.what == "pins":
        from .known_levels_pins import measure

        print(measure(args.o))
    else:
        from .known_levels_priors import measure_pairs

        print(measure_pairs(args.o, args.pairs))


if __name__ == "__main__":
    main()
