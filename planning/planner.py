"""Planners: from a fingerprint and a budget to a typed plan with a reason beside every number.

A planner is a class with `__init__(raw_folder, fingerprint, gpu_memory_target, device, plans_name)` and `plan() -> Plans`.
`find_planner` looks in this package and in the entry points `spineclue_v2.planners` of installed packages.
"""
from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from spineclue_v2.errors import InputError
from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME, GROUPS, Plans, StagePlan
from spineclue_v2.plans.schema import build_group, fields_of
from spineclue_v2.stages.grade.plan import GradeNetwork
from spineclue_v2.stages.identify.plan import IdentifyNetwork
from spineclue_v2.stages.localize.plan import LocalizeNetwork
from spineclue_v2.stages.registry import pipeline_of, stage_of
from spineclue_v2.stages.segment.plan import SegmentNetwork
from spineclue_v2.utilities.plugins import find_points, load_named

from . import memory, rules
from .rules import DatasetStatistics, PlannedValue
from .sources import adamw, method_choices, wei

DEFAULT_PLANNER = "SpineCLUEPlanner"
ENTRY_POINTS = "spineclue_v2.planners"
COARSEST_MM = 3.0
IDENTIFY_BATCH = 24             # masks: about one spine; the contrastive loss needs several of a level


