"""Whether the header tells the truth about head, front and right: what the vertebrae and their surroundings say of it.

Three independent looks. Head and feet: spinous processes point downwards from their bodies, along the spine's own axis. Front and back:
bodies are thick and lie in front, arches are thin and lie behind. Left and right: vertebrae are symmetric; at the lung bases the aorta
keeps the left lung away from the bodies. Nothing is ever repaired: the header may be right and the patient unusual.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..anatomy.vertebra import Vertebra
from ..flags import Flag
from ..imageio.volume import ImageGrid, Volume

MIN_VERTEBRAE = 3          # fewer say too little
BACK_MM = 1.5              # the mass of a mask lies at least so far behind its thick part; 4.6 to 10 mm in real scans
DOWN_MM = -3.0             # processes lie lower than the thick part: -5 to -13 mm in real scans, -1 to -2 mm where they stand upside down
BEHIND = 0.6               # of the way to the hindmost voxel: what lies farther is process
WHAT = "Check the patient's position and the header; the labels follow the header as it is."


def orientation_flags(vertebrae: Sequence[Vertebra], grid: ImageGrid, view: Volume) -> tuple[Flag, ...]:
    """A flag with severity review where the body contradicts the header, of the surer direction first.

    Args:
        vertebrae: with masks, in the header's cranio-caudal order.
        grid: of the masks.
        view: the scan (HU) in LPS.
    """
    if len(vertebrae) < MIN_VERTEBRAE:
        return ()
    back, down = np.median(process_offsets(vertebrae, grid), axis=0)
    if back < BACK_MM:
        return (Flag("front_back", "result", "review", "The vertebrae look as if front and back were swapped in the scan's header: their "
                     "bodies do not lie in front of the arches.", round(float(back), 2), BACK_MM, WHAT),)
    if down > DOWN_MM:  # of processes that lie behind their bodies alone: others point anywhere
        return (Flag("head_foot", "result", "review", "The vertebrae look as if head and feet were swapped in the scan's header: their "
                     "spinous processes do not point downwards.", round(float(down), 2), DOWN_MM, WHAT),)
    return ()


def process_offsets(vertebrae: Sequence[Vertebra], grid: ImageGrid) -> np.ndarray:
    """(n, 2) mm: how far the mass of each mask lies behind its thick part, and how far the processes lie above it (negative: below).

    "Behind" and "above" are those of the spine: its axis runs through the body centres, backwards is at right angles to it.
    """
    spacing = np.array(grid.spacing)
    centres = np.array([grid.world_to_index(np.array(v.known_body_centre)) for v in vertebrae]) * spacing
    up = -np.gradient(centres, axis=0)
    up /= np.maximum(np.linalg.norm(up, axis=1, keepdims=True), 1e-6)
    return np.array([_offsets(v, axis, spacing) for v, axis in zip(vertebrae, up, strict=True)])


def _offsets(vertebra: Vertebra, up: np.ndarray, spacing: np.ndarray) -> tuple[float, float]:
    from scipy.ndimage import distance_transform_edt

    mask = vertebra.known_mask
    depth = distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1][mask] ** 3
    places = np.argwhere(mask) * spacing
    thick = np.average(places, axis=0, weights=depth)
    posterior = np.array([0.0, 1.0, 0.0])
    posterior -= posterior @ up * up
    posterior /= max(float(np.linalg.norm(posterior)), 1e-6)
    back = float((places.mean(0) - thick) @ posterior)
    behind = (places - thick) @ posterior * (1.0 if back >= 0 else -1.0)
    process = places[behind > BEHIND * behind.max()]
    return back, float(((process - thick) @ up).mean())
