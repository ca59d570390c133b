"""Which detection a pin speaks of: the one whose mask lies at a place, or the n-th of a numbering."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...anatomy.known import Known, Pin
from ...anatomy.vertebra import Vertebra
from ...errors import InputError
from ...imageio.grid import ImageGrid
from .constraints import Constraints

NEAR_MM = 6.0        # a place so far outside all masks still means the nearest one ...
CLEARER_MM = 4.0     # ... when the next one is so much farther
CENTRE_MM = 12.0     # from a body centre, where there is no mask: half of the shortest distance of two bodies


def check_places(known: Known, scan: ImageGrid) -> None:
    """InputError when a place lies outside the scan."""
    for pin in known.pins:
        if pin.point is None:
            continue
        index = _index(pin, scan)
        if not _inside(index, scan):
            turned = scan.world_to_index(np.array(pin.point) * (-1, -1, 1))
            hint = "; as RAS it would lie inside, so turn the signs of x and y" if not pin.voxel and _inside(turned, scan) else ""
            low, high = _bounds(scan, pin.voxel)
            raise InputError(f"'{pin.text}' lies outside the scan, which reaches from {low} to {high} "
                             f"({'voxels i, j, k' if pin.voxel else 'LPS mm'}){hint}.")


def resolve(known: Known, detections: Sequence[Vertebra], names: Sequence[str | None], scan: ImageGrid | None,
            mask_grid: ImageGrid | None) -> Constraints:
    """What `known` asks of each detection.

    Args:
        known: pins and numbers of vertebrae.
        detections: cranio-caudal, with masks on `mask_grid`; without one the body centre counts.
        names: of the numbering whose vertebrae pins count, None = not counted.
        scan: the scan's own grid; needed for places.
        mask_grid: see `detections`.

    Raises:
        InputError: a place outside the scan or between vertebrae, no such vertebra, two pins that exclude each other.
    """
    if scan is not None:
        check_places(known, scan)
    constraints = Constraints.free(len(detections), known.lumbar, known.thoracic)
    said: dict[int, Pin] = {}
    levels: dict[str, tuple[int, Pin]] = {}
    for pin in known.pins:
        i = _counted(pin, names) if pin.point is None else _at(pin, detections, names, scan, mask_grid)
        for other, what in ((said.get(i), "one vertebra"), (levels.get(pin.level, (i, pin))[1], "two vertebrae")):
            if other is not None and (other.level != pin.level if what == "one vertebra" else levels.get(pin.level, (i, pin))[0] != i):
                raise InputError(f"'{other.text}' and '{pin.text}' exclude each other: they give {what} "
                                 f"{'two levels' if what == 'one vertebra' else 'one level'}.")
        said[i], levels[pin.level] = pin, (i, pin)
        constraints = constraints.pinned(i, pin.level)
    return constraints


def _counted(pin: Pin, names: Sequence[str | None]) -> int:
    """The n-th named detection."""
    named = [i for i, name in enumerate(names) if name is not None]
    if not named or pin.position > len(named):
        raise InputError(f"'{pin.text}' speaks of a vertebra that was not found; {len(named)} were found.")
    return named[-1 if pin.position < 0 else pin.position - 1]


def _at(pin: Pin, detections: Sequence[Vertebra], names: Sequence[str | None], scan: ImageGrid | None, mask_grid: ImageGrid | None) -> int:
    """The detection at a place."""
    if scan is None:
        raise InputError(f"'{pin.text}' is a place, and the grid of the scan is not known; count the vertebrae instead ('3=L1').")
    point = place_of(pin, scan)
    distances = np.array([_distance(v, point, mask_grid) for v in detections])
    order = np.argsort(distances)
    clear = len(order) == 1 or (len(order) > 1 and distances[order[1]] - distances[order[0]] >= CLEARER_MM)
    if len(order) and (distances[order[0]] == 0 or (distances[order[0]] <= NEAR_MM and clear)):
        return int(order[0])
    near = [f"{names[i] or 'one taken for no vertebra'} {distances[i]:.0f} mm away" for i in order[:2] if np.isfinite(distances[i])]
    raise InputError(f"'{pin.text}' lies in no vertebra that was found ({', '.join(near) or 'none is near'}); give a place inside a "
                     "vertebral body.")


def _distance(vertebra: Vertebra, point: np.ndarray, mask_grid: ImageGrid | None) -> float:
    """Millimetres from a world point to the nearest voxel of the mask, 0 in it."""
    if vertebra.mask is None or vertebra.mask_start is None or mask_grid is None:
        centre = np.array(vertebra.body_centre if vertebra.body_centre is not None else vertebra.box_centre)
        return max(0.0, float(np.linalg.norm(centre - point)) - CENTRE_MM)
    index = mask_grid.world_to_index(point) - np.array(vertebra.mask_start)
    nearest = np.round(index).astype(int)
    if (nearest >= 0).all() and (nearest < vertebra.mask.shape).all() and vertebra.mask[tuple(nearest)]:
        return 0.0
    spacing = np.array(mask_grid.spacing)
    outside = np.maximum(np.maximum(-index, index - (np.array(vertebra.mask.shape) - 1)), 0) * spacing
    if np.linalg.norm(outside) > 3 * NEAR_MM:
        return float(np.linalg.norm(outside))
    return float(np.linalg.norm((np.argwhere(vertebra.mask) - index) * spacing, axis=1).min())


def place_of(pin: Pin, scan: ImageGrid) -> np.ndarray:
    """LPS mm of a pin that is a place."""
    return scan.index_to_world(_index(pin, scan))


def _index(pin: Pin, scan: ImageGrid) -> np.ndarray:
    """Continuous index (z, y, x) of a pin's place."""
    return np.array(pin.point, dtype=float)[::-1] if pin.voxel else scan.world_to_index(pin.point)


def _inside(index: np.ndarray, scan: ImageGrid) -> bool:
    return bool((index >= -0.5).all() and (index <= np.array(scan.shape) - 0.5).all())


def _bounds(scan: ImageGrid, voxel: bool) -> tuple[str, str]:
    corners = np.array([[0, 0, 0], [n - 1 for n in scan.shape]])
    grid = np.array(np.meshgrid(*corners.T, indexing="ij")).reshape(3, -1).T
    places = grid[:, ::-1] if voxel else scan.index_to_world(grid)
    low, high = (",".join(f"{v:.0f}" for v in ends) for ends in (places.min(0), places.max(0)))
    return low, high
