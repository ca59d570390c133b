"""Seconds against what there is to do: `python -m benchmarks.time_against_size -o DIR`.

Three rows of synthetic scans through the shipped weights, one thing growing in each: the field of view around the same five vertebrae, the
vertebrae in a field that fits them, and the slices that localize looks at per plane (their number is a planned one). Writes DIR/times.csv
and DIR/times.png. The least of `--repeats` runs counts, for other programs can only add to it; masks and names do not depend on it.
"""
from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

SEED = 31_000
FIELDS_MM = (110, 200, 300, 400, 500)
ROWS_OF_VERTEBRAE = (("L2", "L3"), ("L1", "L5"), ("T8", "L5"), ("T1", "L5"), ("C1", "L5"))
GAPS_MM = (1.0, 2.0, 3.0, 4.0)
STAGES = ("localize", "segment", "identify")


def scans() -> list[tuple[str, str, float, Any]]:
    """(what grows, name, its value, Volume) of every scan."""
    from spineclue_v2.phantom import sample

    plain = {"spacing": 1.5, "variant": None, "fractures": {}, "oblique": 0.0, "screws": 0, "cement": 0, "tight": False}
    found = []
    lumbar = sample(SEED, first="L1", last="L5", wide=False, **plain)
    for field in FIELDS_MM:
        found.append(("field of view, mm", f"{field} mm", float(field), as_volume(widened(lumbar.ct, field / 1.5))))
    for first, last in ROWS_OF_VERTEBRAE:
        case = sample(SEED, first=first, last=last, wide=False, **plain)
        found.append(("vertebrae", f"{first}-{last}", float(len(np.unique(case.labels)) - 1), as_volume(case.ct)))
    found += [("slice gap", f"{gap} mm", float(gap), as_volume(lumbar.ct)) for gap in GAPS_MM]
    return found


def widened(ct: np.ndarray, voxels: float) -> np.ndarray:
    """The scan (z, y, x) amid air, in a field of at least so many voxels from side to side and from front to back."""
    pad = [(0, 0)] + [(max(0, round(voxels) - n) // 2,) * 2 for n in ct.shape[1:]]
    return np.pad(ct, pad, constant_values=-1000)


def as_volume(ct: np.ndarray) -> Any:
    from spineclue_v2.imageio.volume import ImageGrid, Volume

    return Volume(ct, ImageGrid(ct.shape, (1.5, 1.5, 1.5), (0.0, 0.0, 0.0), np.eye(3)))


def measure(model: Any, volume: Any, repeats: int) -> tuple[int, dict[str, float]]:
    """Vertebrae named and the least seconds of each stage."""
    from spineclue_v2.inference.pipeline import predict_volume

    runs = [predict_volume(volume, model) for _ in range(repeats)]
    return len(runs[0].vertebrae), {stage: min(run.seconds.get(stage, 0.0) for run in runs) for stage in STAGES}


def with_gap(model: Any, gap: float) -> Any:
    """The model with another distance of slices in localize's plan."""
    plan = model.plans.stage("localize")
    stages = model.plans.stages | {"localize": dataclasses.replace(plan, run=dataclasses.replace(plan.run, slice_gap_mm=gap))}
    return dataclasses.replace(model, plans=dataclasses.replace(model.plans, stages=stages))


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grows = list(dict.fromkeys(row["grows"] for row in rows))
    figure, axes = plt.subplots(1, len(grows), figsize=(4 * len(grows), 3.2), sharey=True)
    for axis, what in zip(axes, grows, strict=True):
        own = [row for row in rows if row["grows"] == what]
        for stage in STAGES:
            axis.plot([row["value"] for row in own], [row[stage] for row in own], "o-", label=stage)
        axis.set_xlabel(what)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, 1.05 * max(row[stage] for row in rows for stage in STAGES))  # shared by all
    axes[0].set_ylabel("seconds")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", required=True, type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    from spineclue_v2 import SpineCLUE

    model = SpineCLUE.from_pretrained(None, None, "cpu").model
    everything = scans()
    measure(model, everything[0][3], 1)  # first calls import and allocate
    rows = []
    for grows, name, value, volume in everything:
        named, seconds = measure(with_gap(model, float(value)) if grows == "slice gap" else model, volume, args.repeats)
        rows.append({"grows": grows, "scan": name, "value": value, "shape": " x ".join(map(str, volume.array.shape)), "named": named}
                    | {stage: round(seconds[stage], 2) for stage in STAGES})
        print("  ".join(f"{key} {rows[-1][key]}" for key in ("grows", "scan", "shape", "named", *STAGES)), flush=True)
    args.o.mkdir(parents=True, exist_ok=True)
    with open(args.o / "times.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, args.o / "times.png")


if __name__ == "__main__":
    main()
