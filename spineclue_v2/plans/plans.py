"""Plans: every number of every stage, typed and frozen, read from and written to `SpineCLUEPlans.json`.

Each number belongs to one of three groups. `data`: how the preprocessed volumes look. `network`: what the weights were
made for, crop sizes included. `run`: what may change without invalidating anything, the free keys of `extra` included. What the
fields of a group are stands in the `plan.py` of its stage. Fingerprints are sha256 over canonical JSON of values only
(6 significant digits, no reasons): data = H(data), model = H(data, network).
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..utilities.files import write_json
from ..utilities.plugins import package_of

GROUPS = ("data", "network", "run")

FORMAT = 2            # 1: names of version 0.1, no optimizer, classifier_batch_size or extra

DEFAULT_PLANS_NAME = "SpineCLUEPlans"


@dataclass(frozen=True)
class StagePlan:
    """The three groups of one stage; `reasons` holds {"group.name": {"rule": text, "from": {...}}} for the reader."""

    data: Any
    network: Any
    run: Any
    reasons: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)

    @property
    def data_fingerprint(self) -> str:
        return _digest({"data": dataclasses.asdict(self.data)})

    @property
    def model_fingerprint(self) -> str:
        return _digest({"data": dataclasses.asdict(self.data), "network": dataclasses.asdict(self.network)})


@dataclass(frozen=True)
class Plans:
    """All stages of one dataset's plan. `not_here`: JSON of the stages whose package is not installed here, written again as it is."""

    plans_name: str
    planner: str
    dataset_name: str
    dataset_hash: str
    budget: dict[str, Any]
    stages: dict[str, StagePlan]
    not_here: dict[str, Any] = field(default_factory=dict, compare=False)

    def stage(self, name: str) -> StagePlan:
        if name in self.not_here:
            package = self.not_here[name]["package"]
            raise InputError(f"Plan '{self.plans_name}' has stage '{name}' of package '{package}', which cannot be used here; install or "
                             "repair that package.")
        if name not in self.stages:
            raise InputError(f"Plan '{self.plans_name}' has no stage '{name}'; it has {', '.join(self.stages)}. A stage whose package came "
                             "later is there once spineclue_plan_and_preprocess has planned again.")
        return self.stages[name]

    def to_json(self) -> dict[str, Any]:
        """JSON form: every number as {"value", "rule", "from"} so that it stays readable and editable."""
        stages: dict[str, Any] = {}
        for name, stage in self.stages.items():
            stages[name] = {group: {key: {"value": value} | stage.reasons.get(f"{group}.{key}", {})
                                    for key, value in _values(getattr(stage, group)).items()} for group in GROUPS}
            # Of another package: so that those who lack it learn which one to install.
            if package := package_of(type(stage.network)):
                stages[name] = {"package": package} | stages[name]
        stages |= self.not_here
        return {"format": FORMAT, "plans_name": self.plans_name, "planner": self.planner, "dataset_name": self.dataset_name,
                "dataset_hash": self.dataset_hash, "budget": self.budget, "stages": stages,
                "fingerprints": {name: {"data": s.data_fingerprint, "model": s.model_fingerprint} for name, s in self.stages.items()}}

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_json())


def _values(group: Any) -> dict[str, Any]:
    """A group's fields as they are written: its own first, then what every group of its kind has, and `extra` where it holds something."""
    values = dataclasses.asdict(group)
    names = [field.name for field in sorted(dataclasses.fields(group), key=lambda field: bool(field.kw_only))]
    return {name: values[name] for name in names if name != "extra" or values[name]}


def _canonical(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return float(f"{float(value):.6g}")
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    return [_canonical(v) for v in value]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(_canonical(content), sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
