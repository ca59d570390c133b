"""Stage centres from real scans and phantoms: `python -m recipes.train_centres WORK --fold 0 1 2 final`.

WORK/real and WORK/phantoms hold coarse scans (`evidence_data`, `evidence_phantoms`, both with `--spacing 3`). Fold K leaves out the
patients of fold K; `final` learns from all. Each is trained twice: from nothing, then again with a new seed and a smaller rate. Both are
resumable. WORK/weights/K.pth are files as the package ships them.
"""
from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.evidence_data import Scan, load_scan
from spineclue_v2.stages.centres.data import Row, cut_patch, row_of

SPACING_MM = 3.0
WINDOWS_HU = ((-160.0, 240.0), (0.0, 1000.0))
FEATURES, BLOCKS, PATCH = (16, 32, 64, 96), (1, 1, 2, 2), (64, 32, 32)
SIGMA_MM, PEAK_WEIGHT, LEAST_SCORE = 4.5, 20.0, 0.2
BATCH, STEPS, RATE, WARM_UP, DECAY, CLIP = 4, (1300, 900), (1.5e-3, 9e-4), 40, 1e-3, 5.0
DRAWN = {"neck": 0.38, "other": 0.26, "phantom": 0.36}
DIM = 0.4                               # of the patches: bone more or less dense than it was
DIM_FROM_HU, DIM_RANGE = 60.0, (0.4, 1.25)
C1_UP_MM = np.array([0.0, -4.1, 6.5])   # (x, y, z) LPS: points by eye lie so much higher in C1 than the middle of a phantom's ring


@dataclass(frozen=True)
class Known:
    """A scan with what is known of its bodies."""

    array: np.ndarray
    row: Row
    kind: str
    fold: int


def known(scan: Scan) -> Known:
    kind = "phantom" if scan.case.startswith("phantom_") else "neck" if scan.case.startswith("pt_") else "other"
    places = np.asarray(scan.centres, dtype=float).reshape(-1, 3).copy()
    if kind == "phantom" and "C1" in scan.names:
        places[scan.names.index("C1")] += C1_UP_MM
    index = scan.volume.geometry.world_to_index(places) if len(places) else np.zeros((0, 3))
    bodies = [k for k, name in enumerate(scan.names) if name != "S1"]
    sacrum = [index[k] for k, name in enumerate(scan.names) if name == "S1"]
    row = row_of([scan.names[k] for k in bodies], index[bodies], SPACING_MM, sacrum[0] if sacrum else None)
    return Known(scan.volume.array, row, kind, scan.fold)


def shipped_plan() -> Any:
    """Plans with stage centres alone, each number with its reason."""
    from spineclue_v2.planning.planner import PlannedValue, stage_plan
    from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME, Plans

    why = "as the recipe trains it"
    values = {"data": {"spacing_mm": SPACING_MM, "windows_hu": WINDOWS_HU},
              "network": {"patch_size": PATCH, "features": FEATURES, "blocks": BLOCKS},
              "run": {"batch_size": BATCH, "epochs": sum(STEPS) // 25, "iterations_per_epoch": 25, "initial_lr": RATE[0],
                      "weight_decay": DECAY, "optimizer": "AdamW", "inference_batch": 4, "sigma_mm": SIGMA_MM,
                      "peak_weight": PEAK_WEIGHT, "least_score": LEAST_SCORE}}
    groups = {group: {name: PlannedValue(value, why, {}) for name, value in entries.items()} for group, entries in values.items()}
    plan = stage_plan("centres", groups["data"], groups["network"], groups["run"])
    return Plans(DEFAULT_PLANS_NAME, "SpineCLUEPlanner", "Dataset500_SpinePhantom", "", {}, {"centres": plan})


def batch(scans: dict[str, list[Known]], plan: Any, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    patches = []
    for _ in range(BATCH):
        group = scans[str(rng.choice(list(DRAWN), p=list(DRAWN.values())))]
        scan = group[int(rng.integers(len(group)))]
        array = scan.array
        if rng.random() < DIM:
            bright = np.minimum(DIM_FROM_HU + (array - DIM_FROM_HU) * rng.uniform(*DIM_RANGE), plan.data.hu_max)
            array = np.where(array > DIM_FROM_HU, bright, array).astype(np.int16)
        patches.append(cut_patch(array, scan.row, plan, rng, augment=True))
    return tuple(map(torch.stack, zip(*patches, strict=True)))


def train(fold: str, scans: list[Known], folder: Path) -> None:
    from spineclue_v2.stages.centres.network import network_of_plans
    from spineclue_v2.stages.centres.trainer import heat_loss
    from spineclue_v2.training.device import autocast
    from spineclue_v2.utilities.files import atomic_path

    plans = shipped_plan()
    plan, state = plans.stage("centres"), folder / f"{fold}.latest"
    used = {kind: [s for s in scans if s.kind == kind and str(s.fold) != fold] for kind in DRAWN}
    network = network_of_plans(plans)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE[0], weight_decay=DECAY)
    first, done = 0, 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        first, done = saved["phase"], saved["step"]
    grid = tuple(n // 2 ** (len(FEATURES) - 1) for n in PATCH)
    began = time.perf_counter()
    for phase in range(first, len(STEPS)):
        if done == 0:
            optimizer = torch.optim.AdamW(network.parameters(), lr=RATE[phase], weight_decay=DECAY)
        for step in range(done, STEPS[phase]):
            for group in optimizer.param_groups:
                group["lr"] = RATE[phase] * min(1.0, (step + 1) / WARM_UP) * (1 - step / STEPS[phase]) ** 0.9
            image, target, weight = batch(used, plan, np.random.default_rng([7 + phase, step]))
            with autocast(torch.device("cpu"), grid):
                logits = network(image)
            loss = heat_loss(logits.float(), target, weight, PEAK_WEIGHT)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            if (step + 1) % 50 == 0 or step + 1 == STEPS[phase]:
                last = step + 1 == STEPS[phase]
                with atomic_path(state) as temporary:
                    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "phase": phase + last,
                                "step": 0 if last else step + 1}, temporary)
                print(f"{fold}: phase {phase}, step {step + 1}, loss {loss.item():.3f}, {time.perf_counter() - began:.0f} s", flush=True)
        done = 0
    export(network.state_dict(), folder / f"{fold}.pth", fold)


def export(network: dict[str, torch.Tensor], target: Path, fold: str) -> None:
    """A file of weights as the package ships it (fp16)."""
    from spineclue_v2.training.checkpoint import Checkpoint
    from spineclue_v2.version import __version__

    plans = shipped_plan()
    plan = plans.stage("centres")
    meta = {"stage": "centres", "trainer": "CentresTrainer", "fold": 0, "plans": plans.to_json(), "version": __version__,
            "data_fingerprint": plan.data_fingerprint, "model_fingerprint": plan.model_fingerprint,
            "fitted": {"about": {"left_out": "none" if fold == "final" else f"fold {fold} of recipes.folds",
                                 "recipe": "recipes.train_centres"}}}
    Checkpoint(network, meta).save(target, half=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of the recipe")
    parser.add_argument("--fold", nargs="+", default=["0", "1", "2", "final"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.work / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    scans = [known(load_scan(path)) for part in ("real", "phantoms") for path in sorted((args.work / part).glob("*.npz"))]
    for fold in args.fold:
        if not (folder / f"{fold}.pth").exists():
            train(fold, scans, folder)


if __name__ == "__main__":
    main()
