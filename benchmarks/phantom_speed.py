"""How fast the synthetic spine is: `python -m benchmarks.phantom_speed [--threads 2] [--device cpu]`.

A 1 mm lumbar case of 160 x 160 x 250 mm, default cases, and crops round one vertebra from a bank (masks; CT with masks) at the 1.5 mm of
the tiny plan. Seconds of the wall clock and of the processor (on a busy machine the second is the one to compare).
"""
from __future__ import annotations

import argparse
import time

import torch

from spineclue_v2.phantom import sample
from spineclue_v2.phantom.bank import ShapeBank, batches

LUMBAR = {"first": "T12", "last": "L5", "spacing": 1.0, "wide": False, "variant": None, "fractures": {}, "screws": 0, "cement": 0}
CROP, SPACING = (48, 64, 72), 1.5


def timed(work) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where the bank makes its crops")
    parser.add_argument("--parts", nargs="+", default=["sample", "bank"], choices=["sample", "bank"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sample(1, spacing=4.0, **{k: v for k, v in LUMBAR.items() if k != "spacing"})
    if "sample" in args.parts:
        for seed in (1, 2, 3):
            case = sample(seed, **LUMBAR)
            scale = 160 * 160 * 250 / case.ct.size
            wall, processor = timed(lambda seed=seed: sample(seed, **LUMBAR))
            print(f"lumbar seed {seed}: {case.ct.shape} voxels of 1 mm, {wall:.1f} s, processor {processor:.1f} s; "
                  f"as 160 x 160 x 250: {wall * scale:.1f} s, processor {processor * scale:.1f} s", flush=True)
    if "bank" in args.parts:
        wall, processor = timed(lambda: ShapeBank.from_shapes(2, 1))
        print(f"bank of distance fields: {wall / 2:.1f} s a spine, processor {processor / 2:.1f} s")
        banks = {"mask": ShapeBank.from_shapes(2, 1), "CT and mask": ShapeBank.from_cases([sample(1, **(LUMBAR | {"spacing": 1.5}))])}
        for name, bank in banks.items():
            make, count = batches(bank.to(args.device), CROP, SPACING, 24, 0), 6
            make(0)
            if args.device != "cpu":
                torch.cuda.synchronize()
            wall, processor = timed(lambda make=make, count=count: [make(i)["image"].sum().item() for i in range(count)])
            print(f"{name} crops of {CROP} at {SPACING} mm: {24 * count / wall:.0f} per second, "
                  f"{24 * count / processor:.0f} per processor second", flush=True)


if __name__ == "__main__":
    main()
