"""Does a network that has seen synthetic vertebrae only name real masks? `python -m benchmarks.phantom_transfer [--minutes 15]`.

VerSe 004, 005 and 008 (true masks, no CT), the shape network alone: single vertebrae, four-vertebra windows, whole sequences, each
with the run of consecutive levels whose log-probabilities sum highest: no geometry, no fusion, no penalties. With --minutes a fresh
network of
the shipped plan's size is trained from a bank of distance fields first, on one thread; else the shipped identify weights answer.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from spineclue_v2.anatomy import LEVEL_INDEX, LEVELS

CASES = ("verse004", "verse005", "verse008")


def real_spines(folder: Path, model) -> dict[str, tuple[list[int], torch.Tensor]]:
    """{case: (level indices in cranio-caudal order, mask crops (n, 1, z, y, x))} as stage 3 would see them."""
    from spineclue_v2.anatomy import NAME_OF_LABEL
    from spineclue_v2.imageio.volume import read_labels
    from spineclue_v2.inference.bodies import find_bodies, to_vertebra
    from spineclue_v2.stages.identify.predictor import mask_crops

    plan = model.plans.stage("identify")
    spines = {}
    for case in CASES:
        labels = read_labels(folder / f"sub-{case}_seg-vert_msk.nii.gz").reoriented("LPS")
        bodies = sorted(find_bodies(labels, 2.0)[0], key=lambda body: body.value)
        vertebrae = [to_vertebra(body, labels.geometry, plan.data) for body in bodies]
        spines[case] = [LEVEL_INDEX[NAME_OF_LABEL[body.value]] for body in bodies], torch.from_numpy(mask_crops(vertebrae, plan))
    return spines


def best_start(log_probabilities: np.ndarray) -> int:
    """First level of the likeliest run of consecutive levels; log_probabilities (n, 24)."""
    n = len(log_probabilities)
    return int(np.argmax([log_probabilities[np.arange(n), s + np.arange(n)].sum() for s in range(len(LEVELS) - n + 1)]))


def score(network, temperature: float, spines: dict) -> tuple[str, list[int]]:
    single = windows = right = whole = total = 0
    lines = []
    for case, (levels, crops) in spines.items():
        with torch.inference_mode():
            rows = functional.log_softmax(network(crops).float() / temperature, -1).numpy()
        single += int((rows.argmax(1) == levels).sum())
        total += len(levels)
        for i in range(len(levels) - 3):
            windows += 1
            right += best_start(rows[i:i + 4]) == levels[i]
        start = best_start(rows)
        whole += start == levels[0]
        lines.append(f"    {case}: {LEVELS[levels[0]]}-{LEVELS[levels[-1]]} read as {LEVELS[start]}-{LEVELS[start + len(levels) - 1]}; "
                     f"one by one {' '.join(LEVELS[k] for k in rows.argmax(1))}")
    lines.append(f"single {single}/{total}, four-vertebra windows {right}/{windows}, whole sequences {whole}/{len(spines)}")
    return "\n".join(lines), [single, right, whole]


def train(model, minutes: float, subjects: int, seed: int, spines: dict):
    """A fresh network of the plan's size, from a bank of `subjects` spines."""
    from spineclue_v2.inference.model import build_network
    from spineclue_v2.phantom.bank import ShapeBank, batches

    plan, started = model.plans.stage("identify"), time.perf_counter()
    bank = ShapeBank.from_shapes(subjects, seed)
    print(f"bank of {len(bank.levels)} vertebrae: {time.perf_counter() - started:.0f} s", flush=True)
    torch.manual_seed(seed)
    network = build_network("identify", model.plans).train()
    make = batches(bank, tuple(plan.network.crop_size), plan.data.spacing_mm, 24, seed)
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    started, step = time.perf_counter(), 0
    budget, right, reported = minutes * 60, [], 0.0
    while (share := (time.perf_counter() - started) / budget) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - share) ** 0.9
        batch = make(step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch["image"])
        loss = functional.cross_entropy(logits.float(), batch["level"], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        right.append(float((logits.argmax(1) == batch["level"]).float().mean()))
        if share - reported > 0.1:
            reported = share
            network.eval()
            print(f"{step} steps, {share:.0%}: synthetic {np.mean(right[-50:]):.2f}; real {score(network, 1.0, spines)[1]}", flush=True)
            network.train()
    print(f"{step} steps of 24 crops")
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[1].parent / "shared" / "data")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    from spineclue_v2.inference.model import load_shipped

    model = load_shipped(torch.device("cpu"))
    spines = real_spines(args.data / "ct" / "verse", model)
    if args.minutes:
        network, temperature = train(model, args.minutes, args.subjects, args.seed, spines), 1.0
    else:
        stage = model.stages["identify"]
        network, temperature = stage.networks[0].eval(), float(stage.fitted[0].get("temperature", 1.0))
    print(score(network, temperature, spines)[0])


if __name__ == "__main__":
    main()
