"""What is planned for stage centres: a coarse look along the whole row, whose networks are as small as the task."""
from __future__ import annotations

from collections.abc import Mapping

from spineclue_v2.plans.plans import StagePlan

from .paper_planner import SpineCLUEPaperPlanner
from .planner import SpineCLUEPlanner, stage_plan
from .rules import PlannedValue

SPACING_MM = 3.0
FEATURES, BLOCKS = (16, 32, 64, 96), (1, 1, 2, 2)


def plan_centres(planner: SpineCLUEPlanner, stages: Mapping[str, StagePlan]) -> StagePlan | None:
    """The plan of stage centres; None for the plans of the paper, whose method has no such stage."""
    if isinstance(planner, SpineCLUEPaperPlanner):
        return None
    data = planner.data(SPACING_MM) | {"spacing_mm": PlannedValue(
        SPACING_MM, "a fifth of the smallest distance of two bodies: finer would cost time, coarser would blur neighbours into one", {})}
    network = {"patch_size": PlannedValue((64, 32, 32), "192 mm along the row: neighbours count, and what lies beside the bodies", {}),
               "features": PlannedValue(FEATURES, "voxels are coarse and the task is small: the same for every class of machine", {}),
               "blocks": PlannedValue(BLOCKS, "see features", {})}
    run = {"batch_size": PlannedValue(4, "patches hold several bodies each", {}),
           **planner.schedule(1, 1.5e-3, 1e-3, "for AdamW"),
           "inference_batch": PlannedValue(4, "patches at a time without gradients", {}),
           "sigma_mm": PlannedValue(4.5, "a third of the smallest distance of two bodies: neighbouring peaks stay apart", {}),
           "peak_weight": PlannedValue(20.0, "centres are few: about as much as all that lies around them", {}),
           "least_score": PlannedValue(0.2, "lower peaks are mostly none; the chain decides among the rest", {})}
    return stage_plan("centres", data, network, run)
