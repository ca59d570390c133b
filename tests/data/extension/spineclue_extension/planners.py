"""A planner: the default one with some numbers replaced."""
from __future__ import annotations

from spineclue_v2 import SpineCLUEPlanner
from spineclue_v2.planning.planner import overridden
from spineclue_v2.planning.rules import PlannedValue
from spineclue_v2.plans.plans import Plans


class TryOutPlanner(SpineCLUEPlanner):
    """One short epoch per stage, at a low rate: to try a chain of commands out, from the package's own weights."""

    default_plans_name = "TryOutPlans"

    def plan(self) -> Plans:
        plans = super().plan()
        one = PlannedValue(1, "to try the commands out", {})
        few = PlannedValue(2, "to try the commands out", {})
        low = PlannedValue(1e-6, "what the first weights know is kept", {})
        for name, stage in plans.stages.items():
            if name == "identify":
                run = {"contrastive_epochs": one, "classifier_epochs": one, "contrastive_lr": low, "classifier_lr": low}
            else:
                run = {"epochs": one, "initial_lr": low}
            plans.stages[name] = overridden(stage, run={**run, "iterations_per_epoch": few})
        return plans
