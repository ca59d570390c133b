"""Phantoms for the appearance network: `python -m recipes.evidence_phantoms WORK [--cases 500] [--first 0]`.

Each case is a synthetic scan on the network's coarse grid (5 mm, int16 HU) with its vertebrae's body centres and levels, cut ones left out.
Kinds follow each other in a cycle; compared with `train_shipped` more of them are wide (whole trunk), randomised, noisy and thick, because
the network looks at what lies around the spine. Cases that exist are kept.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from recipes.evidence_data import SPACING_MM

FIRST_SEED = 7_300_000
CYCLE = 16


def settings(number: int) -> dict[str, Any]:
    """What `phantom.sample` is asked for in case `number`."""
    rng = np.random.default_rng([FIRST_SEED, number])
    kind = number % CYCLE
    spacing = tuple(float(v) for v in (rng.uniform(1.5, 3.0), *(rng.uniform(1.2, 2.2),) * 2))
    what: dict[str, Any] = {"spacing": spacing, "spine": True, "randomise": float(rng.uniform(0, 0.8) * (rng.random() < 0.6)),
                            "noise": float(rng.uniform(10, 90)), "contrast": float(rng.uniform(0, 250) * (rng.random() < 0.5))}
    if kind in (0, 1, 2):                                    # cervical down to the upper chest
        what |= {"first": str(rng.choice(["C1", "C1", "C2", "C3"])), "last": str(rng.choice(["T1", "T3", "T5"])), "wide": bool(kind)}
    elif kind in (3, 4, 5, 6):                               # chest, whole trunk
        what |= {"first": str(rng.choice(["C6", "C7", "T1", "T2", "T4"])), "last": str(rng.choice(["T9", "T11", "T12", "L1", "L2"])),
            "wide": True}
    elif kind in (7, 8, 9, 10):                              # abdomen and pelvis
        what |= {"first": str(rng.choice(["T6", "T8", "T9", "T10", "T11"])), "last": "L5", "wide": kind != 10}
    elif kind == 11:                                         # a variant
        what |= {"variant": str(rng.choice(["T13", "L6", "no_T12"])), "first": "T8", "last": "L5", "wide": True}
    elif kind == 12:
        what |= {"cobb": float(rng.uniform(20, 60)), "wide": True}
    elif kind == 13:
        what |= {"age": float(rng.uniform(60, 92)), "dish": 0.6, "lesions": int(rng.integers(0, 3)), "screws": int(rng.integers(0, 4))}
    elif kind == 14:
        what |= {"streaks": float(rng.uniform(0.3, 1.5)), "wide": True}
    return what


def make(folder: Path, number: int, spacing_mm: float) -> None:
    from recipes.evidence_data import coarse_scan, save_scan
    from spineclue_v2.imageio.grid import ImageGrid
    from spineclue_v2.imageio.volume import Volume
    from spineclue_v2.phantom import sample
    from spineclue_v2.utilities.files import atomic_path

    case = sample(FIRST_SEED + number, **settings(number))
    volume = Volume(case.ct, ImageGrid(case.ct.shape, tuple(case.spacing), (0.0, 0.0, 0.0), case.direction))
    names = list(case.centroids)
    with atomic_path(folder / f"phantom_{number:04d}.npz") as temporary:
        save_scan(temporary, coarse_scan(volume, spacing_mm), names, np.array([case.centroids[name]["body"] for name in names]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the recipe; the cases lie in its folder phantoms")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--spacing", type=float, default=SPACING_MM, help="mm")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    folder = args.work / "phantoms"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(args.first, args.first + args.cases):
        if not (folder / f"phantom_{number:04d}.npz").exists():
            try:
                make(folder, number, args.spacing)
            except Exception as error:  # one case in some hundreds asks for an impossible range
                print(number, settings(number), repr(error), flush=True)


if __name__ == "__main__":
    main()
