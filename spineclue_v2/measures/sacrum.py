"""S1: its upper end plate, looked for below the last lumbar vertebra, and its mask.

Columns run from the last lumbar end plate downwards, through the disc. Where they enter bone again, S1 begins. A mask of the sacrum serves
in the same way: another tool's before the CT, our own of the first sacral segment where the CT shows no plate.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..anatomy.sacral_segment import LOWEST_LUMBAR
from ..imageio.orientation import oriented_view
from ..imageio.volume import Volume
from .bodies import Body, EndPlate
from .scan_plates import BONE_ABOVE_DISC, STEEPEST_DEG, Columns, find_plate

REACH_MM = 28.0             # furthest end plate below the last lumbar one, at the front of a high and lordotic disc
ABOVE_MM = 3.0              # the mask may end beyond the bone
NOT_LOWEST = "not in view"
NOT_SEEN = "not seen clearly enough below the last lumbar vertebra"
ONLY_UPPER = "only its upper end plate is looked for"


def sacral_plate(bodies: Sequence[Body], scan: Volume | None, sacrum: Volume | None, own: Volume | None = None) -> Body | str:
    """S1 with its upper end plate alone, below the L5 or L6 of `bodies`; in words ("is ...") why there is none.

    `scan`: the CT (HU); `sacrum`: a mask of the sacrum, which is used where it is given; `own`: ours of the first sacral segment, for where
    the CT shows nothing. All in any orientation.
    """
    last = bodies[-1] if bodies else None
    if last is None or last.level not in LOWEST_LUMBAR or last.lower is None:
        return NOT_LOWEST
    if sacrum is not None:
        return _in_mask(last, last.lower, sacrum) or NOT_SEEN
    found = None if scan is None else _search(last, last.lower, oriented_view(scan), BONE_ABOVE_DISC)
    if found is None and own is not None:
        found = _in_mask(last, last.lower, own)
    return found or ("not known without the CT" if scan is None else NOT_SEEN)


def _in_mask(last: Body, plate: EndPlate, mask: Volume) -> Body | None:
    return _search(last, plate, oriented_view(Volume((mask.array > 0).astype(np.uint8), mask.geometry)), 0.5)


def _search(last: Body, plate: EndPlate, view: Volume, rise: float) -> Body | None:
    """Twice: along the last lumbar end plate's normal, then along the normal of what was found."""
    half_depth, half_width = max(plate.length_mm / 2, last.half_depth_mm), last.half_width_mm
    columns = Columns(view, 0.5 * (plate.front + plate.back), plate.normal, last.axes[1], half_depth, half_width, ABOVE_MM, REACH_MM)
    first = find_plate(columns, rise)
    if first is None:
        return None
    # From here on columns begin in the disc, half way between both end plates.
    half_way = 0.5 * float(np.linalg.norm(first.centre - plate.centre))
    origin = 0.5 * (first.front + first.back)
    columns = Columns(view, origin, first.normal, last.axes[1], half_depth, half_width, half_way, REACH_MM)
    found = find_plate(columns, rise)
    if found is None or found.normal @ plate.normal < np.cos(np.radians(STEEPEST_DEG)):
        return None
    rows = np.stack([np.asarray(view.geometry.direction) @ row[::-1] for row in columns.footprint().axes])
    return Body("S1", last.confidence, found.centre, rows, half_depth, half_width, found, None, ONLY_UPPER)
