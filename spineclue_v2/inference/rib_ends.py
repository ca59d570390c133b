"""Which vertebrae the ribs of another tool's map are attached to: where the row of ribs ends says T12 and T1."""
from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ..imageio.volume import Volume
from ..stages.identify.tool_levels import BOTH_SIDES, ONE_SIDE, RibEnds
from ..utilities.triples import box_slices
from .bodies import Body

ATTACHED_MM = 4.0           # from a rib to the vertebra that it is attached to: maps leave the joint empty
LEAST_MM3 = 20.0            # of a rib within that distance; less is a chance contact
SEVERAL = 2                 # vertebrae with ribs that a row needs: a single stray value is no row of ribs


def rib_ends(bodies: Sequence[Body], view: Volume, ribs: Collection[int]) -> RibEnds | None:
    """Where the ribs end along `bodies` (cranio-caudal, on the grid of `view`, a label map in LPS order).

    A rib belongs to the vertebra that most of its head lies at. An end counts where a vertebra without a rib follows; None without ribs.
    `ribs`: the values of ribs.
    """
    near = np.stack([_contacts(body, view, sorted(ribs)) for body in bodies]) if ribs and bodies else np.zeros((0, 0))
    carried = np.zeros(len(bodies), int)
    for rib in range(near.shape[1]):
        if near[:, rib].max() >= LEAST_MM3:
            carried[int(near[:, rib].argmax())] += 1
    places = np.flatnonzero(carried)
    if len(places) < SEVERAL:
        return None
    first, last = int(places[0]), int(places[-1])

    def end(place: int) -> tuple[int, float]:
        return place, BOTH_SIDES if carried[place] > 1 else ONE_SIDE
    return RibEnds(end(last) if last + 1 < len(bodies) else None, end(first) if first else None)


def _contacts(body: Body, view: Volume, ribs: Sequence[int]) -> np.ndarray:
    """Volume (mm3) of each rib within `ATTACHED_MM` of a vertebra."""
    from scipy.ndimage import distance_transform_edt

    spacing = np.array(view.spacing)
    reach = np.ceil(ATTACHED_MM / spacing).astype(int)
    low = np.maximum(np.array(body.start) - reach, 0)
    high = np.minimum(np.array(body.start) + body.mask.shape + reach, view.array.shape)
    around = view.array[box_slices(low, high - low)]
    found = np.isin(around, ribs)
    if not found.any():
        return np.zeros(len(ribs))
    own = np.zeros(around.shape, bool)
    own[box_slices(np.array(body.start) - low, body.mask.shape)] = body.mask
    close = around[found & (distance_transform_edt(~own, sampling=spacing) <= ATTACHED_MM)]
    return np.array([(close == rib).sum() for rib in ribs]) * float(np.prod(spacing))
