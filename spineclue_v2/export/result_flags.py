"""Flags for what a result shows of itself: shifted, unsure or odd numberings, masks that do not fit together, vertebrae that are cut."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ..anatomy import ORDER_INDEX
from ..anatomy.vertebra import Vertebra
from ..flags import Flag
from .case_record import OUTPUT
from .labelled_spine import LabelledSpine

Result = TypeVar("Result", bound=LabelledSpine)

LOW_CONFIDENCE = 0.7        # as in the picture
DISAGREEING = 0.5           # share of the vertebrae that a classifier alone would name differently
FEW = 2
MERGED, PIECE = 1.8, 0.4    # of the neighbours' median volume
NEIGHBOURS = 2              # on each side
DOUBTFUL = 0.5
DENSE_HU = 700.0
RESULT_CODES = ("no_vertebra", "not_anchored", "low_confidence", "disagreement", "few_vertebrae", "repeated_level", "unusual_numbering",
                "merged_masks", "small_mask", "cut_vertebrae", "heights_doubtful", "rejected_detections", "dense_bone")
"""What `result_flags` may say; `with_result_flags` says these anew."""

_DIFFERENTLY = re.compile(r"^(\w+): .*, (\d+) of (\d+) differently$")   # of `stages.identify.reasons`


def with_result_flags(result: Result) -> Result:
    """The result with the flags that follow from what it holds now; those of an earlier state of it (other names) are replaced."""
    kept = tuple(flag for flag in result.flags if flag.code not in RESULT_CODES)
    return replace(result, flags=kept + result_flags(result))


def result_flags(result: LabelledSpine) -> tuple[Flag, ...]:
    """Flags of `RESULT_CODES` for a CT's vertebrae; stage "result"."""
    if not result.vertebrae:
        return (Flag("no_vertebra", "result", "review", "No vertebra was found in this scan.", 0, 1,
                     "Check that the scan is a CT in HU that shows the spine, and that its header does not swap front and back."),)
    return (*_numbering(result), *_names(result), *_masks(result.vertebrae))


def picture_failed(reason: str) -> Flag:
    """For results whose picture could not be drawn."""
    return Flag("picture_failed", OUTPUT, "info", "The picture could not be drawn; labels and numbers are complete.", reason, None,
                "Run spineclue_doctor, or leave the picture out with --no_report.")


def _numbering(result: LabelledSpine) -> list[Flag]:
    vertebrae, found = result.vertebrae, []
    if not result.numbering_anchored:
        found.append(Flag("not_anchored", "result", "review",
                          "The numbering is not anchored: the whole sequence may be shifted up or down.", None if result.margin is None
                          else round(result.margin, 3), None,
                          "Count from a landmark (C2, first or last rib, sacrum), or give a level that is known."))
    unsure = [v for v in vertebrae if v.confidence is not None and v.confidence < LOW_CONFIDENCE]
    if unsure and result.numbering_anchored:
        found.append(Flag("low_confidence", "result", "warning", f"The confidence of {_list(unsure)} is low.",
                          round(min(v.confidence or 0.0 for v in unsure), 3), LOW_CONFIDENCE, "Check these levels."))
    if len(vertebrae) <= FEW:
        found.append(Flag("few_vertebrae", "result", "warning", f"The numbering rests on {_count(len(vertebrae), 'vertebra')} alone.",
                          len(vertebrae), FEW + 1, "Check the levels; a larger field of view makes them surer."))
    identify = result.extra.get("identify", {})
    against = [match.groups() for text in identify.get("alone", ()) if (match := _DIFFERENTLY.match(text))]
    wide = [name for name, other, every in against if int(other) >= DISAGREEING * int(every)]
    if len(wide) > 1:
        found.append(Flag("disagreement", "result", "warning", f"The classifiers {', '.join(wide)} each alone would name half of the "
                          "vertebrae or more differently.", len(wide), 2, "Check the levels."))
    if rejected := int(identify.get("rejected", 0)):
        found.append(Flag("rejected_detections", "result", "info", f"{_count(rejected, 'detection')} that fitted no level "
                          f"{'was' if rejected == 1 else 'were'} dropped.", rejected, 0, "Check the ends of the row."))
    return found


