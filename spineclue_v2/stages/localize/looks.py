"""How a scan is looked at: sagittal and coronal slices a given distance apart through a field, in tiles that the detector knows.

A field is a box of the volume; slices may lie in a narrower range than the pictures reach, because bodies take less room than
vertebrae. Positions are network space millimetres (index times spacing) or voxel indices, order (z, y, x).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...plans.plans import StagePlan
from ...preprocessing.resampling import windows
from .clustering import Boxes
from .decoding import detector_of
from .slices import PLANES, take_slice

if TYPE_CHECKING:
    import torch

STRIDE = 32
TILE_OVERLAP_MM = 64.0   # along the spine: the tallest vertebra with its processes lies whole in one of two neighbouring tiles,
SIDE_OVERLAP_MM = 112.0  # and across it the widest
BONE_HU, BONE_MM2 = 150, 80.0   # a slice with less of this holds no vertebra


@dataclass(frozen=True)
class Field:
    """Pictures show the voxels [low, stop) (z, y, x); slices lie in `sagittal` (first, stop along x) and `coronal` (along y)."""

    low: tuple[int, int, int]
    stop: tuple[int, int, int]
    sagittal: tuple[int, int]
    coronal: tuple[int, int]

    @staticmethod
    def whole(shape: Sequence[int]) -> Field:
        return Field((0, 0, 0), (int(shape[0]), int(shape[1]), int(shape[2])), (0, int(shape[2])), (0, int(shape[1])))

    def range_of(self, plane: str) -> tuple[int, int]:
        """Positions of the slices of a plane."""
        return self.sagittal if plane == "sagittal" else self.coronal

    def holds(self, other: Field) -> bool:
        """Whether slices of this one lie wherever those of the other do."""
        return all(mine[0] <= its[0] and its[1] <= mine[1]
                   for mine, its in ((self.sagittal, other.sagittal), (self.coronal, other.coronal)))

    def joined(self, other: Field) -> Field:
        """The smallest field that holds both."""
        low, stop = np.minimum(self.low, other.low), np.maximum(self.stop, other.stop)
        return Field((int(low[0]), int(low[1]), int(low[2])), (int(stop[0]), int(stop[1]), int(stop[2])),
                     _hull(self.sagittal, other.sagittal), _hull(self.coronal, other.coronal))


def _hull(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return (min(a[0], b[0]), max(a[1], b[1]))


@dataclass(frozen=True)
class Detectors:
    """The networks of all folds with the plan they obey."""

    networks: Sequence[Any]
    plan: StagePlan
    device: torch.device


def slice_positions(length: int, gap: float) -> np.ndarray:
    """Indices spread evenly over `length`, at most `gap` (in voxels, at least 1) apart."""
    count = int(np.clip(np.ceil(length / max(gap, 1.0)), 1, length))
    return np.unique(((np.arange(count) + 0.5) * length / count).astype(int))


def look(array: np.ndarray, field: Field, gap_mm: float, width: int, detectors: Detectors,
         min_score: float) -> tuple[Boxes, dict[str, float]]:
    """Boxes in network space mm of all slices through a field, and the distance of the slices per plane (mm).

    Args:
        array: int16 HU (z, y, x) in the stage's network space.
        gap_mm: wanted distance; slices lie at most so far apart.
        width: pixels (in-plane) of a tile; wider pictures are cut into several.
    """
    spacing = detectors.plan.data.spacing_mm
    parts: list[Boxes] = []
    gaps: dict[str, float] = {}
    for plane, axis in zip(PLANES, (2, 1), strict=True):          # sagittal slices follow each other along x and show y
        first, stop = field.range_of(plane)
        positions = first + slice_positions(stop - first, gap_mm / spacing)
        gaps[plane] = (stop - first) * spacing / len(positions)
        across = tiles(field.low[3 - axis], field.stop[3 - axis], width, round(SIDE_OVERLAP_MM / spacing))
        for rows in tiles(field.low[0], field.stop[0], detectors.plan.network.slice_size[0], round(TILE_OVERLAP_MM / spacing)):
            for columns in across:
                parts += _look_through(array, plane, positions, rows, columns, detectors, min_score)
    return Boxes.concatenate(parts), gaps


@dataclass(frozen=True)
class Tile:
    """Voxels [low, stop) of one axis that a picture shows; boxes whose middles lie in [first, last) are this tile's."""

    low: int
    stop: int
    first: float
    last: float


