"""Whether the row of vertebrae is complete: where the column of bone goes on and no vertebra was found, the result says so."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..anatomy.vertebra import Vertebra
from ..anatomy.vertebral_gaps import vertebral_gaps
from ..flags import Flag
from ..imageio.volume import Volume

ALONG = 2               # vertebrae whose mean step tells the way beyond an end
ALONE_STEP_MM = 28.0    # of a single vertebra, along the patient's axis
RADIUS_MM = 10.0        # of the ball that is compared with those in the found bodies
INSIDE_MM = 5.0         # the middle of the next body lies so far inside the scan, else there is nothing to miss
LIKE = 3                # bodies next to the end that the place beyond it is compared with
GAP_STEP = 1.6          # of the usual step: room for one more vertebra
SOFT_TISSUE_HU, HU_RANGE = 50.0, (-100.0, 600.0)
LIKE_BONE = 0.5         # of the way from soft tissue to the found bodies
NOTHING_ABOVE, NOTHING_BELOW = ("C1",), ("L5", "L6")


def find_incomplete(vertebrae: Sequence[Vertebra], scan: Volume) -> tuple[str, ...]:
    """Where vertebrae are missing from a named row: "above", "below", "gap between X and Y"; () when it is complete.

    Args:
        vertebrae: named, with `body_centre` (LPS mm), cranio-caudal.
        scan: the CT (HU), any orientation.

    Above C1 there is the skull and below the last lumbar vertebra the sacrum: neither counts.
    """
    if not vertebrae:
        return ()
    centres = np.array([v.body_centre for v in vertebrae])
    missing = []
    if vertebrae[0].level not in NOTHING_ABOVE and _goes_on(scan, centres, (0.0, 0.0, 1.0)):
        missing.append("above")
    steps = vertebral_gaps(centres) if len(centres) > 2 else ()
    missing += [f"gap between {upper.level} and {lower.level}" for upper, lower, step
                in zip(vertebrae[:-1], vertebrae[1:], steps, strict=False) if step >= GAP_STEP]
    if vertebrae[-1].level not in NOTHING_BELOW and _goes_on(scan, centres[::-1], (0.0, 0.0, -1.0)):
        missing.append("below")
    return tuple(missing)


def incomplete_flag(missing: Sequence[str], vertebrae: Sequence[Vertebra]) -> Flag:
    """What a reader should know of it; `missing` as `find_incomplete` gives it, not empty."""
    ends = {"above": f"above {vertebrae[0].level}", "below": f"below {vertebrae[-1].level}"}
    places = [ends.get(entry, entry.replace("gap between", "between")) for entry in missing]
    message = f"The spine goes on {', '.join(places)}, where no vertebra was found; levels counted from there may be wrong."
    return Flag("incomplete", "result", "review", message, ", ".join(missing), None, "Look at the ends of the row and at the gaps.")


def _goes_on(scan: Volume, centres: np.ndarray, outwards: tuple[float, float, float]) -> bool:
    """Whether the place one step beyond the first of `centres` lies in the scan and looks like the bodies next to it."""
    count = min(ALONG, len(centres) - 1)
    step = (centres[0] - centres[count]) / count if count else ALONE_STEP_MM * np.array(outwards)
    place = centres[0] + step
    index, margin = scan.geometry.world_to_index(place), INSIDE_MM / np.array(scan.spacing)
    inside = bool((index >= margin - 0.5).all() and (index <= np.array(scan.array.shape) - 0.5 - margin).all())
    if not inside:
        return False
    usual = float(np.median([_mean_hu(scan, centre) for centre in centres[:LIKE]]))
    return _mean_hu(scan, place) >= SOFT_TISSUE_HU + LIKE_BONE * (usual - SOFT_TISSUE_HU)


def _mean_hu(scan: Volume, place: np.ndarray) -> float:
    """Mean CT number in a ball around a world point, limited to `HU_RANGE` so that metal and air say no more than bone and fat."""
    index, spacing = scan.geometry.world_to_index(place), np.array(scan.spacing)
    reach = np.ceil(RADIUS_MM / spacing).astype(int)
    low = np.clip(np.round(index).astype(int) - reach, 0, np.array(scan.array.shape) - 1)
    high = np.clip(np.round(index).astype(int) + reach + 1, low + 1, scan.array.shape)
    steps = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1) - index
    distance = np.linalg.norm(steps * spacing, axis=-1)
    box = scan.array[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    return float(np.clip(box[distance <= max(RADIUS_MM, float(distance.min()))], *HU_RANGE).mean())
