"""Three ways from slice boxes to vertebrae, on the same boxes: `python -m benchmarks.clustering_table -o DIR [--cases 30]`.

DIR is a folder of benchmarks.held_out (its scans are made when missing). Rows: the dual-factor clustering as shipped, the same
without the chain, the position factor alone, and greedy 3D non-maximum suppression of the boxes. A vertebra counts as found when the
middle of a result lies within 12 mm of the middle of its true mask's bounding box, one to one; the error is the mean of these distances.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RADIUS_MM = 12.0
NMS_IOU = 0.25
NMS_LEAST_SCORE = (0.3, 0.4, 0.5, 0.6)


def single_factor(boxes: Any, run: Any, gaps: dict[str, float]) -> np.ndarray:
    """DBSCAN on the bodies' places alone; centres (n, 3) of what supports a vertebra."""
    from spineclue_v2.stages.localize import clustering as c

    expected = c.expected_boxes(gaps)
    bodies = c.body_places(boxes)
    index = np.flatnonzero(bodies.usable)
    least = max(2, round(run.min_samples_fraction * expected))
    labels = c.position_clusters(bodies.centre[index], c.linked_scale(run, gaps), run.eps_mm, least)
    groups = [index[labels == label] for label in range(labels.max(initial=-1) + 1)]
    return np.array([c._summarise(boxes, bodies, g, expected).centre for g in groups
                     if len(g) >= c.LEAST_BOXES and c.hits(boxes.plane[g], gaps) >= run.min_samples_fraction]).reshape(-1, 3)


def suppressed(boxes: Any, least_score: float) -> np.ndarray:
    """Greedy 3D NMS: every box becomes a cuboid as deep as a vertebra is wide (sagittal) or deep (coronal); best scores first."""
    depth = np.where(boxes.plane == 0, 50.0, 70.0)
    points, sizes = boxes.points, boxes.sizes
    sagittal = boxes.plane == 0
    size = np.stack([sizes[:, 0], np.where(sagittal, sizes[:, 1], depth), np.where(sagittal, depth, sizes[:, 1])], axis=1)
    low, high = points - size / 2, points + size / 2
    volume = size.prod(1)
    kept: list[int] = []
    for i in np.argsort(-boxes.score, kind="stable"):
        if boxes.score[i] < least_score:
            break
        shared = np.array([np.clip(np.minimum(high[i], high[j]) - np.maximum(low[i], low[j]), 0, None).prod() for j in kept])
        if not len(kept) or (shared / (volume[i] + volume[kept] - shared) < NMS_IOU).all():
            kept.append(int(i))
    return points[kept].reshape(-1, 3)


def methods(plan: Any) -> dict[str, Callable[[Any, dict[str, float]], np.ndarray]]:
    from spineclue_v2.stages.localize.clustering import cluster_boxes
    from spineclue_v2.stages.localize.predictor import find_spine

    def centres(clusters: list[Any]) -> np.ndarray:
        return np.array([c.centre for c in clusters]).reshape(-1, 3)

    table: dict[str, Callable[[Any, dict[str, float]], np.ndarray]] = {
        "dual-factor, chain": lambda boxes, gaps: centres(find_spine(boxes, gaps, plan, 1)),
        "dual-factor": lambda boxes, gaps: centres(cluster_boxes(boxes, plan.run, gaps)),
        "single-factor": lambda boxes, gaps: single_factor(boxes, plan.run, gaps)}
    for score in NMS_LEAST_SCORE:
        table[f"3D NMS, score {score}"] = lambda boxes, gaps, score=score: suppressed(boxes, score)
    return table


def true_centres(path: Path, plan: Any) -> np.ndarray:
    """Middles (n, 3) (z, y, x) mm in network space of the true masks' bounding boxes."""
    from spineclue_v2.anatomy.label_boxes import label_boxes
    from spineclue_v2.imageio.orientation import oriented_view
    from spineclue_v2.imageio.volume import read_labels
    from spineclue_v2.preprocessing.resampling import network_grid

    labels = oriented_view(read_labels(path), plan.data.orientation)
    geometry = network_grid(labels.geometry, plan.data)
    middles = [[(part.start + part.stop - 1) / 2 for part in box] for box in label_boxes(labels.array).values()]
    index = geometry.world_to_index(labels.geometry.index_to_world(np.array(middles).reshape(-1, 3)))
    return (index + 0.5) * plan.data.spacing_mm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", required=True, type=Path)
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("-d", default=None, help="dataset whose trained model to use, default: the shipped weights")
    args = parser.parse_args()
    from benchmarks.held_out import make_scans
    from spineclue_v2 import SpineCLUE
    from spineclue_v2.imageio.volume import read_volume
    from spineclue_v2.preprocessing.resampling import to_network_space
    from spineclue_v2.stages.localize.predictor import detect
    from spineclue_v2.stages.localize.trainer import match_centres

    make_scans(args.o, args.cases)
    model = SpineCLUE.from_pretrained(args.d, None, "cpu").model
    plan = model.plans.stage("localize")
    rows = {name: [0, 0, 0, 0.0] for name in methods(plan)}
    for scan in sorted((args.o / "scans").glob("*.nii.gz"))[:args.cases]:
        boxes, gaps = detect(to_network_space(read_volume(scan), plan.data), model.stages["localize"].networks, plan, model.device)
        wanted = true_centres(args.o / "truth" / scan.name, plan)
        for name, method in methods(plan).items():
            found = method(boxes, gaps)
            hits, distances = match_centres(found, wanted, RADIUS_MM)
            row = rows[name]
            row[0], row[1], row[2], row[3] = row[0] + hits, row[1] + len(found), row[2] + len(wanted), row[3] + sum(distances)
    print(f"{'method':22s} {'true':>5s} {'found':>6s} {'false':>6s} {'F1':>6s} {'centre error mm':>16s}")
    for name, (hits, found, wanted, total) in rows.items():
        f1, error = 2 * hits / max(1, found + wanted), total / max(1, hits)
        print(f"{name:22s} {wanted:5d} {hits:6d} {found - hits:6d} {f1:6.3f} {error:16.2f}")


if __name__ == "__main__":
    main()
