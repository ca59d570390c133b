"""The planner of the paper's own numbers."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spineclue_v2.plans.plans import StagePlan

from . import rules
from .planner import SpineCLUEPlanner, overridden
from .rules import PlannedValue
from .sources import paper, unnamed, wei


class SpineCLUEPaperPlanner(SpineCLUEPlanner):
    """The paper's numbers exactly (arXiv 2401.07271); what the paper leaves open follows the default planner's largest class."""

    default_plans_name = "SpineCLUEPaperPlans"

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.profile = rules.HARDWARE_PROFILES[-1]

    def fitting(self, bytes_of: Callable[[rules.HardwareProfile], float]) -> rules.HardwareProfile:
        """The largest class whatever the memory: the paper's numbers do not shrink."""
        return self.profile

    def data(self, finest_mm: float) -> dict[str, PlannedValue]:
        return super().data(finest_mm) | {"spacing_mm": paper(1.0, "isotropic 1 mm")}

    def localize(self) -> StagePlan:
        default = super().localize()
        network = {"scale": paper("x", "YOLOv7-X; ultralytics does not build v7, its present X model stands in"),
                   "slice_size": paper((640, 640))}
        run = {"batch_size": paper(64), "epochs": paper(500), "initial_lr": paper(1e-3),
               "slice_gap_mm": paper(3.2, "k = 200 slices of 1 mm over 640 mm"),
               "optimizer": unnamed()}
        return overridden(default, network=network, run=run)

    def segment(self) -> StagePlan:
        network = {"architecture": paper("TransUNet3D", "TransUNet; ours is its 3D form"), "crop_size": paper((128, 128, 128)),
                   "features": PlannedValue((32, 64, 128, 256), "the paper gives no widths", {}),
                   "blocks": PlannedValue((1, 2, 3, 3), "the paper gives no depths", {})}
        run = {"batch_size": paper(32), "epochs": paper(300), "initial_lr": paper(1e-4), "weight_decay": paper(1e-4),
               "optimizer": paper("Adam")}
        return overridden(super().segment(), data={"spacing_mm": paper(1.0, "isotropic 1 mm")}, network=network, run=run)

    def identify(self, segment: StagePlan) -> StagePlan:
        network = {"depth": paper(101, "3D ResNet-101"), "width": paper(64), "pool_grid": paper((1, 1, 1), "global pooling"),
                   "crop_size": paper((48, 96, 96), "48 x 96 x 96 as SI x AP x LR, centred and clipped")}
        run = {"batch_size": paper(32, "contrastive phase"), "classifier_batch_size": paper(64, "classifier's phase"),
               "optimizer": unnamed(), "contrastive_epochs": paper(500),
               "classifier_epochs": paper(100), "contrastive_lr": paper(1e-2), "classifier_lr": paper(1e-5),
               "contrastive_loss": paper("in", "Eq. 2 as printed"), "freeze_backbone": paper(True),
               "loss_weights": paper((0.1, 0.5, 1.0), "alpha, beta, gamma"),
               "classifier_weights": paper({"shape": 1.0, "geometry": 0.0, "appearance": 0.0}, "the mask's shape alone"),
               "evidence_model": paper({}, "none: rows of one classifier, added up")}
        return overridden(super().identify(segment), network=network, run=run)

    def grade(self, segment: StagePlan) -> StagePlan:
        network = {"crop_size": wei((128, 128, 128)), "features": wei((64, 128, 256, 512), "SE-ResNet50; ours has basic blocks of half its "
                                                                        "outer width"), "blocks": wei((3, 4, 6, 3), "SE-ResNet50")}
        run = {"batch_size": wei(12, "3 of each grade"), "optimizer": wei("SGD", "momentum 0.9"), "initial_lr": wei(5e-3),
               "weight_decay": wei(1e-4)}
        return overridden(super().grade(segment), network=network, run=run)
