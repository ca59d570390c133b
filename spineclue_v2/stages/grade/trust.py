"""Whether heights can be trusted: why a body is given none.

A false loss is worse than none. So a body is measured only where its voxels could not make a loss of 20 % (Genant's first limit) by
themselves, where its end plates are as smooth as its voxels let expect, and where what it lacks cannot lie beyond the border of the scan.
"""
from __future__ import annotations

from itertools import product

import numpy as np

from ...anatomy.vertebra import BodyFrame
from ...imageio.volume import ImageGrid, Volume
from ...utilities.triples import box_slices
from .comparison import GRADE_LIMITS, USUAL

SMOOTH_MM = 0.8          # residual of the end plates' fit above which a mask is ragged: 0.7 at most in whole masks of fine voxels
COARSEST = GRADE_LIMITS[0]   # share of the usual height that a voxel may not reach
SIDE_MM = 9.0            # heights are measured within this distance of the mid-sagittal plane
DEEP = 0.8               # share of the depth that must lie in the scan: a front wall on its border is whole enough

NO_END_PLATES = "no two end plates that can be told apart in the mask"
BORDER = "the body reaches the border of the scan"
BEYOND_BORDER = "what is missing may lie beyond the border of the scan"
MIXED_UP = "its mask, or the next one, holds part of another body"
METAL = "metal in the vertebra or beside it"

METAL_HU = 2500.0        # the densest bone stays below
METAL_ML = 0.05          # that much of it; single voxels are noise
METAL_MM = 3.0           # from the mask


def doubt_of_measurement(body: BodyFrame | None, level: str, start: np.ndarray, grid: ImageGrid, sources: tuple[ImageGrid, ...]
                         ) -> str | None:
    """Why the heights of `body`, the vertebra `level`, mean nothing whatever they are compared with; None where they can be trusted.

    `start`: index (z, y, x) of its mask in `grid`; `sources`: grids that the mask goes back to, the scan's first.
    """
    if body is None:
        return NO_END_PLATES
    if not inside(body, start, grid, sources[0]):
        return BORDER
    usual = float(USUAL[level].mean())
    voxel = max(voxel_along(body.axes[0], grid, source) for source in (grid, *sources))
    if voxel >= COARSEST * usual:
        return f"voxels of {voxel:.1f} mm along the spine are too coarse for a body of {usual:.0f} mm"
    if body.residual_mm > max(SMOOTH_MM, voxel / np.sqrt(12)):  # the deviation of a place that may be anywhere in a voxel
        return f"end plates of the mask are rough ({body.residual_mm:.1f} mm)"
    return None


def holds_metal(mask: np.ndarray, start: np.ndarray, grid: ImageGrid, view: Volume) -> bool:
    """Whether metal lies within `METAL_MM` of a vertebra: its streaks bend masks, and the vertebra may have been operated on.

    `mask` (bool, (z, y, x)) begins at index `start` of `grid`; `view`: the CT, HU, LPS order.
    """
    from scipy.ndimage import binary_dilation

    ends = np.array(list(product(*((0, n) for n in mask.shape)))) + start
    index, reach = view.geometry.world_to_index(grid.index_to_world(ends)), METAL_MM / np.array(view.spacing)
    low = np.clip(np.floor(index.min(0) - reach), 0, np.array(view.array.shape) - 1).astype(int)
    high = np.clip(np.ceil(index.max(0) + reach) + 1, low + 1, view.array.shape).astype(int)
    bright = np.argwhere(view.array[box_slices(low, high - low)] > METAL_HU)
    voxel_ml = float(np.prod(view.spacing)) / 1000
    if len(bright) * voxel_ml < METAL_ML:
        return False
    steps = int(np.ceil(METAL_MM / min(grid.spacing)))
    near = binary_dilation(np.pad(mask, steps), iterations=steps)
    place = np.rint(grid.world_to_index(view.geometry.index_to_world(bright + low))).astype(int) - start + steps
    inside = ((place >= 0) & (place < near.shape)).all(1)
    return float(near[tuple(place[inside].T)].sum()) * voxel_ml >= METAL_ML


def voxel_along(axis: np.ndarray, grid: ImageGrid, source: ImageGrid) -> float:
    """How far (mm) a voxel of `source` reaches along `axis`, a unit vector in the array order of `grid`.

    An end plate lies anywhere within half a voxel of where the mask ends. Two end plates, so the whole is the largest error of a height.
    """
    steps = axis / np.array(grid.spacing)
    ends = source.world_to_index(grid.index_to_world(np.stack([np.zeros(3), steps])))
    return float(np.abs(ends[1] - ends[0]) @ np.array(source.spacing) ** 2)


def inside(body: BodyFrame, start: np.ndarray, grid: ImageGrid, field: ImageGrid, more_mm: float = 0.0) -> bool:
    """Whether what the heights are measured on, and `more_mm` of bone above and below it, lies inside `field` (processes may be cut)."""
    half = max(body.heights_mm) / 2 + more_mm
    middle, deep = np.mean(body.walls_mm), DEEP * np.ptp(body.walls_mm) / 2
    ends = np.array(list(product((-half, half), (middle - deep, middle + deep), (-SIDE_MM, SIDE_MM))))
    index = body.centre + start + ends @ body.axes / np.array(grid.spacing)
    position = field.world_to_index(grid.index_to_world(index))
    return bool((position >= 0).all() and (position <= np.array(field.shape) - 1).all())


def may_go_on(body: BodyFrame, expected_mm: np.ndarray, start: np.ndarray, grid: ImageGrid, field: ImageGrid) -> bool:
    """Whether a body that lacks height lies so near the border of the scan that the rest of it may be outside: a cut body looks crushed."""
    missing = float((expected_mm - np.array(body.heights_mm)).max())
    if missing < GRADE_LIMITS[0] * float(np.min(expected_mm)) / 2:
        return False
    # The last voxels before the border are the worst: neither detector nor mask ever ends right on it.
    slack = max(voxel_along(body.axes[0], grid, each) for each in (grid, field))
    return not inside(body, start, grid, field, missing + slack)
