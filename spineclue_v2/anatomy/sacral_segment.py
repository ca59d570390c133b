"""The first sacral segment among what was found below a row of vertebrae.

The segment network shows it as it shows a vertebra, and the numbering calls it none.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .vertebra import Vertebra

LOWEST_LUMBAR = ("L5", "L6")
SACRAL_GAP = (0.6, 1.6)     # from the last lumbar vertebra, in gaps of the two above
SACRAL_VOLUME = (0.3, 1.5)  # of the last lumbar vertebra's


def first_sacral_segment(names: Sequence[str | None], detections: Sequence[Vertebra], below: Vertebra | None = None) -> Vertebra | None:
    """What follows the last lumbar vertebra: a detection that no numbering names, or else `below`; None where neither has such a place
    and size. `detections` cranio-caudal with masks, `names` of them in the numbering (None: no vertebra)."""
    named = [i for i, name in enumerate(names) if name is not None]
    if len(named) < 2 or names[named[-1]] not in LOWEST_LUMBAR:
        return None
    above, last = detections[named[-2]], detections[named[-1]]
    return next((found for found in (*detections[named[-1] + 1:][:1], below) if found is not None and _follows(above, last, found)), None)


def _follows(above: Vertebra, last: Vertebra, found: Vertebra) -> bool:
    if last.touches_border or any(v.mask is None or v.body_centre is None for v in (above, last, found)):
        return False
    usual, gap = (float(np.linalg.norm(np.subtract(a.known_body_centre, b.known_body_centre))) for a, b in ((above, last), (last, found)))
    size = found.known_volume_ml / max(last.known_volume_ml, 1e-3)
    return SACRAL_GAP[0] * usual <= gap <= SACRAL_GAP[1] * usual and SACRAL_VOLUME[0] <= size <= SACRAL_VOLUME[1]
