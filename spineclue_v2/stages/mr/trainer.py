"""Trainers of the MR stages: cross pseudo supervision of two 2D branches, then the 3D network on top of them, frozen."""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...adapters import dice_and_cross_entropy
from ...anatomy import IGNORED
from ...anatomy.structures import kind
from ...dataset.preprocessed import PreprocessedDataset
from ...errors import InputError
from ...plans.plans import Plans
from ...preprocessing.mr import UNLABELLED
from ...training.checkpoint import Checkpoint, weights_sha256
from ...training.optimizers import build_optimizer, poly_schedule
from ...training.trainer import BaseTrainer
from ..registry import default_trainer_name
from .cps import cross_supervision, pseudo_labels, ramp
from .cutmix import mix
from .data import PatchBatches, SliceBatches
from .level_assignment import name_levels
from .network import FEATURE_STRIDE, HybridNetwork, TwoBranches, network_2d_of_plans, network_3d_of_plans, tissue_classes
from .positional_prior import fit_positional_prior
from .soft_labels import soft_dice_and_cross_entropy, soft_labels_of_tissue_classes
from .threshold import apply_threshold

logger = logging.getLogger("spineclue_v2.training")


class _MRTrainer(BaseTrainer):
    """What both stages share: classes by name, Adam with dropped rates, Dice of whole cases."""

    _criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.plan.data.classes) + 1

    @property
    def discs(self) -> torch.Tensor:
        """(classes,) boolean, background included."""
        return torch.tensor([False] + [kind(name) == "disc" for name in self.plan.data.classes])

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        run = self.plan.run
        learned = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = build_optimizer(run.optimizer, learned, run.initial_lr, run.weight_decay)
        if not run.lr_drop_epochs:
            return optimizer, poly_schedule(optimizer, self.epochs * self.iterations)
        drops = [epoch * self.iterations for epoch in run.lr_drop_epochs]
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)

    def criterion(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Dice + cross entropy in float32 of the classes and, weighted, of their kinds; logits (B, C, ...), target (B, 1, ...) labels or
        (B, C, ...) shares."""
        with torch.autocast(self.device.type, enabled=False):
            logits, weight = logits.float(), self.plan.run.tissue_class_weight
            loss = self._criterion(logits, target)
            if weight:
                kinds = tissue_classes(self.plan.data.classes).to(target.device)
                loss = loss + weight * self._criterion(by_kind(logits, kinds), self.tissue_classes_of_target(target, kinds))
            return loss

    def tissue_classes_of_target(self, target: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """A target of kinds, in the form of that of classes; `kinds` (C,)."""
        annotated = target != IGNORED
        return torch.where(annotated, kinds[torch.where(annotated, target, 0).long()], IGNORED)

    def on_train_end(self) -> None:
        """Where the levels lie in the fields of the training cases: a classifier when names are given."""
        self.fitted["places"] = fit_positional_prior((self.dataset.properties(case) for case in self.train_cases), self.plan.data)

    def probability(self, image: np.ndarray) -> np.ndarray:
        """Class probabilities (C, S, rows, columns) of a whole image in network space."""
        raise NotImplementedError

    def validate_cases(self) -> dict[str, Any]:
        """Whole validation cases: Dice per class, mean over the classes present, over bodies (VB) and discs (IVD).

        "as_voxels_say" holds the same means for what each voxel's own probabilities say, before names were made to follow one another.
        """
        data = self.plan.data
        rows: list[dict[str, Any]] = []
        plain: list[dict[str, float]] = []
        for case in self.val_cases or self.train_cases:
            probability, truth = self.probability(self.dataset.image(case)[:].astype(np.float32)), self.dataset.labels(case)[:]
            plain.append(dice_per_class(apply_threshold(probability), truth, data.classes))
            named = apply_threshold(name_levels(probability, data, self.fitted.get("places")))
            rows.append({"case": case, "Dice": dice_per_class(named, truth, data.classes)})
        before = summarise_dice(plain)
        return {"stage": self.stage, **summarise_dice([row["Dice"] for row in rows]),
                "as_voxels_say": {key: before[key] for key in ("foreground_mean", "VB", "IVD")}, "metric_per_case": rows}


class Hybrid2DTrainer(_MRTrainer):
    """Two 2D DeepLabv3+: Dice + cross entropy of both on labelled slices, cross pseudo supervision with CutMix on unlabelled ones.

    Unlabelled cases are those of imagesUl/; every fold uses all of them. Without any, or with unlabelled_batch_size 0, both branches
    learn from labelled slices alone.
    """

    stage = "hybrid_2d"
    network: TwoBranches

    def smallest_grid(self) -> None:
        return None

    def set_up(self) -> None:
        hard = dice_and_cross_entropy(batch_dice=True, ignored=IGNORED)
        self._criterion = soft_dice_and_cross_entropy if self.plan.run.soft_labels else hard

    @classmethod
    def build_network(cls, plans: Plans) -> TwoBranches:
        return network_2d_of_plans(plans)

    def tissue_classes_of_target(self, target: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        if self.plan.run.soft_labels:
            return soft_labels_of_tissue_classes(target, kinds)
        return super().tissue_classes_of_target(target, kinds)

    def unlabelled_cases(self) -> tuple[Path, list[str]]:
        """Folder and names of the unlabelled cases; a hook for other sources."""
        folder = self.dataset.folder / UNLABELLED
        return folder, PreprocessedDataset(folder).cases if any(folder.glob("*.json")) else []

    def batch_sampler(self, training: bool) -> SliceBatches:
        network, run = self.plan.network, self.plan.run
        folder, unlabelled = self.unlabelled_cases() if training else (self.dataset.folder, [])
        if training:
            used = len(unlabelled) if run.unlabelled_batch_size else 0
            logger.info("%d of %d unlabelled cases are learned from.", used, len(unlabelled))
        return SliceBatches(self.dataset.folder, self.batch_cases(training), self.seed + (0 if training else 1),
                            run.rotation_deg, run.scaling, self.discs, run.disc_signal, training, folder, unlabelled, network.crop_size,
                            network.in_plane_factor, run.soft_labels, self.classes, run.batch_size,
                            run.unlabelled_batch_size if training else 0, run.cutmix_boxes, run.cutmix_area)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        branches, images, count = (self.network.a, self.network.b), batch["image"], len(batch["image"])
        pseudo: list[torch.Tensor] = []
        if "mask" in batch:
            pair = torch.cat([batch["first"], batch["second"]])
            with torch.no_grad():
                for branch in branches:
                    first, second = branch(pair).chunk(2)
                    pseudo.append(pseudo_labels(first, second, batch["mask"]))
            images = torch.cat([images, mix(batch["first"], batch["second"], batch["mask"])])
        logits = [branch(images) for branch in branches]
        first_loss, second_loss = (self.criterion(part[:count], batch["target"]) for part in logits)
        supervised = first_loss + second_loss
        if not pseudo:
            return supervised, {"supervised": float(supervised.detach())}
        run = self.plan.run
        unlabelled = [part[count:].float() for part in logits]
        cross = cross_supervision(*unlabelled, *pseudo)
        if run.tissue_class_weight:  # as on labelled slices: what a body is can be agreed on long before which body it is
            kinds = tissue_classes(self.plan.data.classes).to(self.device)
            cross = cross + run.tissue_class_weight * cross_supervision(*(by_kind(part, kinds) for part in unlabelled),
                                                                        *(kinds[p] for p in pseudo))
        total = supervised + run.cps_weight * ramp(self.epoch, run.cps_ramp_epochs) * cross
        return total, {"supervised": float(supervised.detach()), "cps": float(cross.detach())}

    def validation_metric(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        _, probability = self.network(batch["image"])
        said, target = probability.clamp_min(1e-6).log(), batch["target"]
        if self.plan.run.soft_labels:
            annotated = target.sum(1)
            loss = -(target * said).sum() / annotated.sum().clamp_min(1)
            labels = torch.where(annotated > 0.5, target.argmax(1), IGNORED)
        else:
            labels = target[:, 0].long()
            loss = torch.nn.functional.nll_loss(said, labels, ignore_index=IGNORED)
        return {"loss": float(loss), "score": batch_dice(probability.argmax(1), labels, self.classes)}

    def probability(self, image: np.ndarray) -> np.ndarray:
        from .predictor import predict_2d

        return predict_2d(image, [self.network], self.plan, self.device)


class Hybrid3DTrainer(_MRTrainer):
    """3D DeepLabv3+ with cross tri-attention to the frozen 2D branches of the same fold; Dice + cross entropy."""

    stage = "hybrid_3d"
    network: HybridNetwork

    def set_up(self) -> None:
        self._criterion = dice_and_cross_entropy(batch_dice=True, ignored=IGNORED)

    @classmethod
    def build_network(cls, plans: Plans) -> HybridNetwork:
        return network_3d_of_plans(plans)

    def run(self, resume: bool = False) -> None:
        if not resume and self.plan.network.use_2d:
            self.load_branches(self.branches_checkpoint())
        super().run(resume)

    def branches_checkpoint(self) -> Path:
        """Final checkpoint of hybrid_2d of the same fold, beside this stage's folder."""
        plans_name = self.folder.parent.name.split("__")[1] if "__" in self.folder.parent.name else self.plans.plans_name
        name = f"{default_trainer_name('hybrid_2d')}__{plans_name}__hybrid_2d"
        return self.folder.parents[1] / name / self.folder.name / "checkpoint_final.pth"

    def load_branches(self, path: Path) -> None:
        """Put a trained 2D stage into the frozen branches; InputError when it is missing or of another plan."""
        if not path.exists():
            from ..registry import train_command

            command = train_command(self.plans.dataset_name, "hybrid_2d", self.fold, path.parents[1].name.split("__")[1])
            raise InputError(f"Stage hybrid_3d needs the 2D branches of the same fold and {path} is missing; run {command} first.")
        saved, wanted = Checkpoint.load(path, self.device), self.plans.stage("hybrid_2d").model_fingerprint
        if saved.meta.get("model_fingerprint") != wanted:
            raise InputError(f"The 2D branches {path} were trained with model fingerprint {saved.meta.get('model_fingerprint')}, the plan "
                             f"has {wanted}; train hybrid_2d again, or restore its plan.")
        if self.network.branches is None:
            raise InputError(f"Stage hybrid_3d of {self.plans.dataset_name} is planned with use_2d false: it has no 2D branches.")
        self.network.branches.load_state_dict(saved.network)
        self.fitted["hybrid_2d"] = {"model_fingerprint": wanted, "weights": weights_sha256(saved.network)}

    def batch_sampler(self, training: bool) -> PatchBatches:
        network, run = self.plan.network, self.plan.run
        return PatchBatches(self.dataset.folder, self.batch_cases(training), self.seed + (0 if training else 1),
                            run.rotation_deg, run.scaling, self.discs, run.disc_signal, training, network.patch_size, network.context,
                            FEATURE_STRIDE * self.plans.stage("hybrid_2d").network.in_plane_factor, run.batch_size,
                            run.class_centred_fraction)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        return self.criterion(self.network(batch["image"], batch["corner"]), batch["target"]), {}

    def validation_metric(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        logits = self.network(batch["image"], batch["corner"]).float()
        return {"loss": float(self.criterion(logits, batch["target"])),
                "score": batch_dice(logits.argmax(1), batch["target"][:, 0], self.classes)}

    def probability(self, image: np.ndarray) -> np.ndarray:
        from .predictor import predict_3d

        return predict_3d(image, [self.network], self.plans, self.device)


def by_kind(logits: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Logits (B, C, ...) of classes -> (B, kinds, ...): their softmax is the summed probability of each kind's classes.

    What is a body is plain long before which body it is; without this the doubt about names drowns it.
    """
    return torch.stack([logits[:, kinds == k].logsumexp(1) for k in range(int(kinds.max()) + 1)], 1)


def batch_dice(predicted: torch.Tensor, target: torch.Tensor, classes: int) -> float:
    """Mean Dice over the foreground classes that the target holds, voxels of the whole batch together but for `IGNORED` ones; nan without
    any class."""
    predicted, target = predicted[target != IGNORED], target[target != IGNORED]
    pairs = torch.bincount((target.long() * classes + predicted.long()).flatten(), minlength=classes ** 2).reshape(classes, classes).float()
    shared, truth, found = pairs.diagonal(), pairs.sum(1), pairs.sum(0)
    present = truth[1:] > 0
    return float((2 * shared / (truth + found).clamp_min(1))[1:][present].mean()) if present.any() else float("nan")


def dice_per_class(predicted: np.ndarray, target: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """Dice of every class that the target holds: {name: Dice}. Class k + 1 is `classes[k]`."""
    count = len(classes) + 1
    predicted, target = predicted[target != IGNORED], target[target != IGNORED]
    pairs = np.bincount((target.astype(np.int64) * count + predicted).ravel(), minlength=count ** 2).reshape(count, count)
    return {name: float(2 * pairs[k, k] / (pairs[k].sum() + pairs[:, k].sum())) for k, name in enumerate(classes, 1) if pairs[k].any()}


def summarise_dice(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Per subject the mean over classes present, then over subjects: foreground_mean, VB, IVD; `mean` per class over its cases."""
    def subject_mean(wanted: str | None) -> float | None:
        means = [np.mean(values) for row in rows if (values := [v for name, v in row.items() if wanted in (None, kind(name))])]
        return float(np.mean(means)) if means else None

    names = sorted({name for row in rows for name in row})
    return {"foreground_mean": {"Dice": subject_mean(None)}, "VB": subject_mean("body"), "IVD": subject_mean("disc"),
            "mean": {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}}
