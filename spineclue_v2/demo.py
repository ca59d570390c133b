"""The demonstration: a synthetic scan that no weights were trained on, predicted, evaluated and drawn."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .imageio.volume import ImageGrid, Volume, write_volume
from .inference.model import load_shipped
from .inference.predict_folder import Case, predict_case

SEED = 9042  # seeds of training phantoms begin at 100000
CASE = "demo"


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made: pooled figures of `evaluation.evaluate`, the record of the case, and where things are."""

    figures: dict[str, Any]
    record: dict[str, Any]
    scan: Path
    picture: Path
    labels: Path


def demo(output: str | Path, device: str | None = None, seed: int = SEED) -> DemoResult:
    """Draw phantom `seed`, write the scan into `output` and its truth into `output`/truth, predict it into `output`/result with the
    shipped weights, and evaluate (`output`/summary.json)."""
    from .evaluation.summary import evaluate
    from .phantom import sample
    from .training.device import resolve_device
    from .utilities.files import read_json

    output = Path(output)
    model = load_shipped(resolve_device(device))
    phantom = sample(seed, first="T9", last="L5", spacing=(1.5, 1.0, 1.0), oblique=0, streaks=0)
    geometry = ImageGrid(phantom.ct.shape, phantom.spacing, (0.0, 0.0, 0.0), np.eye(3))
    scan, truth = output / f"{CASE}.nii.gz", output / "truth" / f"{CASE}.nii.gz"
    write_volume(Volume(phantom.ct, geometry), scan)
    write_volume(Volume(phantom.labels, geometry), truth)
    result = output / "result"
    predict_case(Case(CASE, scan), result, model)
    summary = evaluate(truth, result / f"{CASE}.nii.gz", output / "summary.json")
    record = read_json(result / f"{CASE}.json")
    return DemoResult(summary["spineclue"], record, scan, result / f"{CASE}.png", result / f"{CASE}.nii.gz")
