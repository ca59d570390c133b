"""The grid of a volume: where its voxels lie in the patient.

Indices are (z, y, x) as in the arrays that SimpleITK gives; world coordinates are LPS millimetres (x, y, z).

The index axes need not be at right angles: a tilted gantry or a registered scan gives a sheared grid, on which every position is as exact
as on a regular one. What needs right angles (the networks) works on `preprocessing.straighten.straightened`.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np

from ..utilities.triples import float_triple, int_triple

_POSITIVE, _NEGATIVE = "LPS", "RAI"

RIGHT_ANGLES = 1e-4    # largest cosine between axes that counts as rounding of a header: 0.05 mm over 500 mm


@dataclass(frozen=True, eq=False)
class NiftiForms:
    """Both places that a NIfTI header gives its voxels: 4 x 4 from indices (x, y, z) to RAS mm, with the codes that say what they mean.

    A form with code 0 is not stated; its matrix is None. See `nifti.py` for which of two that differ counts.
    """

    qform: np.ndarray | None
    qform_code: int
    sform: np.ndarray | None
    sform_code: int


@dataclass(frozen=True, eq=False)
class ImageGrid:
    """Grid of a volume.

    Attributes:
        shape: voxels (z, y, x).
        spacing: mm along the index axes (z, y, x).
        origin: centre of the first voxel (x, y, z) in LPS mm.
        direction: 3 x 3, columns of length 1: the x, y, z index axes. Sheared grids have columns that are not at right angles.
        forms: what the header of a NIfTI file said, so that a label map written on this grid says the same.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: np.ndarray
    forms: NiftiForms | None = None

    def __eq__(self, other: object) -> bool:
        """Exactly the same numbers; see `same_grid` for the same place within a tolerance."""
        return isinstance(other, ImageGrid) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[Any, ...]:
        # The generated comparison would fail: an array's == gives an array.
        return tuple(self.shape), tuple(self.spacing), tuple(self.origin), tuple(np.asarray(self.direction, dtype=float).ravel())

    def index_to_world(self, index: Any) -> np.ndarray:
        """Indices (..., 3) in (z, y, x) order -> world points (..., 3) in (x, y, z) LPS mm."""
        steps = (np.asarray(index, dtype=float) * np.asarray(self.spacing))[..., ::-1]
        return steps @ self.direction.T + np.asarray(self.origin)

    def world_to_index(self, point: Any) -> np.ndarray:
        """World points (..., 3) in (x, y, z) LPS mm -> continuous indices (..., 3) in (z, y, x) order."""
        steps = (np.asarray(point, dtype=float) - np.asarray(self.origin)) @ np.linalg.inv(self.direction).T
        return steps[..., ::-1] / np.asarray(self.spacing)

    @staticmethod
    def from_affine(affine: np.ndarray, shape: Any, forms: NiftiForms | None = None) -> ImageGrid:
        """Grid of `shape` (z, y, x) whose `affine` (4 x 4) maps indices (x, y, z) to LPS mm. Rounded right angles become exact ones."""
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        direction = affine[:3, :3] / spacing
        if np.abs(direction.T @ direction - np.eye(3)).max() <= RIGHT_ANGLES:
            left, _, right = np.linalg.svd(direction)
            direction = left @ right
        return ImageGrid(int_triple(shape), float_triple(spacing[::-1]), float_triple(affine[:3, 3]), direction, forms)

    @property
    def affine(self) -> np.ndarray:
        """4 x 4 from indices (x, y, z) to LPS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.direction) * np.asarray(self.spacing)[::-1]
        matrix[:3, 3] = self.origin
        return matrix

    @property
    def is_sheared(self) -> bool:
        """Whether the index axes are not at right angles."""
        return bool(np.abs(self.direction.T @ self.direction - np.eye(3)).max() > RIGHT_ANGLES)

    @property
    def orientation(self) -> str:
        """Three letters, x, y, z index axes: the patient side each runs towards (nearest axes), e.g. 'LPS'."""
        # The best assignment as a whole: picking greedily, axis by axis, can leave the last one a side it hardly runs towards.
        rows = max(permutations(range(3)), key=lambda order: np.abs(self.direction[list(order), range(3)]).sum())
        return "".join((_NEGATIVE if self.direction[row, axis] < 0 else _POSITIVE)[row] for axis, row in enumerate(rows))

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Field of view (z, y, x) in mm."""
        return float_triple(n * s for n, s in zip(self.shape, self.spacing, strict=True))

    def same_grid(self, other: ImageGrid, tolerance: float = 1e-2) -> bool:
        """True when both grids have the same shape and their corners lie within `tolerance` mm of each other."""
        if self.shape != other.shape:
            return False
        corners = np.array([[0, 0, 0], [self.shape[0], 0, 0], [0, self.shape[1], 0], [0, 0, self.shape[2]]])
        return bool(np.abs(self.index_to_world(corners) - other.index_to_world(corners)).max() <= tolerance)

    def cropped(self, start: Any, shape: Any) -> ImageGrid:
        """Grid of the box that begins at index `start` (z, y, x) and has `shape` voxels; `start` may lie outside."""
        return replace(self, shape=int_triple(shape), origin=float_triple(self.index_to_world(start)), forms=None)

    def reoriented(self, orientation: str) -> tuple[ImageGrid, tuple[int, int, int], tuple[int, ...]]:
        """Permute and flip the index axes so that they run towards `orientation`, e.g. 'LPS'.

        Returns the new grid, and what an array (z, y, x) needs to follow it: `array.transpose(axes)`, then
        `numpy.flip(array, flips)`. Raises ValueError when the letters do not name the three axes.
        """
        wanted = [_side(letter) for letter in orientation]
        if sorted(row for row, _ in wanted) != [0, 1, 2]:
            raise ValueError(f"orientation '{orientation}' must name each of L/R, P/A and S/I once")
        own = [_side(letter) for letter in self.orientation]
        source = [next(axis for axis, (row, _) in enumerate(own) if row == wanted_row) for wanted_row, _ in wanted]
        signs = [wanted[new][1] * own[old][1] for new, old in enumerate(source)]
        # From (x, y, z) axis numbers to positions in (z, y, x) arrays: both count from the other end.
        axes = int_triple(2 - source[2 - position] for position in range(3))
        flips = tuple(position for position in range(3) if signs[2 - position] < 0)
        first = np.zeros(3)
        for position in flips:
            first[axes[position]] = self.shape[axes[position]] - 1
        grid = ImageGrid(int_triple(self.shape[a] for a in axes), float_triple(self.spacing[a] for a in axes),
                         float_triple(self.index_to_world(first)), self.direction[:, source] * np.array(signs))
        return grid, axes, flips

    def resampled(self, spacing: tuple[float, float, float]) -> ImageGrid:
        """Grid of `spacing` (z, y, x) mm over the same field of view (the first voxels' outer faces stay in place)."""
        old = np.asarray(self.spacing)
        new = np.asarray(spacing, dtype=float)
        shape = np.maximum(1, np.round(np.asarray(self.shape) * old / new)).astype(int)
        first = ((new - old) / 2) / old
        return ImageGrid(int_triple(shape), float_triple(new), float_triple(self.index_to_world(first)), np.asarray(self.direction))

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "spacing": list(self.spacing), "origin": list(self.origin),
                "direction": np.asarray(self.direction).ravel().tolist()}

    @staticmethod
    def from_json(content: dict[str, Any]) -> ImageGrid:
        return ImageGrid(tuple(content["shape"]), tuple(content["spacing"]), tuple(content["origin"]),
                         np.array(content["direction"], dtype=float).reshape(3, 3))


def resample_grid(geometry: ImageGrid, spacing: tuple[float, float, float]) -> ImageGrid:
    """Grid of `spacing` (z, y, x) mm that covers the same field of view (see `ImageGrid.resampled`)."""
    return geometry.resampled(spacing)


def _side(letter: str) -> tuple[int, int]:
    """(row of the world axis, +1 towards L/P/S or -1 towards R/A/I)."""
    if letter in _POSITIVE:
        return _POSITIVE.index(letter), 1
    if letter in _NEGATIVE:
        return _NEGATIVE.index(letter), -1
    raise ValueError(f"'{letter}' is none of the sides L, R, P, A, S, I")
