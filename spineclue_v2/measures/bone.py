"""Density of cancellous bone in the bodies, and whether contrast in the vessels makes it mean less.

The region is `stages.grade.heights.trabecular_points`: the middle of the body, in front of where the basivertebral veins enter, at least
3 mm inside the mask, so that neither cortex nor the venous plexus counts. L1 is the level that the literature reports on unenhanced CT at
120 kV (Pickhardt et al., Ann Intern Med 2013; 158: 588-595), as the mean of a region in the front of the body.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..anatomy.vertebra import Vertebra
from ..flags import Flag
from ..imageio.grid import ImageGrid
from ..imageio.orientation import oriented_view
from ..imageio.volume import Volume
from ..stages.grade.heights import sample, trabecular_points
from .bodies import Body
from .records import Record, record

FEWEST_POINTS = 50
CONTRAST_HU = 110.0         # blood without contrast is at most some 60 HU
NO_BLOOD_HU = 600.0         # brighter is calcium, bone or metal
VESSEL_MM = 4.0             # radius that must fit into the bright region
AROUND_MM = (70.0, 4.0, 45.0)   # in front of the body's centre: how far forwards, from how far in front of the anterior wall, to both sides
EVEN_HU = 60.0              # standard deviation within a vessel's middle, above which it is bowel or bone
LEVELS_SEEN = 2
LEVELS_WITH_AORTA = ("T4", "T5", "T6", "T7", "T8", "T9", "T10", "T11", "T12", "T13", "L1", "L2", "L3", "L4")


def bone_records(vertebrae: Sequence[Vertebra], grid: ImageGrid, scan: Volume, bodies: Sequence[Body], contrast: Flag | None
                 ) -> list[Record]:
    """`trabecular density` of every whole body with two end plates: mean HU, its standard deviation and the region's volume (ml)."""
    view, rows = oriented_view(scan), []
    named = {body.level: body for body in bodies if body.why_not is None}
    for vertebra in vertebrae:
        frame = named[vertebra.level].frame if vertebra.level in named else None
        if frame is None:
            continue
        points = trabecular_points(vertebra.known_mask, grid.spacing, frame)
        if len(points) < FEWEST_POINTS:
            continue
        hu = _values(view, grid.index_to_world(points + np.array(vertebra.known_mask_start)))
        note = "contrast in the vessels raises it" if contrast is not None else ""
        rows.append(record("trabecular density", float(hu.mean()), "HU", [named[vertebra.known_level]], note,
                           sd=round(float(hu.std()), 1), volume_ml=round(len(points) / 1000, 2)))
    return rows


def _values(view: Volume, world: np.ndarray) -> np.ndarray:
    from scipy.ndimage import map_coordinates

    index = view.geometry.world_to_index(world)
    low = np.clip(np.floor(index.min(0)).astype(int), 0, np.array(view.array.shape) - 1)
    part = view.array[tuple(slice(a, b) for a, b in zip(low, np.ceil(index.max(0)).astype(int) + 2, strict=True))]
    return map_coordinates(part, (index - low).T, order=1, mode="nearest", output=np.float32, prefilter=False)


def find_contrast(bodies: Sequence[Body], scan: Volume) -> Flag | None:
    """A flag where a bright and even round region, as wide as a large vessel, lies in front of several bodies."""
    view = oriented_view(scan)
    found = {body.level: hu for body in bodies if body.level in LEVELS_WITH_AORTA and body.why_not is None
             and (hu := _brightest_vessel(body, view)) is not None}
    if len(found) < LEVELS_SEEN:
        return None
    hu = float(np.median(list(found.values())))
    return Flag("vessels_bright", "measures", "info", f"Vessels in front of the spine are bright ({hu:.0f} HU): contrast raises the "
                "density of bone.", round(hu), CONTRAST_HU, "Do not compare trabecular density with values of unenhanced CT.")


def _brightest_vessel(body: Body, view: Volume) -> float | None:
    """Median HU of the middle of the largest bright, even disc in a slab in front of the body; None without."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    grid, step = view.geometry, 1.5
    forwards, gap, aside = AROUND_MM
    axes = np.stack([(row @ np.asarray(grid.direction))[::-1] for row in body.axes])
    y = np.arange(-body.half_depth_mm - forwards, -body.half_depth_mm + gap, step)
    x = np.arange(-aside, aside + step, step)
    slab = sample(view.array, np.asarray(grid.spacing), grid.world_to_index(body.centre), axes, (np.array([-2.0, 0.0, 2.0]), y, x)).mean(0)
    smooth = gaussian_filter(slab, 1.0)
    bright = (smooth >= CONTRAST_HU) & (smooth <= NO_BLOOD_HU)
    # The body itself and what clings to it is no vessel.
    bright[y > -body.half_depth_mm + 1.0] = False
    depth = distance_transform_edt(bright) * step
    if depth.max() < VESSEL_MM:
        return None
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    near = np.hypot(y[:, None] - y[row], x[None, :] - x[column]) <= min(float(depth.max()), 8.0)
    middle = slab[near]
    return float(np.median(middle)) if middle.std() <= EVEN_HU else None
