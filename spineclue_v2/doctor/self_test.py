"""The whole program on a small synthetic scan that comes with the package: it must find what is known to be there."""
from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .checks import BROKEN, OK, Check

CROP = Path(__file__).parent / "crop.npz"    # L1 to L3 of a phantom that no weights were trained on; recipes/self_test_crop.py made it
STEP_HU, LOWEST_HU = 16, -208                # how its voxels were packed
DICE = 0.9                                   # the shipped weights reach 0.96


def read_crop() -> tuple[np.ndarray, tuple[float, float, float], np.ndarray]:
    """HU (z, y, x) int16, spacing (z, y, x) mm, and labels: 1, 2, 3 for the three vertebrae from above."""
    with np.load(CROP, allow_pickle=False) as content:
        z, y, x = (float(s) for s in content["spacing"])
        return content["ct"].astype(np.int16) * STEP_HU + LOWEST_HU, (z, y, x), content["labels"]


def self_test() -> Iterator[Check]:
    """Predict the crop on the CPU with the weights that would be used, and compare the masks."""
    from ..api import SpineCLUE

    started = time.perf_counter()
    scan, spacing, truth = read_crop()
    program = SpineCLUE.from_pretrained(device="cpu")
    loaded = time.perf_counter()
    found = program.predict(scan, spacing=spacing, keep_scan=False)
    worst = min(_dice(found.labels, truth == value) for value in np.unique(truth[truth > 0]))
    seconds = f"{loaded - started:.1f} s to load, {time.perf_counter() - loaded:.1f} s to label it"
    if worst < DICE:
        yield Check("self-test", BROKEN, f"a synthetic scan is labelled wrongly (Dice {worst:.2f}, at least {DICE} is expected); {seconds}",
                    "Install the package anew; with weights of your own, unset SPINECLUE_WEIGHTS.")
    else:
        yield Check("self-test", OK, f"three vertebrae of a synthetic scan found (Dice {worst:.2f}); {seconds}")


def _dice(labels: np.ndarray, mask: np.ndarray) -> float:
    """Of a true mask with the label that covers most of it."""
    inside = labels[mask & (labels > 0)]
    if not inside.size:
        return 0.0
    covering = labels == np.bincount(inside).argmax()
    return float(2 * (covering & mask).sum() / (covering.sum() + mask.sum()))
