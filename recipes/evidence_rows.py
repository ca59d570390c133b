"""What every classifier says of windows of real scans: `python -m recipes.evidence_rows DATA WORK --start W [--masks PROPOSED]`.

Windows: whole scans and runs of 3-12 vertebrae. The CT is cut with them, and to slabs in a third of them; centres are moved by 2 mm, as
located ones are. Appearance: the fold that has not seen the patient. Geometry: networks that have seen none of these patients. Shape: the
network of W (phantoms alone) on masks of the segment network at true centres (PROPOSED/NAME.npz, of `real_cases propose`), or on reference
masks. Writes WORK/rows.pkl, a list of `Window`.
"""
from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from recipes.evidence_data import MASKS, Scan, load_scan, real_points
from recipes.evidence_windows import Window, cut_volume, cuts
from spineclue_v2.stages.base import Evidence

MOVED_MM = 2.0


def shape_raw(data: Path, masks: Path, weights: Path) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Per scan and level: mean probabilities (24,) and entropy of the shape network before fusion."""
    import torch

    from recipes.evidence_networks import CPU
    from spineclue_v2.anatomy import LABEL_OF_NAME
    from spineclue_v2.anatomy.label_boxes import label_boxes
    from spineclue_v2.anatomy.vertebra import Vertebra
    from spineclue_v2.imageio.volume import read_labels, read_volume
    from spineclue_v2.inference.model import load_stage
    from spineclue_v2.preprocessing.resampling import labels_to_network_space, network_grid
    from spineclue_v2.stages.identify.predictor import shape_rows

    stage, plans = load_stage(weights / "identify.pth", "identify", CPU)
    plan = plans.stage("identify")                           # its grid is segment's, on which proposed masks lie
    out = {}
    for path, (names, _) in real_points(data).items():
        case = Path(path).name.removesuffix(".nii.gz")
        if (masks / f"{case}.npz").exists():
            with np.load(masks / f"{case}.npz") as content:
                labels = content["labels"]
        elif path in MASKS:
            target = network_grid(read_volume(data / path).geometry, plan.data)
            labels = labels_to_network_space(read_labels(data / MASKS[path]), target).array
        else:
            continue
        boxes = label_boxes(labels)
        level = {name: LABEL_OF_NAME[name] for name in names if LABEL_OF_NAME.get(name) in boxes}
        vertebrae = [Vertebra((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1.0, mask=labels[boxes[v]] == v) for v in level.values()]
        if vertebrae:
            torch.manual_seed(0)
            mean, entropy = shape_rows(vertebrae, stage.networks[0], stage.fitted[0], plan, CPU)
            out[case] = {name: (m, e) for name, m, e in zip(level, mean, entropy, strict=True)}
    return out


def fused_shape(raw: dict[str, tuple[Any, Any]], names: tuple[str | None, ...], centres: np.ndarray, stage: Any,
                run: Any) -> Evidence | None:
    """A window's shape rows after fusion; uniform where a vertebra has no mask, None without any."""
    from spineclue_v2.anatomy.vertebral_gaps import round_positions, vertebral_gaps
    from spineclue_v2.stages.identify.arrays import fuse
    from spineclue_v2.stages.identify.evidence import shape_logs

    known = [i for i, name in enumerate(names) if name in raw]
    if not known:
        return None
    positions = round_positions(vertebral_gaps(centres))[known]
    fused = fuse(np.stack([raw[names[i]][0] for i in known]), np.stack([raw[names[i]][1] for i in known]), positions, run.theta, run.hops,
                 run.neighbours, stage.extra[0].get("phi"))
    rows = np.full((len(names), 24), 1 / 24)
    rows[known] = fused
    return Evidence(shape_logs(rows))


def seen_around(volume: Any, centres: np.ndarray, model: Any, plan: Any) -> Evidence:
    """The appearance classifier's evidence, as in prediction."""
    from recipes.evidence_networks import CPU
    from spineclue_v2.stages.appearance.predictor import beyond, class_logs, follow, merge_landmarks

    n, ends = len(centres), beyond(centres, volume)
    rows = class_logs(volume, np.vstack([centres, *(place[None] for place in ends.values())]), model, plan, CPU)
    landmarks = follow(np.exp(rows[:n]), dict(zip(ends, np.exp(rows[n:]), strict=True))) if plan.network.landmarks else None
    return Evidence(merge_landmarks(rows[:n]), landmarks=landmarks)


def windows_of(scan: Scan, appearance: tuple[Any, Any], geometry: Any, raw: dict[str, tuple[Any, Any]], shape: tuple[Any, Any]
               ) -> list[Window]:
    from spineclue_v2.stages.geometry.predictor import evidence_of

    rng = np.random.default_rng([17, *map(ord, scan.case)])
    out = []
    for part, whole in cuts(scan, rng):
        names = tuple(None if name == "S1" else name for name in scan.names[part])
        centres = scan.centres[part] + rng.normal(0, MOVED_MM / np.sqrt(3), (len(names), 3))
        volume, slab = cut_volume(scan.volume, centres, whole, rng)
        evidence = {"appearance": seen_around(volume, centres, *appearance), "geometry": evidence_of(centres, geometry)}
        fused = fused_shape(raw, names, centres, *shape)
        out.append(Window(scan.case, scan.patient, names, centres, whole, slab, evidence | ({} if fused is None else {"shape": fused})))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the real scans")
    parser.add_argument("work", type=Path, help="folder of the recipe; holds real, appearance and geometry")
    parser.add_argument("--start", type=Path, required=True, metavar="W", help="folder of identify.pth, trained on phantoms alone")
    parser.add_argument("--masks", type=Path, default=None, help="folder of proposed masks (default: WORK/proposed)")
    args = parser.parse_args()
    import torch

    from recipes.evidence_networks import CPU, load_appearance, load_geometry
    from spineclue_v2.inference.model import load_stage

    torch.set_num_threads(1)
    stage, plans = load_stage(args.start / "identify.pth", "identify", CPU)
    geometry = load_geometry(args.work / "geometry" / "final.pth")
    cache = args.work / "shape_raw.pkl"
    if not cache.exists():
        cache.write_bytes(pickle.dumps(shape_raw(args.data, args.masks or args.work / "proposed", args.start)))
    shape = pickle.loads(cache.read_bytes())
    networks: dict[int, Any] = {}
    windows = []
    for path in sorted((args.work / "real").glob("*.npz")):
        scan = load_scan(path)
        if len(scan.names) >= 3:
            if scan.fold not in networks:
                networks[scan.fold] = load_appearance(args.work / "appearance" / f"fold_{scan.fold}.pth")
            windows += windows_of(scan, networks[scan.fold], geometry, shape.get(scan.case, {}), (stage, plans.stage("identify").run))
    (args.work / "rows.pkl").write_bytes(pickle.dumps(windows))
    print(len(windows), "windows of", len({w.patient for w in windows}), "patients;", sum("shape" in w.evidence for w in windows),
          "with masks")


if __name__ == "__main__":
    main()
