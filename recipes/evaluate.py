"""Localize and segment on real scans, weights beside weights.

    python -m recipes.evaluate localize|boxes|segment DATA OUT --weights NAME=FOLDER ...

Localize, per scan: a vertebra (C1..L5 marked by a point or labelled) is found when a located centre lies within 10 mm of the middle of its
mask's bounding box, one to one; other located ones are false. `row_hits`: 10 mm along the body's axis, 20 mm across. `plan` looks as the
plan says, `4mm` at slices 4 mm apart (not for the necks).

Boxes: the detector alone, on slices 6 mm apart through the vertebrae and 20 mm beyond.

Segment, per point: the network is asked at the body's point plus the usual offset to the middle of a vertebra. A mask is right when it
holds its point (within 4 mm, C1 8 mm) and no other point, after each voxel has got one owner. `clean`: asked 4 mm off in turn up and
down, the mask breaks no rule of `real_cases` (volume, pieces, its point and no other one inside, Dice with a neighbour's mask at most 0.15
before voxels are settled). Dice where there are reference masks.

Results are appended to OUT as JSON lines; scans that are there are not repeated.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from .folds import patients
from .real_cases import NEAR, NEAR_MM, REFERENCES, Point, load_segment, masks_at, read_points, read_reference, scan_name, shipped_plans

WIDE = ("cptac_c3l00189_5mm", "rider_chest_1p5mm", "pancreas_ct_cb_001")
GAP_MM = 4.0
MISS_MM = 4.0
STEP_MM, BESIDE_MM = 6.0, 20.0   # between the slices whose boxes are counted; how far beyond the vertebrae they go


def localize_scan(case: str, dataset: Any, network: Any, plan: Any, looks: tuple[str, ...] = ("plan", "4mm")) -> dict[str, Any]:
    """hits, found and true vertebrae of a preprocessed case, scores of all that was located, and the mean distance of the hits."""
    import torch

    from spineclue_v2.imageio.volume import ImageGrid, Volume
    from spineclue_v2.stages.localize.predictor import locate
    from spineclue_v2.stages.localize.trainer import match_centres

    properties = dataset.properties(case)
    volume = Volume(dataset.image(case)[:], ImageGrid.from_json(properties["geometry"]))
    wanted = np.array([(np.array(v["start"]) + np.array(v["stop"]) - 1) / 2 for v in properties["vertebrae"].values()]).reshape(-1, 3)
    row: dict[str, Any] = {"true": len(wanted)}
    gaps = {"plan": plan.run.slice_gap_mm, "4mm": GAP_MM}
    for name in ("plan",) if case.startswith("real_pt_") else looks:
        this = dataclasses.replace(plan, run=dataclasses.replace(plan.run, slice_gap_mm=gaps[name]))
        found = locate(volume, [network], this, torch.device("cpu"))
        centres = np.array([v.box_centre for v in found]).reshape(-1, 3)
        hits, distances = match_centres(centres, volume.geometry.index_to_world(wanted))
        flat = np.array([0.5, 0.5, 1.0])
        row_hits, _ = match_centres(centres * flat, volume.geometry.index_to_world(wanted) * flat)
        row[name] = {"hits": hits, "row_hits": row_hits, "found": len(found),
                     "score": round(float(np.mean([v.score for v in found])), 3) if found else None,
                     "mm": round(float(np.mean(distances)), 1) if distances else None}
    return row


def boxes_scan(case: str, dataset: Any, network: Any, plan: Any) -> dict[str, Any]:
    """Slices through and beside the vertebrae: true boxes, boxes found, one-to-one matches at IoU 0.5 with the plan's least score."""
    import torch

    from spineclue_v2.preprocessing.resampling import windows
    from spineclue_v2.stages.localize.data import PLANES, section_areas, section_boxes, take_slice
    from spineclue_v2.stages.localize.trainer import matched_boxes

    spacing, vertebrae = plan.data.spacing_mm, dataset.properties(case)["vertebrae"].values()
    image, labels = dataset.image(case)[:], dataset.labels(case)[:]
    values = [v["label"] for v in vertebrae]
    starts, stops = (np.array([v[key] for v in vertebrae]).reshape(-1, 3) for key in ("start", "stop"))
    areas, counts = section_areas(labels, values, starts, stops), np.zeros(3, int)
    for plane, axis in zip(PLANES, (2, 1), strict=True):
        beside, step = int(BESIDE_MM / spacing), int(STEP_MM / spacing)
        low, high = (starts[:, axis].min() - beside, stops[:, axis].max() + beside) if values else (0, image.shape[axis])
        largest = dict(zip(values, map(float, areas[plane]), strict=True))
        for index in range(max(0, low), min(image.shape[axis], high), step):
            cut = windows(take_slice(image, plane, index), plan.data.windows_hu)
            true = section_boxes(take_slice(labels, plane, index), largest, spacing)
            padded = np.zeros((1, len(cut), *(-(-n // 32) * 32 for n in cut.shape[1:])), np.float32)
            padded[0, :, :cut.shape[1], :cut.shape[2]] = cut
            with torch.inference_mode():
                found = network.boxes(torch.from_numpy(padded), plan.run.min_score, plan.run.nms_iou)[0]
            counts += (len(true), len(found), matched_boxes(found[:, :4], torch.from_numpy(true)))
    return dict(zip(("true", "found", "hits"), counts.tolist(), strict=True))


def load_localize(weights: Path, plan: Any) -> Any:
    import torch

    from spineclue_v2.stages.localize.network import build_network
    from spineclue_v2.training.checkpoint import Checkpoint, load_weights

    network = build_network(plan.network, len(plan.data.windows_hu))
    load_weights(network, Checkpoint.load(weights / "localize.pth", torch.device("cpu")), weights / "localize.pth")
    return network.eval()


def moved(points: list[Point]) -> list[Point]:
    """The points as a detector may miss them: in turn up and down by `MISS_MM`, and forwards or backwards by half of that."""
    return [Point(p.level, p.place + np.array([0.0, MISS_MM / 2 * (-1) ** (i // 2), MISS_MM * (-1) ** i])) for i, p in enumerate(points)]


def alone(points: list[Point], volume: Any, network: Any, plan: Any) -> dict[str, bool]:
    """Per level: asked at a place that misses the body's middle, its mask, before any voxel is given to a neighbour, holds its point and
    shares little with its neighbours' masks."""
    from .real_cases import judged

    crops, starts = masks_at(moved(points), volume, network, plan)
    report = judged(points, volume, crops, starts, plan.data.spacing_mm)[1]
    return {level: not row["faults"] for level, row in report.items()}


def segment_scan(volume: Any, points: list[Point], reference: Any, network: Any, plan: Any) -> dict[str, Any]:
    """Per level: whether its mask holds its point and no other one, and the Dice with the reference mask."""
    from scipy.ndimage import distance_transform_edt

    from spineclue_v2.anatomy import LABEL_OF_NAME
    from spineclue_v2.anatomy.morphology import largest_component
    from spineclue_v2.preprocessing.resampling import labels_to_network_space
    from spineclue_v2.stages.segment.predictor import resolve_ownership

    truth = labels_to_network_space(reference, volume.geometry, None).array if reference is not None else None
    crops, starts = masks_at(points, volume, network, plan)
    indices = np.round(volume.geometry.world_to_index(np.array([p.place for p in points]))).astype(int)
    shape, rows = np.array(volume.array.shape), {}
    for i, (point, mask, start) in enumerate(zip(points, resolve_ownership(crops, starts), starts, strict=True)):
        body = largest_component(mask) if mask.any() else mask
        away = distance_transform_edt(~body) * plan.data.spacing_mm if body.any() else np.full(body.shape, 99.0)
        local = indices - start
        inside = ((local >= 0) & (local < body.shape)).all(1)
        distance = np.array([away[tuple(at)] if ok else 99.0 for at, ok in zip(local, inside, strict=True)])
        own, others = float(distance[i]), int((np.delete(distance, i) <= 0).sum())
        row = {"right": bool(own <= NEAR_MM.get(point.level, NEAR) and not others), "mm": round(own, 1), "others": others,
               "ml": round(float(body.sum()) * plan.data.spacing_mm ** 3 / 1000, 1)}
        if truth is not None:
            wanted = truth == LABEL_OF_NAME[point.level]
            low, high = np.maximum(start, 0), np.minimum(start + np.array(mask.shape), shape)
            box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
            inner = tuple(slice(int(a - s), int(b - s)) for a, b, s in zip(low, high, start, strict=True))
            row["dice"] = round(float(2 * (wanted[box] & body[inner]).sum() / max(1, wanted.sum() + body.sum())), 3)
        rows[point.level] = row
    for level, clean in alone(points, volume, network, plan).items():
        rows[level]["clean"] = clean
    return rows


def reference_points(reference: Any) -> list[Point]:
    """Points of the bodies of reference masks, where nobody set any."""
    from spineclue_v2.preprocessing.ct import vertebra_properties

    return [Point(name, reference.geometry.index_to_world(np.array(v["body_centre"])[None])[0])
            for name, v in vertebra_properties(reference).items()]


def evaluate(stage: str, data: Path, cases: Path, out: Path, weights: dict[str, Path], plan_of: Path, folds: list[int],
             only: list[str], min_score: float | None = None) -> None:
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.imageio.volume import read_volume
    from spineclue_v2.preprocessing.resampling import to_network_space

    plan = shipped_plans(plan_of)["segment" if stage in ("segment", "clean") else "localize"]
    looks: tuple[str, ...] = ("plan", "4mm")
    if min_score is not None:
        plan, looks = dataclasses.replace(plan, run=dataclasses.replace(plan.run, min_score=min_score)), ("plan",)
    done = {(r["weights"], r["scan"]) for r in map(json.loads, out.read_text().splitlines())} if out.exists() else set()
    load = load_segment if stage in ("segment", "clean") else load_localize
    networks = {name: load(folder, plan) for name, folder in weights.items()}
    dataset, points = PreprocessedDataset(cases / "localize"), read_points(data)
    for patient, (fold, scans) in patients(data).items():
        for scan in scans if fold in folds else ():
            case, volume = f"real_{scan_name(scan)}", None
            reference = read_reference(data, scan) if scan in REFERENCES else None
            marks = points.get(scan) or (reference_points(reference) if reference is not None else [])
            if case not in dataset.cases or (stage in ("segment", "clean") and not marks) or (only and scan_name(scan) not in only):
                continue
            for name, network in networks.items():
                if (name, scan) in done:
                    continue
                if stage == "boxes":
                    row = boxes_scan(case, dataset, network, plan)
                elif stage == "localize":
                    row = localize_scan(case, dataset, network, plan, looks)
                elif stage == "clean":
                    volume = volume or to_network_space(read_volume(data / scan), plan.data)
                    row = {level: {"clean": clean} for level, clean in alone(marks, volume, network, plan).items()}
                else:
                    volume = volume or to_network_space(read_volume(data / scan), plan.data)
                    row = segment_scan(volume, marks, reference, network, plan)
                with open(out, "a") as file:
                    file.write(json.dumps({"weights": name, "scan": scan, "patient": patient, "fold": fold, "result": row}) + "\n")


def evaluate_phantoms(cases: Path, out: Path, weights: dict[str, Path], plan_of: Path) -> None:
    """Boxes and located vertebrae on the synthetic scans that no training saw: a floor, not a proof."""
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset

    from .train_stage import HELD_OUT_PHANTOMS

    plan, dataset = shipped_plans(plan_of)["localize"], PreprocessedDataset(cases / "localize")
    for name, folder in weights.items():
        network = load_localize(folder, plan)
        for case in [c for c in dataset.cases if c.startswith("phantom_")][-HELD_OUT_PHANTOMS:]:
            row = {"boxes": boxes_scan(case, dataset, network, plan), "located": localize_scan(case, dataset, network, plan, ("plan",))}
            with open(out, "a") as file:
                file.write(json.dumps({"weights": name, "case": case, "result": row}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("localize", "boxes", "segment", "clean", "phantoms"))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=Path, required=True, help="folder with localize/ of preprocessed cases")
    parser.add_argument("--weights", nargs="+", required=True, help="NAME=FOLDER with STAGE.pth")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--folds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--min-score", type=float, default=None, help="instead of the plan's least score; looks as the plan says only")
    parser.add_argument("--only", nargs="+", default=[], help="names of scans")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    weights = {name: Path(folder) for name, folder in (text.split("=", 1) for text in args.weights)}
    if args.stage == "phantoms":
        evaluate_phantoms(args.cases, args.out, weights, args.plan)
        return
    evaluate(args.stage, args.data, args.cases, args.out, weights, args.plan, args.folds, args.only, args.min_score)


if __name__ == "__main__":
    main()
