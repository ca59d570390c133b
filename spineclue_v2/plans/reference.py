"""The page `documentation/reference/plan_fields.md`, made from the plan groups themselves so that it cannot drift from them."""
from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from .fields import LARGEST_NUMBER, OneOf
from .schema import fields_of, note, plain

HEAD = """# Plan fields

Made by `python -m spineclue_v2.cli --plan-reference > documentation/reference/plan_fields.md`; do not edit by hand.

A plan (`SpineCLUEPlans.json`) holds three groups per stage. A change of `data` asks for preprocessing and training anew, one of
`network` for training anew, one of `run` for neither. Old names are those of version 0.1, which are still read. A range of a list is
that of each of its values; numbers beyond 10^9 are refused everywhere. What the planner chooses, and why, stands beside each value in
the plan and in [planning](../explanation/planning.md).
"""
TABLE = "| field | type | unit | range | default | meaning |\n|---|---|---|---|---|---|"
TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text", dict: "names with a value each"}
SIGNS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}"}


def plan_reference(stages: Mapping[str, Mapping[str, type]]) -> str:
    """All fields of {stage: {group: dataclass}} with type, unit, range, default and meaning, as Markdown."""
    parts = [HEAD]
    for stage, groups in stages.items():
        parts.append(f"## {stage}\n")
        for group, kind in groups.items():
            rows = [_row(name, info) for name, info in sorted(fields_of(kind).items(), key=lambda item: bool(item[1].kw_only))]
            parts += [f"### {stage}.{group}\n", TABLE, *rows, ""]
    return "\n".join(parts).rstrip() + "\n"


def _row(name: str, info: FieldInfo) -> str:
    old = note(info, "old_names", [])
    meaning = (info.description or "") + (f"; old name: `{', '.join(old)}`" if old else "")
    default = "required" if info.is_required() else f"`{_shown(info.get_default(call_default_factory=True))}`"
    cells = (f"`{name}`", _type(info.annotation), note(info, "unit"), _range(info), default, meaning)
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """(type, what `Annotated` says of it)."""
    if hasattr(annotation, "__metadata__"):
        return annotation.__origin__, annotation.__metadata__
    return annotation, ()


def _type(annotation: Any) -> str:
    """A type in words: "3 numbers", "list of whole numbers", "list of pairs of numbers"."""
    kind = _bare(annotation)[0]
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is not tuple:
        return TYPES.get(typing.get_origin(kind) or kind, str(kind))
    inner = _bare(arguments[0])[0]
    pair = typing.get_origin(inner) is tuple
    name = "pairs of numbers" if pair else f"{TYPES.get(inner, str(inner))}s"
    return f"list of {name}" if arguments[-1] is Ellipsis else f"{len(arguments)} {name}"


def _range(info: FieldInfo) -> str:
    """Limits and choices, the narrowest of each; "" where there are none."""
    said = [*_metadata(info.annotation), *_of_info(info.metadata)]
    choices = next((entry.values for entry in said if isinstance(entry, OneOf)), None)
    if choices is not None:
        return ", ".join(map(str, choices))
    found = {sign: getattr(entry, sign) for entry in said for sign in SIGNS if getattr(entry, sign, None) is not None}
    found = {sign: number for sign, number in found.items() if abs(number) < LARGEST_NUMBER}
    if "gt" in found:
        found.pop("ge", None)
    if "lt" in found:
        found.pop("le", None)
    return ", ".join(text.format(plain(found[sign])) for sign, text in SIGNS.items() if sign in found)


def _metadata(annotation: Any) -> list[Any]:
    """Limits of the first value of a list, or of a list's first list."""
    kind, said = _bare(annotation)
    inner = typing.get_args(kind)
    values = inner[-1] if typing.get_origin(kind) is dict else inner[0] if inner else None
    return [*(_metadata(values) if values is not None else []), *_of_info(said)]


def _of_info(said: Iterable[Any]) -> list[Any]:
    """Limits as `annotated_types` has them, those within a pydantic `Field` too."""
    return [entry for part in said for entry in (_of_info(part.metadata) if isinstance(part, FieldInfo) else [part])]


def _shown(value: Any) -> str:
    return str([list(part) if isinstance(part, tuple) else part for part in value] if isinstance(value, tuple) else value)
