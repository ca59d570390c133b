"""The page `documentation/commands.md`, made from the parsers themselves so that it cannot drift from them."""
from __future__ import annotations

import argparse

from . import command_names
from ._common import build_parser

HEAD = """# Commands

Made by `python -m spineclue_v2.cli --reference > documentation/commands.md`; do not edit by hand.
All commands also take `--verbose` (say more), `-q`/`--quiet` (warnings and errors only), `--version` and `-h`.
"""
_EVERYWHERE = {"--help", "--verbose", "--quiet", "--version"}


def reference() -> str:
    """All commands with their descriptions and flags as Markdown."""
    return "\n".join([HEAD, *(_section(name) for name in command_names())])


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
