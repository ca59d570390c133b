"""A plan in words: each number with its unit and meaning, the rule that gave it, and what the rule looked at."""
from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import InputError
from ..plans.plans import GROUPS, Plans
from ..plans.schema import fields_of, nearest, note


def explain(plans: Plans, place: str | None = None) -> str:
    """All numbers of `place` ("stage", "stage.group" or "stage.group.field"; None: the whole plan), a paragraph each.

    InputError names the nearest place where there is none of that name.
    """
    chosen = _places(plans)
    if place is not None:
        chosen = [found for found in chosen if found == place or found.startswith(place + ".")]
        if not chosen:
            known = {".".join(found.split(".")[:number]): None for found in _places(plans) for number in (1, 2, 3)}
            raise InputError(f"Plan '{plans.plans_name}' has no '{place}'{nearest(place, known) if len(place) > 2 else ''}; give stage, "
                             "stage.group or stage.group.field.")
    return "\n\n".join(_paragraph(plans, found) for found in chosen)


def _places(plans: Plans) -> list[str]:
    return [f"{stage}.{group}.{field.name}" for stage, plan in plans.stages.items() for group in GROUPS
            for field in dataclasses.fields(getattr(plan, group))]


def _paragraph(plans: Plans, place: str) -> str:
    stage, group, field = place.split(".")
    plan = plans.stages[stage]
    kind = type(getattr(plan, group))
    info = fields_of(kind)[field]
    value, unit = getattr(getattr(plan, group), field), note(info, "unit")
    lines = [f"{place} = {_text(value)}{f' {unit}' if unit else ''}", f"  what it is: {info.description or 'no description'}"]
    reason = plan.reasons.get(f"{group}.{field}", {})
    lines.append(f"  rule: {reason.get('rule') or 'none is noted: a default, or edited by hand'}")
    if reason.get("from"):
        lines.append("  from: " + ", ".join(f"{name} {_text(given)}" for name, given in reason["from"].items()))
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        simple = all(not isinstance(part, list | tuple | dict) for part in value)
        return (" x " if simple and all(isinstance(part, int) for part in value) else ", ").join(
            _text(part) if simple else f"({_text(part)})" for part in value) or "empty"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items()) or "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)
