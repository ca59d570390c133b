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

BEYOND = 0.6      # of the way from centre to centre; a body and half a disc end before
WIDE = 0.6        # of that way: so far to all sides of the line between the centres, which the bodies' arches do not reach


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
    """
    known = [i for i, v in enumerate(vertebrae) if v.centre_score is not None]
    known.sort(key=lambda i: -vertebrae[i].known_body_centre[2])
    fences: list[list[Fence]] = [[] for _ in vertebrae]
    if not known:
        return fences
    index = geometry.world_to_index(np.array([vertebrae[i].known_body_centre for i in known]))
    for place, i in enumerate(known):
        fences[i] = [Fence(index[place], index[k]) for k in (place - 1, place + 1) if 0 <= k < len(known)]
    return fences


def fence_in(probability: np.ndarray, start: np.ndarray, fences: Sequence[Fence]) -> None:
    """Set a crop's probability (z, y, x) to 0 in the bodies beyond its fences; `start` (z, y, x): index of its first voxel."""
    for fence in fences:
        way = fence.other - fence.own
        length = float(np.linalg.norm(way))
        if length < 1:
            continue
        z, y, x = (np.arange(n) + first - own for n, first, own in zip(probability.shape, start, fence.own, strict=True))
        along = (z * way[0] / length)[:, None, None] + (y * way[1] / length)[None, :, None] + (x * way[2] / length)[None, None]
        squares = (z ** 2)[:, None, None] + (y ** 2)[None, :, None] + (x ** 2)[None, None]
        probability[(along > BEYOND * length) & (squares - along ** 2 < (WIDE * length) ** 2)] = 0
