"""What the user knows of a patient's levels: pins ("L5 lies here", "the third is L1") and how many vertebrae there are."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..utilities.files import read_json
from ..utilities.triples import Floats3, float_triple
from .levels import ORDER_INDEX

LUMBAR, THORACIC = (5, 6), (11, 12, 13)
FORMS = "L5@x,y,z (LPS mm), L5@i,j,k:voxel, 3=L1 (third one found), lowest=L5 or uppermost=C1"
_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_AT = re.compile(rf"(\w+)\s*@{_NUMBER},{_NUMBER},{_NUMBER}(:voxel)?")
_IS = re.compile(r"(\d+|lowest|uppermost)\s*=\s*(\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Pin:
    """The level of one vertebra: of the one at a place, or of the n-th found.

    Attributes:
        text: as it was given.
        level: name in `ANATOMICAL_ORDER`.
        point: LPS mm (x, y, z), or voxel (i, j, k) of the scan as it is stored, counted from 0, where `voxel`; None: see `position`.
        position: 1 = uppermost vertebra of the result, -1 = lowest.
    """

    text: str
    level: str
    point: Floats3 | None = None
    voxel: bool = False
    position: int = 0


@dataclass(frozen=True)
class Known:
    """Pins and numbers of vertebrae; true when there is anything.

    Attributes:
        pins: of single vertebrae.
        lumbar: 5 or 6; None = not known.
        thoracic: 11, 12 or 13; None = not known.
    """

    pins: tuple[Pin, ...] = ()
    lumbar: int | None = None
    thoracic: int | None = None

    def __bool__(self) -> bool:
        return bool(self.pins) or self.lumbar is not None or self.thoracic is not None

    def __str__(self) -> str:
        counts = [f"{count} {part} vertebrae" for part, count in (("thoracic", self.thoracic), ("lumbar", self.lumbar)) if count]
        return ", ".join([pin.text for pin in self.pins] + counts)

    def to_json(self) -> dict[str, Any]:
        """As `known_of` and `known.json` take it."""
        return {"known": [pin.text for pin in self.pins], "lumbar": self.lumbar, "thoracic": self.thoracic}


KnownInput = Known | str | Path | Sequence[str] | Mapping[str, Any] | None
"""`Known`, one pin or several as text, `{"known": [...], "lumbar": 5, "thoracic": 12}`, or a file `known.json` with that."""


def parse_pin(text: str) -> Pin:
    """A pin in one of `FORMS`. Raises InputError."""
    at, place = _AT.fullmatch(text.strip()), _IS.fullmatch(text.strip())
    if at is not None:
        return Pin(text, _level(at[1], text), float_triple(float(v) for v in at.groups()[1:4]), at[5] is not None)
    if place is None:
        raise InputError(f"'{text}' says nothing about a level; expected {FORMS}.")
    position = {"lowest": -1, "uppermost": 1}.get(place[1].lower()) or int(place[1])
    if position == 0:
        raise InputError(f"'{text}' counts from 0; the uppermost vertebra found is number 1.")
    return Pin(text, _level(place[2], text), position=position)


def known_of(value: KnownInput, lumbar: int | None = None, thoracic: int | None = None) -> Known:
    """What was said in any of the forms of `KnownInput`; `lumbar` and `thoracic` add to it. Raises InputError."""
    if isinstance(value, Known):
        known = value
    elif isinstance(value, Mapping):
        known = _from_mapping(value)
    elif isinstance(value, Path) or (isinstance(value, str) and value.endswith(".json")):
        known = known_of(_checked(read_json(value, "known levels"), value))
    else:
        words = () if value is None else (value,) if isinstance(value, str) else tuple(value)
        known = Known(tuple(parse_pin(str(word)) for word in words))
    counts = {}
    for name, given, choice in (("lumbar", lumbar, LUMBAR), ("thoracic", thoracic, THORACIC)):
        own = getattr(known, name)
        if given is not None and own is not None and given != own:
            raise InputError(f"{own} and {given} {name} vertebrae are given; give one number.")
        counts[name] = own if given is None else given
        if counts[name] is not None and counts[name] not in choice:
            raise InputError(f"{name} is {counts[name]!r}; expected {', '.join(map(str, choice[:-1]))} or {choice[-1]} vertebrae.")
    return Known(known.pins, **counts)


def known_by_case(words: Sequence[str], lumbar: int | None, thoracic: int | None, cases: Sequence[str]) -> dict[str, Known]:
    """What is known of each case: `words` are pins, or the name of one JSON file with an entry per case (or for the only one).

    Raises InputError where pins are given for several cases at once: a place or a number belongs to one scan.
    """
    if len(words) == 1 and words[0].endswith(".json"):
        content = _checked(read_json(words[0], "known levels"), words[0])
        if isinstance(content, Mapping) and not set(content) & {"known", "lumbar", "thoracic"}:
            if strange := sorted(set(content) - set(cases)):
                raise InputError(f"{words[0]} names the case '{strange[0]}', which is not there; there are {', '.join(cases[:10])}.")
            return {case: known_of(_checked(content.get(case, ()), words[0]), lumbar, thoracic) for case in cases}
        known = known_of(content, lumbar, thoracic)
    else:
        known = known_of(tuple(words), lumbar, thoracic)
    here = [pin.text for pin in known.pins if pin.point is not None or pin.position > 1]
    if len(cases) > 1 and here:
        raise InputError(f"'{here[0]}' is meant for one scan and {len(cases)} are given; write a JSON file with an entry per case, "
                         f'{{"{cases[0]}": ["{here[0]}"], ...}}, and give its name.')
    return dict.fromkeys(cases, known)


def _from_mapping(values: Mapping[str, Any]) -> Known:
    if unknown := sorted(set(map(str, values)) - {"known", "lumbar", "thoracic"}):
        raise InputError(f"'{unknown[0]}' is nothing that can be known of levels; expected the keys known, lumbar and thoracic.")
    words = values.get("known") or ()
    if not isinstance(words, str | list | tuple):
        raise InputError(f"'known' is {words!r}; expected a list of pins such as {FORMS}.")
    return known_of((words,) if isinstance(words, str) else tuple(words), values.get("lumbar"), values.get("thoracic"))


def _checked(content: Any, path: str | Path) -> Any:
    """JSON that can be what `known_of` takes; InputError that names the file otherwise."""
    words = content.get("known") or () if isinstance(content, Mapping) and "known" in content else content
    if not isinstance(content, str | list | tuple | Mapping) or (isinstance(words, list) and not all(isinstance(w, str) for w in words)):
        raise InputError(f'{path} is no list of known levels; expected ["L5@x,y,z", "lowest=L5", ...], '
                         '{"known": [...], "lumbar": 5}, or {"CASE": [...], ...}.')
    if isinstance(words, str) and words.endswith(".json"):
        raise InputError(f"{path} names another JSON file; write what is known into it.")
    return content


def _level(name: str, text: str) -> str:
    if name.upper() not in ORDER_INDEX:
        raise InputError(f"'{text}' names no vertebra; expected C1..C7, T1..T13 or L1..L6.")
    return name.upper()
