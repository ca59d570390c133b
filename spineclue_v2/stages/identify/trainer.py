"""Trainer of the shape classifier: supervised contrastive pre-training, then head and classifier, then temperature and fusion."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...anatomy import LEVEL_INDEX, LEVEL_INDEX_OF_LABEL
from ...anatomy.vertebral_gaps import round_positions, vertebral_gaps
from ...dataset.vertebra_rows import regular_rows
from ...plans.plans import Plans
from ...preprocessing.crops import mask_crop
from ...training.distributed import gather_rows, shard_of
from ...training.losses import supervised_contrastive
from ...training.optimizers import build_optimizer, poly_schedule
from ...training.trainer import BaseTrainer, logger
from .data import MaskBatches
from .fitting import HALVES, ScanRows, fit_halves, fit_rows, fitted_without
from .fusion import fusion_with
from .losses import identification_loss
from .network import LevelNetwork, network_of_plans
from .uncertainty import monte_carlo


class IdentifyTrainer(BaseTrainer):
    """Two phases in one schedule of epochs; the epoch metric is the share of single vertebrae named right (0 while contrastive)."""

    stage = "identify"
    metric = "levels right"
    network: LevelNetwork

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._phase = ""
        super().__init__(*args, **kwargs)

    @classmethod
    def build_network(cls, plans: Plans) -> LevelNetwork:
        return network_of_plans(plans)

    def planned_epochs(self) -> int:
        return int(self.plan.run.contrastive_epochs + self.plan.run.classifier_epochs)

    def has_samples(self, cases: list[str]) -> bool:
        return bool(regular_rows(self.dataset, cases))

    def batch_sampler(self, training: bool) -> MaskBatches:
        run = self.plan.run
        contrastive = run.contrastive_epochs * run.iterations_per_epoch if training else 0
        return MaskBatches(self.dataset.folder, self.batch_cases(training),
                           self.plan.network.crop_size, self.plan.data.spacing_mm, run.batch_size, contrastive,
                           self.seed + (0 if training else 1), augment=training, classifier_batch_size=run.classifier_batch)

    def smallest_grid(self) -> tuple[int, ...]:
        return tuple(n // (self.plan.network.stem_stride * 8) for n in self.plan.network.crop_size)  # three strided stages follow the stem

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        return self._optimizers(contrastive=self.plan.run.contrastive_epochs > 0)

    def _optimizers(self, contrastive: bool) -> tuple[torch.optim.Optimizer, Any]:
        run = self.plan.run
        epochs = run.contrastive_epochs if contrastive else run.classifier_epochs
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        rate = run.contrastive_lr if contrastive else run.classifier_lr
        optimizer = build_optimizer(run.optimizer, parameters, rate, run.weight_decay)
        return optimizer, poly_schedule(optimizer, epochs * run.iterations_per_epoch)

    def on_epoch_start(self) -> None:
        phase = "contrastive" if self.epoch < self.plan.run.contrastive_epochs else "classifier"
        if phase != self._phase:
            if phase == "classifier" and self.plan.run.freeze_backbone:
                for parameter in self.network.backbone_parameters():
                    parameter.requires_grad_(False)
            self.optimizer, self.scheduler = self._optimizers(phase == "contrastive")
            self._phase = phase

    def metric_meaning(self) -> str:
        return "" if self._phase == "contrastive" else self.metric

    def schedule_start(self) -> int:
        return self.plan.run.contrastive_epochs if self._phase == "classifier" else 0

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        run = self.plan.run
        if "spine" not in batch:
            projected = gather_rows(self.network.project(self.network.features(batch["image"])).float(), len(batch["level"]))
            with torch.autocast(self.device.type, enabled=False):
                return supervised_contrastive(projected, batch["level"], run.temperature, run.contrastive_loss), {}
        if run.freeze_backbone:
            self.network.freeze_backbone()  # batch statistics too; train() at the epoch's start had released them
        logits = gather_rows(self.network(batch["image"]).float(), len(batch["level"]))
        lengths = torch.bincount(batch["spine"]).tolist()
        with torch.autocast(self.device.type, enabled=False):
            return identification_loss(logits, batch["level"], lengths, run.loss_weights)

    def shard(self, batch: dict[str, torch.Tensor], part: int, parts: int) -> dict[str, torch.Tensor]:
        # Masks are shared out; levels and spines stay whole, for the loss is that of the outputs of all processes.
        return batch | {"image": batch["image"][shard_of(len(batch["level"]), part, parts)]}

    def micro_batches(self, batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        if "spine" in batch:
            count = int(batch["spine"].max()) + 1
            if count < 2:
                return [batch]
            middle = shard_of(count, 0, 2).stop
            chosen = [batch["spine"] < middle, batch["spine"] >= middle]
            return [{key: value[own] for key, value in batch.items()} | {"spine": batch["spine"][own] - batch["spine"][own].min()}
                    for own in chosen]
        pairs = len(batch["level"]) // 2  # both views of a mask go into one half
        parts = [torch.arange(mine.start, mine.stop) for mine in (shard_of(pairs, 0, 2), shard_of(pairs, 1, 2))]
        return [{key: value[torch.cat([own, own + pairs])] for key, value in batch.items()} for own in parts]

    def validation_metric(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        logits = self.network(batch["image"]).float()
        loss, _ = identification_loss(logits, batch["level"], torch.bincount(batch["spine"]).tolist(), self.plan.run.loss_weights)
        right = float((logits.argmax(1) == batch["level"]).float().mean())
        return {"loss": float(loss), "score": 0.0 if self._phase == "contrastive" else right}

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Temperature and fusion matrices from the validation rows, which this fold's network has not seen.

        The masks are those that this fold's segment network predicted, where it is trained, else the true ones.
        """
        self.network.eval()
        found = self._found_scans()
        scans = found or self._scans()
        fit = fit_rows(self.network, scans, self.plan.run, self.device)
        halves, tensors = fit_halves(self.network, scans, self.plan.run, self.device)
        self.extra = {"phi": fit.phi, **tensors}
        cases = "training cases" if self.batch_cases(training=False) == self.train_cases else "validation cases"
        self.fitted = {"temperature": fit.temperature, "fusion_cross_entropy": list(fit.cross_entropy), HALVES: halves,
                       "fitted_on": f"{cases}, {'predicted' if found else 'true'} masks", "upstream": self._upstream_weights()}
        logger.info("Temperature %.3f; fusion: cross entropy %.4f with shift matrices, %.4f after learning phi.",
                    fit.temperature, *fit.cross_entropy)

    @torch.no_grad()
    def _scans(self) -> list[ScanRows]:
        """Per validation case: features, logits, targets and positions of its vertebrae in cranio-caudal order (true masks)."""
        maker = self.batch_sampler(training=False)
        scans = []
        for case in maker.cases:
            rows = sorted(regular_rows(self.dataset, [case]), key=lambda row: -row[2][0])
            if not rows:
                continue
            properties = {v["label"]: v for v in self.dataset.properties(case)["vertebrae"].values()}
            features = self.network.features(maker.inputs_of(case).to(self.device)).float()
            centres = np.array([properties[label]["body_centre"] for _, label, _ in rows]) * self.plan.data.spacing_mm
            scans.append(ScanRows(case, features.cpu(), self.network.classify(features).float().cpu(),
                                  torch.tensor([LEVEL_INDEX_OF_LABEL[label] for _, label, _ in rows]),
                                  torch.from_numpy(round_positions(vertebral_gaps(centres)))))
        return scans

    def _upstream_weights(self) -> dict[str, str]:
        if self.upstream is None:
            return {}
        return {stage: self.upstream.model(stage).sha256[0] for stage in ("localize", "segment")}

    def fitted_to_other_weights(self) -> bool:
        return self.fitted.get("upstream", {}) != self._upstream_weights()

    @torch.no_grad()
    def _found_scans(self) -> list[ScanRows]:
        """As `_scans`, of the masks that earlier stages found; rows that are no regular true vertebra have the target -1."""
        from ...evaluation.instances import match_true_names

        scans: list[ScanRows] = []
        if self.upstream is None:
            return scans
        for case in self.val_cases:
            found = self.upstream.segmented(case)
            if not found:
                continue
            masks = torch.from_numpy(np.stack([mask_crop(v.known_mask, self.plan.network.crop_size) for v in found]))[:, None]
            features = self.network.features(masks.to(self.device)).float()
            targets = [LEVEL_INDEX.get(name or "", -1) for name in match_true_names(found, self.upstream.labels(case))]
            centres = np.array([v.known_body_centre for v in found])
            scans.append(ScanRows(case, features.cpu(), self.network.classify(features).float().cpu(), torch.tensor(targets),
                                  torch.from_numpy(round_positions(vertebral_gaps(centres)))))
        return scans if any((scan.targets >= 0).any() for scan in scans) else []

    def validate_cases(self) -> dict[str, Any]:
        """True masks of the validation cases: fraction named right one by one, after fusion, and mean squared level distance; each half of
        the cases by the temperature and the fusion that were fitted on the other half."""
        run = self.plan.run
        single, fused, squared, per_case = [], [], [], []
        for scan in self._scans():
            fitted, extra = fitted_without(scan.case, self.fitted, self.extra)
            fusion = fusion_with(run.theta, run.hops, run.neighbours, extra.get("phi"))
            mean, uncertainty = monte_carlo(self.network, scan.features.to(self.device), run.mc_samples, fitted.get("temperature", 1.0))
            with torch.no_grad():
                after = fusion(mean.cpu().clone(), uncertainty.cpu().clone(), scan.positions)
            targets = scan.targets
            single += (mean.cpu().argmax(1) == targets).tolist()
            fused += (after.argmax(1) == targets).tolist()
            squared += ((after.argmax(1) - targets) ** 2).tolist()
            per_case.append({"case": scan.case, "vertebrae": len(targets), "right": int((after.argmax(1) == targets).sum())})
            if self.save_probabilities:
                (self.folder / "validation").mkdir(parents=True, exist_ok=True)
                np.savez_compressed(self.folder / "validation" / f"{scan.case}_true_masks.npz", probabilities=mean.cpu().numpy(),
                                    fused=after.numpy(), level=targets.numpy())
        return {"stage": self.stage, "id_rate_single": float(np.mean(single)), "id_rate_fused": float(np.mean(fused)),
                "mse_fused": float(np.mean(squared)), "metric_per_case": per_case}
