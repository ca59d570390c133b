"""The frozen exam through the whole pipeline: `python -m benchmarks.exam -o DIR [-d ID -f FOLD] [--groups normal metal ...]`.

Makes the scans of exam.json (kept in DIR), predicts them without any truth, and prints one table per group. Synthetic scans; see
documentation/explanation/phantom.md for how far they resemble real ones.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.exam_cases import ExamCase, load
from benchmarks.held_out import predict_and_evaluate, write_scan


def make_scan(folder: Path, case: ExamCase) -> None:
    write_scan(folder, case.name, case.make())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", required=True, type=Path)
    parser.add_argument("-d", default=None, help="dataset whose trained model to use, default: the shipped weights")
    parser.add_argument("-f", nargs="+", default=None)
    parser.add_argument("-device", default=None)
    parser.add_argument("-np", type=int, default=2, help="processes that make the scans")
    parser.add_argument("--groups", nargs="+", default=None, help="only these groups")
    args = parser.parse_args()
    from spineclue_v2.utilities.parallel import run_tasks

    version, cases = load()
    cases = [case for case in cases if args.groups is None or case.group in args.groups]
    tasks = {case.name: (args.o, case) for case in cases if not (args.o / "scans" / f"{case.name}.nii.gz").exists()}
    _, failures = run_tasks(make_scan, tasks, num_processes=args.np, description="exam")
    if failures:
        raise SystemExit(f"exam scans failed: {failures}")
    print(f"exam version {version}, {len(cases)} scans")
    predict_and_evaluate(args.o, args.d, args.f, args.device, {case.name: case.group for case in cases})


if __name__ == "__main__":
    main()