class SpineCLUEPlanner:
    """The default planner: data decide lengths, the class of machine decides networks, memory decides batches."""

    modality = "CT"
    default_plans_name = DEFAULT_PLANS_NAME

    def __init__(self, raw_folder: str | Path, fingerprint: Mapping[str, Any], gpu_memory_target: float | None = None,
                 device: str = "cuda", plans_name: str | None = None):
        self.gb = rules.budget(device, gpu_memory_target)
        if "spine" not in fingerprint:
            raise InputError(f"{type(self).__name__} plans CT datasets and this fingerprint is of an MR one; leave -pl out to plan "
                             "it as MR.")
        self.raw_folder, self.fingerprint, self.device = Path(raw_folder), dict(fingerprint), device
        self.plans_name = plans_name or self.default_plans_name
        self.facts = DatasetStatistics.from_fingerprint(self.fingerprint)
        self.tier_choice = rules.profile(device, self.gb)
        self.profile: rules.HardwareProfile = self.tier_choice.value
        self.value_bytes = memory.MIXED if device == "cuda" else memory.FLOAT

    def plan(self) -> Plans:
        """The stages of CT, and `grade` where the dataset has Genant grades to learn."""
        segment = self.segment()
        identify = self.identify(segment)
        stages = {"localize": self.localize(), "segment": segment, "appearance": self.appearance(segment, identify),
                  "geometry": self.geometry(segment), "identify": identify}
        if rules.can_learn_grades(self.fingerprint.get("grades", {})):
            stages["grade"] = self.grade(segment)
        stages |= plan_other_stages(self, "CT", stages)
        stages = {stage.name: stages[stage.name] for stage in pipeline_of("CT") if stage.name in stages}
        steps = {name: memory.stage_bytes(name, stage, self.value_bytes) for name, stage in stages.items()}
        budget = {"gpu_memory_target_gb": self.gb, "device": self.device, "machine_class": self.profile.name,
                  "rule": self.tier_choice.rule,
                  "training_step_gb": {name: round(step / 1e9, 2) for name, step in steps.items() if step is not None}}
        return Plans(self.plans_name, type(self).__name__, self.fingerprint["dataset_name"], self.fingerprint["dataset_hash"],
                     budget, stages)

    def data(self, finest_mm: float) -> dict[str, PlannedValue]:
        """The `data` group of a stage."""
        limits = rules.hu_limits(self.facts)
        return {"spacing_mm": rules.spacing(self.facts, finest_mm),
                "orientation": PlannedValue("LPS", "z up, y back, x left: the orientation all stages and the geometry assume", {}),
                "hu_min": limits._replace(value=limits.value[0]), "hu_max": limits._replace(value=limits.value[1]),
                "windows_hu": rules.windows_hu(self.facts)}

    def localize(self) -> StagePlan:
        facts, machine = self.facts, self.profile
        data = self.data(machine.localize_mm)
        size = rules.slice_size(facts, data["spacing_mm"].value, machine.slice_pixels)
        network = {"family": PlannedValue("yolo11", "one-stage detector of ultralytics, small and quick on a CPU too", {}),
                   "scale": self.of_class(machine.detector, "x in the paper"), "slice_size": size}
        built = LocalizeNetwork("yolo11", machine.detector, size.value)
        batch = self.batch(8, 64, lambda n: memory.detector_bytes(built, n, self.value_bytes))
        eps = rules.eps_mm(facts)
        run = {"batch_size": batch, **self.schedule(0, 1e-3, 5e-4, "the paper's rate"),
               "slice_gap_mm": rules.slice_gap_mm(facts, machine.slice_hits),
               "inference_batch": PlannedValue(16, "slices at a time, without gradients", {}),
               "min_score": PlannedValue(0.25, "weaker boxes are mostly false; the clustering forgives missed ones", {}),
               "nms_iou": PlannedValue(0.5, "neighbouring vertebrae overlap less than half in any slice", {}),
               "eps_mm": eps, "axis_scale": rules.axis_scale(eps.value),
               "min_samples_fraction": PlannedValue(0.25, "a body shows in at least a quarter of the slices that should cross it; "
                                                    "segment can "
                                           "still drop what is found twice, but what is missed stays missed", {}),
               "size_eps": PlannedValue(0.35, "boxes of one vertebra agree within a third of their median height and width", {}),
               "spacing_between_mm": rules.spacing_between_mm(facts)}
        return stage_plan("localize", data, network, run)

    def segment(self) -> StagePlan:
        facts, machine = self.facts, self.profile
        jitter = rules.centre_jitter_mm(facts)
        data = self.data(machine.segment_mm)
        channels = len(data["windows_hu"].value) + 1
        while True:
            crop = rules.segment_crop(facts, data["spacing_mm"].value, jitter.value, len(machine.features))
            built = SegmentNetwork("ResEnc", crop.value, machine.features, machine.blocks, 1.0)
            fits = memory.segment_bytes(built, channels, 2, self.value_bytes) <= memory.RESERVE * self.gb * 1e9
            if fits or data["spacing_mm"].value >= COARSEST_MM:
                break
            old = data["spacing_mm"]
            rule = old.rule.split("; coarsened")[0] + "; coarsened in steps of 0.25 mm until two crops fit the memory"
            data["spacing_mm"] = PlannedValue(old.value + 0.25, rule, old.inputs | {"gb": self.gb})
        network = {"architecture": PlannedValue("ResEnc", "nnU-Net's residual-encoder U-Net", {}), "crop_size": crop,
                   "features": self.of_class(machine.features), "blocks": self.of_class(machine.blocks),
                   "heatmap_sigma_mm": rules.heatmap_sigma_mm(facts)}
        batch = self.batch(2, 16, lambda n: memory.segment_bytes(built, channels, n, self.value_bytes))
        run = {"batch_size": batch, **self.schedule(1, 1e-3, 1e-4, "a short training of a new network; the paper trains long with 1e-4"),
               "inference_batch": PlannedValue(max(4, batch.value), "crops at a time without gradients", {}),
               "centre_jitter_mm": jitter, "min_volume_ml": rules.min_volume_ml(facts),
               "overlap_dice": PlannedValue(0.6, "of one vertebra found twice the masks share almost all, neighbours in one mask less", {})}
        return stage_plan("segment", data, network, run)

    def identify(self, segment: StagePlan) -> StagePlan:
        crop = rules.identify_crop(self.facts, segment.data.spacing_mm)
        machine = self.fitting(lambda m: memory.identify_bytes(IdentifyNetwork(m.depth, m.width, 2, crop.value, (2, 3, 3), 512, 128, 0.3),
                                                               2 * IDENTIFY_BATCH, self.value_bytes))
        same = "the same as segment's, so that both share one preprocessed folder and the masks need no resampling"
        data = {name: PlannedValue(value, same, {}) for name, value in dataclasses.asdict(segment.data).items()}
        network = {"depth": self.of_class(machine.depth, "101 in the paper", machine),
                   "width": self.of_class(machine.width, "64 in the paper", machine),
                   "stem_stride": PlannedValue(2, "halves the grid in the stem: a mask has little detail below two voxels", {}),
                   "crop_size": crop,
                   "pool_grid": PlannedValue((2, 3, 3), "keeps where the mask ends, which plain averaging forgets", {}),
                   "hidden": PlannedValue(512 if machine.depth > 18 else 256, "width of the projection head", {}),
                   "projection_dim": PlannedValue(128, "Khosla et al. 2020", {}),
                   "dropout": PlannedValue(0.3, "Monte-Carlo dropout in the head; strong enough to spread uncertain cases", {})}
        built = IdentifyNetwork(**{k: c.value for k, c in network.items()})
        batch = self.batch(IDENTIFY_BATCH, 64, lambda n: memory.identify_bytes(built, 2 * n, self.value_bytes))
        run = {"batch_size": batch,
               "contrastive_epochs": self.of_class(machine.epochs[2], "500 in the paper"),
               "classifier_epochs": self.of_class(machine.epochs[3], "100 in the paper"),
               "iterations_per_epoch": self.of_class(machine.iterations),
               "contrastive_lr": PlannedValue(1e-3, "for AdamW; the paper has 1e-2 and names no optimiser", {}),
               "classifier_lr": PlannedValue(1e-3, "for AdamW; the paper's 1e-5 needs its long schedule", {}),
               "weight_decay": PlannedValue(1e-4, "the paper's for segment; it names none here", {}), "optimizer": adamw(),
               "classifier_batch_size": PlannedValue(0, "as many as in the contrastive phase, filled up to whole spines", {}),
               "contrastive_loss": PlannedValue("out", "mean over positives outside the logarithm, as Khosla et al. recommend", {}),
               "freeze_backbone": PlannedValue(False, "the contrastive phase is far shorter than the paper's: the backbone learns on", {}),
               **method_choices()}
        return stage_plan("identify", data, network, run)

    def appearance(self, segment: StagePlan, identify: StagePlan) -> StagePlan:
        same = "the same as segment's, so that both share one preprocessed folder"
        data = {name: PlannedValue(value, same, {}) for name, value in dataclasses.asdict(segment.data).items()}
        network = {"spacing_mm": PlannedValue(5.0, "half a rib's width: finer would cost time, coarser would lose the ribs", {}),
                   "crop_size": PlannedValue((24, 32, 32), "120 x 160 x 160 mm: two to three vertebrae up and down, the ribs' "
                                             "beginnings at the sides", {}),
                   "widths": PlannedValue((16, 32, 64, 96), "crops are coarse: more channels named no more of held-out phantoms", {}),
                   "pool_grid": PlannedValue((2, 2, 1), "above and below, before and behind; left and right mean the same", {}),
                   "dropout": PlannedValue(0.3, "as in the head of identify", {})}
        own = identify.run
        run = {"batch_size": PlannedValue(own.batch_size, "as identify: every level once", {}),
               "epochs": PlannedValue(own.contrastive_epochs + own.classifier_epochs, "as both phases of identify", {}),
               "iterations_per_epoch": self.of_class(self.profile.iterations),
               "initial_lr": PlannedValue(1e-3, "for AdamW", {}), "weight_decay": PlannedValue(1e-4, "for AdamW", {}),
               "optimizer": adamw(),
               "centre_jitter_mm": PlannedValue(6.0, "located centres err by about 4 mm", {}),
               "false_fraction": PlannedValue(0.12, "places that are no vertebra, so that it knows them", {})}
        return stage_plan("appearance", data, network, run)

    def geometry(self, segment: StagePlan) -> StagePlan:
        same = "the same as segment's: centres are read from its preprocessed folder"
        data = {name: PlannedValue(value, same, {}) for name, value in dataclasses.asdict(segment.data).items()}
        network = {"width": PlannedValue(64, "a spine has few numbers to learn from", {}), "layers": PlannedValue(3, "see width", {}),
                   "heads": PlannedValue(4, "see width", {}), "dropout": PlannedValue(0.1, "see width", {}),
                   "members": PlannedValue(3, "the mean of a few is steadier than one", {})}
        run = {"batch_size": PlannedValue(64, "spines; a member sees others than the next", {}),
               "epochs": self.of_class(self.profile.epochs[0]), "iterations_per_epoch": self.of_class(self.profile.iterations),
               "initial_lr": PlannedValue(2e-3, "for AdamW", {}), "weight_decay": PlannedValue(0.05, "for AdamW", {}),
               "optimizer": adamw(),
               "label_smoothing": PlannedValue(0.02, "references err too", {}),
               "sampled_spines": PlannedValue(1600, "spine curves of the phantom: levels and numberings that the dataset never shows", {}),
               "window": PlannedValue(0.6, "scans show parts of the spine", {})}
        return stage_plan("geometry", data, network, run)

    def grade(self, segment: StagePlan) -> StagePlan:
        machine = self.profile
        same = "the same as segment's: masks and CT are read from one preprocessed folder"
        data = {name: PlannedValue(value, same, {}) for name, value in dataclasses.asdict(segment.data).items()}
        network = {"crop_size": rules.grade_crop(self.facts, data["spacing_mm"].value, machine.grade_pixels),
                   "features": self.of_class(machine.features[:4]), "blocks": self.of_class(machine.blocks[:4]),
                   "projection_dim": wei(128), "windows_hu": rules.grade_windows(self.facts)}
        built = GradeNetwork(**{k: c.value for k, c in network.items()})
        run = {"batch_size": self.batch(12, 48, lambda n: memory.grade_bytes(built, 2 * n, self.value_bytes)),
               **self.schedule(0, 1e-3, 1e-4, "for AdamW; 0.005 in Wei et al. is for SGD"),
               "contrastive_weight": wei(1.0, "both losses count alike"), "temperature": wei(0.07),
               "detach_classifier": wei(True, "the encoder learns from the contrastive loss alone"),
               "ordinal": PlannedValue(False, "plain grades, as in Wei et al.", {})}
        return stage_plan("grade", data, network, run)

    def batch(self, low: int, high: int, bytes_of: Any) -> PlannedValue:
        """Largest batch that the memory model allows, fewer than `low` where even these do not fit; a laptop takes no more than `low`."""
        useful = memory.largest_batch(bytes_of, self.gb, 1, low)
        inputs = {"gpu_memory_target_gb": self.gb, "estimated_gb": round(bytes_of(useful) / 1e9, 2)}
        if useful < low:
            return PlannedValue(useful, f"{low} are the fewest that are useful, but no more than this fit {memory.RESERVE:.0%} of the "
                                        "memory target; plan with a larger -gpu_memory_target where there is more", inputs)
        if self.profile.name == "laptop":
            return PlannedValue(low, "the smallest useful batch: on this class of machine the time of a step is the limit",
                          {"estimated_gb": round(bytes_of(low) / 1e9, 2)})
        value = memory.largest_batch(bytes_of, self.gb, low, high)
        return PlannedValue(value, f"largest of {low}..{high} whose training step fits {memory.RESERVE:.0%} of the memory target",
                      inputs | {"estimated_gb": round(bytes_of(value) / 1e9, 2)})

    def schedule(self, index: int, rate: float, decay: float, why: str) -> dict[str, PlannedValue]:
        """Epochs, iterations, optimiser, learning rate and weight decay of stage `index`."""
        return {"epochs": self.of_class(self.profile.epochs[index]), "iterations_per_epoch": self.of_class(self.profile.iterations),
                "initial_lr": PlannedValue(rate, why, {}), "weight_decay": PlannedValue(decay, why.split(",")[0], {}), "optimizer": adamw()}

    def fitting(self, bytes_of: Callable[[rules.HardwareProfile], float]) -> rules.HardwareProfile:
        """The own class of machine, or the next smaller one whose network trains its smallest batch within the memory target."""
        classes = rules.HARDWARE_PROFILES[:rules.HARDWARE_PROFILES.index(self.profile) + 1]
        return next((c for c in reversed(classes) if bytes_of(c) <= memory.RESERVE * self.gb * 1e9), rules.HARDWARE_PROFILES[0])

    def of_class(self, value: Any, note: str = "", machine: rules.HardwareProfile | None = None) -> PlannedValue:
        """A number that the class of machine decides; `machine`: another class than the plan's, because its network fits."""
        name = (machine or self.profile).name
        why = (f"that of class {name}: larger ones do not fit the memory" if name != self.profile.name
               else "what this class of machine serves")
        return PlannedValue(value, why + (f"; {note}" if note else ""), {"class": name})


