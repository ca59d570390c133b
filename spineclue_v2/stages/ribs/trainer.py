"""Trainer of the ribs classifier."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...plans.plans import Plans
from ...training.temperature import fit_temperature
from ...training.trainer import BaseTrainer
from .data import RibsBatches, rows_of_case
from .features import inputs_of
from .groups import GROUP_OF
from .network import network_of_plans


class RibsTrainer(BaseTrainer):
    """Cross entropy; the epoch metric is the fraction of vertebrae whose group of levels is right."""

    stage = "ribs"
    metric = "groups right"
    bfloat16 = False  # distances

    @classmethod
    def build_network(cls, plans: Plans) -> torch.nn.Module:
        return network_of_plans(plans)

    def has_samples(self, cases: list[str]) -> bool:
        return any(rows_of_case(self.dataset, case)[0] for case in cases)

    def smallest_grid(self) -> None:
        return None

    def batch_sampler(self, training: bool) -> RibsBatches:
        return RibsBatches(self.dataset.folder, self.batch_cases(training), self.plan, self.seed + (0 if training else 1), augment=training)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        return functional.cross_entropy(self.network(batch["inputs"]).float(), batch["group"]), {}

    def validation_metric(self, batch: dict[str, Tensor]) -> dict[str, float]:
        logits = self.network(batch["inputs"]).float()
        return {"loss": float(functional.cross_entropy(logits, batch["group"])),
                "score": float((logits.argmax(1) == batch["group"]).float().mean())}

    def on_train_end(self) -> None:
        """Temperature from the validation cases, which this fold's network has not seen."""
        logits, groups = map(torch.cat, zip(*self._rows().values(), strict=True))
        self.fitted = {"temperature": fit_temperature(logits, groups)}

    @torch.no_grad()
    def _rows(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{validation case: (logits (n, groups), groups (n,))}."""
        self.network.eval()
        maker, rows = self.batch_sampler(training=False), {}
        for case in maker.cases:
            scan = maker.case(self.dataset, case)
            if scan.names:
                logits = self.network(torch.from_numpy(inputs_of(scan.found)).to(self.device)).float().cpu()
                rows[case] = logits, torch.tensor([GROUP_OF[name] for name in scan.names])
        return rows

    def validate_cases(self) -> dict[str, Any]:
        """Validation cases, true centres: fraction of vertebrae whose group is right one by one."""
        right = {case: (logits.argmax(1) == groups).float() for case, (logits, groups) in self._rows().items()}
        return {"stage": self.stage, "groups_right": float(torch.cat(list(right.values())).mean()),
                "metric_per_case": [{"case": case, "vertebrae": len(r), "right": int(r.sum())} for case, r in right.items()]}
