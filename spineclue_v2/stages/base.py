"""What a stage is, and what stages hand to each other.

A stage is one folder: `plan.py` (its groups of planned values), `network.py`, `data.py`, `trainer.py`, `predictor.py`, and in its
`__init__.py` one `Stage` that says where these are. `registry.py` lists the package's own stages; a user's package adds more through
the entry points `spineclue_v2.stages`. A pipeline is the list of the stages of one modality, in order.
"""
from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any

from ..anatomy.known import Known
from ..anatomy.vertebra import Vertebra
from ..errors import InputError
from ..flags import Flag
from ..imageio.volume import Volume
from ..plans.plans import Plans
from ..utilities.plugins import OWN_PACKAGE

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..training.stage_model import StageModel

STAGE_NAME = re.compile(r"(?=.{1,40}$)[a-z][a-z0-9]*(_[a-z0-9]+)*")

CLASSIFIERS = ("shape", "geometry", "appearance")
"""Who can say something about a vertebra's level: its mask, where the others lie, what surrounds it in the scan."""


def is_enabled(classifier: str, chosen: Collection[str]) -> bool:
    """Whether a classifier counts where these were chosen: one of another package does while none of `CLASSIFIERS` is switched off."""
    return classifier in chosen or (classifier not in CLASSIFIERS and set(CLASSIFIERS) <= set(chosen))


@dataclass(frozen=True)
class Options:
    """What a user may choose per run."""

    forbid_anomalies: bool = False            # no T13, no L6, no missing T12
    mirror: bool = False                      # left-right test-time mirroring of the segmenting networks
    classifiers: tuple[str, ...] = CLASSIFIERS  # which are enabled, where the model has them
    known: Known = field(default_factory=Known)  # what the user knows of the levels of this scan
    intensity_offset: float | None = None     # CT: added to all values on reading; None: values are HU, or plainly HU + 1024
    measures: bool = True                     # angles, discs, sub-regions and density of bone, of CT
    sacrum: bool = True                       # the first sacral segment, for the measures and in the map of sub-regions
    levels: tuple[str, ...] = ()              # of the result, once all are named; empty: all
    modality: str = "auto"                    # what the user says the scans are: "ct", "mr", or "auto" for whatever they look like


@dataclass(frozen=True)
class Evidence:
    """What one classifier says about the levels of the vertebrae, in their order.

    `logs`: (n, 25) log-probabilities over the 24 levels and "not a vertebra". `variants`: (n, 2) of T13 and L6, NaN where it does not
    know them. `weight`: of its logs beside the other classifiers, where it was fitted with the network; None: the plan says.
    `landmarks`: (n, 2) probability that the sacrum lies where the next vertebra below would lie, and the skull base above; (n, 4) with that
    of carrying the last and the first rib besides; NaN unknown.
    """

    logs: np.ndarray
    variants: np.ndarray | None = None
    weight: float | None = None
    landmarks: np.ndarray | None = None


@dataclass(frozen=True)
class NumberingBasis:
    """What a numbering rests on: enough to number the scan again with other knowledge, without a network.

    `detections`: all, cranio-caudal; `names`: of them in the numbering, None = not a vertebra. `free`: the same with nothing known.
    `evidence`: of the classifiers that counted. `penalties`, `weights`, `model`: of the decoder, as the plan of identify has them.
    `below`: what lies below the row where a sacrum was looked for, with a mask; no detection, and no numbering names it.
    """

    detections: tuple[Vertebra, ...]
    names: tuple[str | None, ...]
    free: tuple[str | None, ...]
    evidence: Mapping[str, Evidence]
    penalties: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    forbid_anomalies: bool = False
    below: Vertebra | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Findings:
    """What is known of a scan so far. A stage takes it and gives it back with more (`dataclasses.replace`).

    `scan`: as it was read; None where only masks are known.
    `vertebrae`: in cranio-caudal order once they have masks. `crop`: the part of the scan around the spine in network space (int16 HU),
    on whose grid the masks lie. `evidence`: by classifier. `anchored`, `anchored_by`, `known`, `margin`: how sure the numbering is and
    what the user knew (see `SpineResult`); `basis`: what it rests on.
    `labels`: label map on the scan's own grid, where a stage makes it directly (MR). `notes`: sentences for the reader. `flags`: what a
    person or a program should know, with a code; their messages need not be among the notes.
    """

    scan: Volume | None
    vertebrae: tuple[Vertebra, ...] = ()
    crop: Volume | None = None
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    anchored: bool = False
    anchored_by: str | None = None
    known: Mapping[str, Any] | None = None
    basis: NumberingBasis | None = None
    margin: float | None = None
    labels: Volume | None = None
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()

    @property
    def volume(self) -> Volume:
        """The scan; only stages with `needs_scan` may ask for it."""
        assert self.scan is not None
        return self.scan


