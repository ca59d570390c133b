"""Heights and trabecular HU of vertebral bodies from their masks."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...anatomy.vertebra import BodyFrame, BodyHeights, Vertebra
from ...imageio.orientation import oriented_view
from ...imageio.volume import ImageGrid, Volume
from ...training.stage_model import StageModel
from ..base import Context, Findings
from .comparison import USUAL, compare
from .heights import axes_along, measure, trabecular_points
from .trust import BEYOND_BORDER, BORDER, METAL, MIXED_UP, doubt_of_measurement, holds_metal, may_go_on

FEWEST_POINTS = 50

ENOUGH_ARCHES = 3


def predict(findings: Findings, model: StageModel | None, context: Context) -> Findings:  # noqa: ARG001 - as in every stage
    """Findings whose vertebrae have the heights of their bodies, and their trabecular HU."""
    if findings.crop is None:
        return findings
    return replace(findings, vertebrae=add_heights(findings.vertebrae, findings.crop.geometry, findings.volume))


def add_heights(vertebrae: tuple[Vertebra, ...], geometry: ImageGrid, scan: Volume | None = None, source: ImageGrid | None = None
                ) -> tuple[Vertebra, ...]:
    """Named vertebrae (cranio-caudal) with `heights` or a `height_doubt` and, where the CT `scan` (HU, any grid) is given, `trabecular_hu`.

    `geometry`: the grid of the masks. `source`: the grid of the scan, or of the label map, that they were made from; without it `scan`'s,
    without both `geometry`. Levels without a body of two end plates (C1, C2) and those of no mask have neither heights nor a doubt.
    """
    if not vertebrae:
        return vertebrae
    field = source or (geometry if scan is None else scan.geometry)
    axes, back = axes_along(np.array([v.known_body_centre for v in vertebrae])), _backwards(vertebrae, geometry)
    bodies = [measure(v.mask, geometry.spacing, axis, back) if v.mask is not None and v.level in USUAL else None
              for v, axis in zip(vertebrae, axes, strict=True)]
    view = None if scan is None else oriented_view(scan)
    metal = [view is not None and body is not None and holds_metal(v.known_mask, np.array(v.known_mask_start), geometry, view)
             for v, body in zip(vertebrae, bodies, strict=True)]
    heights, doubts = _trusted(vertebrae, bodies, metal, geometry, field)
    whole = [body if doubt not in (BORDER, BEYOND_BORDER) else None for body, doubt in zip(bodies, doubts, strict=True)]
    return tuple(replace(v, heights=h, height_doubt=doubt, frame=frame,
                         trabecular_hu=None if view is None or body is None else trabecular_hu(v, body, geometry, view))
                 for v, h, doubt, body, frame in zip(vertebrae, heights, doubts, whole, bodies, strict=True))


def _trusted(vertebrae: tuple[Vertebra, ...], bodies: list[BodyFrame | None], metal: list[bool], geometry: ImageGrid, field: ImageGrid
             ) -> tuple[list[BodyHeights | None], list[str | None]]:
    """Heights of each vertebra that can be trusted, and the reason where they cannot. Only trusted bodies are anybody's neighbours."""
    doubts = [doubt_of_measurement(body, v.level, np.array(v.known_mask_start), geometry, (field,))
              if v.mask is not None and v.level in USUAL else None for v, body in zip(vertebrae, bodies, strict=True)]
    doubts = [METAL if there else doubt for there, doubt in zip(metal, doubts, strict=True)]
    levels = [v.level for v in vertebrae]
    while True:  # each turn takes at least one body away
        given = [None if body is None or doubt else body.heights_mm for body, doubt in zip(bodies, doubts, strict=True)]
        heights = compare(levels, given)
        cut = [i for i, (v, body, h) in enumerate(zip(vertebrae, bodies, heights, strict=True))
               if body is not None and h is not None and h.expected is not None
               and may_go_on(body, np.array(h.expected), np.array(v.known_mask_start), geometry, field)]
        if not cut:
            break
        for i in cut:
            doubts[i] = BEYOND_BORDER
    doubts = [MIXED_UP if value is not None and h is None else doubt for value, h, doubt in zip(given, heights, doubts, strict=True)]
    return heights, doubts


def _backwards(vertebrae: tuple[Vertebra, ...], geometry: ImageGrid) -> np.ndarray:
    """Direction (z, y, x) in which the arches lie: the median of all, so that a half arch, or a patient on one side, does not matter."""
    ways = []
    for v in vertebrae:
        if v.mask is not None and v.level in USUAL:
            middle = np.argwhere(v.mask).mean(0) + np.array(v.known_mask_start)
            way = (middle - geometry.world_to_index(np.array(v.known_body_centre))) * geometry.spacing
            ways.append(way / max(np.linalg.norm(way), 1e-6))
    return np.median(ways, axis=0) if len(ways) >= ENOUGH_ARCHES else np.array([0.0, 1.0, 0.0])


def trabecular_hu(vertebra: Vertebra, body: BodyFrame, geometry: ImageGrid, scan: Volume) -> float | None:
    """Median HU in the middle of the body; None when a crushed body leaves too little of it. `scan` in LPS order."""
    from scipy.ndimage import map_coordinates

    points = trabecular_points(vertebra.known_mask, geometry.spacing, body)
    if len(points) < FEWEST_POINTS:
        return None
    index = scan.geometry.world_to_index(geometry.index_to_world(points + np.array(vertebra.known_mask_start)))
    low = np.maximum(np.floor(index.min(0)).astype(int), 0)
    part = scan.array[tuple(slice(a, b) for a, b in zip(low, np.ceil(index.max(0)).astype(int) + 2, strict=True))]
    return float(np.median(map_coordinates(part, (index - low).T, order=1, mode="nearest", output=np.float32, prefilter=False)))
