"""Kill preprocessing at random moments, resume, and compare every file with an uninterrupted run.

    python benchmarks/kill_and_resume.py -o SCRATCH [--kills 30] [--workers 2] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from blocks import spine, write_dataset  # noqa: E402

NAMES = [f"T{i}" for i in range(4, 13)] + [f"L{i}" for i in range(1, 6)]


def start(root: Path, place: str, workers: int, command: str = "preprocess", *more: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"spineclue_raw": str(root / "raw"), "spineclue_preprocessed": str(root / place)}
    line = [str(Path(sys.executable).parent / f"spineclue_{command}"), "-d", "810", "-np", str(workers), "--no_pbar", *more]
    return subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, help="scratch folder")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for place in ("whole", "cut", "raw"):
        shutil.rmtree(args.o / place, ignore_errors=True)
    cases = {f"case_{i:02d}": spine(NAMES, (1.0 + 0.02 * i, 0.8, 0.8))[:2] for i in range(args.cases)}
    write_dataset(args.o / "raw" / "Dataset810_Kill", cases)
    assert start(args.o, "whole", args.workers, "plan_and_preprocess", "-device", "cpu").wait() == 0
    assert start(args.o, "cut", args.workers, "plan_and_preprocess", "-device", "cpu", "--no_pp").wait() == 0
    began = time.time()
    assert start(args.o, "whole", args.workers, "preprocess", "--clean").wait() == 0
    usual = time.time() - began
    landed = 0
    while landed < args.kills:
        finished = [p for p in (args.o / "cut").glob("*/*/*.json") if not p.name.startswith(".")]
        if len(finished) == 2 * args.cases:        # nothing left to interrupt: begin again
            shutil.rmtree(rng.choice(finished).parent)
        process = start(args.o, "cut", args.workers)
        time.sleep(rng.uniform(0.1, 0.9) * usual)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            landed += 1
        process.wait()
    assert start(args.o, "cut", args.workers).wait() == 0
    whole, cut = content(args.o / "whole" / "Dataset810_Kill"), content(args.o / "cut" / "Dataset810_Kill")
    differing = sorted(name for name in whole.keys() | cut.keys() if whole.get(name) != cut.get(name))
    sys.stdout.write(f"killed {landed} times while it ran; {len(differing)} of {len(whole)} files differ afterwards\n")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
