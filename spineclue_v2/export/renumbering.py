"""A labelled spine under another numbering: everything that is said of it by name changes with the names."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from ..anatomy.known import Known
from ..errors import InputError
from ..flags import Flag
from ..stages.base import NumberingBasis
from ..stages.grade.relevel import relevel_heights
from ..stages.identify.numbering import SOURCES, Numbered, apply_numbering, explanation, number
from .evidence_file import detections_of
from .labelled_spine import LabelledSpine
from .result_flags import RESULT_CODES, with_result_flags

Spine = TypeVar("Spine", bound=LabelledSpine)

_LEVEL = re.compile(r"\b(C[1-7]|T1[0-3]|T[1-9]|L[1-6])\b")
_OWN = {f"{source}_contradicts_scan" for source in SOURCES}


def renumber(result: Spine, known: Known) -> Spine:
    """The result under what the user knows; nothing known: as the scan alone says.

    Raises InputError for a result without evidence, a place outside the scan or between vertebrae, and pins that exclude each other.
    """
    grid, mask_grid = result.grids()
    return with_numbering(result, number(basis_of(result), known, grid, mask_grid))


def basis_of(result: LabelledSpine) -> NumberingBasis:
    """What the numbering rests on, with all that is known of the detections. InputError where there is nothing."""
    if result.basis is None or not result.basis.detections:
        raise InputError("There is nothing to number again: no vertebra was found, or the result does not know what its numbering rests "
                         "on; predict the scan again.")
    return replace(result.basis, detections=detections_of(result))


def with_numbering(result: Spine, numbered: Numbered) -> Spine:
    """The result with the names of `numbered`, and what is said of it in those names."""
    before = result.basis
    assert before is not None
    names = {old: new for old, new in zip(before.names, numbered.basis.names, strict=True) if old is not None and new is not None}
    vertebrae = relevel_heights(apply_numbering(numbered, {}))
    kept = tuple(_renamed(flag, names) for flag in result.flags if flag.code not in _OWN and flag.code not in RESULT_CODES)
    said = {flag.message for flag in result.flags}
    notes = [rename_levels(note, names) for note in result.notes if note not in said]
    flags = (*kept, *numbered.flags)
    result = replace(result, vertebrae=vertebrae, numbering_anchored=numbered.numbering.numbering_anchored,
                     margin=numbered.numbering.margin,
                   anchored_by=numbered.anchored_by, known=numbered.known, basis=numbered.basis, flags=flags,
                   notes=tuple(dict.fromkeys([*notes, *(flag.message for flag in flags)])),
                   incomplete=tuple(rename_levels(place, names) for place in result.incomplete),
                   extra={**result.extra, "identify": explanation(numbered)})
    return with_result_flags(result)


def rename_levels(text: str, names: Mapping[str, str]) -> str:
    """`text` with every level that `names` knows under its new name, all at once."""
    return _LEVEL.sub(lambda found: names.get(found[0], found[0]), text)


def _renamed(flag: Flag, names: Mapping[str, str]) -> Flag:
    observed = rename_levels(flag.observed, names) if isinstance(flag.observed, str) else flag.observed
    return replace(flag, message=rename_levels(flag.message, names), observed=observed)
