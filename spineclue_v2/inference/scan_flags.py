"""Flags that need the scan beside the vertebrae: metal at the spine, and a header that contradicts the body."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..anatomy.vertebra import Vertebra
from ..flags import Flag
from ..imageio.orientation import oriented_view
from ..imageio.volume import ImageGrid, Volume
from ..stages.grade.trust import METAL_HU
from .orientation import orientation_flags

METAL_ML = 0.3              # that much of it; single voxels are noise
AROUND_MM = 10.0            # the spine's box is widened by this


def scan_flags(vertebrae: Sequence[Vertebra], mask_grid: ImageGrid, scan: Volume) -> tuple[Flag, ...]:
    """What the scan (HU, any orientation) says of a result; `mask_grid` is the grid of the vertebrae's masks."""
    masked = [v for v in vertebrae if v.mask is not None]
    if not masked:
        return ()
    view = oriented_view(scan)
    return (*_metal(masked, mask_grid, view), *orientation_flags(masked, mask_grid, view))


def _metal(vertebrae: Sequence[Vertebra], grid: ImageGrid, view: Volume) -> tuple[Flag, ...]:
    corners = np.concatenate([np.array([v.known_mask_start, np.add(v.known_mask_start, v.known_mask.shape)]) for v in vertebrae])
    ends = np.array(np.meshgrid(*zip(corners.min(0), corners.max(0), strict=True), indexing="ij")).reshape(3, -1).T
    index, reach = view.geometry.world_to_index(grid.index_to_world(ends)), AROUND_MM / np.array(view.spacing)
    low = np.clip(np.floor(index.min(0) - reach), 0, np.array(view.array.shape) - 1).astype(int)
    high = np.clip(np.ceil(index.max(0) + reach) + 1, low + 1, view.array.shape).astype(int)
    box = view.array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    ml = float((box > METAL_HU).sum()) * float(np.prod(view.spacing)) / 1000
    if ml < METAL_ML:
        return ()
    return (Flag("metal", "result", "warning", f"{ml:.1f} ml of metal (beyond {METAL_HU:.0f} HU) lie at the spine.", round(ml, 2), METAL_ML,
                 "Check the masks beside it; do not use HU from there."),)
