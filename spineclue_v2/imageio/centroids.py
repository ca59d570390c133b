"""VerSe's centroid files (`CASE_ctd.json`): written and read, LPS millimetres on our side.

The format (checked against the file of sub-verse004, whose slices are 2 mm, and VerSe's own helper code): a list whose first
entry names the directions of three axes, `{"direction": ["P", "I", "R"]}`, followed by `{"label": 20, "X": .., ...}`.
X, Y, Z are voxel coordinates of the scan on its *own* grid after flipping and permuting its axes (no resampling) so that they run
towards the named sides: X counts voxels towards posterior, Y towards inferior, Z towards right; an integer is a voxel centre.
They are voxels of the scan's spacing, 1 mm only where the scan is 1 mm; VerSe's `rescale_centroids` multiplies them by it.
"""
from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import anatomy
from ..anatomy.vertebra import Vertebra
from ..errors import InputError
from ..utilities.files import read_json, write_json
from .volume import ImageGrid

logger = logging.getLogger(__name__)

DIRECTION = ("P", "I", "R")
OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "S": "I", "I": "S"}
DECIMALS = 3


def write_ctd(path: str | Path, vertebrae: Iterable[Vertebra], geometry: ImageGrid) -> None:
    """Write the body centres of all named vertebrae in the voxels of the scan on grid `geometry`, by rename.

    Where a level was given twice the more confident one comes first.
    """
    named = [v for v in vertebrae if v.level is not None and v.body_centre is not None]
    named.sort(key=lambda v: (anatomy.ORDER_INDEX[v.known_level], -(v.confidence or 0.0)))
    content: list[dict[str, Any]] = [{"direction": list(DIRECTION)}]
    for vertebra in named:
        voxel = to_voxels(np.array(vertebra.known_body_centre), geometry, DIRECTION)
        content.append({"label": anatomy.LABEL_OF_NAME[vertebra.known_level]}
                       | {axis: round(float(value), DECIMALS) for axis, value in zip("XYZ", voxel, strict=True)})
    write_json(path, content)


def read_ctd(path: str | Path, geometry: ImageGrid) -> dict[int, np.ndarray]:
    """{label: point (3,) in LPS mm} of a centroid file that belongs to the scan on grid `geometry`, whatever its directions.

    Entries without a position (NaN, as in some VerSe files) are skipped; of a label listed twice the first one counts.
    """
    content = read_json(path, "centroid file")
    try:
        direction = tuple(content[0]["direction"])
        rows = [(int(row["label"]), [float(row[axis]) for axis in "XYZ"]) for row in content[1:] if "label" in row]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise InputError(f'{path} is no VerSe centroid file; expected [{{"direction": ["P","I","R"]}}, '
                         '{"label": 20, "X": .., "Y": .., "Z": ..}, ...].') from None
    direction = checked_direction(direction, path)
    found: dict[int, np.ndarray] = {}
    for label, voxel in rows:
        if not np.isfinite(voxel).all():
            continue
        if label in found:
            logger.warning("%s lists label %d twice; the first one counts.", path, label)
            continue
        found[label] = to_world(np.array(voxel), geometry, direction)
    return found


def checked_direction(direction: Iterable[Any], path: str | Path) -> tuple[str, ...]:
    """The three sides as letters; InputError unless they are three different axes."""
    sides = tuple(str(side) for side in direction)
    if len(sides) != 3 or not set(sides) <= set(OPPOSITE) or len({min(side, OPPOSITE[side]) for side in sides}) != 3:
        raise InputError(f"{path} names the directions {list(sides)}; expected three different axes such as P, I, R.")
    return sides


def to_voxels(point: np.ndarray, geometry: ImageGrid, direction: Sequence[str]) -> np.ndarray:
    """LPS mm (..., 3) -> voxel coordinates (..., 3) of the scan with its axes flipped and permuted to `direction`."""
    index = geometry.world_to_index(point)[..., ::-1]
    axes, flips = _axes(geometry, direction)
    last = np.array(geometry.shape[::-1])[axes] - 1
    voxel = index[..., axes]
    return np.where(flips, last - voxel, voxel)


def to_world(voxel: np.ndarray, geometry: ImageGrid, direction: Sequence[str]) -> np.ndarray:
    """Inverse of `to_voxels`."""
    axes, flips = _axes(geometry, direction)
    last = np.array(geometry.shape[::-1])[axes] - 1
    index = np.empty_like(voxel, dtype=float)
    index[..., axes] = np.where(flips, last - voxel, voxel)
    return geometry.index_to_world(index[..., ::-1])


def _axes(geometry: ImageGrid, direction: Sequence[str]) -> tuple[list[int], np.ndarray]:
    """For each named direction the index axis (x, y, z order) that runs along it, and whether it runs the other way."""
    own = geometry.orientation
    axes = [next(i for i, side in enumerate(own) if side in (wanted, OPPOSITE[wanted])) for wanted in direction]
    return axes, np.array([own[axis] != wanted for axis, wanted in zip(axes, direction, strict=True)])


def millimetre_voxels_to_lps(voxel: np.ndarray, direction: Sequence[str]) -> np.ndarray:
    """Voxels of 1 mm along `direction` -> LPS mm (..., 3) from an unknown origin: distances and sides hold, the place does not."""
    point = np.empty_like(voxel, dtype=float)
    for column, side in enumerate(direction):
        along = "LPS" if side in "LPS" else "RAI"
        point[..., along.index(side)] = voxel[..., column] * (1 if along == "LPS" else -1)
    return point
