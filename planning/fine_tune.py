"""Plans for fine-tuning: spacing, crops and networks of the model whose weights a training starts from, and a short, careful training.

What the weights were made for stays, so that every tensor of theirs fits. What does not touch a tensor follows the data: a crop grows
where the dataset's vertebrae are larger. Rates, lengths and frozen parts follow the number of cases.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spineclue_v2.errors import InputError
from spineclue_v2.plans.plans import Plans, StagePlan
from spineclue_v2.stages.plan_files import load_plans, plans_from_json
from spineclue_v2.utilities import paths

from . import memory, rules
from .planner import SpineCLUEPlanner, overridden
from .rules import PlannedValue

SHIPPED = "shipped"
FEW, MANY = 10, 40        # cases: up to FEW the shortest training, from MANY on that of a new network
SHORTEST = 0.4            # of the epochs of a new network
RATE = 0.1                # of the rate of a new network: its first steps must not undo what the weights know
FROZEN_BELOW = 20         # cases: as many spines are too few to learn what a vertebra looks like from
PHASES = ("epochs", "contrastive_epochs", "classifier_epochs")
RATES = ("initial_lr", "contrastive_lr", "classifier_lr")


def source_plans(source: str) -> Plans:
    """Plans of the weights to start from: 'shipped', a plans.json, or a folder that holds one. InputError when there is none."""
    if source != SHIPPED:
        path = Path(source)
        return load_plans(path / "plans.json" if path.is_dir() else path)
    from spineclue_v2.training.checkpoint import Checkpoint

    stages: dict[str, StagePlan] = {}
    found: Plans | None = None
    for name in ("localize", "centres", "segment", "appearance", "ribs", "geometry", "identify"):
        file = paths.weights_folder() / f"{name}.pth"
        if file.is_file():
            found = plans_from_json(Checkpoint.load(file).meta["plans"], str(file))
            stages[name] = found.stage(name)
    if found is None:
        raise InputError(f"{paths.weights_folder()} holds no weights to start from; reinstall spineclue_v2.")
    return dataclasses.replace(found, stages=stages)


class FineTunePlanner(SpineCLUEPlanner):
    """Plans trainings that start from the weights of `source` ('shipped', or another model's plans.json)."""

    def __init__(self, raw_folder: str | Path, fingerprint: Mapping[str, Any], gpu_memory_target: float | None = None,
                 device: str = "cuda", plans_name: str | None = None, source: str = SHIPPED) -> None:
        super().__init__(raw_folder, fingerprint, gpu_memory_target, device, plans_name)
        if not self.facts.is_ct:
            raise InputError(f"{self.fingerprint['dataset_name']} has no CT values and the weights of '{source}' were made for CT; plan "
                             "without --from.")
        self.source, self.kept = source, source_plans(source)

    def plan(self) -> Plans:
        """The stages that the source has weights for, as it has them, with a training of their own; the others as for a new model."""
        new = super().plan()
        stages = {name: self.tuned(name, self.kept.stages[name], plan) for name, plan in new.stages.items() if name in self.kept.stages}
        space = stages["segment"].data if "segment" in stages else None
        for name, plan in new.stages.items():
            if name not in stages:  # what reads segment's preprocessed folder goes on reading it
                shared = space is not None and plan.data == new.stages["segment"].data
                stages[name] = dataclasses.replace(plan, data=space) if shared else plan
        stages = {name: stages[name] for name in new.stages}
        steps = {name: memory.stage_bytes(name, stage, self.value_bytes) for name, stage in stages.items()}
        budget = new.budget | {"from": self.source,
                               "training_step_gb": {name: round(step / 1e9, 2) for name, step in steps.items() if step is not None}}
        return dataclasses.replace(new, planner=type(self).__name__, budget=budget, stages=stages)

    def tuned(self, name: str, kept: StagePlan, new: StagePlan) -> StagePlan:
        """Stage `name` with the source's groups and the training that the number of cases allows."""
        same = f"that of {self.source}, so that its weights fit"
        reasons: dict[str, dict[str, Any]] = {f"{group}.{field.name}": {"rule": same} for group in ("data", "network", "run")
                   for field in dataclasses.fields(getattr(kept, group))}
        stage = dataclasses.replace(kept, reasons=reasons)
        stage = overridden(stage, run=self.schedule_of(new))
        if name in ("segment", "identify"):
            stage = self._with_room(name, stage)
        return self._within_memory(name, stage)

    def schedule_of(self, new: StagePlan) -> dict[str, PlannedValue]:
        """Rates, epochs and frozen parts, from those of a new network."""
        cases, run = self.facts.num_cases, new.run
        inputs = {"cases": cases}
        values = {name: PlannedValue(getattr(run, name) * RATE, f"{RATE:g} of a new network's rate: the first steps must not undo what the "
                                     "weights know", {"new_network": getattr(run, name)}) for name in RATES if hasattr(run, name)}
        part = SHORTEST + (1 - SHORTEST) * min(1.0, max(0.0, (cases - FEW) / (MANY - FEW)))
        for name in PHASES:
            if hasattr(run, name):
                rule = (f"{SHORTEST:.0%} of a new network's epochs up to {FEW} cases, all of them from {MANY}: few cases are soon known by "
                        "heart")
                values[name] = PlannedValue(max(1, round(getattr(run, name) * part)), rule, inputs | {"new_network": getattr(run, name)})
        values["iterations_per_epoch"] = PlannedValue(run.iterations_per_epoch, "as for a new network", {})
        if hasattr(run, "freeze_backbone") and cases < FROZEN_BELOW:
            few = f"fewer than {FROZEN_BELOW} cases: the backbone stays as it is, its head alone learns"
            values["freeze_backbone"] = PlannedValue(True, few, inputs)
            values["contrastive_epochs"] = PlannedValue(0, few, inputs)
        return values

    def _with_room(self, name: str, stage: StagePlan) -> StagePlan:
        """Crops that hold this dataset's vertebrae; the weights do not depend on them."""
        spacing, crop = stage.data.spacing_mm, stage.network.crop_size
        if name == "segment":
            wanted = rules.segment_crop(self.facts, spacing, stage.run.centre_jitter_mm, len(stage.network.features)).value
            reach = self.facts.largest
        else:
            wanted, reach = rules.identify_crop(self.facts, spacing).value, self.facts.extent_p95
        if all(length <= edge * spacing for length, edge in zip(reach, crop, strict=True)):
            return stage
        larger = tuple(max(a, b) for a, b in zip(wanted, crop, strict=True))
        rule = f"larger than that of {self.source}, which does not hold this dataset's vertebrae; the weights fit all the same"
        return overridden(stage, network={"crop_size": PlannedValue(larger, rule, {"vertebra_mm": list(reach)})})

    def _within_memory(self, name: str, stage: StagePlan) -> StagePlan:
        """The source's batch, or the largest smaller one that fits the memory target."""
        planned = stage.run.batch_size
        for batch in range(planned, 0, -1):
            smaller = stage if batch == planned else overridden(stage, run={"batch_size": PlannedValue(
                batch, f"{planned} as in {self.source} do not fit the memory target", {"gpu_memory_target_gb": self.gb})})
            step = memory.stage_bytes(name, smaller, self.value_bytes)
            if step is None or step <= memory.RESERVE * self.gb * 1e9:
                return smaller
        return stage
