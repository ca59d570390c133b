"""Trainer of the slice detector."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...anatomy import IGNORED
from ...dataset.preprocessed import PreprocessedDataset
from ...imageio.grid import ImageGrid
from ...plans.plans import Plans
from ...training.distributed import shard_of
from ...training.trainer import BaseTrainer
from .data import SliceBatches
from .network import SliceDetector, network_of_plans

MATCH_IOU = 0.5


class LocalizeTrainer(BaseTrainer):
    """Ultralytics network and loss in our loop; the epoch metric is the F1 of slice boxes at IoU 0.5."""

    stage = "localize"
    bfloat16 = False  # coordinates
    network: SliceDetector

    @classmethod
    def build_network(cls, plans: Plans) -> SliceDetector:
        return network_of_plans(plans)

    def batch_sampler(self, training: bool) -> SliceBatches:
        return SliceBatches(self.dataset.folder, self.batch_cases(training),
                            self.plan.data.windows_hu, self.plan.network.slice_size, self.plan.data.spacing_mm,
                            self.plan.run.batch_size, self.seed + (0 if training else 1), augment=training)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        loss = self.network.loss(batch["image"], batch["batch_index"], batch["boxes"])
        return loss, {}

    def shard(self, batch: dict[str, torch.Tensor], part: int, parts: int) -> dict[str, torch.Tensor]:
        mine = shard_of(len(batch["image"]), part, parts)
        own = (batch["batch_index"] >= mine.start) & (batch["batch_index"] < mine.stop)
        return {"image": batch["image"][mine], "batch_index": batch["batch_index"][own] - mine.start, "boxes": batch["boxes"][own]}

    def validation_metric(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        loss = self.network.loss(batch["image"], batch["batch_index"], batch["boxes"])
        found = self.network.boxes(batch["image"], self.plan.run.min_score, self.plan.run.nms_iou)
        height, width = batch["image"].shape[-2:]
        hits = predicted = true = 0
        for slot, boxes in enumerate(found):
            wanted = batch["boxes"][batch["batch_index"] == slot].cpu()
            corners = torch.cat([wanted[:, :2] - wanted[:, 2:] / 2, wanted[:, :2] + wanted[:, 2:] / 2], dim=1)
            corners = corners * torch.tensor([width, height, width, height])
            hits += matched_boxes(boxes[:, :4], corners)
            predicted, true = predicted + len(boxes), true + len(wanted)
        return {"loss": float(loss), "score": 2 * hits / max(1, predicted + true)}

    def validate_cases(self) -> dict[str, Any]:
        """Whole validation volumes through slices and clustering: a true vertebra is found when a centre lies within 10 mm."""
        from ...imageio.volume import Volume
        from .predictor import locate

        hits = predicted = true = 0
        errors: list[float] = []
        per_case = []
        for case in self.val_cases or self.train_cases:
            properties = self.dataset.properties(case)
            volume = Volume(self.dataset.image(case)[:], ImageGrid.from_json(properties["geometry"]))
            found = locate(volume, [self.network], self.plan, self.device)
            wanted = np.array([(np.array(v["start"]) + np.array(v["stop"]) - 1) / 2 for v in properties["vertebrae"].values()
                               ]).reshape(-1, 3)
            centres = annotated_only(np.array([v.box_centre for v in found]).reshape(-1, 3), self.dataset, case)
            matched, distances = match_centres(centres, volume.geometry.index_to_world(wanted))
            errors += distances
            hits, predicted, true = hits + matched, predicted + len(centres), true + len(wanted)
            per_case.append({"case": case, "hits": matched, "predicted": len(centres), "true": len(wanted)})
        return {"stage": self.stage, "precision": hits / max(1, predicted), "recall": hits / max(1, true),
                "f1": 2 * hits / max(1, predicted + true), "mean_centre_error_mm": float(np.mean(errors)) if errors else None,
                "metric_per_case": per_case}


def matched_boxes(predicted: torch.Tensor, true: torch.Tensor) -> int:
    """One-to-one matches at IoU 0.5, best predictions first."""
    if not len(predicted) or not len(true):
        return 0
    low = torch.maximum(predicted[:, None, :2], true[None, :, :2])
    high = torch.minimum(predicted[:, None, 2:], true[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = (predicted[:, 2:] - predicted[:, :2]).prod(-1)[:, None] + (true[:, 2:] - true[:, :2]).prod(-1)[None]
    iou = shared / (areas - shared).clamp(min=1e-6)
    free, hits = torch.ones(len(true), dtype=torch.bool), 0
    for row in iou:
        value, column = (row * free).max(0)
        if value >= MATCH_IOU:
            free[column] = False
            hits += 1
    return hits


def annotated_only(centres: np.ndarray, dataset: PreprocessedDataset, case: str) -> np.ndarray:
    """Those of `centres` (n, 3) LPS mm that lie where a preprocessed case is annotated: elsewhere they are neither right nor wrong."""
    properties = dataset.properties(case)
    if not properties.get("partly_annotated") or not len(centres):
        return centres
    labels = dataset.labels(case)[:]
    index = np.round(ImageGrid.from_json(properties["geometry"]).world_to_index(centres)).astype(int)
    return centres[labels[tuple(np.clip(index, 0, np.array(labels.shape) - 1).T)] != IGNORED]


def match_centres(predicted: np.ndarray, true: np.ndarray, radius_mm: float = 10.0) -> tuple[int, list[float]]:
    """One-to-one matches of centres (n, 3), (m, 3) within `radius_mm`: their number and distances."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    if not len(predicted) or not len(true):
        return 0, []
    distance = cdist(predicted, true)
    rows, columns = linear_sum_assignment(np.where(distance <= radius_mm, distance, 1e3))
    kept = [float(d) for d in distance[rows, columns] if d <= radius_mm]
    return len(kept), kept
