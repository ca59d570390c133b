"""Views of a volume in another orientation, and whether two grids are the same."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .volume import ImageGrid, Volume


def oriented_view(volume: Volume, orientation: str = "LPS") -> Volume:
    """`volume.reoriented` without copying: the array is a view with permuted and flipped axes."""
    if volume.geometry.orientation == orientation:
        return volume
    geometry, axes, flips = volume.geometry.reoriented(orientation)
    return Volume(np.flip(volume.array.transpose(axes), flips), geometry)


def check_same_grid(image: ImageGrid, label: ImageGrid, case: str, path: str | Path) -> None:
    """InputError unless both grids cover the same voxels (axes may be stored in another order, headers may be rounded)."""
    label = label.reoriented(image.orientation)[0]
    if not image.same_grid(label, tolerance=0.1 * min(image.spacing)):
        raise InputError(f"Case '{case}': the label map {Path(path).name} lies on another grid than its image (shape "
                         f"{label.shape} against {image.shape}, spacing {_round(label.spacing)} against "
                         f"{_round(image.spacing)}, origin {_round(label.origin)} against {_round(image.origin)}); "
                         "resample it onto the image.")


def _round(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(v), 3) for v in values)
