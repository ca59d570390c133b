"""No mask holds another vertebra's body: where two centres are known, each mask ends between them.

Where a disc is worn or voxels are coarse, the network gives two bodies to one mask, and the one of them that is left without is lost.
Behind the bodies nothing is cut: processes lie at the height of the next vertebra.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...anatomy.vertebra import Vertebra
from ...imageio.grid import ImageGrid

BEYOND = 0.55     # of the way from centre to centre; a body and half a disc end before
DENS = 1.2        # of the next steps: a first step so wide is that from C1 to C2
FAR = 0.68        # of the way: here the neighbour's body has begun, whatever the disc
WIDE = 0.6        # of that way: so far to all sides of the line between the centres, which the bodies' arches do not reach
HALF_WAY = 0.5    # what lies farther is the neighbour's
SEEN, BALL = 0.45, 1  # mean probability at the own centre, within so many voxels: less, the crop shows another vertebra


@dataclass(frozen=True)
class Fence:
    """From a body's centre to its neighbour's, indices (z, y, x) of the volume."""

    own: np.ndarray
    other: np.ndarray


def fences_of(vertebrae: Sequence[Vertebra], geometry: ImageGrid) -> list[list[Fence]]:
    """The fences of each vertebra, towards the next known centre above and below.

    Args:
        vertebrae: in any order; those whose `body_centre` lies on a peak of the heat map (`centre_score`) have fences and are fenced off.
        geometry: of the volume.

    There is none between C1 and C2, which the wide first step gives away: C1 has no body, and the dens stands in its ring.
    """
    known = [i for i, v in enumerate(vertebrae) if v.centre_score is not None]
    known.sort(key=lambda i: -vertebrae[i].known_body_centre[2])
    fences: list[list[Fence]] = [[] for _ in vertebrae]
    if not known:
        return fences
    index = geometry.world_to_index(np.array([vertebrae[i].known_body_centre for i in known]))
    steps = np.linalg.norm(np.diff(index, axis=0), axis=1)
    begins = 1 if len(steps) > 3 and steps[0] >= DENS * np.median(steps[1:4]) else 0
    for place, i in enumerate(known):
        fences[i] = [Fence(index[place], index[k]) for k in (place - 1, place + 1) if begins <= min(k, place) and k < len(known)]
    return fences


def fence_in(probability: np.ndarray, start: np.ndarray, fences: Sequence[Fence]) -> None:
    """Set a crop's probability (z, y, x) to 0 in the bodies beyond its fences; `start` (z, y, x): index of the crop's first voxel.

    A mask that holds the neighbour's centre ends between both. One that does not knows better where its own body ends, but it never
    reaches into the neighbour's.
    """
    for fence in fences:
        part = BEYOND if shows_centre(probability, start, fence.other) else FAR
        probability[_beyond(probability.shape, start, fence, part)] = 0


def hand_over(probabilities: Sequence[np.ndarray], starts: np.ndarray, fences: Sequence[Sequence[Fence]]) -> None:
    """A crop that shows nothing at its own centre gets what others show there: the network had taken the neighbour for what was meant.

    Args:
        probabilities: of all crops (equal shapes), not yet fenced in; changed in place.
        starts: (n, 3) indices of the crops' first voxels.
        fences: of each crop.
    """
    blind = [i for i, own in enumerate(fences) if own and not shows_centre(probabilities[i], starts[i], own[0].own)]
    for i in blind:
        for k, others in enumerate(fences):
            for fence in others:
                if k in blind or not np.array_equal(fence.other, fences[i][0].own):
                    continue
                part = np.where(_beyond(probabilities[k].shape, starts[k], fence, HALF_WAY), probabilities[k], 0)
                low = np.maximum(starts[i], starts[k])
                high = np.minimum(starts[i], starts[k]) + np.array(part.shape)
                if (high > low).all():
                    here, there = (tuple(slice(int(a), int(b)) for a, b in zip(low - first, high - first, strict=True))
                                   for first in (starts[i], starts[k]))
                    np.maximum(probabilities[i][here], part[there], out=probabilities[i][here])


def shows_centre(probability: np.ndarray, start: np.ndarray, centre: np.ndarray) -> bool:
    """Whether a crop (z, y, x) that starts at index `start` shows a vertebra at `centre` (z, y, x), index of the volume."""
    index = np.rint(centre - start).astype(int)
    box = probability[tuple(slice(max(0, int(i) - BALL), max(0, int(i) + BALL + 1)) for i in index)]
    return bool(box.size) and float(box.mean()) >= SEEN


def _beyond(shape: tuple[int, ...], start: np.ndarray, fence: Fence, part: float) -> np.ndarray:
    """Bool (z, y, x): voxels near the line of a fence, farther along it than `part` of its length."""
    way = fence.other - fence.own
    length = max(float(np.linalg.norm(way)), 1e-3)
    z, y, x = (np.arange(n) + first - own for n, first, own in zip(shape, start, fence.own, strict=True))
    along = (z * way[0] / length)[:, None, None] + (y * way[1] / length)[None, :, None] + (x * way[2] / length)[None, None]
    squares = (z ** 2)[:, None, None] + (y ** 2)[None, :, None] + (x ** 2)[None, None]
    beyond: np.ndarray = (along > part * length) & (squares - along ** 2 < (WIDE * length) ** 2)
    return beyond
