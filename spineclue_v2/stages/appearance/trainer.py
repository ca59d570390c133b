"""Trainer of the appearance classifier."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...dataset.vertebra_rows import regular_rows
from ...plans.plans import Plans
from ...training.temperature import fit_temperature
from ...training.trainer import BaseTrainer
from .data import AppearanceBatches
from .network import AppearanceEnsemble, AppearanceNetwork, network_of_plans


class AppearanceTrainer(BaseTrainer):
    """Cross entropy; the epoch metric is the fraction of crops named right."""

    stage = "appearance"
    metric = "levels right"
    network: AppearanceNetwork | AppearanceEnsemble

    @classmethod
    def build_network(cls, plans: Plans) -> AppearanceNetwork | AppearanceEnsemble:
        return network_of_plans(plans)

    def has_samples(self, cases: list[str]) -> bool:
        return bool(regular_rows(self.dataset, cases))

    def batch_sampler(self, training: bool) -> AppearanceBatches:
        return AppearanceBatches(self.dataset.folder, self.batch_cases(training), self.plan,
                                 self.seed + (0 if training else 1), augment=training)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        return functional.cross_entropy(self.network(batch["image"]).float(), batch["level"]), {}

    def validation_metric(self, batch: dict[str, Tensor]) -> dict[str, float]:
        logits = self.network(batch["image"]).float()
        return {"loss": float(functional.cross_entropy(logits, batch["level"])),
                "score": float((logits.argmax(1) == batch["level"]).float().mean())}

    def on_train_end(self) -> None:
        """Temperature from the validation rows, which this fold's network has not seen."""
        logits, targets = map(torch.cat, zip(*self._rows().values(), strict=True))
        self.fitted = {"temperature": fit_temperature(logits, targets)}

    @torch.no_grad()
    def _rows(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{validation case: (logits (n, 25), levels (n,))}."""
        self.network.eval()
        maker = self.batch_sampler(training=False)
        maker.prepare()
        rows = {}
        for case in maker.cases:
            images, levels = maker.rows_of(case)
            if len(levels):
                rows[case] = self.network(images.to(self.device)).float().cpu(), levels
        return rows

    def validate_cases(self) -> dict[str, Any]:
        """Validation cases, true centres: share of vertebrae named right one by one."""
        right = {case: (logits.argmax(1) == levels).float() for case, (logits, levels) in self._rows().items()}
        return {"stage": self.stage, "id_rate_single": float(torch.cat(list(right.values())).mean()),
                "metric_per_case": [{"case": case, "vertebrae": len(r), "right": int(r.sum())} for case, r in right.items()]}
