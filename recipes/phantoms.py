"""Synthetic scans for the trainings with real ones: `python -m recipes.phantoms OUT --cases 120 --weights WEIGHTS`.

Kinds follow each other in a cycle: half of them are what the shipped networks met too seldom: whole wide fields, slabs, thick slices.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

FIRST_SEED = 600_000   # held-out phantoms and the exam lie below 10,000, other trainings between 100,000 and 500,000
CYCLE = 16
CUT_FRACTION = 0.5        # a vertebra that the border cuts counts where half of it is left


def settings(number: int) -> dict[str, Any]:
    """What `phantom.sample` is asked for in case `number`."""
    rng = np.random.default_rng([FIRST_SEED, number])
    kind = number % CYCLE
    if kind in (0, 1, 2, 3):                                 # necks, a wide field in half of them
        return {"first": str(rng.choice(["C1", "C1", "C1", "C2", "C3"])), "last": str(rng.choice(["C7", "T1", "T2", "T3", "T5"])),
                "wide": kind < 2, "spacing": (float(rng.uniform(1.2, 3.2)), *[float(rng.uniform(1.0, 2.5))] * 2)}
    if kind in (4, 5, 6):                                    # parts of the trunk in a wide field
        first = str(rng.choice(["T1", "T3", "T5", "T7", "T9", "T11", "L1"]))
        return {"first": first, "last": None, "wide": True, "spacing": (float(rng.uniform(1.5, 5.0)), *[float(rng.uniform(1.0, 2.0))] * 2)}
    if kind == 7:
        return {"first": "T1", "last": "T12", "wide": True, "contrast": float(rng.uniform(0, 250))}
    if kind == 8:                                            # few vertebrae between neighbours that are cut
        return {"short": int(rng.integers(2, 5)), "wide": bool(rng.random() < 0.5), "margin": float(rng.uniform(1, 8))}
    if kind == 9:
        return {"thick": float(rng.uniform(3.0, 5.5)), "wide": True}
    if kind == 10:
        return {"first": "T10", "last": "L5", "wide": bool(rng.random() < 0.5), "screws": int(rng.integers(0, 4))}
    if kind == 11:
        return {"cobb": float(rng.uniform(15, 55))}
    if kind == 12:
        return {"lesions": int(rng.integers(0, 3)), "cement": int(rng.integers(0, 2)), "age": float(rng.uniform(55, 92)), "dish": 0.7,
                "fractures": int(rng.integers(1, 4))}
    if kind == 13:
        return {"noise": float(rng.uniform(40, 100)), "streaks": float(rng.uniform(0, 1.5)), "kernel": "bone"}
    if kind == 14:
        return {"spine": False} if rng.random() < 0.4 else {"randomise": float(rng.uniform(0.3, 0.8))}
    return {}


def make_case(out: Path, number: int, weights: Path) -> None:
    """Case `number` into OUT/localize and OUT/segment."""
    from spineclue_v2.imageio.volume import ImageGrid, Volume
    from spineclue_v2.phantom import sample

    from .cases import AROUND_MM, shipped_plans, write_case

    name = f"phantom_{number:04d}"
    case = sample(FIRST_SEED + number, cut_share=CUT_FRACTION, **settings(number))
    geometry = ImageGrid(case.ct.shape, tuple(case.spacing), (0.0, 0.0, 0.0), case.direction)
    image, labels = Volume(case.ct, geometry), Volume(case.labels, geometry)
    plans = shipped_plans(weights)
    if case.labels.any():
        write_case(out / "segment", name, image, labels, plans["segment"].data, AROUND_MM)
    write_case(out / "localize", name, image, labels, plans["localize"].data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--weights", type=Path, required=True, help="folder of localize.pth and segment.pth, whose plans are used")
    args = parser.parse_args()
    for number in range(args.first, args.first + args.cases):
        if not (args.out / "localize" / f"phantom_{number:04d}.json").exists():
            make_case(args.out, number, args.weights)


if __name__ == "__main__":
    main()
