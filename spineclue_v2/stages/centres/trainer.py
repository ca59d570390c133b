"""Trainer of the heat maps of body centres."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...imageio.grid import ImageGrid
from ...imageio.volume import Volume
from ...plans.plans import Plans
from ...training.trainer import BaseTrainer
from .data import PatchBatches, case_row
from .network import network_of_plans
from .row import BODY

NEAR_MM = 10.0      # a peak so near a body's centre has found it


class CentresTrainer(BaseTrainer):
    """Weighted squared error of the heat maps; the epoch metric is 1 - error at the bodies' centres."""

    stage = "centres"
    metric = "height at the centres"

    @classmethod
    def build_network(cls, plans: Plans) -> torch.nn.Module:
        return network_of_plans(plans)

    def has_samples(self, cases: list[str]) -> bool:
        return any(len(case_row(self.dataset, case).bodies) for case in cases)

    def smallest_grid(self) -> tuple[int, ...] | None:
        network = self.plan.network
        return tuple(n // 2 ** (len(network.features) - 1) for n in network.patch_size)

    def batch_sampler(self, training: bool) -> PatchBatches:
        return PatchBatches(self.dataset.folder, self.batch_cases(training), self.plan, self.seed + (0 if training else 1),
                            augment=training)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        logits = self.network(batch["image"])
        with torch.autocast(self.device.type, enabled=False):
            return heat_loss(logits.float(), batch["target"], batch["weight"], self.plan.run.peak_weight), {}

    def validation_metric(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        logits = self.network(batch["image"]).float()
        at = (batch["target"][:, BODY] > 0.8) & (batch["weight"][:, BODY] > 0)
        height = logits[:, BODY].sigmoid()[at]
        return {"loss": float(heat_loss(logits, batch["target"], batch["weight"], self.plan.run.peak_weight)),
                "score": float(height.mean()) if len(height) else 0.0}

    def validate_cases(self) -> dict[str, Any]:
        """Whole validation cases, looked at along their true rows: bodies found, and peaks between them that are none."""
        from .predictor import heat_maps
        from .row import best_chain, find_peaks

        per_case: list[dict[str, Any]] = []
        for case in self.val_cases or self.train_cases:
            row = case_row(self.dataset, case)
            if not len(row.bodies):
                continue
            volume = Volume(self.dataset.image(case)[:], ImageGrid.from_json(self.dataset.properties(case)["geometry"]))
            spacing = self.plan.data.spacing_mm
            heat = heat_maps(volume.array, row.bodies, [self.network], self.plan, self.device)
            chain = best_chain(find_peaks(heat[BODY], self.plan.run.least_score, spacing), spacing)
            peaks = np.array([peak.place for peak in chain]).reshape(-1, 3)
            distance = np.linalg.norm(peaks[:, None] - row.bodies[None], axis=-1) * spacing
            found = int((distance < NEAR_MM).any(0).sum()) if len(peaks) else 0
            inside = (peaks[:, 0] < row.top) & (peaks[:, 0] > row.bottom)
            per_case.append({"case": case, "bodies": len(row.bodies), "found": found, "false": max(0, int(inside.sum()) - found)})
        bodies = sum(entry["bodies"] for entry in per_case)
        return {"stage": self.stage, "found": sum(entry["found"] for entry in per_case) / bodies if bodies else None,
                "false": sum(entry["false"] for entry in per_case), "metric_per_case": per_case}


def heat_loss(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, peak_weight: float) -> torch.Tensor:
    """Mean squared error of sigmoid(logits) and `target` (B, 2, z, y, x), in units of `peak_weight`: a voxel counts `weight` times
    1 + `peak_weight` * target, because centres are few."""
    squares = (1 + peak_weight * target) * (logits.sigmoid() - target) ** 2
    return peak_weight * (weight * squares).sum() / weight.sum().clamp(min=1)
