"""Trainer of the shape witness: supervised contrastive pre-training, then head and classifier, then temperature and fusion."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...anatomy import LEVEL_INDEX_OF_LABEL
from ...plans import IdentifyNetwork
from ...training.trainer import BaseTrainer, logger
from .data import MaskBatches, regular_rows
from .fusion import MessageFusion, fit_phi
from .losses import identification_loss, supervised_contrastive
from .network import ShapeNetwork
from .steps import steps_along_spine, whole_positions
from .uncertainty import fit_temperature, monte_carlo


def build_network(network: IdentifyNetwork) -> ShapeNetwork:
    """The plan's shape network with fresh weights."""
    return ShapeNetwork(network.depth, network.width, network.stem_stride, hidden=network.hidden, projection_dim=network.projection_dim,
                        dropout=network.dropout, pool_grid=network.pool_grid)


class IdentifyTrainer(BaseTrainer):
    """Two phases in one schedule of epochs; the epoch figure is the share of single vertebrae named right (0 while contrastive)."""

    stage = "identify"
    network: ShapeNetwork

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._phase = ""
        super().__init__(*args, **kwargs)

    def build_network(self) -> ShapeNetwork:
        self.epochs = self.plan.run.contrastive_epochs + self.plan.run.classifier_epochs
        return build_network(self.plan.network)

    def batch_maker(self, training: bool) -> MaskBatches:
        run = self.plan.run
        contrastive = run.contrastive_epochs * run.iterations_per_epoch if training else 0
        return MaskBatches(self.dataset.folder, self.train_cases if training else self.val_cases or self.train_cases,
                           self.plan.network.crop_size, self.plan.data.spacing_mm, run.batch_size, contrastive,
                           self.seed + (0 if training else 1), augment=training)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        return self._optimizers(contrastive=self.plan.run.contrastive_epochs > 0)

    def _optimizers(self, contrastive: bool) -> tuple[torch.optim.Optimizer, Any]:
        run = self.plan.run
        epochs = run.contrastive_epochs if contrastive else run.classifier_epochs
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        rate = run.contrastive_lr if contrastive else run.classifier_lr
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=run.weight_decay)
        return optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=max(1, epochs * run.iterations_per_epoch), power=0.9)

    def on_epoch_start(self) -> None:
        phase = "contrastive" if self.epoch < self.plan.run.contrastive_epochs else "classifier"
        if phase != self._phase:
            if phase == "classifier" and self.plan.run.freeze_backbone:
                for parameter in self.network.backbone_parameters():
                    parameter.requires_grad_(False)
            self.optimizer, self.scheduler = self._optimizers(phase == "contrastive")
            self._phase = phase

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        run = self.plan.run
        if "spine" not in batch:
            projected = self.network.project(self.network.features(batch["image"])).float()
            with torch.autocast(self.device.type, enabled=False):
                return supervised_contrastive(projected, batch["level"], run.temperature, run.contrastive_loss), {}
        if run.freeze_backbone:
            self.network.freeze_backbone()  # batch statistics too; train() at the epoch's start had released them
        logits = self.network(batch["image"]).float()
        lengths = torch.bincount(batch["spine"]).tolist()
        with torch.autocast(self.device.type, enabled=False):
            return identification_loss(logits, batch["level"], lengths, run.loss_weights)

    def validation_figure(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        logits = self.network(batch["image"]).float()
        loss, _ = identification_loss(logits, batch["level"], torch.bincount(batch["spine"]).tolist(), self.plan.run.loss_weights)
        right = float((logits.argmax(1) == batch["level"]).float().mean())
        return {"loss": float(loss), "score": 0.0 if self._phase == "contrastive" else right}

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Temperature and fusion matrices from the validation rows, which this fold's network has not seen."""
        self.network.eval()
        scans = self._scans()
        logits = torch.cat([s["logits"] for s in scans])
        targets = torch.cat([s["targets"] for s in scans])
        temperature = fit_temperature(logits, targets)
        run = self.plan.run
        fusion = MessageFusion(run.theta, run.hops, run.neighbours)
        rows = []
        for scan in scans:
            mean, uncertainty, _ = monte_carlo(self.network, scan["features"].to(self.device), run.mc_samples, temperature)
            rows.append((mean.cpu().clone(), uncertainty.cpu().clone(), scan["positions"], scan["targets"]))
        with torch.enable_grad():
            curve = fit_phi(fusion, rows)
        self.extra = {"phi": fusion.phi.detach().clone()}
        self.fitted = {"temperature": temperature, "fusion_cross_entropy": [curve[0], curve[-1]], "fitted_on": "validation cases"
                       if self.val_cases and self.val_cases != self.train_cases else "training cases"}
        logger.info("Temperature %.3f; fusion: cross entropy %.4f with shift matrices, %.4f after learning phi.",
                    temperature, curve[0], curve[-1])

    @torch.no_grad()
    def _scans(self) -> list[dict[str, Any]]:
        """Per validation case: features, logits, targets and positions of its vertebrae from head to foot (true masks)."""
        maker = self.batch_maker(training=False)
        scans = []
        for case in maker.cases:
            rows = sorted(regular_rows(self.dataset, [case]), key=lambda row: -row[2][0])
            if not rows:
                continue
            properties = {v["label"]: v for v in self.dataset.properties(case)["vertebrae"].values()}
            masks = torch.from_numpy(maker.masks_of(case)).float()[:, None].to(self.device)
            features = self.network.features(masks).float()
            centres = np.array([properties[label]["body_centre"] for _, label, _ in rows]) * self.plan.data.spacing_mm
            scans.append({"case": case, "features": features.cpu(), "logits": self.network.classify(features).float().cpu(),
                          "targets": torch.tensor([LEVEL_INDEX_OF_LABEL[label] for _, label, _ in rows]),
                          "positions": torch.from_numpy(whole_positions(steps_along_spine(centres)))})
        return scans

    def validate_cases(self) -> dict[str, Any]:
        """True masks of the validation cases: share named right one by one, after fusion, and mean squared level distance."""
        run = self.plan.run
        fusion = MessageFusion(run.theta, run.hops, run.neighbours)
        if "phi" in self.extra:
            fusion.load_state_dict({"phi": self.extra["phi"].cpu()})
        single, fused, squared, per_case = [], [], [], []
        for scan in self._scans():
            mean, uncertainty, _ = monte_carlo(self.network, scan["features"].to(self.device), run.mc_samples,
                                               self.fitted.get("temperature", 1.0))
            with torch.no_grad():
                after = fusion(mean.cpu().clone(), uncertainty.cpu().clone(), scan["positions"])
            targets = scan["targets"]
            single += (mean.cpu().argmax(1) == targets).tolist()
            fused += (after.argmax(1) == targets).tolist()
            squared += ((after.argmax(1) - targets) ** 2).tolist()
            per_case.append({"case": scan["case"], "vertebrae": len(targets), "right": int((after.argmax(1) == targets).sum())})
            if self.save_probabilities:
                (self.folder / "validation").mkdir(parents=True, exist_ok=True)
                np.savez_compressed(self.folder / "validation" / f"{scan['case']}.npz", probabilities=mean.cpu().numpy(),
                                    fused=after.numpy(), level=targets.numpy())
        return {"stage": self.stage, "id_rate_single": float(np.mean(single)), "id_rate_fused": float(np.mean(fused)),
                "mse_fused": float(np.mean(squared)), "metric_per_case": per_case}