def tiles(low: int, stop: int, size: int, overlap: int) -> list[Tile]:
    """Tiles of at most `size` voxels that cover [low, stop); neighbours share `overlap`, but a tile advances by half its size at least."""
    length = stop - low
    if length <= size:
        return [Tile(low, stop, -np.inf, np.inf)]
    step = max(size // 2, size - overlap)
    count = int(np.ceil((length - size) / step)) + 1
    begins = [low + int(b) for b in np.linspace(0, length - size, count).round()]
    middles = [(a + size + b) / 2 for a, b in zip(begins[:-1], begins[1:], strict=True)]   # a box belongs to the tile that shows most of it
    return [Tile(b, b + size, first, last) for b, first, last in
            zip(begins, [-np.inf, *middles], [*middles, np.inf], strict=True)]


def _look_through(array: np.ndarray, plane: str, positions: np.ndarray, rows: Tile, columns: Tile, detectors: Detectors,
                  min_score: float) -> Iterator[Boxes]:
    spacing, batch = detectors.plan.data.spacing_mm, detectors.plan.run.inference_batch
    part = array[rows.low:rows.stop, columns.low:columns.stop] if plane == "sagittal" else \
        array[rows.low:rows.stop, :, columns.low:columns.stop]
    cuts = [(int(position), take_slice(part, plane, int(position))) for position in positions]
    cuts = [(position, cut) for position, cut in cuts if (cut > BONE_HU).sum() * spacing ** 2 >= BONE_MM2]
    for begin in range(0, len(cuts), batch):
        for position, boxes in _detect([cut for _, cut in cuts[begin:begin + batch]], detectors, min_score,
                                       [position for position, _ in cuts[begin:begin + batch]]):
            # Rows of a picture run downwards from the tile's upper end; z runs upwards.
            x0, x1 = columns.low + boxes[:, 0], columns.low + boxes[:, 2]
            z0, z1 = rows.stop - boxes[:, 3], rows.stop - boxes[:, 1]
            own = _owned(z0, z1, rows) & _owned(x0, x1, columns)
            count = int(own.sum())
            yield Boxes(np.full(count, PLANES.index(plane)), np.full(count, (position + 0.5) * spacing), z0[own] * spacing,
                        z1[own] * spacing, x0[own] * spacing, x1[own] * spacing, boxes[own, 4])


def _owned(low: np.ndarray, high: np.ndarray, tile: Tile) -> np.ndarray:
    middle = (low + high) / 2
    return (middle >= tile.first) & (middle < tile.last) & (high > low)


def _detect(cuts: Sequence[np.ndarray], detectors: Detectors, min_score: float,
            positions: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(position, boxes (n, 5): x0, y0, x1, y1 pixels within the picture, score) of equally large pictures, fold by fold."""
    pictures = np.stack([windows(cut, detectors.plan.data.windows_hu) for cut in cuts])
    height, width = pictures.shape[-2:]
    padded = np.zeros((*pictures.shape[:2], -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE), np.float32)
    padded[:, :, :height, :width] = pictures
    for network in detectors.networks:
        found = detector_of(network, detectors.device)(padded, min_score, detectors.plan.run.nms_iou)
        for position, boxes in zip(positions, found, strict=True):
            rows = boxes.astype(float).reshape(-1, 5)
            yield position, np.concatenate([np.clip(rows[:, :4], 0, [width, height, width, height]), rows[:, 4:]], axis=1)
