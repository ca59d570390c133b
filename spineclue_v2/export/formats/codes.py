"""SNOMED CT codes of the spine's structures, as DICOM PS3.16 uses them."""
from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """A coded term of SNOMED CT (scheme "SCT")."""

    value: str
    meaning: str


ANATOMICAL_STRUCTURE = Code("91723000", "Anatomical Structure")
SPINE = Code("421060004", "Spine")
VERTEBRA = Code("51282000", "Vertebra")

_VERTEBRAE = {
    "C1": "14806007", "C2": "39976000", "C3": "113205007", "C4": "5329002", "C5": "36978003", "C6": "36054005", "C7": "87391001",
    "T1": "64864005", "T2": "53733008", "T3": "1626008", "T4": "73071006", "T5": "56401006", "T6": "45296009", "T7": "62487009",
    "T8": "11068009", "T9": "82687006", "T10": "7610001", "T11": "12989004", "T12": "23215003",
    "L1": "66794005", "L2": "14293000", "L3": "36470004", "L4": "11994002", "L5": "49668003",
}

_OTHERS = {"sacrum": Code("54735007", "Sacrum"), "S": Code("54735007", "Sacrum")}


def code_of(name: str) -> Code:
    """Code of a structure such as "L3". T13 and L6 have none of their own and are coded as a vertebra, all else as a part of the spine;
    the segment's label names them."""
    if name in _VERTEBRAE:
        return Code(_VERTEBRAE[name], f"{name} vertebra")
    return _OTHERS.get(name, VERTEBRA if name in ("T13", "L6") else SPINE)
