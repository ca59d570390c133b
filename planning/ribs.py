"""What is planned for stage ribs: a linear classifier on the grid of stage centres."""
from __future__ import annotations

from collections.abc import Mapping

from spineclue_v2.plans.plans import StagePlan

from .centres import SPACING_MM
from .paper_planner import SpineCLUEPaperPlanner
from .planner import SpineCLUEPlanner, stage_plan
from .rules import PlannedValue
from .sources import adamw

THRESHOLDS_HU = (110.0, 160.0, 220.0)


def plan_ribs(planner: SpineCLUEPlanner, stages: Mapping[str, StagePlan]) -> StagePlan | None:
    """The plan of stage ribs; None for the plans of the paper, whose method has no such stage."""
    if isinstance(planner, SpineCLUEPaperPlanner):
        return None
    data = planner.data(SPACING_MM) | {"spacing_mm": PlannedValue(
        SPACING_MM, "half of a rib's height: finer would cost time, coarser would lose thin ribs", {})}
    network = {"thresholds_hu": PlannedValue(THRESHOLDS_HU, "from osteoporotic bone to what contrast agent seldom reaches", {})}
    run = {"batch_size": PlannedValue(256, "rows are small", {}), "epochs": PlannedValue(20, "a linear classifier learns in seconds", {}),
           "iterations_per_epoch": PlannedValue(50, "see epochs", {}),
           "initial_lr": PlannedValue(1e-2, "for AdamW, one linear layer", {}),
           "weight_decay": PlannedValue(1.0, "few scans, many inputs", {}),
           "optimizer": adamw(), "centre_jitter_mm": PlannedValue(2.0, "as far as found centres are from true ones", {})}
    return stage_plan("ribs", data, network, run)
