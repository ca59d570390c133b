"""Reading plan files: which stages there are decides what their groups hold."""
from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..plans.plans import DEFAULT_PLANS_NAME, FORMAT, Plans, StagePlan
from ..plans.schema import nearest, parse_group
from ..utilities import paths
from ..utilities.files import read_json
from .registry import stage_names, stages

logger = logging.getLogger(__name__)

INHERITS = "inherits_from"


def load_plans(path: str | Path) -> Plans:
    """The plan of a file; InputError when it is missing or no plan."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"Plan {path} does not exist; run spineclue_plan_and_preprocess -d ID first.")
    return resolve_plans(read_json(path, "plan"), path)


def resolve_plans(content: Any, path: Path) -> Plans:
    """The plan of `content`, which lies or will lie at `path`; what it leaves out comes from the plan that it inherits from.

    `"inherits_from": "SpineCLUEPlans"` names a plan in the same folder; a variant's own values win, field by field.
    """
    return plans_from_json(_inherited(content, path, ()), str(path))


def _inherited(content: Any, path: Path, heirs: tuple[str, ...]) -> Any:
    if not isinstance(content, dict) or INHERITS not in content:
        return content
    name = content[INHERITS]
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise InputError(f"{path}: {INHERITS} is {name!r}; expected the name of a plan in the same folder, such as SpineCLUEPlans.")
    heirs = (*heirs, path.stem)
    base = path.with_name(f"{name}.json")
    if name in heirs:
        raise InputError(f"{path}: {' inherits from '.join([*heirs, name])}, in a circle; let one of them stand on its own.")
    if not base.is_file():
        raise InputError(f"{path} inherits from {name}, and {base} does not exist; copy it there, or plan again.")
    parent = _inherited(read_json(base, "plan"), base, heirs)
    own = {key: value for key, value in content.items() if key not in (INHERITS, "stages")}
    return {**parent, **own, "stages": _merged(parent.get("stages"), content.get("stages", {}), path)}


def _merged(parent: Any, own: Any, path: Path) -> dict[str, Any]:
    """Stages of the parent with the own values of the heir."""
    if not isinstance(parent, dict) or not isinstance(own, dict):
        raise InputError(f"{path} or the plan it inherits from is no SpineCLUE plan (no 'stages').")
    merged = {name: dict(groups) if isinstance(groups, dict) else groups for name, groups in parent.items()}
    for name, groups in own.items():
        if name not in merged or not isinstance(merged[name], dict) or not isinstance(groups, dict):
            merged[name] = groups
            continue
        for group, entries in groups.items():
            before = merged[name].get(group)
            merged[name][group] = {**before, **entries} if isinstance(before, dict) and isinstance(entries, dict) else entries
    return merged


def plans_from_json(content: dict[str, Any], source: str = "plan") -> Plans:
    """Typed plan from its JSON form. Unknown or missing keys and wrong types are InputErrors that name the place.

    Formats 1 to FORMAT are read. Names of fields from version 0.1 are read as the present ones; the log says so once per file, unless
    it is one of the shipped weights.
    A stage of another package that cannot be used here stays as it is written (`Plans.not_here`): the other stages do not need it.
    """
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
        raise InputError(f"{source} is no SpineCLUE plan (no 'stages').")
    version = content.get("format", 0)
    if type(version) is not int or version > FORMAT:
        raise InputError(f"{source} has format {version!r}; this version reads up to {FORMAT}. Update spineclue_v2.")
    for key, kind in (("plans_name", str), ("planner", str), ("dataset_name", str), ("dataset_hash", str), ("budget", dict)):
        if not isinstance(content.get(key, kind()), kind):
            raise InputError(f"{source}: {key} is {content[key]!r}; expected {kind.__name__}.")
    found: dict[str, StagePlan] = {}
    renamed: dict[str, str] = {}
    known = stages()
    not_here: dict[str, Any] = {}
    for name, groups in content["stages"].items():
        if name not in known and isinstance(groups, dict) and isinstance(groups.get("package"), str):
            not_here[name] = groups
            continue
        if name not in known or not known[name].groups:
            raise InputError(f"{source}: unknown stage '{name}'{nearest(name, stage_names())}; a stage of another package is known once "
                             "that package is installed.")
        reasons: dict[str, dict[str, Any]] = {}
        parsed = {group: parse_group(kind, groups, name, group, reasons, source, renamed) for group, kind in known[name].groups.items()}
        found[name] = StagePlan(**parsed, reasons=reasons)
    if renamed and not Path(source).is_relative_to(paths.weights_folder()):
        _warn_of_old_names(source, tuple(renamed.items()))
    return Plans(content.get("plans_name", DEFAULT_PLANS_NAME), content.get("planner", ""), content.get("dataset_name", ""),
                 content.get("dataset_hash", ""), content.get("budget", {}), found, not_here)


@cache
def _warn_of_old_names(source: str, renamed: tuple[tuple[str, str], ...]) -> None:
    """Once per file and process: a training reads its plan several times."""
    logger.warning("%s has names of version 0.1 (%s), which are read as the present ones; a later version will not.", source,
                   ", ".join(f"{old} is now {new}" for old, new in renamed))
