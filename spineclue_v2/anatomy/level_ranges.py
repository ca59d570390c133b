"""Levels as people write them: "L1-L5", "T12"."""
from __future__ import annotations

from collections.abc import Iterable

from ..errors import InputError
from .levels import ANATOMICAL_ORDER, ORDER_INDEX


def parse_levels(words: Iterable[str]) -> tuple[str, ...]:
    """All levels that `words` name, in cranio-caudal order: single ones and ranges, in either direction, T13 and L6 included.

    InputError for a word that is no level and no range of levels.
    """
    chosen: set[str] = set()
    for word in words:
        ends = [part.strip().upper() for part in word.split("-")]
        if len(ends) > 2 or not all(end in ORDER_INDEX for end in ends):
            raise InputError(f"'{word}' is no level and no range of levels; give words such as L3 or T11-L2.")
        first, last = sorted((ORDER_INDEX[ends[0]], ORDER_INDEX[ends[-1]]))
        chosen |= set(ANATOMICAL_ORDER[first:last + 1])
    return tuple(level for level in ANATOMICAL_ORDER if level in chosen)
