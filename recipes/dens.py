"""Who gets the dens: `python -m recipes.dens DATA WORK --weights NAME=FOLDER ... --scans pt_034 ...`.

C1 and C2 of necks, weights beside weights.

The dens of reference is what `real_cases.with_dens` gives from C1 to C2 in the proposed masks: a geometric rule, no reading. Printed per
scan: the share of it that each network's C2 mask holds, and its C1 mask, after each voxel has got one owner.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from .real_cases import load_segment, masks_at, read_points, shipped_plans, with_dens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--weights", nargs="+", required=True)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--scans", nargs="+", required=True)
    args = parser.parse_args()
    import torch

    from spineclue_v2.imageio.volume import read_volume
    from spineclue_v2.preprocessing.resampling import to_network_space
    from spineclue_v2.stages.segment.predictor import resolve_ownership

    torch.set_num_threads(1)
    plan, points = shipped_plans(args.plan)["segment"], read_points(args.data)
    networks = {name: load_segment(Path(folder), plan) for name, folder in (text.split("=", 1) for text in args.weights)}
    for scan in args.scans:
        path = f"ct/necks_coarse/{scan}.nii.gz"
        pair = [p for p in points[path] if p.level in ("C1", "C2")]
        volume = to_network_space(read_volume(args.data / path), plan.data)
        proposed = np.load(args.work / "proposed" / f"{scan}.npz")["labels"]
        dens = (proposed == 1) & (with_dens(proposed, points[path], volume.geometry) == 2)
        for name, network in networks.items():
            crops, starts = masks_at(pair, volume, network, plan)
            shares = []
            for mask, start in zip(resolve_ownership(crops, starts), starts, strict=True):
                inside = np.argwhere(dens) - start
                inside = inside[((inside >= 0) & (inside < mask.shape)).all(1)]
                shares.append(mask[tuple(inside.T)].sum() / max(1, dens.sum()))
            print(f"{scan} {name}: dens {int(dens.sum())} voxels, of it C1 {shares[0]:.2f}, C2 {shares[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
