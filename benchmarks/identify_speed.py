"""Seconds of stage identify for 24 vertebrae: `python -m benchmarks.identify_speed [--widths 8 16 32] [--threads 2]`.

The planner's CPU plan with fresh weights (time does not depend on them), crops of made-up masks. Prints the whole stage (crops, backbone,
head with N = 20, fusion, decoder, geometry classifier), the head alone, and how often the backbone was called.
"""
from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from spineclue_v2.stages.plan_files import plans_from_json

VERTEBRAE = 24
REPEATS = 3


def made_up_vertebrae(spacing: float) -> list:
    """24 boxes with an arch, cranio-caudal, growing downwards."""
    from spineclue_v2.anatomy.vertebra import Vertebra

    found, z = [], 0.0
    for k in range(VERTEBRAE):
        size = np.round(np.array([14 + k, 50 + k, 45 + 1.5 * k]) / spacing).astype(int)
        mask = np.zeros(size, bool)
        mask[:, :size[1] // 2, size[2] // 4:-(size[2] // 4)] = True
        mask[size[0] // 3:-(size[0] // 3), :, size[2] // 2 - 2:size[2] // 2 + 2] = True
        z -= 16 + 0.8 * k
        found.append(Vertebra((0.0, 0.0, z), tuple(size * spacing), 1.0, mask=mask, mask_start=(0, 0, 0), body_centre=(0.0, 0.0, z)))
    return found


def main() -> None:
    from spineclue_v2.inference.model import Model, load_stand_in
    from spineclue_v2.inference.pipeline import identify_masks
    from spineclue_v2.stages.identify.network import build_network
    from spineclue_v2.stages.identify.uncertainty import monte_carlo
    from spineclue_v2.training.checkpoint import Checkpoint
    from spineclue_v2.training.stage_model import StageModel
    from spineclue_v2.utilities import paths

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[16])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    meta = Checkpoint.load(paths.weights_folder() / "identify.pth").meta
    plans, device = plans_from_json(meta["plans"]), torch.device("cpu")
    plan = plans.stage("identify")
    vertebrae, geometry = made_up_vertebrae(plan.data.spacing_mm), load_stand_in("geometry", device)
    for width in args.widths:
        own = replace(plan, network=replace(plan.network, width=width))
        network = build_network(own.network, len(own.data.windows_hu)).eval()
        calls: list[int] = []
        network.stem.register_forward_hook(lambda _m, inputs, _o, calls=calls: calls.append(len(inputs[0])))
        model = StageModel([network], [{}], [{}], [""])
        whole = Model(replace(plans, stages=plans.stages | {"identify": own}), device, {"geometry": geometry, "identify": model})
        seconds, cpu, head = [], [], []
        for _ in range(REPEATS):
            calls.clear()
            started, used = time.perf_counter(), time.process_time()
            identify_masks(vertebrae, whole)
            seconds.append(time.perf_counter() - started)
            cpu.append(time.process_time() - used)
            features = torch.randn(VERTEBRAE, network.feature_dim)
            started = time.perf_counter()
            monte_carlo(network, features, 20)
            head.append(time.perf_counter() - started)
        print(f"width {width}, crop {own.network.crop_size} at {own.data.spacing_mm} mm, {args.threads} threads: "
              f"identify {min(seconds):.2f} s ({min(cpu):.2f} s of CPU), head with N = 20 {1000 * min(head):.1f} ms, "
              f"{sum(calls)} vertebrae through the backbone for {VERTEBRAE}, {sum(p.numel() for p in network.parameters())} parameters")


if __name__ == "__main__":
    main()