@dataclass(frozen=True)
class Context:
    """What every stage of a run may use: the plans, the device, the user's options, and the other stages' networks."""

    plans: Plans
    device: torch.device
    options: Options
    models: Mapping[str, StageModel]

    def enabled(self, classifier: str) -> bool:
        """Whether this classifier counts: wanted by the user and not weighed 0 by the plan."""
        identify = self.plans.stages.get("identify")
        weights = identify.run.classifier_weights if identify is not None else {}
        return is_enabled(classifier, self.options.classifiers) and weights.get(classifier, 1.0) > 0


Predict = Callable[[Findings, "StageModel", Context], Findings]


@dataclass(frozen=True)
class Stage:
    """Where the parts of a stage are. `module:name` texts are imported when they are needed, not before.

    Attributes:
        name: as in commands, plans and folder names.
        modality: "CT" or "MR"; the stages of one modality make a pipeline.
        predictor: function `(findings, model, context) -> findings`.
        data, network, run: dataclasses of the plan groups; None for a stage that learns nothing (it has no trainer either).
        builder: function `plans -> torch.nn.Module` with fresh weights.
        graphs: function `(network, StagePlan) -> {name: converted.Graph}`: what of a network OpenVINO computes; {} for one that it does
            not take. None: PyTorch computes.
        trainer: the default trainer class; others of the same module are found by name.
        headline: planned values that `spineclue_plan_experiment` shows, as "group.field".
        required: a model of this modality cannot do without it; never so for a stage of another package.
        after: name of the stage that it follows, for stages of other packages; "" = at the end.
        replaced_by: where the model has this other stage, that one predicts instead (and contains this one).
        names_masks: takes part where masks are known and only names are wanted (`spineclue_relabel`).
        needs_scan: looks at the scan itself, so it is left out where there are masks alone.
        shipped_stands_in: a trained model that lacks this stage predicts with the package's own weights of it, and says so.
        plan: function `(planner, stages) -> StagePlan | None` of a stage that the planners have no method for, as of another package: its
            planned values, given the planner and the stages planned before ({name: StagePlan}); None: not for this dataset.
    """

    name: str
    modality: str
    predictor: str
    data: type | None = None
    network: type | None = None
    run: type | None = None
    builder: str | None = None
    trainer: str | None = None
    headline: tuple[str, ...] = ("run.batch_size",)
    required: bool = True
    after: str = ""
    replaced_by: str = ""
    names_masks: bool = False
    needs_scan: bool = True
    shipped_stands_in: bool = False
    plan: str | None = None
    graphs: str | None = None

    @property
    def trainable(self) -> bool:
        return self.trainer is not None

    @property
    def groups(self) -> dict[str, type]:
        """Plan group -> its dataclass; empty for a stage that learns nothing."""
        groups = {"data": self.data, "network": self.network, "run": self.run}
        return {name: kind for name, kind in groups.items() if kind is not None}

    def check(self) -> Stage:
        """The stage itself; InputError when a part is missing. Nothing is imported for it."""
        if not STAGE_NAME.fullmatch(self.name):
            raise InputError(f"Stage '{self.name}' has a name that does not serve for folders; expected small letters, digits and single "
                             "underscores, at most 40, a letter first.")
        if self.modality not in ("CT", "MR"):
            raise InputError(f"Stage '{self.name}' has modality {self.modality!r}; expected CT or MR.")
        if self.trainable and (len(self.groups) < 3 or self.builder is None):
            lacking = [part for part in ("data", "network", "run", "builder") if getattr(self, part) is None]
            raise InputError(f"Stage '{self.name}' has a trainer but no {', '.join(lacking)}; a stage that learns needs all of data, "
                             "network, run, builder, trainer and predictor.")
        for part in ("predictor", "builder", "trainer", "plan", "graphs"):
            text = getattr(self, part)
            if text is not None and not (isinstance(text, str) and re.fullmatch(r"[\w.]+:\w+", text)):
                raise InputError(f"Stage '{self.name}' has {part} {text!r}; expected a text 'module:name'.")
        for group, kind in self.groups.items():
            if not is_dataclass(kind):
                raise InputError(f"Stage '{self.name}' has {kind!r} for its group {group}; expected a dataclass of planned values.")
        return self

    def part(self, text: str) -> Any:
        """What `module:name` names; InputError, with the stage and the text, when a module of another package cannot be imported."""
        module, _, name = text.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except Exception as error:  # whatever a foreign package does at its import; an error of our own modules is a bug
            if module.partition(".")[0] == OWN_PACKAGE:
                raise
            raise InputError(f"Stage '{self.name}': {text} cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())}); a "
                             "stage needs each part that it names, so repair or uninstall its package.") from error

    def load_parts(self) -> None:
        """Load every part that a training and a prediction will need, so that a missing one is said before time is spent."""
        for text in (self.predictor, self.builder, self.trainer):
            if text is not None:
                self.part(text)

    def build_network(self, plans: Plans) -> torch.nn.Module:
        """The plan's network with fresh weights."""
        assert self.builder is not None, self.name
        network: torch.nn.Module = self.part(self.builder)(plans)
        return network

    def predict(self, findings: Findings, model: StageModel | None, context: Context) -> Findings:
        """Findings with what this stage adds. `model`: its networks; None for a stage that learns nothing."""
        result: Findings = self.part(self.predictor)(findings, model, context)
        return result
