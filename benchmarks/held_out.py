"""Held-out phantoms through the whole pipeline: `python -m benchmarks.held_out -o DIR [--cases 30] [--windows] [-d ID -f FOLD]`.

Seeds 9000, 9001, ...: training phantoms have seeds from 100000 on. `--windows`: short fields of view in the middle of the chest
instead, which show nothing to count from; what matters there is that a wrong numbering is marked as uncertain. Scans that exist in
DIR are not made again. Synthetic data: the figures say that the parts work together, not how well real scans are labelled.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

FIRST_SEED, FIRST_WINDOW = 9000, 60_000


def make_scans(folder: Path, cases: int, windows: bool = False) -> None:
    """Write `cases` default phantoms, or windows of 3 to 5 vertebrae between T3 and T10 (scan, truth), into `folder`."""
    from spineclue_v2.utilities.parallel import run_tasks

    first = FIRST_WINDOW if windows else FIRST_SEED
    tasks = {f"heldout_{seed}": (folder, seed, windows) for seed in range(first, first + cases)
             if not (folder / "scans" / f"heldout_{seed}.nii.gz").exists()}
    _, failures = run_tasks(make_scan, tasks, num_processes=2, description="phantoms")
    if failures:
        raise SystemExit(f"phantoms failed: {failures}")


def make_scan(folder: Path, seed: int, window: bool) -> None:
    from spineclue_v2.phantom import sample

    what: dict[str, Any] = {"first": "T3", "last": "T10", "short": 3 + seed % 3, "variant": None, "wide": False} if window else {}
    write_scan(folder, f"heldout_{seed}", sample(seed, **what))


def write_scan(folder: Path, name: str, case: Any) -> None:
    """A PhantomCase as `truth/NAME.nii.gz` and `scans/NAME.nii.gz`; the scan comes last, so a scan that is there is complete."""
    from spineclue_v2.imageio.volume import ImageGrid, Volume, write_volume

    geometry = ImageGrid(case.ct.shape, tuple(case.spacing), (0.0, 0.0, 0.0), case.direction)
    write_volume(Volume(case.labels, geometry), folder / "truth" / f"{name}.nii.gz")
    write_volume(Volume(case.ct, geometry), folder / "scans" / f"{name}.nii.gz")


def predict_and_evaluate(folder: Path, source: str | None, folds: list[str] | None, device: str | None,
                         groups: dict[str, str] | None = None) -> None:
    """Predict `folder`/scans into `folder`/predicted, evaluate against `folder`/truth, print the table."""
    from spineclue_v2 import SpineCLUE
    from spineclue_v2.cli.evaluate import table
    from spineclue_v2.evaluation.summary import evaluate
    from spineclue_v2.inference.predict_folder import predict

    model = SpineCLUE.from_pretrained(source, folds, device).model
    started = time.perf_counter()
    outcome = predict(folder / "scans", folder / "predicted", model, continue_prediction=True, report=False)
    seconds = time.perf_counter() - started
    summary = evaluate(folder / "truth", folder / "predicted", folder / "summary.json", num_processes=2, groups=groups)
    print("\n".join(table(summary, by_level=groups is None)))
    failed = [name for name, why in outcome.items() if why]
    print(f"{seconds / len(outcome):.1f} s per scan, failed: {failed or 'none'}; model {model.record['weights']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", required=True, type=Path)
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("--windows", action="store_true", help="windows of the chest, T3 to T10, instead of default phantoms")
    parser.add_argument("-d", default=None, help="dataset whose trained model to use, default: the shipped weights")
    parser.add_argument("-f", nargs="+", default=None)
    parser.add_argument("-device", default=None)
    args = parser.parse_args()
    make_scans(args.o, args.cases, args.windows)
    predict_and_evaluate(args.o, args.d, args.f, args.device)


if __name__ == "__main__":
    main()
