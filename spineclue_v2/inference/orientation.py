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
from ..preprocessing.sides import lung_beside

MIN_VERTEBRAE = 3          # fewer say too little
BACK_MM = 1.5              # the mass of a mask lies at least so far behind its thick part
DOWN_MM = -3.0             # processes of the trunk's vertebrae lie at least so much lower than the thick part
SLOPE = -0.05              # change of log volume from one vertebra to the next lower one: sizes grow downwards
TRUNK = tuple(f"T{i}" for i in range(4, 14)) + ("L1", "L2", "L3", "L4", "L5", "L6")
"""Processes of the neck point anywhere, and C1 and C2 are large."""
LUNG_LEVELS = tuple(f"T{i}" for i in range(6, 13))
MORE_LUNG = 0.4            # share of lung beside these bodies, left less right
BEHIND = 0.6               # of the way to the hindmost voxel: what lies farther is process
WHAT = "Check the patient's position and the header; the labels follow the header as it is."


def orientation_flags(vertebrae: Sequence[Vertebra], grid: ImageGrid, view: Volume) -> tuple[Flag, ...]:
    """A flag with severity review where the body contradicts the header, of the surest direction alone.

    Args:
        vertebrae: named, with masks, in the header's cranio-caudal order.
        grid: of the masks.
        view: the scan (HU) in LPS.
    """
    if len(vertebrae) < MIN_VERTEBRAE:
        return ()
    offsets = process_offsets(vertebrae, grid)
    back = float(np.median(offsets[:, 0]))
    if back < BACK_MM:  # where processes lie in front, or nowhere, they do not tell up from down either
        return (_flag("front_back", "front and back", "their bodies do not lie in front of the arches", back, BACK_MM),)
    trunk = [number for number, v in enumerate(vertebrae) if v.level in TRUNK and not v.touches_border]
    if len(trunk) >= MIN_VERTEBRAE:
        down, slope = float(np.median(offsets[trunk, 1])), _slope([vertebrae[number] for number in trunk])
        if down > DOWN_MM:
            return (_flag("head_foot", "head and feet", "their spinous processes do not point downwards", down, DOWN_MM),)
        if slope < SLOPE:
            return (_flag("head_foot", "head and feet", "they become smaller downwards", slope, SLOPE),)
    more = _lung_on_the_left(vertebrae, view)
    if more > MORE_LUNG:
        return (_flag("left_right", "left and right", "more lung lies left of them than right, where the aorta should be on the left", more,
                      MORE_LUNG),)
    return ()


def _flag(code: str, swapped: str, why: str, observed: float, threshold: float) -> Flag:
    return Flag(code, "result", "review", f"The vertebrae look as if {swapped} were swapped in the scan's header: {why}.",
                round(observed, 2), threshold, WHAT)


def _slope(vertebrae: Sequence[Vertebra]) -> float:
    """Mean change of log volume per vertebra downwards."""
    return float(np.polyfit(np.arange(len(vertebrae)), np.log([float(v.known_mask.sum()) for v in vertebrae]), 1)[0])


def _lung_on_the_left(vertebrae: Sequence[Vertebra], view: Volume) -> float:
    """Share of lung left of the bodies less that on their right, mean over `LUNG_LEVELS`; nan where the scan ends beside them."""
    beside = [lung_beside(view, view.geometry.world_to_index(np.array(v.known_body_centre)) * np.array(view.spacing))
              for v in vertebrae if v.level in LUNG_LEVELS]
    shares = [left - right for right, left in filter(None, beside)]
    return float(np.mean(shares)) if shares else float("nan")


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