def stage_plan(stage: str, data: Mapping[str, PlannedValue], network: Mapping[str, PlannedValue],
               run: Mapping[str, PlannedValue]) -> StagePlan:
    """Typed stage from its choices; every field of the three groups that has no default must have one, and InputError names what does
    not fit."""
    groups = dict(zip(GROUPS, (data, network, run), strict=True))
    values: dict[str, Any] = {}
    reasons: dict[str, dict[str, Any]] = {}
    for group, choices in groups.items():
        kind = stage_of(stage).groups[group]
        missing = {name for name, info in fields_of(kind).items() if info.is_required()} - set(choices)
        if missing:
            raise ValueError(f"planner leaves {stage}.{group} without {sorted(missing)}")
        values[group] = build_group(kind, {name: choice.value for name, choice in choices.items()}, f"Planner: stages.{stage}.{group}")
        for name, choice in choices.items():
            reasons[f"{group}.{name}"] = {"rule": choice.rule} | ({"from": choice.inputs} if choice.inputs else {})
    return StagePlan(**values, reasons=reasons)


def overridden(stage: StagePlan, **groups: Mapping[str, PlannedValue]) -> StagePlan:
    """`stage` with some numbers replaced, reasons included."""
    reasons = dict(stage.reasons)
    parts: dict[str, Any] = {}
    for group, choices in groups.items():
        old = getattr(stage, group)
        values = {field.name: getattr(old, field.name) for field in dataclasses.fields(old)}
        parts[group] = build_group(type(old), values | {name: choice.value for name, choice in choices.items()}, f"Planner: {group}")
        reasons |= {f"{group}.{name}": {"rule": choice.rule} | ({"from": choice.inputs} if choice.inputs else {})
                    for name, choice in choices.items()}
    return dataclasses.replace(stage, **parts, reasons=reasons)


