"""Many predictions in one process: does memory stay flat, and what do more folds cost?

    python -m benchmarks.soak -m MODEL -i SCANS [--predictions 200] [-f 0]

Prints resident memory over the predictions (the scans in turn) and how far the last half of them strays; ends with 1 when that is more than
3 %. `--cost` compares CPU seconds per scan of one fold and of two.
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 0.03


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", type=Path, default=None, help="model folder; default: the shipped weights")
    parser.add_argument("-i", type=Path, required=True, help="folder of (small) scans")
    parser.add_argument("-f", nargs="+", default=None)
    parser.add_argument("--predictions", type=int, default=200)
    parser.add_argument("--cost", action="store_true", help="compare the first fold with the first two instead")
    parser.add_argument("--report", action="store_true", help="draw CASE.png too")
    args = parser.parse_args()
    from spineclue_v2 import SpineCLUE
    from spineclue_v2.inference.predict_folder import Wanted, list_cases, predict_case

    cases = list_cases(args.i)
    with tempfile.TemporaryDirectory() as out:
        if args.cost:
            for folds in (args.f[:1], args.f[:2]):
                model = SpineCLUE.from_pretrained(args.m, folds, "cpu").model
                predict_case(cases[0], Path(out), model, wanted=Wanted(report=False))
                began = time.process_time()
                for case in cases:
                    predict_case(case, Path(out), model, wanted=Wanted(report=False))
                sys.stdout.write(f"folds {' '.join(folds)}: {(time.process_time() - began) / len(cases):.2f} CPU s per scan\n")
            return
        model = SpineCLUE.from_pretrained(args.m, args.f, "cpu").model
        memory, found = [], 0
        for number in range(args.predictions):
            result = predict_case(cases[number % len(cases)], Path(out), model, wanted=Wanted(report=args.report))
            found += len(result.vertebrae)
            memory.append(resident_mb())
            if number % max(1, args.predictions // 10) == 0:
                sys.stdout.write(f"{number:5d}: {memory[-1]:.0f} MB\n")
    last = memory[len(memory) // 2:]
    stray = max(last) / min(last) - 1
    sys.stdout.write(f"{args.predictions} predictions, {found} vertebrae; last half {min(last):.0f} to {max(last):.0f} MB "
                     f"({100 * stray:.1f} %), first to last {memory[0]:.0f} to {memory[-1]:.0f} MB\n")
    sys.exit(stray > LIMIT)


if __name__ == "__main__":
    main()
