"""Heights and trabecular HU of vertebral bodies from their masks."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...anatomy.vertebra import Vertebra
from ...imageio.orientation import oriented_view
from ...imageio.volume import ImageGrid, Volume
from ...training.stage_model import StageModel
from ..base import Context, Findings
from .comparison import USUAL, compare
from .heights import Measurement, axes_along, measure, trabecular_points

FEWEST_POINTS = 50

SIDE_MM = 9.0            # heights are measured within this distance of the mid-sagittal plane

ENOUGH_ARCHES = 3


def predict(findings: Findings, model: StageModel | None, context: Context) -> Findings:  # noqa: ARG001 - as in every stage
    """Findings whose vertebrae have the heights of their bodies, and their trabecular HU."""
    if findings.crop is None:
        return findings
    return replace(findings, vertebrae=add_heights(findings.vertebrae, findings.crop.geometry, findings.volume))


def add_heights(vertebrae: tuple[Vertebra, ...], geometry: ImageGrid, scan: Volume | None = None) -> tuple[Vertebra, ...]:
    """Named vertebrae (cranio-caudal) with `heights` and, where the CT `scan` (HU, any grid) is given, `trabecular_hu`.

    `geometry`: the grid of the masks. Levels without a body of two end plates (C1, C2), bodies that reach the border of the scan (without
    `scan`: of `geometry`) and masks in which no body is found keep None.
    """
    if not vertebrae:
        return vertebrae
    axes = axes_along(np.array([v.known_body_centre for v in vertebrae]))
    field, back = geometry if scan is None else scan.geometry, _backwards(vertebrae, geometry)
    bodies = [_whole_body(v, geometry, axis, back, field) for v, axis in zip(vertebrae, axes, strict=True)]
    heights = compare([v.level for v in vertebrae], [None if body is None else body.heights_mm for body in bodies])
    view = None if scan is None else oriented_view(scan)
    return tuple(replace(v, heights=h, trabecular_hu=None if view is None or body is None else trabecular_hu(v, body, geometry, view))
                 for v, h, body in zip(vertebrae, heights, bodies, strict=True))


def _backwards(vertebrae: tuple[Vertebra, ...], geometry: ImageGrid) -> np.ndarray:
    """Direction (z, y, x) in which the arches lie: the median of all, so that a half arch, or a patient on one side, does not matter."""
    ways = []
    for v in vertebrae:
        if v.mask is not None and v.level in USUAL:
            middle = np.argwhere(v.mask).mean(0) + np.array(v.known_mask_start)
            way = (middle - geometry.world_to_index(np.array(v.known_body_centre))) * geometry.spacing
            ways.append(way / max(np.linalg.norm(way), 1e-6))
    return np.median(ways, axis=0) if len(ways) >= ENOUGH_ARCHES else np.array([0.0, 1.0, 0.0])


def _whole_body(vertebra: Vertebra, geometry: ImageGrid, axis: np.ndarray, back: np.ndarray, field: ImageGrid) -> Measurement | None:
    """The vertebra's measurement, if its level has heights and what they are measured on lies inside `field` (processes may be cut)."""
    if vertebra.mask is None or vertebra.level not in USUAL:
        return None
    body = measure(vertebra.mask, geometry.spacing, axis, back)
    if body is None:
        return None
    half = max(body.heights_mm) / 2
    middle, deep = np.mean(body.walls_mm), 0.8 * np.ptp(body.walls_mm) / 2  # a front wall on the border is whole enough
    ends = np.array(np.meshgrid((-half, half), (middle - deep, middle + deep), (-SIDE_MM, SIDE_MM), indexing="ij")).reshape(3, -1).T
    index = body.centre + np.array(vertebra.known_mask_start) + ends @ body.axes / np.array(geometry.spacing)
    position = field.world_to_index(geometry.index_to_world(index))
    return body if (position >= 0).all() and (position <= np.array(field.shape) - 1).all() else None


def trabecular_hu(vertebra: Vertebra, body: Measurement, geometry: ImageGrid, scan: Volume) -> float | None:
    """Median HU in the middle of the body; None when a crushed body leaves too little of it. `scan` in LPS order."""
    from scipy.ndimage import map_coordinates

    points = trabecular_points(vertebra.known_mask, geometry.spacing, body)
    if len(points) < FEWEST_POINTS:
        return None
    index = scan.geometry.world_to_index(geometry.index_to_world(points + np.array(vertebra.known_mask_start)))
    low = np.maximum(np.floor(index.min(0)).astype(int), 0)
    part = scan.array[tuple(slice(a, b) for a, b in zip(low, np.ceil(index.max(0)).astype(int) + 2, strict=True))]
    return float(np.median(map_coordinates(part, (index - low).T, order=1, mode="nearest", output=np.float32, prefilter=False)))
