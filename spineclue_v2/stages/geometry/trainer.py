"""Trainer of the geometry classifier."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ...plans.plans import Plans
from ...training.distributed import shard_of
from ...training.temperature import fit_temperature
from ...training.trainer import BaseTrainer
from .data import SpineBatches, landmarks_of, member_batch
from .landmarks import UNKNOWN
from .network import GeometryNetwork, network_of_plans
from .predictor import LEAST, level_probabilities


class GeometryTrainer(BaseTrainer):
    """Cross entropy of every member on its own random views of spines; the epoch metric is the fraction of detections named right."""

    stage = "geometry"
    metric = "levels right"
    bfloat16 = False  # distances
    network: GeometryNetwork

    @classmethod
    def build_network(cls, plans: Plans) -> GeometryNetwork:
        return network_of_plans(plans)

    def has_samples(self, cases: list[str]) -> bool:
        return any(landmarks_of(self.dataset, case) is not None for case in cases)

    def batch_sampler(self, training: bool) -> SpineBatches:
        return SpineBatches(self.dataset.folder, self.batch_cases(training), self.plan, self.seed + (0 if training else 1),
                            with_phantom=training, augment=training)

    def smallest_grid(self) -> None:
        return None

    def shard(self, batch: dict[str, torch.Tensor], part: int, parts: int) -> dict[str, torch.Tensor]:
        return {name: value[shard_of(len(value), part, parts)] for name, value in batch.items()}

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        total = torch.zeros((), device=self.device)
        for number, member in enumerate(self.network.members):
            own = member_batch(batch, number)
            total = total + F.cross_entropy(member(own).float().flatten(0, 1), own.targets.flatten(), ignore_index=UNKNOWN,
                                            label_smoothing=self.plan.run.label_smoothing)
        return total / len(self.network.members), {}

    def validation_metric(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        own = member_batch(batch, 0)
        found, known = self.network(own), own.targets != UNKNOWN
        return {"loss": float(F.nll_loss(found[known].clamp_min(LEAST).log(), own.targets[known])),
                "score": float((found.argmax(-1) == own.targets)[known].float().mean())}

    def on_train_end(self) -> None:
        """Temperature from the centres of the validation cases, which this fold's network has not seen."""
        rows = list(self._rows().values())
        logits = torch.cat([torch.from_numpy(np.log(np.maximum(found, LEAST))) for found, _ in rows])
        self.fitted = {"temperature": fit_temperature(logits, torch.cat([torch.from_numpy(true) for _, true in rows])), "inputs": []}

    def _rows(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{validation case: (probabilities (n, CLASSES), classes (n,))}."""
        self.network.eval()
        scans = {case: found for case in self.batch_cases(training=False) if (found := landmarks_of(self.dataset, case)) is not None}
        network = self.network.cpu()
        rows = level_probabilities(network, list(scans.values()))
        self.network.to(self.device)
        return {case: (found, np.asarray(scan.targets)) for (case, scan), found in zip(scans.items(), rows, strict=True)}

    def validate_cases(self) -> dict[str, Any]:
        """Validation cases, true centres: fraction of vertebrae named right one by one."""
        right = {case: found.argmax(1) == true for case, (found, true) in self._rows().items()}
        return {"stage": self.stage, "id_rate_single": float(np.concatenate(list(right.values())).mean()),
                "metric_per_case": [{"case": case, "vertebrae": len(r), "right": int(r.sum())} for case, r in right.items()]}
