"""The upper end plate of S1, which no mask of ours holds: looked for in the CT below the last lumbar vertebra.

Columns run from the last lumbar end plate downwards, through the disc. Where they enter bone again, S1 begins. Another tool's mask of the
sacrum serves in the same way.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..imageio.orientation import oriented_view
from ..imageio.volume import Volume
from .bodies import Body, EndPlate
from .scan_plates import BONE_ABOVE_DISC, STEEPEST_DEG, Columns, find_plate

REACH_MM = 28.0             # furthest end plate below the last lumbar one, at the front of a high and lordotic disc
ABOVE_MM = 3.0              # the mask may end beyond the bone
LOWEST_LUMBAR = ("L5", "L6")
NOT_LOWEST = "not in view"
NOT_SEEN = "not seen clearly enough below the last lumbar vertebra"
ONLY_UPPER = "only its upper end plate is looked for"


def sacral_plate(bodies: Sequence[Body], scan: Volume | None, sacrum: Volume | None) -> Body | str:
    """S1 with its upper end plate alone, below the L5 or L6 of `bodies`; in words ("is ...") why there is none.

    `scan`: the CT (HU); `sacrum`: a mask of the sacrum, which is used where it is given. Both in any orientation.
    """
    last = bodies[-1] if bodies else None
    if last is None or last.level not in LOWEST_LUMBAR or last.lower is None:
        return NOT_LOWEST
    if sacrum is not None:
        view = oriented_view(Volume((sacrum.array > 0).astype(np.uint8), sacrum.geometry))
        return _search(last, last.lower, view, 0.5) or NOT_SEEN
    if scan is None:
        return "not known without the CT"
    return _search(last, last.lower, oriented_view(scan), BONE_ABOVE_DISC) or NOT_SEEN


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
