"""Held-out patients, vertebra by vertebra: `python -m recipes.judge_appearance WORK --start START/appearance.pth`, the network before
against the folds.

Places moved by 4 mm, three times each; whole fields, and cut ones (above and below at 10-40 mm, a third of them slabs of 60-120 mm).
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from recipes.evidence_data import load_scan
from recipes.evidence_windows import cut_volume
from recipes.train_appearance import held_out
from spineclue_v2.anatomy import LEVELS, NUM_LEVELS, region
from spineclue_v2.stages.appearance.data import NOT_A_VERTEBRA, SACRUM, SKULL

GROUPS = ("cervical", "thoracic", "lumbar", "sacrum", "skull")


def group_of(kind: int) -> str:
    return {SACRUM: "sacrum", SKULL: "skull", NOT_A_VERTEBRA: "none"}.get(kind) or region(LEVELS[kind])


def figures(model: Any, plan: Any, scans: list[Any], cut: bool, rng: np.random.Generator) -> dict[str, list[tuple[bool, float, bool]]]:
    """Per group (right, log-likelihood, at most one off) of every place; sacrum and skull: right when it says no vertebra."""
    from recipes.evidence_networks import CPU
    from spineclue_v2.stages.appearance.predictor import class_logs

    out: dict[str, list[tuple[bool, float, bool]]] = {}
    for scan, places, kinds in held_out(scans):
        for _ in range(3):
            moved = places + rng.normal(0, 4 / np.sqrt(3), places.shape)
            for place, kind in zip(moved, kinds, strict=True):
                volume = cut_volume(scan.volume, place[None], not cut, rng)[0] if cut else scan.volume
                logs = class_logs(volume, place[None], model, plan, CPU)[0]
                none = np.logaddexp.reduce(logs[NUM_LEVELS:])
                said = int(logs[:NUM_LEVELS].argmax())
                if kind < NUM_LEVELS:
                    row = (said == kind and logs[kind] > none, float(logs[kind]), abs(said - kind) <= 1)
                else:
                    row = (none > logs[said], float(none), bool(logs.argmax() == kind))
                out.setdefault(group_of(int(kind)), []).append(row)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the recipe")
    parser.add_argument("--start", type=Path, required=True, help="the network before, a checkpoint")
    parser.add_argument("--folds", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()
    import torch

    from recipes.evidence_networks import load_appearance

    torch.set_num_threads(1)
    scans = [load_scan(path) for path in sorted((args.work / "real").glob("*.npz"))]
    for cut in (False, True):
        for what in ("before", "new"):
            total: dict[str, list[tuple[bool, float, bool]]] = {}
            for fold in args.folds:
                model, plan = load_appearance(args.start if what == "before" else args.work / "appearance" / f"fold_{fold}.pth")
                for name, rows in figures(model, plan, [s for s in scans if s.fold == fold], cut, np.random.default_rng(fold)).items():
                    total.setdefault(name, []).extend(rows)
            for name in GROUPS:
                if name in total:
                    right, ll, near = map(np.mean, zip(*total[name], strict=True))
                    print(f"{'cut' if cut else 'whole':6s} {what:8s} {name:9s} {len(total[name]):5d}  right {right:.3f}  "
                          f"log-likelihood {ll:.3f}  "
                          f"{'as itself' if name in ('sacrum', 'skull') else 'within one'} {near:.3f}", flush=True)


if __name__ == "__main__":
    main()
