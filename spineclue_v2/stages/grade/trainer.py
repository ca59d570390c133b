"""Trainer of stage `grade`: supervised contrastive loss on two views and a classifier, in one phase; then heights are enabled beside it."""
from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import InputError
from ...evaluation.grading import auc, summarise
from ...plans.plans import Plans
from ...training.device import autocast
from ...training.losses import supervised_contrastive
from ...training.trainer import BaseTrainer
from ...utilities.files import write_json
from .data import GradeBatches, graded_rows, stored_crop, stored_losses
from .network import GRADES, GradeNet, network_of_plans
from .ordinal_fusion import OrdinalFusion

logger = logging.getLogger("spineclue_v2.training")

FORM = "out"              # Khosla et al. 2020, Eq. 2
FAR = 2.0                 # ordinal targets: each grade further away gets e^-2 of the one before
VALIDATION_CROPS = 8


class GradeTrainer(BaseTrainer):
    """L = contrastive_weight * L_supcon + L_ce (Wei et al., arXiv 2208.10698); the epoch metric is the AUC of grade >= 1."""

    stage = "grade"
    metric = "area under the ROC curve"
    network: GradeNet

    def set_up(self) -> None:
        grades = {grade for _, _, grade in graded_rows(self.dataset, self.train_cases)}
        if len(grades) < 2:
            raise InputError(f"Fold {self.fold} of {self.plans.dataset_name} has vertebrae of {len(grades)} Genant grades to train on; "
                             "expected at least two (gradesTr/CASE.json; after adding any, spineclue_plan_and_preprocess).")

    @classmethod
    def build_network(cls, plans: Plans) -> GradeNet:
        return network_of_plans(plans)

    def smallest_grid(self) -> tuple[int, ...]:
        return tuple(n // 2 ** len(self.plan.network.features) for n in self.plan.network.crop_size)

    def batch_sampler(self, training: bool) -> GradeBatches:
        network, run = self.plan.network, self.plan.run
        views = 2 if training and run.contrastive_weight > 0 else 1
        return GradeBatches(self.dataset.folder, self.batch_cases(training), network.crop_size, network.windows_hu, run.batch_size,
                            self.seed + (0 if training else 1), views, augment=training)

    def has_samples(self, cases: list[str]) -> bool:
        return bool(graded_rows(self.dataset, cases))

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        run = self.plan.run
        features = self.network.features(batch["image"]).float()
        with torch.autocast(self.device.type, enabled=False):
            logits = self.network.classifier(features.detach() if run.detach_classifier else features)
            total = F.cross_entropy(logits, targets(batch["grade"], run.ordinal))
            if run.contrastive_weight > 0:
                projected = self.network.project(features)
                total = total + run.contrastive_weight * supervised_contrastive(projected, batch["grade"], run.temperature, FORM)
        return total, {}

    def validation_metric(self, batch: dict[str, Tensor]) -> dict[str, float]:
        logits = self.network(batch["image"]).float()
        fractured = (batch["grade"] >= 1).cpu().numpy()
        area = auc(fractured, 1 - logits.softmax(1)[:, 0].cpu().numpy())
        loss = F.cross_entropy(logits, targets(batch["grade"], self.plan.run.ordinal))
        return {"loss": float(loss), "score": area if area == area else 0.5}

    def on_train_end(self) -> None:
        """Weigh the network against the heights on the validation cases (true masks), whose vertebrae it has not seen."""
        if not self.val_cases or not self.has_samples(self.val_cases):
            logger.warning("No graded validation case in this fold: the network's grade will not be combined with the heights.")
            return
        self.network.eval()
        rows, found = self._validation_rows()
        losses = [stored_losses(self.dataset.folder, case).get(level) for case, level, _ in rows]
        known = np.array([loss is not None for loss in losses], dtype=bool)
        combined = OrdinalFusion.fit(np.array([grade for _, _, grade in rows])[known], found[known],
                                   [loss for loss in losses if loss is not None])
        if combined is not None:
            self.fitted = {"combination": combined.to_json(), "fitted_on": f"{int(known.sum())} vertebrae, true masks"}

    def validate_cases(self) -> dict[str, Any]:
        """Every graded vertebra of the validation cases with its true mask; rows go to validation/grades.json."""
        rows, found = self._validation_rows()
        (self.folder / "validation").mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "validation" / "grades.json", [
            {"case": case, "level": level, "grade": grade, "probabilities": [round(float(p), 5) for p in row]}
            for (case, level, grade), row in zip(rows, found, strict=True)])
        patients = self.patients()
        summary = summarise([grade for _, _, grade in rows], found.argmax(1), 1 - found[:, 0],
                            [patients.get(case, case) for case, _, _ in rows])
        return {"stage": self.stage, "macro_f1": summary["per_vertebra"]["macro_f1"], "auc_1": summary["per_vertebra"]["auc_1"], **summary}

    @torch.no_grad()
    def _validation_rows(self) -> tuple[list[tuple[str, str, int]], np.ndarray]:
        """Graded vertebrae of the validation cases and the network's probabilities (n, 4) of them."""
        rows, probabilities = graded_rows(self.dataset, self.batch_cases(training=False)), []
        network = self.plan.network
        for begin in range(0, len(rows), VALIDATION_CROPS):
            crops = [stored_crop(self.dataset, case, level, network.crop_size, network.windows_hu)
                     for case, level, _ in rows[begin:begin + VALIDATION_CROPS]]
            with autocast(self.device):
                probabilities.append(self.network.probabilities(torch.from_numpy(np.stack(crops)).to(self.device)).cpu().numpy())
        return rows, np.concatenate(probabilities)

    def patients(self) -> dict[str, str]:
        """case -> patient, as the dataset describes them."""
        from ...dataset.splits import patients_of

        base = self.dataset.folder.parent
        return patients_of(base) if (base / "dataset.json").is_file() else {}


def targets(grades: Tensor, ordinal: bool) -> Tensor:
    """(B,) grades -> (B, 4) target probabilities: one-hot, or falling by e^-FAR per grade of distance (Diaz and Marathe 2019)."""
    if not ordinal:
        return F.one_hot(grades, GRADES).float()
    distance = (grades[:, None] - torch.arange(GRADES, device=grades.device)).abs().float()
    return (-FAR * distance).softmax(dim=1)
