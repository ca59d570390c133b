"""What the row of vertebrae says about each: where one is that localize did not find (in gaps, and one step beyond the ends), and which
mask is a fragment for which the row has no room."""
from __future__ import annotations

import numpy as np

from ...anatomy.vertebra import Vertebra
from ...anatomy.vertebral_gaps import vertebral_gaps
from ...imageio.volume import ImageGrid
from ...utilities.triples import Floats3, float_triple

MISSING_STEP = 1.45   # a gap this many times the expected one may hold a vertebra; where it holds none, the crop shows a neighbour again
TRIED_MM = 5.0        # a position this near one that was looked at already is not looked at again
INSIDE_MM = 4.0       # a candidate's middle lies at least so far inside the volume
FRAGMENT = 0.6        # of the smaller neighbour's volume; whole vertebrae were never below 0.68 (C1) on 60 phantoms, 0.91 on real scans


def propose_missed(found: list[Vertebra], tried: list[Vertebra], geometry: ImageGrid) -> list[Vertebra]:
    """Candidates (score 0: of two that turn out the same vertebra, the located one stays) from segmented vertebrae.

    One step beyond the uppermost and the lowest vertebra is looked at once, unless the mask there ends at the volume's border. Whether
    it is a vertebra at all (below L5 there is a sacrum) is for identify to say.

    Args:
        found: vertebrae with masks, in any order.
        tried: candidates that were looked at before.
        geometry: of the network space volume that the masks lie on.
    """
    ordered = sorted(found, key=lambda v: -v.known_body_centre[2])
    if len(ordered) < 2:
        return []
    middles = np.array([mask_middle(v, geometry) for v in ordered])
    positions: list[np.ndarray] = []
    extents: list[Floats3] = []
    if len(ordered) > 2:
        for i, step in enumerate(vertebral_gaps(np.array([v.known_body_centre for v in ordered]))):
            count = max(1, round(float(step)) - 1) if step >= MISSING_STEP else 0
            along = [k / (count + 1) for k in range(1, count + 1)]
            # Beside the gap may be one mask of two vertebrae, its middle half a step from both: the other one lies a third of the gap on.
            along += [-1 / 3, 4 / 3] if count == 1 else []
            positions += [middles[i] + (middles[i + 1] - middles[i]) * k for k in along]
            extents += [ordered[i].extent] * len(along)
    if not tried:
        for last, before in ((0, 1), (-1, -2)):
            if not _ends_at_border(ordered[last], geometry, top=last == 0):
                positions.append(2 * middles[last] - middles[before])
                extents.append(ordered[last].extent)
    known = [np.array(v.box_centre) for v in tried]
    return [Vertebra(float_triple(position), extent, 0.0) for position, extent in zip(positions, extents, strict=True)
            if inside(position, geometry) and all(np.linalg.norm(position - other) > TRIED_MM for other in known)]


def drop_fragments(found: list[Vertebra]) -> list[Vertebra]:
    """Drops what is far smaller than both its neighbours and lies where they leave no room for a vertebra: pieces of implants or of a
    neighbour. A small vertebra (collapsed, half formed) has room of its own in the row and stays, and so does what a border cuts."""
    ordered = sorted(found, key=lambda v: -v.known_body_centre[2])
    i = 1
    while i < len(ordered) - 1:
        above, here, below = ordered[i - 1:i + 2]
        small = not here.touches_border and here.known_volume_ml < FRAGMENT * min(above.known_volume_ml, below.known_volume_ml)
        rest = ordered[:i] + ordered[i + 1:]
        if small and len(rest) > 2 and vertebral_gaps(np.array([v.known_body_centre for v in rest]))[i - 1] < MISSING_STEP:
            ordered = rest
        else:
            i += 1
    kept = {id(v) for v in ordered}
    return [v for v in found if id(v) in kept]


def mask_middle(vertebra: Vertebra, geometry: ImageGrid) -> np.ndarray:
    """Middle of the mask's bounding box (LPS mm), which segment is trained to have in the middle of its crop."""
    return geometry.index_to_world(np.array(vertebra.known_mask_start) + (np.array(vertebra.known_mask.shape) - 1) / 2)


def _ends_at_border(vertebra: Vertebra, geometry: ImageGrid, top: bool) -> bool:
    """Whether the mask reaches the volume's upper (last z) or lower (first z) face: what lies beyond is not in the scan."""
    start = vertebra.known_mask_start[0]
    return start + vertebra.known_mask.shape[0] >= geometry.shape[0] if top else start <= 0


def inside(position: np.ndarray, geometry: ImageGrid) -> bool:
    """Whether a place (LPS mm) lies at least `INSIDE_MM` within a grid."""
    index, margin = geometry.world_to_index(position[None])[0], INSIDE_MM / np.array(geometry.spacing)
    return bool((index >= margin).all() and (index <= np.array(geometry.shape) - 1 - margin).all())
