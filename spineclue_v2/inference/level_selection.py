"""Only the levels that were asked for: chosen when all are named, since each is named by its place among the others."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..flags import Flag
from ..results import SpineResult


def select_levels(result: SpineResult, levels: Sequence[str]) -> SpineResult:
    """`result` with the vertebrae of `levels` alone (empty: all) and flags that say what is left out and what was not found."""
    if not levels:
        return result
    kept = tuple(v for v in result.vertebrae if v.level in levels)
    left_out = [v.level or "?" for v in result.vertebrae if v.level not in levels]
    # Variants are asked for by ranges such as T12-L2; only who names one alone expects it.
    missing = [level for level in levels if level not in {v.level for v in kept} and (level not in ("T13", "L6") or len(levels) == 1)]
    flags = list(result.flags)
    if left_out:
        flags.append(Flag("levels_left_out", "result", "info", f"Found, too, and left out as asked: {', '.join(left_out)}.",
                          " ".join(left_out), None, "Ask for all levels to have them written."))
    if missing:
        flags.append(Flag("levels_not_found", "result", "warning", f"Asked for and not found: {', '.join(missing)}.",
                          " ".join(missing), None, "Look at the picture: the scan may not show them, or they have another name."))
    notes = tuple(dict.fromkeys((*result.notes, *(flag.message for flag in flags))))
    # A numbering rests on all vertebrae: a part of them cannot be numbered again.
    basis = None if left_out else result.basis
    return replace(result, vertebrae=kept, basis=basis, numbering_anchored=result.numbering_anchored and bool(kept), flags=tuple(flags),
                   notes=notes)