def plan_other_stages(planner: Any, modality: str, stages: Mapping[str, StagePlan]) -> dict[str, StagePlan]:
    """The stages that plan themselves (`Stage.plan`), as those of other packages do, from `planner` and the `stages` planned before."""
    found: dict[str, StagePlan] = {}
    for stage in pipeline_of(modality):
        if stage.plan is None:
            continue
        planned = stage.part(stage.plan)(planner, {**stages, **found})
        if planned is not None and not isinstance(planned, StagePlan):
            raise InputError(f"Stage '{stage.name}': its {stage.plan} gave {type(planned).__name__}; expected the StagePlan that "
                             "spineclue_v2.planning.planner.stage_plan makes, or None.")
        if planned is not None:
            found[stage.name] = planned
    return found


class PlannerInterface(Protocol):
    """What a planner offers. It is found by its name, so it need not inherit from anything."""

    default_plans_name: str

    def __init__(self, raw_folder: str | Path, fingerprint: Mapping[str, Any], gpu_memory_target: float | None = None,
                 device: str = "cuda", plans_name: str | None = None) -> None: ...

    def plan(self) -> Plans:
        """The plans of all stages."""


def _is_planner(member: type, name: str) -> TypeGuard[type[PlannerInterface]]:
    return name.endswith("Planner") and hasattr(member, "plan")


def find_planner(name: str = DEFAULT_PLANNER) -> type[PlannerInterface]:
    """Planner class by name: in this package, then among the entry points `spineclue_v2.planners`."""
    import spineclue_v2.planning as package

    found: dict[str, type[PlannerInterface]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        found |= {n: c for n, c in inspect.getmembers(module, inspect.isclass) if _is_planner(c, n)}
    if name in found:
        return found[name]
    planner = load_named(ENTRY_POINTS, name, "planner")
    if planner is None:
        known = sorted(set(found) | {point.name for point in find_points(ENTRY_POINTS)})
        raise InputError(f"Planner '{name}' is unknown; known: {', '.join(known)}. Planners of other packages are found through "
                         f"entry points of the group {ENTRY_POINTS}, once those packages are installed.")
    if not isinstance(planner, type) or not callable(getattr(planner, "plan", None)):
        raise InputError(f"Planner '{name}' is {planner!r}; expected a class with a method plan, such as a subclass of "
                         "spineclue_v2.SpineCLUEPlanner.")
    return planner
