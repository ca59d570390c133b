"""Pages of the reference, made from the program itself so that they cannot drift from it: commands from the parsers, plan fields from
the plan groups."""
from __future__ import annotations

import argparse

from . import command_names
from ._common import build_parser

HEAD = """# Commands

Made by `python -m spineclue_v2.cli --reference > documentation/reference/commands.md`; do not edit by hand.
All commands also take `--verbose` (say more), `-q`/`--quiet` (warnings and errors only), `--version` and `-h`.
"""
_EVERYWHERE = {"--help", "--verbose", "--quiet", "--version"}


def reference() -> str:
    """All commands with their descriptions and flags as Markdown."""
    return "\n".join([HEAD, *(_section(name) for name in command_names())])


def plan_fields() -> str:
    """All fields of the plan groups of the package's own stages as Markdown."""
    from ..plans.reference import plan_reference
    from ..stages.registry import OWN, stages

    return plan_reference({name: stage.groups for name, stage in stages().items() if name in OWN and stage.groups})


FLAGS_HEAD = """# Review flags

Made by `python -m spineclue_v2.cli --flags-reference > documentation/reference/flags.md`; do not edit by hand.

Every `CASE.json` lists in `flags` what was noticed or assumed about the scan and the result. A flag has these keys:

| key | meaning |
|---|---|
| `code` | one of the codes below; programs ask for these |
| `stage` | where it was noticed: `read` (the file), a stage, `result` (all of it), `output` (a file that is missing) |
| `severity` | `info`: assumed or left out. `warning`: the result may be less good. `review`: a person should look before using it |
| `message` | one sentence |
| `observed`, `threshold` | what was found, and what it was held against; null where there is nothing to measure |
| `what_to_do` | one sentence |

Three states follow from them. `execution_status` is `partial` where a file is missing (a flag of stage `output` says which), else
`complete`. `quality_status` is the gravest severity above `info`, else `ok`. `review_required` is whether a flag has severity `review`.
All of it obeys the JSON Schema `spineclue_v2/schemas/case.schema.json`, which comes with the package
(`spineclue_v2.export.schema.case_schema()`).

Where no flag stands nothing is proved: flags say what the program can see of its own result.

| code | meaning |
|---|---|
"""


def flag_codes() -> str:
    """All codes of review flags with their meaning as Markdown."""
    from ..flags import CODES

    return FLAGS_HEAD + "".join(f"| `{code}` | {meaning} |\n" for code, meaning in CODES.items())


def _section(command: str) -> str:
    parser = build_parser(command)
    rows = [_row(action) for action in parser._actions if not _EVERYWHERE & set(action.option_strings)]
    table = ["| flag | meaning | default |", "|---|---|---|", *rows, ""] if rows else []
    return "\n".join([f"## `spineclue_{command}`", "", parser.description or "", "", *table])


def _row(action: argparse.Action) -> str:
    value = action.metavar if action.metavar is not None else action.dest if action.nargs != 0 else ""
    value = " ".join(value) if isinstance(value, tuple) else str(value)
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if action.nargs in ("+", "*"):
        value += " ..."
    name = f"`{' '.join(filter(None, [', '.join(action.option_strings), value]))}`"
    default = "" if action.default in (None, False, argparse.SUPPRESS) else f"`{_text(action.default)}`"
    if getattr(action, "required", False):
        default = "required"
    return f"| {name} | {(action.help or '').replace('|', '/')} | {default} |"


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
