"""The geometry network from real spines: `python -m recipes.train_geometry DATA WORK --start START/geometry.pth [--final]`.

Trained on CSI 2014, VerSe, VID (detections with a real detector's mistakes) and made spine curves; centres only, since the pipeline gives
no more. Folds by patient on CSI and VerSe. WORK/geometry/fold_K.pth saw neither the CSI nor the VerSe scans of fold K, nor VID's VerSe
part, whose names are hidden. The final weights are the folds' networks together.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.geometry_data import LandmarkScan, folds_by_patient, read

FOLDS = 3
MADE_SPINES = 1600
BATCH, RATE = 64, 1.5e-3
KIND_FRACTIONS = (0.5, 0.2, 0.3)   # CSI and VerSe, VID, made spines
NEVER_IN_FOLDS = ("verse004", "verse005", "verse008")
"""Scans whose CT or masks the evidence is fitted and measured on."""


def collections(data: Path) -> tuple[list[LandmarkScan], np.ndarray]:
    """CSI and VerSe scans and their folds."""
    scans = [scan for name in ("csi2014_train", "verse_train") for scan in read(data / "landmarks" / f"{name}.json.gz")]
    return scans, folds_by_patient(scans, FOLDS)


def fit(data: Path, scans: Sequence[LandmarkScan], members: int, steps: int, start: Path,
        seed: int = 0) -> tuple[list[Any], dict[str, str]]:
    """The network of `start`, which knows VID and made spines, taught CSI and VerSe; batches hold all three kinds."""
    import torch
    from torch.nn import functional

    from recipes.evidence_networks import start_geometry
    from spineclue_v2.stages.geometry.features import Augmentation, Batch, augment
    from spineclue_v2.stages.geometry.landmarks import UNKNOWN
    from spineclue_v2.stages.geometry.training import COLLECTIONS
    from spineclue_v2.stages.geometry.variants import with_rare_numberings
    from spineclue_v2.stages.geometry.vid_landmarks import read_scans

    vid = [replace(s.landmarks, rank=None, left=None, right=None, ctl=None) for s in read_scans(data / "landmarks" / "vid_training.json.gz")
           if s.collection in COLLECTIONS and s.names and len(s.landmarks.centres) > 2]
    rng = np.random.default_rng(seed)
    own = [scan.landmarks(int(rng.integers(3))) for scan in scans for _ in range(2)]
    kinds = [with_rare_numberings(own, seed), with_rare_numberings(vid, seed),
             [s for s in made_spines(MADE_SPINES, seed) if len(s.centres) > 2]]
    weights = np.rint(BATCH * np.array(KIND_FRACTIONS)).astype(int)
    how = Augmentation(window=0.85, shortest=3, noise=4.0, drop=0.3, insert=0.25, scale=0.08)
    networks = start_geometry(start, members)
    for member, network in enumerate(networks):
        generator = torch.Generator().manual_seed(seed + member)
        rng = np.random.default_rng(seed + member)
        data_of = [Batch.of(kind, spare=1) for kind in kinds]
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        total = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + member)
            for step in range(steps):
                kind = int(rng.choice(len(kinds), p=weights / weights.sum()))   # one kind per batch: they differ in length
                rows = torch.from_numpy(rng.choice(len(kinds[kind]), min(BATCH, len(kinds[kind])), replace=False))
                view = augment(data_of[kind].take(rows, spare=1), how, generator)
                loss = functional.cross_entropy(network(view).flatten(0, 1), view.targets.flatten(), ignore_index=UNKNOWN,
                                                label_smoothing=0.01)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                total.append(float(loss.detach()))
                if step % 100 == 99:
                    print(f"member {member} step {step + 1} loss {np.mean(total[-100:]):.3f}", flush=True)
        network.eval()
    counts = {name: sum(s.collection.startswith(name) for s in scans) for name in ("CSI2014", "VerSe")}
    about = {"data": f"started from the weights before (VID, collections {', '.join(COLLECTIONS)}, and made spines), then CSI 2014: "
                     f"{counts['CSI2014']} scans, VerSe: {counts['VerSe']} scans, VID: {len(vid)} scans, {MADE_SPINES} made spines",
             "recipe": "recipes.train_geometry"}
    return networks, about


def made_spines(count: int, seed: int) -> list[Any]:
    """As `sample_spine_curves`, with S1 found as one more vertebra in a third of those that reach it."""
    from spineclue_v2.anatomy import EMITTING_LEVEL, LEVEL_INDEX
    from spineclue_v2.phantom.spine import draw_fov, draw_subject
    from spineclue_v2.stages.geometry.landmarks import L6, NOT_A_VERTEBRA, Landmarks
    from spineclue_v2.stages.geometry.training import VARIANT_FRACTION

    generator = np.random.default_rng(seed)
    variants, fractions = [None, *VARIANT_FRACTION], [1.0 - sum(VARIANT_FRACTION.values()), *VARIANT_FRACTION.values()]
    out = []
    for _ in range(count):
        subject = draw_subject(generator, variants[generator.choice(len(variants), p=fractions)], None, {}, 0.0)
        targets = np.array([L6 if v.name == "L6" else LEVEL_INDEX[EMITTING_LEVEL[v.name]] for v in subject.placed])
        chosen = np.ones(len(targets), dtype=bool)
        if generator.random() < 0.5:
            first, last = (LEVEL_INDEX[EMITTING_LEVEL[name]] for name in draw_fov(generator))
            chosen = (targets >= first) & ((targets <= last) | (targets == L6))
        centres = np.array([v.centre for v in subject.placed])[chosen]
        targets = targets[chosen]
        if chosen[-1] and generator.random() < 0.33:
            centres, targets = np.vstack([centres, subject.sacrum[0][None]]), np.append(targets, NOT_A_VERTEBRA)
        out.append(Landmarks(centres, targets))
    return out


def together(files: Sequence[Path], target: Path) -> None:
    """One file with the networks of all folds: each spine was seen by all but one of them."""
    from recipes.evidence_networks import load_geometry, save_geometry

    parts = [load_geometry(file) for file in files]
    about = [part.fitted[0]["about"] for part in parts]
    save_geometry(target, [member for part in parts for member in part.networks[0].members],
                  about[0] | {"folds": [a["data"] for a in about]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the real data; holds landmarks")
    parser.add_argument("work", type=Path, help="folder of the recipe")
    parser.add_argument("--start", type=Path, required=True, help="checkpoint of stage geometry that saw neither CSI nor VerSe")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(FOLDS)))
    parser.add_argument("--final", action="store_true", help="also put the networks of all folds together")
    args = parser.parse_args()
    import torch

    from recipes.evidence_networks import save_geometry

    torch.set_num_threads(1)
    folder = args.work / "geometry"
    folder.mkdir(parents=True, exist_ok=True)
    scans, fold = collections(args.data)
    (folder / "folds.json").write_text(json.dumps({f"{s.collection}/{s.scan}": int(f) for s, f in zip(scans, fold, strict=True)}, indent=1))
    for k in args.folds:
        target = folder / f"fold_{k}.pth"
        if not target.exists():
            train = [s for s, f in zip(scans, fold, strict=True) if f != k and s.scan not in NEVER_IN_FOLDS]
            networks, about = fit(args.data, train, args.members, args.steps, args.start, seed=100 * k)
            save_geometry(target, networks, about)
            print(target, flush=True)
    if args.final:
        together([folder / f"fold_{k}.pth" for k in range(FOLDS)], folder / "final.pth")


if __name__ == "__main__":
    main()
