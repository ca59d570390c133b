"""What a relabelled map has to say: how the other tool's names differ, what was mended, missing and unlikely."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..anatomy import ANATOMICAL_ORDER, ORDER_INDEX, level_distance
from ..anatomy.vertebra import Vertebra
from ..anatomy.vertebral_gaps import GAP_RANGE_MM
from ..flags import Flag
from .mend import Mending

LEAST_ML = 0.01             # less was moved or dropped: not worth a sentence
UNLIKELY = (0.3, 2.5)       # volume against the usual one of the neighbours


def mending_flags(done: Mending) -> list[Flag]:
    """What was changed in the masks."""
    flags = []
    if done.moved_ml + done.dropped_ml >= LEAST_ML:
        message = (f"{done.moved_ml:.2f} ml of loose or wrongly labelled pieces were given to the vertebra that they belong to, "
                   f"{done.dropped_ml:.2f} ml of islands were left out.")
        flags.append(Flag("mask_mended", "relabel", "info", message, round(done.moved_ml + done.dropped_ml, 2), LEAST_ML))
    for value in done.parted:
        message = f"Value {value} covered two vertebrae and was parted."
        flags.append(Flag("merged_vertebrae", "relabel", "warning", message, str(value), None, "Check by eye where they were parted."))
    for first, second in done.joined:
        flags.append(Flag("torn_vertebra", "relabel", "warning", f"Values {first} and {second} covered one vertebra and were joined.",
                          f"{first}, {second}", None, "Check by eye that it is one vertebra."))
    return flags


def level_table(pairs: Sequence[tuple[int, str | None, str | None]]) -> list[dict[str, Any]]:
    """One record per vertebra of the input: `value`, `tool` (its name there) and `level` (ours, None: no vertebra)."""
    return [{"value": value, "tool": tool, "level": level} for value, tool, level in pairs]


def difference_flag(table: Sequence[dict[str, Any]], title: str) -> list[Flag]:
    """Whether the tool's names differ from ours, and whether by the same number of levels all along."""
    both = [row for row in table if row["tool"] and row["level"]]
    other = [row for row in both if row["tool"] != row["level"]]
    if not other:
        return []
    shifts = {level_distance(row["tool"], row["level"]) for row in both}
    whole = len(shifts) == 1
    way = f"the whole row is shifted by {abs(next(iter(shifts)))}" if whole else "see the table of levels"
    message = (f"{len(other)} of {len(both)} vertebrae have another name in {title} (value {other[0]['value']}: {other[0]['tool']} there, "
               f"{other[0]['level']} here); {way}.")
    return [Flag("levels_differ", "relabel", "review", message, len(other), 0, "Check one level by eye, and give it to both.")]


def decided_flag(named: Sequence[Vertebra], own: dict[int, str]) -> list[Flag]:
    """Whether names rest on the tool's levels. `own`: `hits` of a vertebra -> what the classifiers alone call it."""
    other = [v for v in named if v.hits in own and own[v.hits] != v.level]
    if not other:
        return []
    message = (f"The other tool's levels decided: the classifiers alone give {len(other)} of {len(named)} vertebrae another name "
               f"({own[other[0].hits]} for {other[0].level}).")
    return [Flag("levels_from_tool", "relabel", "review", message, len(other), 0, "Check one level by eye, or give the CT with -ct.")]


def missing_flags(vertebrae: Sequence[Vertebra]) -> list[Flag]:
    """Levels without a mask between two that have one, where there is room for them."""
    flags = []
    named = [v for v in vertebrae if v.level is not None and v.body_centre is not None]
    gaps = [float(np.linalg.norm(np.subtract(a.known_body_centre, b.known_body_centre))) for a, b in zip(named, named[1:], strict=False)]
    for i, (above, below) in enumerate(zip(named, named[1:], strict=False)):
        first, last = ORDER_INDEX[above.known_level] + 1, ORDER_INDEX[below.known_level]
        between = [name for name in ANATOMICAL_ORDER[first:last] if name not in ("T13", "L6")]
        around = gaps[max(i - 3, 0):i] + gaps[i + 1:i + 4]
        usual = float(np.clip(np.median(around or [gaps[i]]), *GAP_RANGE_MM))
        if between and (between != ["T12"] or gaps[i] > 1.5 * usual):
            message = f"The map has no mask of {', '.join(between)} between {above.level} and {below.level}."
            flags.append(Flag("missing_vertebra", "relabel", "review", message, round(gaps[i], 1), round(1.5 * usual, 1),
                              "Segment it, or check by eye that it is not there."))
    return flags


def unlikely_flags(vertebrae: Sequence[Vertebra], values: dict[int, int]) -> list[Flag]:
    """Named bodies that are far smaller or larger than their neighbours. `values`: place in the row -> value in the map."""
    flags = []
    for i, vertebra in enumerate(vertebrae):
        near = [v.known_volume_ml for k, v in enumerate(vertebrae) if 0 < abs(k - i) <= 3 and not v.touches_border]
        if vertebra.touches_border or len(near) < 2:
            continue
        ratio = vertebra.known_volume_ml / float(np.median(near))
        if not UNLIKELY[0] <= ratio <= UNLIKELY[1]:
            message = (f"The body named {vertebra.level} (value {values[i]}) has {ratio:.2g} times the volume of its neighbours: it "
                       "may be a disc, a part, or another structure.")
            flags.append(Flag("unlikely_body", "relabel", "review", message, round(ratio, 2), f"{UNLIKELY[0]} to {UNLIKELY[1]}",
                              "Look at it, and leave its value out with --ignore where it is no vertebra."))
    return flags
