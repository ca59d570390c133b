"""One CT and one mask per vertebra, as scanned or turned upright."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...anatomy.label_boxes import label_boxes
from ...imageio.grid import ImageGrid
from ...imageio.volume import Volume, write_volume
from ...utilities.triples import float_triple, int_triple
from .base import Exportable, Segment, scan_of, segments_of

MARGIN_MM = 10.0
MIN_SPACING_MM = 0.5
AIR_HU = -1024


def write_crops(result: Exportable, labels: Volume, folder: Path, case: str) -> Path:
    """`CASE_crops/CASE_L3_ct.nii.gz` and `_msk.nii.gz`: the scan's own voxels around each vertebra with 10 mm to all sides.

    The mask holds that vertebra alone, with its value of the label map. Nothing is interpolated.
    """
    scan, target = scan_of(result), folder / f"{case}_crops"
    boxes, margin = label_boxes(labels.array), np.ceil(MARGIN_MM / np.array(labels.spacing)).astype(int)
    for segment in segments_of(result):
        box = boxes[segment.label]
        start = np.maximum(np.array([side.start for side in box]) - margin, 0)
        stop = np.minimum(np.array([side.stop for side in box]) + margin, labels.array.shape)
        mask = labels.cropped(start, stop)
        _write(target, case, segment, scan.cropped(start, stop),
               Volume(np.where(mask.array == segment.label, mask.array, 0).astype(mask.array.dtype), mask.geometry))
    return target


def write_upright_crops(result: Exportable, labels: Volume, folder: Path, case: str) -> Path:
    """`CASE_crops_upright/`: the same, resampled so that the spine runs along z at each vertebra and left stays left.

    Cubic voxels of the scan's smallest spacing (0.5 mm at least); the CT linearly, the mask by nearest voxel. Outside the scan there is
    air. The grid lies where the vertebra lies in the patient, so that a viewer overlays it on the scan.
    """
    scan, target, segments = scan_of(result), folder / f"{case}_crops_upright", segments_of(result)
    boxes = label_boxes(labels.array)
    spacing = max(min(labels.spacing), MIN_SPACING_MM)
    centres, image = np.array([segment.centre for segment in segments]), scan.to_sitk()
    for number, segment in enumerate(segments):
        box = boxes[segment.label]
        voxels = np.argwhere(labels.array[box] == segment.label) + [side.start for side in box]
        grid = upright_grid(labels.geometry.index_to_world(voxels), upward(centres, number), spacing)
        mask = Volume(np.where(labels.array[box] == segment.label, segment.label, 0).astype(labels.array.dtype),
                      labels.geometry.cropped([side.start for side in box], labels.array[box].shape))
        _write(target, case, segment, _resampled(image, grid, AIR_HU, True), _resampled(mask.to_sitk(), grid, 0, False))
    return target


def upward(centres: np.ndarray, number: int) -> np.ndarray:
    """Unit vector (x, y, z) LPS towards the head along the spine at vertebra `number` of `centres` (n, 3), cranio-caudal: from the
    neighbour below to that above; straight up where there is one vertebra alone."""
    above, below = centres[max(number - 1, 0)], centres[min(number + 1, len(centres) - 1)]
    way = above - below
    length = float(np.linalg.norm(way))
    return way / length if length > 1e-3 else np.array([0.0, 0.0, 1.0])


def upright_grid(points: np.ndarray, up: np.ndarray, spacing: float) -> ImageGrid:
    """Grid with z along `up` and x as near to the patient's left as that allows, around `points` (n, 3) LPS mm with 10 mm to all sides."""
    left = np.array([1.0, 0.0, 0.0]) - up[0] * up
    if np.linalg.norm(left) < 0.1:  # a spine that runs sideways: x has no part across it
        left = np.array([0.0, 0.0, -1.0]) + up[2] * up
    left /= np.linalg.norm(left)
    direction = np.stack([left, np.cross(up, left), up], axis=1)
    along = points @ direction
    low, high = along.min(axis=0) - MARGIN_MM, along.max(axis=0) + MARGIN_MM
    shape = np.ceil((high - low) / spacing).astype(int) + 1
    return ImageGrid(int_triple(shape[::-1]), (spacing, spacing, spacing), float_triple(direction @ low), direction)


def _resampled(image: Any, grid: ImageGrid, outside: int, linear: bool) -> Volume:
    import SimpleITK as sitk

    target = Volume(np.zeros(grid.shape, dtype=np.uint8), grid).to_sitk()
    return Volume(sitk.GetArrayFromImage(sitk.Resample(image, target, sitk.Transform(),
                                                       sitk.sitkLinear if linear else sitk.sitkNearestNeighbor, outside)), grid)


def _write(folder: Path, case: str, segment: Segment, scan: Volume, mask: Volume) -> None:
    stem = f"{case}_{segment.name.replace('/', '-')}"
    write_volume(scan, folder / f"{stem}_ct.nii.gz")
    write_volume(mask, folder / f"{stem}_msk.nii.gz")
