"""Reading plan groups: pydantic checks what the fields say of themselves, here it becomes one sentence that names the place."""
from __future__ import annotations

import dataclasses
import difflib
import reprlib
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import pydantic
import pydantic.dataclasses
from pydantic.fields import FieldInfo

from ..errors import InputError
from .fields import CONFIG

PLAN_AGAIN = "; plan again with spineclue_plan_experiment"
# What pydantic's limits read as in "expected a number ..."; the names are those of its errors' contexts.
LIMITS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text", "tuple": "a list",
         "dict": "names with a value each", "mapping": "names with a value each"}


def parse_group(kind: type, groups: Any, stage: str, group: str, reasons: dict[str, dict[str, Any]], source: str,
                renamed: dict[str, str] | None = None) -> Any:
    """Group `group` of a stage as `kind`, its dataclass, from JSON. InputError names the place.

    Rules and their inputs are added to `reasons`; old names of fields that were read as their new ones to `renamed`.
    """
    place = f"{source}: stages.{stage}.{group}"
    entries = groups.get(group) if isinstance(groups, dict) else None
    if not isinstance(entries, dict):
        raise InputError(f"{place} is missing.")
    upgrade = getattr(kind, "upgrade", None)
    if upgrade is not None:
        entries = upgrade(entries)
    known, old = fields_of(kind), old_names(kind)
    values: dict[str, Any] = {}
    for given, entry in entries.items():
        key = old.get(given, given)
        if key not in known:
            hint = "; free keys belong into extra of the run group" if given == "extra" else nearest(given, known)
            raise InputError(f"{place}: unknown key '{given}'{hint}.")
        if key in values:
            raise InputError(f"{place}: '{given}' and '{key}' are the same number; keep '{key}'.")
        if key != given and renamed is not None:
            renamed[given] = key
        reasoned = isinstance(entry, dict) and "value" in entry
        values[key] = entry["value"] if reasoned else entry
        if reasoned:
            reasons[f"{group}.{key}"] = {k: v for k, v in entry.items() if k != "value"}
    return build_group(kind, values, place, PLAN_AGAIN)


def build_group(kind: type, values: Mapping[str, Any], place: str, remedy: str = "") -> Any:
    """`kind(**values)`, lists as tuples; what does not fit is an InputError of one sentence that begins with `place`."""
    given = {key: _tuples(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        checked = _checked(kind)(**given)
    except pydantic.ValidationError as error:
        raise InputError(f"{place}{_sentence(error, kind, given, remedy)}.") from None
    if type(checked) is kind:
        return checked
    return kind(**{field.name: getattr(checked, field.name) for field in dataclasses.fields(kind) if field.init})


def fields_of(kind: type) -> dict[str, FieldInfo]:
    """What the fields of a group say of themselves, by name."""
    return _checked(kind).__pydantic_fields__


@cache
def old_names(kind: type) -> dict[str, str]:
    """{old name: present name} of a group's fields."""
    return {old: name for name, info in fields_of(kind).items() for old in note(info, "old_names", [])}


def note(info: FieldInfo, key: str, otherwise: Any = "") -> Any:
    """What `planned` noted of a field beside its meaning: "unit" or "old_names"."""
    return info.json_schema_extra.get(key, otherwise) if isinstance(info.json_schema_extra, dict) else otherwise


@cache
def _checked(kind: type) -> Any:
    """`kind`, where pydantic made it, else its checked twin: a plain dataclass is a group too, with types and without ranges."""
    return kind if hasattr(kind, "__pydantic_fields__") else pydantic.dataclasses.dataclass(kind, frozen=True, config=CONFIG)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _sentence(failure: pydantic.ValidationError, kind: type, values: Mapping[str, Any], remedy: str) -> str:
    """What is wrong with a group, to be read behind its place: the first mistake, and missing fields only where all others fit."""
    errors = failure.errors(include_url=False)
    missing = [str(e["loc"][0]) for e in errors if e["type"] == "missing" and len(e["loc"]) == 1]
    first = next((e for e in errors if e["type"] != "missing" or len(e["loc"]) > 1), None)
    if first is None:
        return f": missing {', '.join(missing)}{remedy}"
    reason = str(first.get("ctx", {}).get("error", first["msg"]))
    if not first["loc"]:                                        # a check of the whole group names its fields itself
        return f": {reason}"
    field = str(first["loc"][0])
    if first["type"] == "unexpected_keyword_argument":
        return f": unknown key '{field}'{nearest(field, fields_of(kind))}"
    if first["type"] in ("missing", "too_long"):
        return f".{field} is {_show(values[field])}; expected {_describe(fields_of(kind)[field].annotation)}"
    return f".{field} {_mistake(first, reason)}"


def _mistake(error: Any, reason: str) -> str:
    """One mistake of pydantic's, in a field or in one of the values it holds."""
    wrong, context = error["type"], error.get("ctx", {})
    found = f"{'holds' if len(error['loc']) > 1 else 'is'} {_show(error['input'])}"
    limit = next((name for name in LIMITS if name in context), None)
    if wrong == "value_error":
        return f"{found}; {reason}"
    if wrong == "too_short":
        return "is empty; expected at least one value"
    if wrong == "finite_number":
        return f"{found}, which is not finite"
    if limit is not None:
        return f"{found}; expected a number {LIMITS[limit]} {plain(context[limit])}"
    return f"{found}; expected {KINDS.get(wrong.split('_')[0], 'another value')}"


def plain(number: float) -> str:
    """A number without digits that say nothing."""
    return str(int(number)) if number == int(number) else str(number)


def _describe(annotation: Any) -> str:
    """How long a list is to be, where all of its values are of one kind."""
    parts = [typing.get_args(part)[0] if hasattr(part, "__metadata__") else part for part in typing.get_args(annotation)]
    inner = typing.get_args(parts[0]) if parts and parts[-1] is Ellipsis else ()
    return f"lists of {len(inner)} values" if inner else f"a list of {len(parts)} values"


def _show(value: Any) -> str:
    """A value as a plan file has it, if it is long only its ends."""
    return reprlib.repr(_lists(value))


def _lists(value: Any) -> Any:
    return [_lists(part) for part in value] if isinstance(value, tuple) else value


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word nearest to `word`, else all of them, as the end of a sentence."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.4)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(names)})"