def _names(result: LabelledSpine) -> list[Flag]:
    names = [v.level for v in result.vertebrae if v.level in ORDER_INDEX]
    order = [ORDER_INDEX[name] for name in names if name]
    found = []
    odd = sorted({names[i + 1] or "" for i in range(len(order) - 1) if order[i + 1] <= order[i]})
    if odd:
        places = ", ".join(odd)
        found.append(Flag("repeated_level", "result", "review", f"The levels do not follow one another at {places}.", places, None,
                          "Check the levels; one of the masks may be no vertebra."))
    unusual: list[str] = [name for name in ("T13", "L6") if name in names]
    if any(pair == ("T11", "L1") for pair in zip(names, names[1:], strict=False)):
        unusual.append("no T12")
    if unusual:
        found.append(Flag("unusual_numbering", "result", "warning", f"The numbering is unusual: {', '.join(unusual)}.", ", ".join(unusual),
                          None, "Count the ribs; --forbid_anomalies allows regular numberings only."))
    return found


def _masks(vertebrae: Sequence[Vertebra]) -> list[Flag]:
    found = []
    for code, message, odd, limit in (
            ("merged_masks", "much larger than its neighbours: two vertebrae may have become one", _odd(vertebrae, MERGED, True), MERGED),
            ("small_mask", "much smaller than its neighbours: it may be a piece of a vertebra", _odd(vertebrae, PIECE, False), PIECE)):
        if odd:
            found.append(Flag(code, "result", "review", f"The mask of {_list([v for v, _ in odd])} is {message}.",
                              round((max if code == "merged_masks" else min)(ratio for _, ratio in odd), 2), limit, "Check the masks."))
    cut = [v for v in vertebrae if v.touches_border]
    if cut:
        are = "is" if len(cut) == 1 else "are"
        found.append(Flag("cut_vertebrae", "result", "info", f"{_list(cut)} {are} cut by the border of the scan.", len(cut), 0,
                          "Leave the size of a cut vertebra out of statistics."))
    able = [v for v in vertebrae if not v.touches_border and (v.heights is not None or v.height_doubt is not None)]
    doubtful = [v for v in able if v.height_doubt is not None]
    if doubtful and len(doubtful) >= DOUBTFUL * len(able):
        found.append(Flag("heights_doubtful", "result", "info", f"{len(doubtful)} of {len(able)} vertebrae have no body heights that can "
                          "be trusted.", round(len(doubtful) / len(able), 2), DOUBTFUL, "See height_doubt of each vertebra."))
    dense = [v for v in vertebrae if v.trabecular_hu is not None and v.trabecular_hu > DENSE_HU]
    if dense:
        found.append(Flag("dense_bone", "result", "warning",
                          f"The middle of {_list(dense)} is unusually dense: cement, sclerosis or metal.",
                          round(max(v.trabecular_hu or 0.0 for v in dense)), DENSE_HU, "Do not use their HU; check their masks."))
    return found


def _odd(vertebrae: Sequence[Vertebra], limit: float, above: bool) -> list[tuple[Vertebra, float]]:
    """Whole vertebrae (but C1 and C2, which have a form of their own) whose volume is beyond `limit` times their neighbours' median."""
    known = [v for v in vertebrae if v.volume_ml and not v.touches_border and v.level not in ("C1", "C2")]
    odd = []
    for place, vertebra in enumerate(known):
        beside = [v.known_volume_ml for v in (*known[max(0, place - NEIGHBOURS):place], *known[place + 1:place + 1 + NEIGHBOURS])]
        if len(beside) < 2:
            continue
        ratio = vertebra.known_volume_ml / float(np.median(beside))
        if (ratio > limit) if above else (ratio < limit):
            odd.append((vertebra, ratio))
    return odd


def _list(vertebrae: Sequence[Vertebra]) -> str:
    return ", ".join(v.level or "an unnamed vertebra" for v in vertebrae)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what[:-1] + 'ae' if what.endswith('ra') else what + 's'}"
