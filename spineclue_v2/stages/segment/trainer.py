"""Trainer of the per-vertebra segmentation."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...adapters import dice_and_cross_entropy
from ...anatomy import IGNORED
from ...anatomy.vertebra import Vertebra
from ...dataset.vertebra_rows import vertebra_table
from ...plans.plans import Plans
from ...training.trainer import BaseTrainer
from ...utilities.triples import Ints3, float_triple, int_triple
from .data import CropBatches
from .network import foreground_probability, network_of_plans


class SegmentTrainer(BaseTrainer):
    """The plan's network with Dice + cross entropy; the epoch metric is the mean Dice of single vertebrae."""

    stage = "segment"
    crop_share = 1.0  # of the plan's crop per axis that training sees; the network is convolutional and predicts on the whole crop

    def set_up(self) -> None:
        self._criterion = dice_and_cross_entropy(ignored=IGNORED)

    @classmethod
    def build_network(cls, plans: Plans) -> torch.nn.Module:
        return network_of_plans(plans)

    def has_samples(self, cases: list[str]) -> bool:
        return bool(vertebra_table(self.dataset, cases))

    def training_crop(self) -> Ints3:
        network = self.plan.network
        divisor = 2 ** (len(network.features) - 1)
        return int_triple(max(divisor, round(n * self.crop_share / divisor) * divisor) for n in network.crop_size)

    def smallest_grid(self) -> tuple[int, ...] | None:
        if self.plan.network.architecture != "ResEnc":
            return super().smallest_grid()
        return tuple(n // 2 ** (len(self.plan.network.features) - 1) for n in self.training_crop())

    def batch_sampler(self, training: bool) -> CropBatches:
        data, network, run = self.plan.data, self.plan.network, self.plan.run
        return CropBatches(self.dataset.folder, self.batch_cases(training), data.windows_hu,
                           data.hu_min, self.training_crop(), network.heatmap_sigma_mm / data.spacing_mm,
                           run.centre_jitter_mm / data.spacing_mm, run.batch_size, self.seed + (0 if training else 1), augment=training,
                           spacing=data.spacing_mm)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        logits = self.network(batch["image"])
        with torch.autocast(self.device.type, enabled=False):
            return self._criterion(logits.float(), batch["target"]), {}

    def validation_metric(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        logits = self.network(batch["image"]).float()
        target, annotated = batch["target"][:, 0] == 1, batch["target"][:, 0] != IGNORED
        predicted = (foreground_probability(logits) > 0.5) & annotated
        return {"loss": float(self._criterion(logits, batch["target"])), "score": float(dice(predicted, target).mean())}

    def validate_cases(self) -> dict[str, Any]:
        """Whole validation cases with true centres moved by up to the plan's jitter: Dice per vertebra."""
        from ...imageio.volume import ImageGrid, Volume
        from .predictor import segment

        rng = np.random.default_rng(self.seed)
        per_case, values = [], []
        for case in self.val_cases or self.train_cases:
            volume = Volume(self.dataset.image(case)[:], ImageGrid.from_json(self.dataset.properties(case)["geometry"]))
            labels = self.dataset.labels(case)[:]
            rows = vertebra_table(self.dataset, [case])
            shift = rng.uniform(-1, 1, (len(rows), 3)) * self.plan.run.centre_jitter_mm / np.sqrt(3) / self.plan.data.spacing_mm
            located = [Vertebra(float_triple(volume.geometry.index_to_world(row[2] + move)), (0.0, 0.0, 0.0), 1.0, hits=number)
                       for number, (row, move) in enumerate(zip(rows, shift, strict=True))]
            masks = {v.hits: v for v in segment(volume, located, [self.network], self.plan, self.device)}
            scores = {}
            for number, (_, label, _) in enumerate(rows):
                scores[str(label)] = _dice_of(masks.get(number), labels == label, labels != IGNORED)
            values += list(scores.values())
            per_case.append({"case": case, "Dice": scores})
        return {"stage": self.stage, "foreground_mean": {"Dice": float(np.mean(values)) if values else None}, "metric_per_case": per_case}


class SegmentTrainerSmallCrops(SegmentTrainer):
    """Crops of about half the volume: twice the steps in the same time, for short trainings that start from good weights."""

    crop_share = 0.78


def dice(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice (B,) of boolean masks (B, z, y, x); 1 where both are empty."""
    shared = (predicted & target).flatten(1).sum(1)
    total = predicted.flatten(1).sum(1) + target.flatten(1).sum(1)
    return torch.where(total > 0, 2 * shared / total.clamp(min=1), torch.ones_like(shared, dtype=torch.float))


def _dice_of(vertebra: Vertebra | None, target: np.ndarray, annotated: np.ndarray) -> float:
    if vertebra is None or vertebra.mask is None:
        return 0.0
    mask = vertebra.mask & annotated[vertebra.mask_box]
    return float(2 * (target[vertebra.mask_box] & mask).sum() / (target.sum() + mask.sum()))
