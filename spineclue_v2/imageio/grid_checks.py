"""What a grid must be like before its voxels are read."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .grid import ImageGrid

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
MAX_VOXELS = 2 ** 31

MIN_SLICES = 5

# Deflate never packs better than about 1032:1, so a smaller file cannot hold what its header claims.
MAX_PACKING = 1040

SPACING_RANGE_MM = (1e-3, 100.0)

FLATTEST = 0.5    # smallest singular value of the index axes: two of them at 41 degrees to each other


def check_grid(path: object, size: Sequence[int], spacing: Sequence[float], voxel_bytes: int, stored_bytes: int) -> None:
    """Refuse what is no 3D scan. `size` and `spacing` in the file's order (x, y, z, ...); `stored_bytes`: where the voxels lie; `path`:
    the file, or what else the messages call it."""
    size = [int(n) for n in size]
    if len(size) < 3:
        raise InputError(f"{path} is {len(size)}D with size {tuple(size)}; expected a 3D scan.")
    volumes = int(np.prod(size[3:], dtype=object)) if len(size) > 3 else 1
    if volumes > 1:
        raise InputError(f"{path} is {len(size)}D with {volumes} volumes; expected one 3D scan per file.")
    voxels = int(np.prod(size[:3], dtype=object))
    if voxels > MAX_VOXELS:
        raise InputError(f"{path} claims {voxels} voxels, more than the {MAX_VOXELS} that are accepted; is its header broken?")
    if min(size[:3]) < MIN_SLICES:
        raise InputError(f"{path} has size {tuple(size[:3])}; expected {MIN_SLICES} slices or more along each axis.")
    lowest, highest = SPACING_RANGE_MM
    if not all(np.isfinite(s) and lowest <= s <= highest for s in spacing[:3]):
        raise InputError(f"{path} has spacing {tuple(float(s) for s in spacing[:3])} mm; expected {lowest:g} to {highest:g} mm "
                         "along each axis. Fix the header.")
    if voxels * voxel_bytes > stored_bytes * MAX_PACKING:
        raise InputError(f"{path} claims {voxels} voxels but its {stored_bytes} bytes cannot hold them; is it truncated? "
                         "Copy it again.")


def check_placement(path: object, geometry: ImageGrid) -> None:
    if not (np.isfinite(geometry.origin).all() and np.isfinite(geometry.direction).all()):
        raise InputError(f"{path} has an origin or orientation that is not finite; fix the header.")
    if np.linalg.svd(geometry.direction, compute_uv=False)[-1] < FLATTEST:
        raise InputError(f"{path} has index axes {np.round(geometry.direction, 3).tolist()} that lie almost in one plane; fix the header.")


def reason_of(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200].rstrip(".")
