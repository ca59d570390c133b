"""Where the time of one cold `spineclue_predict` goes: `python -m benchmarks.where_time_goes SCAN -o DIR [--python OLD/bin/python ...]`.

Each environment (by default the running one; an older commit's beside it shows what changed) predicts the scan `--repeats` times in fresh
processes, in turn, so that what else the machine does falls on all of them alike. Written are the medians of: wall seconds, processor
seconds (user and system, what a busy machine disturbs least), peak memory, the seconds of each stage by `CASE.json` (a stage's first call
holds its own lazy imports), and from one more run with `-X importtime` the seconds of imports by package. Writes DIR/where_time_goes.csv.
"""
from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

COMMAND = "import sys; from spineclue_v2.cli._common import main; sys.exit(main('predict', sys.argv[1:]))"
IMPORT_TIME = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")
PACKAGES = 8


def run_once(python: str, scan: Path, output: Path, options: Sequence[str] = ()) -> tuple[dict[str, float], str]:
    """{what: figure} of one cold process, and what it wrote to stderr."""
    output.mkdir(parents=True, exist_ok=True)
    arguments = [python, *options, "-c", COMMAND, "-i", str(scan.absolute()), "-o", str(output.absolute())]
    started = time.perf_counter()
    with open(output / "stderr.txt", "w+", encoding="utf-8") as errors:
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=errors, cwd=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read()
    if process.returncode:
        raise SystemExit(f"{python} ended with {process.returncode}: {said[-500:]}")
    figures = {"wall s": time.perf_counter() - started, "processor s": usage.ru_utime + usage.ru_stime, "peak MB": usage.ru_maxrss / 1024}
    records = [json.loads(path.read_text(encoding="utf-8")) for path in output.glob("*.json")]
    [seconds] = [record["seconds"] for record in records if "seconds" in record]
    return figures | {f"stage {name} s": float(value) for name, value in seconds.items()}, said


def import_seconds(said: str) -> dict[str, float]:
    """{"import PACKAGE s": seconds of its own modules} of the largest packages, and their sum over all, from `-X importtime`."""
    own: Counter[str] = Counter()
    for microseconds, name in IMPORT_TIME.findall(said):
        own[name.split(".")[0]] += int(microseconds)
    return {"import all s": sum(own.values()) / 1e6} | {f"import {name} s": value / 1e6 for name, value in own.most_common(PACKAGES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("-o", type=Path, required=True, help="folder of results and of the table")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="of each environment to compare")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    figures: list[list[dict[str, float]]] = [[] for _ in args.python]
    for repeat in range(args.repeats):
        for number, python in enumerate(args.python):
            figures[number].append(run_once(python, args.scan, args.o / f"{number}_{repeat}")[0])
    table = []
    for number, python in enumerate(args.python):
        medians = {name: statistics.median(run[name] for run in figures[number]) for name in figures[number][0]}
        table.append(medians | import_seconds(run_once(python, args.scan, args.o / f"{number}_imports", ("-X", "importtime"))[1]))
    names = list(dict.fromkeys(name for column in table for name in column))
    rows = [["what", *args.python], *([name, *(f"{column[name]:.2f}" if name in column else "" for column in table)] for name in names)]
    with open(args.o / "where_time_goes.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    for row in rows[1:]:
        print(f"{row[0]:<28}" + "".join(f"{value:>10}" for value in row[1:]))


if __name__ == "__main__":
    main()
