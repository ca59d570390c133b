"""Sub-regions of vertebrae and the discs between them, by geometry alone.

Behind the posterior wall of the body lies the canal, so body and arch part at a plane. Behind and beside the canal, places in the body's
own frame tell lamina and pedicles (arch) from the spinous, transverse and articular processes. A disc is the space between two end plates.
Values are those of VerSe's sub-regions as TPTBox writes them (Location: Arcus 41 ... Vertebra_Corpus 50, Vertebra_Disc 100).
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..anatomy import LABEL_OF_NAME
from ..anatomy.label_boxes import label_boxes
from ..imageio.orientation import oriented_view
from ..imageio.volume import Volume
from ..utilities.triples import Box
from .bodies import CUT, Body
from .segments import pairs

PART_VALUES = {"arch": 41, "spinous process": 42, "transverse process left": 43, "transverse process right": 44,
               "superior articular process left": 45, "superior articular process right": 46, "inferior articular process left": 47,
               "inferior articular process right": 48, "body": 50, "disc": 100}

BEHIND_WALL_MM = 1.0        # the posterior wall bulges at the rims
WIDER = 1.15                # the rims of the end plates are wider than the waist, where the width is measured
SUPERELLIPSE = 2.5          # outline of a disc
HOLLOW_MM = 3.0             # an end plate may be this much deeper than the plane through its rims
CANAL_BAND_MM = 2.5         # in the mid-sagittal plane bone behind the canal is lamina
CANAL_DEPTH_MM = 15.0       # of the canal, where the mask does not show it
LAMINA_MM = 5.0             # thickness of the lamina, behind which the spinous process begins
SPINOUS_MM = 6.0            # half its width
TRANSVERSE = 1.1            # share of half the body's width beyond which a process is transverse
BEHIND_MM = {"transverse": 7.0, "superior": 8.5, "inferior": 10.0}   # of the posterior wall, from where on
ASIDE_MM = {"superior": 8.0, "inferior": 3.0}                        # of the mid-sagittal plane, from where on
LEVELS = {"superior": 0.2, "transverse": 0.75, "inferior": -0.45}    # share of half the body's height: above, below, below
LOWEST_TRANSVERSE = -0.5


def part_map(labels: Volume, bodies: Sequence[Body]) -> np.ndarray:
    """Values of PART_VALUES, uint8 on the grid of `labels` (VerSe values, any orientation); 0 where nothing is known.

    Vertebrae without a frame (truncated ones) are left out. C1, which has no body, is arch as a whole.
    """
    drawn = np.zeros(labels.array.shape, np.uint8)
    view, out = oriented_view(labels), oriented_view(Volume(drawn, labels.geometry)).array   # shares the memory of `drawn`
    boxes = label_boxes(view.array)
    for body in bodies:
        box = boxes.get(LABEL_OF_NAME.get(body.level, 0))
        if box is not None and body.half_depth_mm:
            mask = view.array[box] == LABEL_OF_NAME[body.level]
            out[box][mask] = _parts(body, _local(body.centre, body.axes, np.argwhere(mask) + [s.start for s in box], view))
    if (atlas := boxes.get(LABEL_OF_NAME["C1"])) is not None:
        out[atlas][view.array[atlas] == LABEL_OF_NAME["C1"]] = PART_VALUES["arch"]
    for above, below in pairs(bodies):
        if below.level != "S1":
            _draw_disc(above, below, view, out)
    return drawn


def _local(centre: np.ndarray, axes: np.ndarray, index: np.ndarray, view: Volume) -> np.ndarray:
    """Voxels (n, 3) as (z', y', x') mm in a frame of LPS rows."""
    return (view.geometry.index_to_world(index) - centre) @ axes.T


def _parts(body: Body, local: np.ndarray) -> np.ndarray:
    """Value of each voxel (z', y', x') of one vertebra."""
    up, back, left = local.T
    wall = body.half_depth_mm
    values = np.full(len(local), PART_VALUES["arch"], np.uint8)
    is_body = (back <= wall + BEHIND_WALL_MM) & (np.abs(left) <= WIDER * body.half_width_mm + 1.0)
    height, aside, behind = up / _half_height(body), np.abs(left), back - wall
    spinous = (aside <= SPINOUS_MM) & (back > _lamina(back, left, wall) + LAMINA_MM)
    transverse = ((aside > TRANSVERSE * body.half_width_mm) & (behind > BEHIND_MM["transverse"])
                  & (height < LEVELS["transverse"]) & (height > LOWEST_TRANSVERSE))
    above = (behind > BEHIND_MM["superior"]) & (aside > ASIDE_MM["superior"]) & (height > LEVELS["superior"]) & ~transverse
    below = (behind > BEHIND_MM["inferior"]) & (aside > ASIDE_MM["inferior"]) & (height < LEVELS["inferior"]) & ~transverse
    for name, where in (("superior articular process", above), ("inferior articular process", below), ("transverse process", transverse)):
        values[where & (left > 0)] = PART_VALUES[f"{name} left"]
        values[where & (left <= 0)] = PART_VALUES[f"{name} right"]
    values[spinous] = PART_VALUES["spinous process"]
    if body.why_not == CUT:  # half a vertebra: where its processes begin is not known
        values[:] = PART_VALUES["arch"]
    values[is_body] = PART_VALUES["body"]
    return values


def _half_height(body: Body) -> float:
    if body.upper is None or body.lower is None:
        return 8.0
    return float((body.upper.centre - body.lower.centre) @ body.axes[0]) / 2


def _lamina(back: np.ndarray, left: np.ndarray, wall: float) -> float:
    """Where (y' mm) the bone behind the canal begins in the mid-sagittal plane."""
    behind = (np.abs(left) <= CANAL_BAND_MM) & (back > wall + 6.0)
    return float(np.percentile(back[behind], 3)) if behind.sum() >= 20 else wall + CANAL_DEPTH_MM


def _draw_disc(above: Body, below: Body, view: Volume, out: np.ndarray) -> None:
    """Fill what no vertebra holds between two end plates."""
    assert above.lower is not None and below.upper is not None
    up = above.lower.normal + below.upper.normal
    up = up / np.linalg.norm(up)
    back = above.axes[1] + below.axes[1]
    back = back - (back @ up) * up
    back = back / np.linalg.norm(back)
    ends = np.stack([above.lower.front, above.lower.back, below.upper.front, below.upper.back])
    centre = ends.mean(0)
    half_depth = 0.25 * (above.lower.length_mm + below.upper.length_mm)
    half_width = 0.5 * (above.half_width_mm + below.half_width_mm)
    axes = np.stack([up, back, np.cross(up, back)])
    box = _box_round(centre, half_depth, half_width, view)
    index = np.argwhere(view.array[box] == 0)
    local = _local(centre, axes, index + [s.start for s in box], view)
    world = centre + local @ axes
    inside = (np.abs(local[:, 1] / half_depth) ** SUPERELLIPSE + np.abs(local[:, 2] / half_width) ** SUPERELLIPSE <= 1)
    inside &= (world - above.lower.centre) @ above.lower.normal < HOLLOW_MM
    inside &= (world - below.upper.centre) @ below.upper.normal > -HOLLOW_MM
    part = out[box]
    part[tuple(index[inside].T)] = PART_VALUES["disc"]


def _box_round(centre: np.ndarray, half_depth: float, half_width: float, view: Volume) -> Box:
    reach = np.hypot(half_depth, half_width) + 2.0
    middle = view.geometry.world_to_index(centre)
    steps = reach / np.asarray(view.spacing)
    low = np.clip(np.floor(middle - steps).astype(int), 0, np.array(view.array.shape))
    high = np.clip(np.ceil(middle + steps).astype(int) + 1, low, view.array.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x
