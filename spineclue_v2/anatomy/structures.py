"""Structures of a spine MR: vertebral bodies, sacrum, intervertebral discs; their names, however written, and label values.

Names are "L5" for a vertebra, "S" for the sacrum, "L5/S" for the disc between them (upper/lower). Label values continue
VerSe's: bodies keep 1..28, discs follow in cranio-caudal order.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..errors import InputError
from . import ANATOMICAL_ORDER, IGNORE_NAME, LEVELS, dataset_labels

SACRUM = "S"
_REGULAR = [*LEVELS[1:], SACRUM]
DISCS = tuple(f"{a}/{b}" for a, b in zip(_REGULAR, _REGULAR[1:], strict=False)) + ("T11/L1", "T12/T13", "T13/L1", "L5/L6", "L6/S")
"""Discs from C2/C3 to L5/S, then those of spines with one level more or less."""

LABELS = dataset_labels() | {name: 29 + i for i, name in enumerate(DISCS)}
"""`labels` of an MR dataset.json: background, VerSe's 1..28, discs 29..56 (consecutive, as nnU-Net wants)."""

VALUE = {SACRUM if name == "sacrum" else name: value for name, value in LABELS.items() if value}
"""Canonical name -> label value of the datasets we write."""

_LEVEL = r"([CTL]\d{1,2}|S1?|sacrum)"
_DISC = re.compile(rf"^(?:(?:disc|disk|ivd)[_\- ]*)?{_LEVEL}[/_\- ]+{_LEVEL}$", re.IGNORECASE)
_VERTEBRA = re.compile(rf"^(?:(?:vertebrae|vertebra|vert|vb)[_\- ]*)?{_LEVEL}$", re.IGNORECASE)


def canonical(name: str) -> str:
    """'vertebrae_L5' -> 'L5', 'sacrum' -> 'S', 'disc_L5_S1' or 'L5-S' -> 'L5/S'; any other name comes back as it is."""
    text = name.strip()
    found = _VERTEBRA.match(text)
    if found and _level(found[1]):
        return _level(found[1])
    found = _DISC.match(text)
    if found and _level(found[1]) and _level(found[2]):
        upper, lower = sorted((_level(found[1]), _level(found[2])), key=_position)
        return f"{upper}/{lower}"
    return text


def values_by_name(names: Mapping[int, str]) -> dict[int, int]:
    """Stored value -> value of `LABELS` from stored value -> name; names that are no structure of ours become background."""
    return {value: VALUE.get(canonical(name), 0) for value, name in names.items()}


def kind(name: str) -> str:
    """'body' (sacrum included), 'disc' or 'other' of a canonical name."""
    if name == SACRUM or name in ANATOMICAL_ORDER:
        return "body"
    return "disc" if name in DISCS else "other"


def in_order(names: Sequence[str]) -> list[str]:
    """Canonical names sorted: bodies from the sacrum upwards, then discs from below, then all others."""
    rank = {"body": 0, "disc": 1, "other": 2}
    return sorted(names, key=lambda name: (rank[kind(name)], -_position(name.split("/")[0]), name))


def canonical_values(labels: Mapping[str, int], source: object = "the dataset") -> dict[str, int]:
    """Canonical name -> stored value of a dataset.json's `labels` (background and nnU-Net's ignore label left out).

    Raises InputError when two labels mean the same structure.
    """
    found: dict[str, int] = {}
    for name, value in labels.items():
        if value == 0 or name == IGNORE_NAME:
            continue
        key = canonical(name)
        if key in found:
            raise InputError(f"{source}: two labels mean the structure {key} (values {found[key]} and {value}); keep one in dataset.json.")
        found[key] = value
    return found


def _level(text: str) -> str:
    upper = text.upper()
    if upper in ("S", "S1", "SACRUM"):
        return SACRUM
    return upper if upper in ANATOMICAL_ORDER else ""


def _position(name: str) -> int:
    order = [*ANATOMICAL_ORDER, SACRUM]
    return order.index(name) if name in order else -1
