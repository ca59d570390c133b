"""SIGKILL train, predict and find_best at random moments, run them again, and compare with runs that nobody disturbed.

    python -m benchmarks.kills -home SCRATCH -o DIR [--kills 50]

SCRATCH is what `crossval_all_stages` left (all folds trained). Fold 0 of every stage is trained anew with few steps, then find_best runs on
all folds, then three scans are predicted with two folds. After every kill, whatever looks finished must be: checkpoints load, results
equal those of the undisturbed run. Commands run in forked processes, so that imports are paid once.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.crossval_all_stages import DATASET, STAGES, set_length

FORK = multiprocessing.get_context("fork")


def prepare(home: Path, place: Path, steps: list[int]) -> None:
    """A copy of the home without fold 0, with a shorter plan."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(home / "preprocessed", place / "preprocessed")
    shutil.copytree(home / "results", place / "results")
    for folder in (place / "results" / DATASET).glob("*__*"):
        for old in [*folder.glob("crossval_results*"), folder / "fold_0"]:
            shutil.rmtree(old, ignore_errors=True)
    for name in ("inference_information.json", "inference_instructions.txt"):
        (place / "results" / DATASET / name).unlink(missing_ok=True)
    call(place, home, set_length, dict(zip(STAGES, steps, strict=True)))


def start(place: Path, home: Path, function: Any, *arguments: Any) -> Any:
    def child() -> None:
        os.setpgrp()
        os.environ |= {"spineclue_raw": str(home / "raw"), "spineclue_preprocessed": str(place / "preprocessed"),
                       "spineclue_results": str(place / "results"), "spineclue_n_proc_DA": "0"}
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.exit(function(*arguments))

    process = FORK.Process(target=child)
    process.start()
    return process


def call(place: Path, home: Path, function: Any, *arguments: Any) -> None:
    process = start(place, home, function, *arguments)
    process.join()
    assert process.exitcode == 0, (function, arguments, process.exitcode)


def command(place: Path, home: Path, name: str, *arguments: str) -> Any:
    """Start a command of the program; `train` goes on from a checkpoint where there is one."""
    from spineclue_v2.cli._common import main

    if name == "train":
        fold = next((place / "results" / DATASET).glob(f"*__{arguments[1]}"), place) / "fold_0"
        if any((fold / f"checkpoint_{kind}.pth").exists() for kind in ("latest", "final")):
            arguments = (*arguments, "--c")
    return start(place, home, main, name, list(arguments))


def commands(place: Path, scans: Path) -> Iterator[tuple[str, ...]]:
    for stage in STAGES:
        yield ("train", DATASET, stage, "0", "-device", "cpu")
    yield ("find_best_configuration", DATASET, "-device", "cpu")
    yield ("predict", "-i", str(scans), "-o", str(place / "predicted"), "-d", DATASET, "-f", "0", "1", "-device", "cpu", "--no_report",
           "--continue_prediction")


def state(place: Path) -> dict[str, Any]:
    """What a user would take for finished, without times and without the place it lies in."""
    from spineclue_v2.training.checkpoint import Checkpoint

    found: dict[str, Any] = {}
    for file in sorted((place / "results" / DATASET).glob("*/fold_0/checkpoint_final.pth")):
        checkpoint = Checkpoint.load(file)
        tensors = {**checkpoint.network, **checkpoint.extra}
        found[file.parents[1].name] = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    for file in sorted((place / "results" / DATASET).glob("*/fold_0/validation/summary.json")):
        found[str(file.relative_to(place))] = file.read_text().replace(str(place), "")
    for name in ("inference_information.json", "inference_instructions.txt"):
        if (file := place / "results" / DATASET / name).exists():
            found[name] = file.read_text().replace(str(place), "")
    for file in sorted((place / "predicted").glob("*.json")):
        content = json.loads(file.read_text())
        if isinstance(content, dict) and "vertebrae" in content:
            found[file.name] = {key: value for key, value in content.items() if key != "seconds"}
            found[file.stem] = [(place / "predicted" / f"{file.stem}{end}").read_bytes() for end in (".nii.gz", "_ctd.json")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-home", type=Path, required=True)
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, nargs=3, default=(60, 60, 60))
    args = parser.parse_args()
    rng, scans = random.Random(0), args.o / "scans"
    shutil.rmtree(scans, ignore_errors=True)
    scans.mkdir(parents=True)
    for file in sorted((args.home / "test" / "scans").glob("*.nii.gz"))[:3]:
        shutil.copy(file, scans)
    import ultralytics.nn.tasks  # noqa: F401 - before the processes part

    import spineclue_v2.cross_validation.find_best_configuration
    import spineclue_v2.cross_validation.run_training  # noqa: F401

    whole, cut = args.o / "whole", args.o / "cut"
    prepare(args.home, whole, args.steps)
    prepare(args.home, cut, args.steps)
    seconds = []
    for line in commands(whole, scans):
        began = time.time()
        process = command(whole, args.home, *line)
        process.join()
        assert process.exitcode == 0, line
        seconds.append(time.time() - began)
    wanted, landed, wrong = state(whole), 0, []
    lines = list(commands(cut, scans))
    share = [max(1, round(args.kills * s / sum(seconds))) for s in seconds]
    for line, usual, kills in zip(lines, seconds, share, strict=True):
        for _ in range(kills):
            process = command(cut, args.home, *line)
            process.join(rng.uniform(0.05, 0.9) * usual)
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
                landed += 1
                process.join()
            half = {key: value for key, value in state(cut).items() if wanted.get(key) != value}
            # Weights of a fold may be newer than the fusion that find_best fits at the end.
            wrong += [key for key in half if not (line[0] != "predict" and key.startswith("IdentifyTrainer"))]
        process = command(cut, args.home, *line)
        process.join()
        assert process.exitcode == 0, line
    found = state(cut)
    differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    tried = ", ".join(f"{line[0]} {count}" for line, count in zip(lines, share, strict=True))
    sys.stdout.write(f"{landed} SIGKILLs hit a running command (tried: {tried})\n"
                     f"looked finished and was not: {sorted(set(wrong)) or 'nothing'}\n"
                     f"differs at the end: {differing or 'nothing'} of {len(wanted)}\n")
    sys.exit(bool(differing or wrong))


if __name__ == "__main__":
    main()
