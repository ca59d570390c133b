"""Heights of vertebrae that got other names: what was measured stays, what is expected of it follows the level."""
from __future__ import annotations

from dataclasses import replace

from ...anatomy.vertebra import Vertebra
from .comparison import USUAL, compare
from .trust import MIXED_UP

NOT_MEASURED = "it was no vertebra, or one without a body of two end plates, in the numbering that was measured"


def relevel_heights(vertebrae: tuple[Vertebra, ...]) -> tuple[Vertebra, ...]:
    """The same vertebrae under other names: heights stay as measured, what is expected of them changes with the level."""
    if all(v.heights is None and v.height_doubt is None for v in vertebrae):
        return vertebrae
    given = [None if v.heights is None or v.level not in USUAL else v.heights.measured for v in vertebrae]
    found = compare([v.level for v in vertebrae], given)
    renewed = []
    for v, value, heights in zip(vertebrae, given, found, strict=True):
        doubt = v.height_doubt if v.level in USUAL else None
        if v.level in USUAL and heights is None and doubt is None:
            doubt = NOT_MEASURED if value is None else MIXED_UP
        same = heights == v.heights
        renewed.append(replace(v, heights=heights, height_doubt=doubt,
                               combined_grade_probabilities=v.combined_grade_probabilities if same else None))
    return tuple(renewed)
