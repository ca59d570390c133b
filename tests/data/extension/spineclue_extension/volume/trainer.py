"""Training of stage volume: a few hooks of `BaseTrainer`; the loop, checkpoints, resume and logs are its own."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spineclue_v2 import BaseTrainer
from spineclue_v2.dataset.vertebra_rows import vertebra_table
from spineclue_v2.plans.plans import Plans

from .data import VolumeBatches
from .network import build_network


class VolumeTrainer(BaseTrainer):
    """Squared error of the logarithm."""

    stage = "volume"
    bfloat16 = False     # three digits are too few for a volume

    @classmethod
    def build_network(cls, plans: Plans) -> nn.Module:
        return build_network(plans)

    def has_samples(self, cases: list[str]) -> bool:
        return bool(vertebra_table(self.dataset, cases))

    def batch_sampler(self, training: bool) -> VolumeBatches:
        return VolumeBatches(self.dataset.folder, self.batch_cases(training), self.plan, self.seed + (0 if training else 1))

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        return functional.mse_loss(self.network(batch["image"]), batch["log_ml"]), {}

    def validation_metric(self, batch: dict[str, Tensor]) -> dict[str, float]:
        error = float(self.loss(batch)[0])
        return {"loss": error, "score": -error}

    @torch.no_grad()
    def validate_cases(self) -> dict[str, Any]:
        """Mean relative error of the volumes over the validation batches."""
        sampler = self.batch_sampler(training=False)
        batches = [sampler(index) for index in range(4)]
        errors = torch.cat([(self.network(b["image"].to(self.device)).cpu() - b["log_ml"]).exp() - 1 for b in batches])
        return {"stage": self.stage, "relative_error": float(errors.abs().mean())}
