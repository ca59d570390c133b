"""Label values of other tools' maps: which value is which vertebra, and which values are something else.

Values are facts of each tool's documentation: TotalSegmentator 1.5 and 2 (class maps of "total" and "vertebrae_mr"), SPINEPS and TPTBox
(vertebra instance maps), TotalSpineSeg (step 2), MOOSE 3 (clin_ct_vertebrae), CADS (model 552, the order that AbdomenAtlas shares),
VerSe, and SPIDER. Names of other structures tell what they are good for: `sacrum` and `rib` are landmarks, the rest is left alone.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .levels import ANATOMICAL_ORDER, CERVICAL, LABEL_OF_NAME, LEVELS, LUMBAR, THORACIC

SACRUM, DISC, RIB, OTHER = "sacrum", "disc", "rib", "other"


@dataclass(frozen=True)
class LabelScheme:
    """The values of one tool.

    Attributes:
        name: as in `--from`.
        title: for sentences.
        levels: value -> vertebra name.
        others: value -> kind of structure (`SACRUM`, `DISC`, `RIB`, `OTHER`) that is no vertebra.
        companions: distance in value to structures that carry the number of their vertebra (disc, end plate) and move with it.
        aliases: value -> the value of the same vertebra that is written (parts of a vertebra that the border cuts).
    """

    name: str
    title: str
    levels: Mapping[int, str]
    others: Mapping[int, str] = field(default_factory=dict)
    companions: tuple[int, ...] = ()
    aliases: Mapping[int, int] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, int]:
        """Vertebra name -> value that is written."""
        return {level: value for value, level in self.levels.items() if value not in self.aliases}

    def values_of(self, kind: str) -> list[int]:
        """Values of one kind of structure, such as `SACRUM`."""
        return [value for value, own in self.others.items() if own == kind]

    def knows(self, values: Iterable[int]) -> bool:
        """Whether all of these values occur in the scheme."""
        return all(value in self.levels or value in self.others for value in values)


def _upwards(first: int) -> dict[int, str]:
    """L5 has the first value, C1 the last."""
    return {first + i: level for i, level in enumerate(reversed(LEVELS))}


def _others(kinds: Mapping[str, Iterable[int]]) -> dict[int, str]:
    return {value: kind for kind, values in kinds.items() for value in values}


def _rest(last: int, levels: Mapping[int, str], others: Mapping[int, str]) -> dict[int, str]:
    """`others`, and all further values up to `last` as organs and the like."""
    return {value: OTHER for value in range(1, last + 1) if value not in levels} | dict(others)


_DOWNWARDS = {value: level for level, value in LABEL_OF_NAME.items() if level in ANATOMICAL_ORDER}
_DOWN_TO_L6 = {value: level for value, level in _DOWNWARDS.items() if level != "T13"}
_TOTAL_1, _TOTAL_2 = _upwards(18), _upwards(27)
_SPINESEG = ({11 + i: level for i, level in enumerate(CERVICAL)} | {21 + i: level for i, level in enumerate(THORACIC)}
             | {41 + i: level for i, level in enumerate((*LUMBAR, "L6"))})
_SPIDER = {1 + i: level for i, level in enumerate(reversed(LEVELS))}

SCHEMES: dict[str, LabelScheme] = {scheme.name: scheme for scheme in (
    LabelScheme("verse", "VerSe", _DOWNWARDS, {26: SACRUM, 27: OTHER}),
    LabelScheme("totalsegmentator", "TotalSegmentator 2", _TOTAL_2,
                _rest(117, _TOTAL_2, _others({SACRUM: (25, 26), RIB: range(92, 116)}))),
    LabelScheme("totalsegmentator_v1", "TotalSegmentator 1", _TOTAL_1,
                _rest(104, _TOTAL_1, _others({SACRUM: (92,), RIB: range(58, 82)}))),
    LabelScheme("totalsegmentator_mr", "TotalSegmentator's vertebrae_mr", _upwards(2), {1: SACRUM}),
    LabelScheme("spineps", "SPINEPS", _DOWNWARDS,
                _others({SACRUM: (26,), OTHER: (27, *range(29, 34), *range(60, 65), *range(201, 234)), RIB: range(40, 53),
                         DISC: range(100, 134)}), companions=(100, 200)),
    LabelScheme("totalspineseg", "TotalSpineSeg", _SPINESEG,
                _others({SACRUM: (50,), OTHER: (1, 2, 47), DISC: (*range(63, 68), *range(71, 83), *range(91, 97), 100)})),
    LabelScheme("moose", "MOOSE", _DOWN_TO_L6, {26: OTHER, 27: OTHER, 28: SACRUM}),
    LabelScheme("cads", "CADS", _upwards(1)),
    LabelScheme("spider", "SPIDER", _SPIDER | {100 + value: level for value, level in _SPIDER.items()},
                _others({OTHER: (100,), DISC: range(201, 226)}), aliases={100 + value: value for value in _SPIDER}),
)}
"""By name. Some share values: what a map holds besides, and the order of its values along the spine, tells them apart."""

_LEVEL = re.compile(r"(?<![A-Za-z])([CTL])[ _-]?0?(\d{1,2})(?![0-9])", re.IGNORECASE)
_JUNCTION = re.compile(r"(?<![A-Za-z])[CTLS]\d{0,2}[ _/-]+[CTLS]\d{0,2}(?![0-9])", re.IGNORECASE)
_KINDS = ((SACRUM, re.compile(r"sacrum|(?<![A-Za-z])S1(?!\d)", re.IGNORECASE)), (DISC, re.compile(r"dis[ck]|ivd", re.IGNORECASE)),
          (RIB, re.compile(r"(?<![A-Za-z])rib", re.IGNORECASE)))


def scheme_of_names(names: Mapping[int, str], name: str, title: str) -> LabelScheme:
    """A scheme from names of values, as `dataset.json` of nnU-Net or the label table of a file gives them.

    "vertebrae_L1", "L1", "Vertebra T12" are vertebrae; "sacrum", "S1", discs and ribs are known; all else is another structure.
    """
    levels: dict[int, str] = {}
    others: dict[int, str] = {}
    for value, text in sorted(names.items()):
        if value == 0:
            continue
        kind = kind_of_name(text)
        if kind in ANATOMICAL_ORDER and kind not in levels.values():
            levels[value] = kind
        else:
            others[value] = OTHER if kind in ANATOMICAL_ORDER else kind
    return LabelScheme(name, title, levels, others)


def kind_of_name(text: str) -> str:
    """The vertebra ("L1") or kind of structure that a name means."""
    for kind, pattern in _KINDS:
        if pattern.search(text):
            return kind
    found = _LEVEL.search(text)
    if found is None or _JUNCTION.search(text):
        return OTHER
    level = f"{found[1].upper()}{int(found[2])}"
    return level if level in ANATOMICAL_ORDER else OTHER
