"""The small volume of a page: the scan around the spine in grey values of one byte, and its label map on the same grid."""
from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...anatomy.label_boxes import label_boxes
from ...imageio.orientation import oriented_view
from ...imageio.volume import ImageGrid, Volume
from ...preprocessing.resampling import labels_to_network_space, resample_floats
from ...utilities.triples import float_triple

VOXELS = 4_000_000            # of a preview around a spine: 3 to 4 MB in the page
EMPTY_VOXELS = 1_000_000      # of a whole field in which nothing was found
LONGEST = 480                 # voxels along an axis: 3D textures of old graphics chips end at 512 or a little above
MARGIN_MM = ((25.0, 25.0), (40.0, 20.0), (25.0, 25.0))   # (z, y, x): below and above, before and behind, right and left of the labels
CT_RANGE = (-250.0, 1280.0)   # HU that the grey values cover, 6 HU each: bone and soft tissue, finer than the noise
LEVELS_OF_GREY = 255


@dataclass(frozen=True)
class Preview:
    """`scan` and `labels` are uint8 (z, y, x) on one LPS grid; a grey value g means `low + g * step`.

    Attributes:
        values: label values of the label map, in the order in which `labels` counts them from 1.
        finest: smallest voxel edge of the scan, mm, to be told where the preview is coarser.
    """

    scan: Volume
    labels: Volume
    low: float
    step: float
    values: tuple[int, ...]
    finest: float

    @property
    def coarser(self) -> bool:
        """Whether the finest edge of the scan is clearly finer than that of the preview."""
        return min(self.scan.spacing) > 1.5 * self.finest


def make_preview(scan: Volume, labels: Volume, value_range: tuple[float, float] | None = CT_RANGE) -> Preview:
    """The part of `scan` around all labels, at most `VOXELS` voxels; the whole field, coarser, where there is no label.

    Args:
        scan: any orientation.
        labels: label map on the scan's grid, any values.
        value_range: what the grey values cover; None: what 99.8 % of the part's voxels need (MR).
    """
    image, found = oriented_view(scan), oriented_view(labels)
    boxes = label_boxes(found.array)
    start, stop = _region(list(boxes.values()), image.geometry)
    source = image.geometry.cropped(start, stop - start)
    target = _grid(source, VOXELS if boxes else EMPTY_VOXELS)
    values = tuple(sorted(boxes))
    numbers = {value: number for number, value in enumerate(values, start=1)}
    steps = [max(1, int(new / old)) for new, old in zip(target.spacing, source.spacing, strict=True)]
    grey = resample_floats(_thinned(image.array, start, stop, source, steps), target, linear=True)
    low, high = value_range or _mr_range(grey)
    step = max(high - low, 1e-6) / LEVELS_OF_GREY
    np.clip((grey - low) / step, 0, LEVELS_OF_GREY, out=grey)
    drawn = labels_to_network_space(_thinned(found.array, start, stop, source, steps), target, numbers)
    return Preview(Volume(np.rint(grey).astype(np.uint8), target), drawn, low, step, values, min(image.spacing))


def nifti_gz(volume: Volume, slope: float = 1.0, intercept: float = 0.0) -> bytes:
    """An LPS volume (uint8) as `.nii.gz` in RAS order, with nothing in its header but the grid and the scale."""
    import nibabel

    grid = volume.geometry
    corner = grid.index_to_world((0, grid.shape[1] - 1, grid.shape[2] - 1)) * (-1, -1, 1)
    affine = np.eye(4)
    # Index axes run to the right side and to the front once x and y are flipped: LPS -> RAS turns both signs, so two of four minus remain.
    directions = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(grid.direction) @ np.diag([-1.0, -1.0, 1.0])
    affine[:3, :3] = directions * np.asarray(grid.spacing)[::-1]
    affine[:3, 3] = corner
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.array[:, ::-1, ::-1].transpose(2, 1, 0)), affine)
    image.header.set_slope_inter(slope, intercept)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def _region(boxes: Sequence[tuple[slice, ...]], grid: ImageGrid) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last index (z, y, x) to show."""
    shape = np.array(grid.shape)
    if not boxes:
        return np.zeros(3, int), shape
    low = np.min([[s.start for s in box] for box in boxes], axis=0)
    high = np.max([[s.stop for s in box] for box in boxes], axis=0)
    margin = np.array(MARGIN_MM) / np.array(grid.spacing)[:, None]
    return np.maximum(np.floor(low - margin[:, 0]), 0).astype(int), np.minimum(np.ceil(high + margin[:, 1]), shape).astype(int)


def _grid(source: ImageGrid, voxels: int) -> ImageGrid:
    """`source` no finer than it is, coarser where it has more than `voxels` or an axis is longer than `LONGEST`."""
    extent, finest = np.array(source.extent_mm), np.array(source.spacing)
    edge = float(max(finest.min(), extent.max() / LONGEST))
    while np.prod(extent / np.maximum(finest, edge)) > voxels:
        edge *= 1.02
    z, y, x = (float(max(own, edge)) for own in finest)
    return source.resampled((z, y, x))


def _thinned(array: np.ndarray, start: np.ndarray, stop: np.ndarray, source: ImageGrid, steps: Sequence[int]) -> Volume:
    """Every step-th voxel of the part: a huge field is not averaged in full for a preview that is several times as coarse."""
    part = array[tuple(slice(int(a), int(b), step) for a, b, step in zip(start, stop, steps, strict=True))]
    spacing = float_triple(s * step for s, step in zip(source.spacing, steps, strict=True))
    return Volume(np.ascontiguousarray(part), ImageGrid(part.shape, spacing, source.origin, source.direction))


def _mr_range(grey: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(grey[::2, ::2, ::2], (0.1, 99.9))
    return float(low), float(high)
