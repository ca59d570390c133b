"""Variants of a plan: a file that says what differs and which plan the rest comes from (`inherits_from`)."""
from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spineclue_v2.errors import InputError
from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME, FORMAT, GROUPS, Plans
from spineclue_v2.plans.schema import nearest
from spineclue_v2.stages.plan_files import INHERITS, load_plans, resolve_plans
from spineclue_v2.utilities import paths
from spineclue_v2.utilities.files import write_json

logger = logging.getLogger(__name__)


def make_variant(dataset: str | int, settings: Sequence[str], name: str, base: str = DEFAULT_PLANS_NAME) -> Plans:
    """Write plan `name` of a dataset, which is `base` but for `settings` ("stage.group.field=value"), and return it.

    A value is JSON ([32, 64], 0.5, true), else a text. InputError, and no file, where a field is unknown, its value does not fit, or the
    name is taken by a plan that is no variant of `base`.
    """
    folder = paths.preprocessed_folder() / paths.dataset_name(dataset)
    if name == base:
        raise InputError(f"A variant of {base} needs a name of its own; give one with -overwrite_plans_name.")
    plans = load_plans(folder / f"{base}.json")
    path = folder / f"{name}.json"
    _check_free(path, base)
    stages: dict[str, dict[str, dict[str, Any]]] = {}
    for text in settings:
        (stage, group, field), value = _parse(text, plans)
        before = getattr(getattr(plans.stages[stage], group), field, None)
        entry = {"value": value, "rule": f"set in this variant of {base}", "from": {base: before}}
        stages.setdefault(stage, {}).setdefault(group, {})[field] = entry
    content = {"format": FORMAT, "plans_name": name, INHERITS: base, "stages": stages}
    variant = resolve_plans(content, path)
    write_json(path, content)
    for stage, groups in stages.items():
        for group, fields in groups.items():
            for field in fields:
                logger.info("%s.%s.%s: %s -> %s", stage, group, field, fields[field]["from"][base], fields[field]["value"])
    return variant


def _parse(text: str, plans: Plans) -> tuple[tuple[str, str, str], Any]:
    """("stage", "group", "field") and the value of "stage.group.field=value"."""
    place, equals, value = text.partition("=")
    parts = place.split(".")
    if not equals or len(parts) != 3:
        raise InputError(f"--set {text} is no setting; expected stage.group.field=value, such as segment.run.batch_size=4.")
    stage, group, field = parts
    if stage not in plans.stages:
        raise InputError(f"--set {text}: the plan has no stage '{stage}'{nearest(stage, plans.stages)}.")
    if group not in GROUPS:
        raise InputError(f"--set {text}: a stage has no group '{group}'{nearest(group, GROUPS)}.")
    try:
        return (stage, group, field), json.loads(value)
    except json.JSONDecodeError:
        return (stage, group, field), value


def _check_free(path: Path, base: str) -> None:
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get(INHERITS) != base:
        raise InputError(f"{path} exists and is no variant of {base}; choose another name with -overwrite_plans_name.")
