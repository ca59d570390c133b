"""Scans in memory to `Volume`: SimpleITK and nibabel images, numpy arrays. The only place that knows their conventions.

The same scan gives the same voxels and the same grid, whether its file is read by `read_volume`, or by SimpleITK or nibabel and handed
over. A bare array has no place in the patient, so the caller must say one of two things:

* `spacing=(z, y, x)` mm: the array is indexed (z, y, x), as SimpleITK's arrays are. z runs towards the head, y towards the back, x towards
  the patient's left; the first voxel lies at the origin.
* `affine=` 4 x 4: maps indices of the array, in the order of its own axes, to RAS millimetres. This is nibabel's convention, so for
  `image = nibabel.load(...)` the call is `to_volume(image.get_fdata(), affine=image.affine)`.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..flags import Flag
from .grid import ImageGrid
from .grid_checks import SPACING_RANGE_MM, check_grid, check_placement
from .intensities import scan_values
from .nifti import RAS_TO_LPS, nifti_geometry, rescale, shear_flags
from .volume import Volume, read_volume

if TYPE_CHECKING:
    import nibabel.spatialimages
    import SimpleITK

Scan: TypeAlias = "str | os.PathLike[str] | Volume | np.ndarray | SimpleITK.Image | nibabel.spatialimages.SpatialImage"
"""What `to_volume` takes. SimpleITK and nibabel are not imported here: who hands an image over has done so."""

ACCEPTED = "a path, a Volume, a SimpleITK image, a nibabel image or a numpy array with spacing= or affine="


def to_volume(scan: Scan, spacing: Sequence[float] | None = None, affine: ArrayLike | None = None, modality: str | None = None
              ) -> Volume:
    """Any scan as a checked `Volume`: int16 or float32, (z, y, x), native orientation.

    Args:
        scan: a path (whatever `read_volume` reads), a `Volume`, a SimpleITK image, a nibabel image, or a numpy array of HU.
        spacing: of a bare array that is indexed (z, y, x): millimetres in this order.
        affine: of a bare array: 4 x 4 from indices in the order of its axes to RAS millimetres.
        modality: of a path: "CT" or "MR", see `read_volume`.

    Raises:
        InputError: no scan, no 3D scan, no grid or two for a bare array, values that are not finite, nothing but air.
    """
    if isinstance(scan, np.ndarray):
        return _from_array(scan, spacing, affine)
    itk, nifti = _is_a(scan, "SimpleITK", "Image"), _is_a(scan, "nibabel.spatialimages", "SpatialImage")
    if not (itk or nifti or isinstance(scan, str | os.PathLike | Volume)):
        remedy = ("; turn the tensor into an array with .cpu().numpy()" if type(scan).__module__.startswith("torch") else
                  "; turn the list into an array with numpy.array(...)" if isinstance(scan, list | tuple) else "")
        raise InputError(f"A scan cannot be of type {type(scan).__name__}; expected {ACCEPTED}{remedy}.")
    if spacing is not None or affine is not None:
        raise InputError(f"spacing and affine belong to bare numpy arrays; {describe(scan)} has a grid of its own, so leave them out.")
    if isinstance(scan, str | os.PathLike):
        return read_volume(Path(scan), modality=modality)
    if isinstance(scan, Volume):
        if scan.array.shape != tuple(scan.geometry.shape):
            raise InputError(f"The Volume holds an array of shape {scan.array.shape} on a grid of shape {tuple(scan.geometry.shape)}; "
                             "give both the same.")
        checked = _checked(scan.array, scan.geometry, "The Volume", scan.flags)
        return replace(checked, flags=scan.flags, files=scan.files)
    return _from_simple_itk(scan) if itk else _from_nibabel(scan)


def _is_a(scan: object, module: str, name: str) -> bool:
    """Whether `scan` is of class `name` of a module that somebody imported already."""
    return module in sys.modules and isinstance(scan, getattr(sys.modules[module], name))


def describe(scan: Scan) -> str:
    """A scan in words for records and messages: the path, or what kind of object it is."""
    if isinstance(scan, str | os.PathLike):
        return os.fspath(scan)
    package = type(scan).__module__.split(".")[0]
    return f"{'' if package in ('spineclue_v2', 'builtins') else package + ' '}{type(scan).__name__}"


def _from_array(array: np.ndarray, spacing: Sequence[float] | None, affine: ArrayLike | None) -> Volume:
    if spacing is None and affine is None:
        raise InputError(f"The array of shape {array.shape} says nothing of its grid; give spacing=(z, y, x) in mm for an array indexed "
                         "(z, y, x), or affine= (4 x 4, to RAS mm) for one in nibabel's order.")
    if spacing is not None and affine is not None:
        raise InputError("The array was given spacing and affine, which could contradict each other; give one of them.")
    _check_array(array, "The array")
    if affine is not None:
        return _checked(array.transpose(), grid_of_affine(affine, array.shape, "The array"), "The array")
    try:
        steps = tuple(float(step) for step in spacing or ())
    except (TypeError, ValueError):
        raise InputError(f"spacing is {spacing!r}; expected three numbers (z, y, x) in mm.") from None
    lowest, highest = SPACING_RANGE_MM
    if len(steps) != 3 or not all(np.isfinite(step) and lowest <= step <= highest for step in steps):
        raise InputError(f"spacing is {steps}; expected three numbers (z, y, x) in mm, each between {lowest:g} and {highest:g}.")
    shape = (array.shape[0], array.shape[1], array.shape[2])
    return _checked(array, ImageGrid(shape, (steps[0], steps[1], steps[2]), (0.0, 0.0, 0.0), np.eye(3)), "The array")


def _check_array(array: np.ndarray, what: str) -> None:
    if array.dtype.kind not in "iuf":
        raise InputError(f"{what} holds values of type {array.dtype}; expected one number (HU) per voxel.")
    if array.ndim != 3:
        raise InputError(f"{what} has {array.ndim} dimensions, shape {array.shape}; expected one 3D scan.")


def _checked(array: np.ndarray, grid: ImageGrid, what: str, flags: tuple[Flag, ...] = ()) -> Volume:
    """`array` (z, y, x) on `grid`, after the checks that files go through; `flags` is what the grid was found to be."""
    _check_array(array, what)
    check_grid(what, grid.shape[::-1], grid.spacing[::-1], array.itemsize, array.nbytes)
    check_placement(what, grid)
    return Volume(scan_values(array, what), grid, flags or tuple(shear_flags(grid)))


def grid_of_affine(affine: ArrayLike, shape: Sequence[int], what: str) -> ImageGrid:
    """Grid of an array of `shape` (i, j, k) whose `affine` (4 x 4) maps (i, j, k) to RAS mm; our index axes x, y, z are i, j, k."""
    try:
        matrix = np.asarray(affine, dtype=float)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise InputError(f"The affine of {what[0].lower() + what[1:]} is no matrix of 4 x 4 finite numbers with last row 0, 0, 0, 1; give "
                         "the one that maps indices to RAS mm.")
    lps = RAS_TO_LPS @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    lowest, highest = SPACING_RANGE_MM
    if (spacing < lowest).any() or (spacing > highest).any():
        raise InputError(f"The affine of {what[0].lower() + what[1:]} has voxels of {spacing.round(4).tolist()} mm; expected {lowest:g} to "
                         f"{highest:g} mm along each axis.")
    return ImageGrid.from_affine(lps, (shape[2], shape[1], shape[0]))


def _from_simple_itk(image: Any) -> Volume:
    import SimpleITK as sitk

    what = "The SimpleITK image"
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"{what} holds {image.GetNumberOfComponentsPerPixel()} values per voxel (colour?); expected one, in HU.")
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        raise InputError(f"{what} has {image.GetDimension()} dimensions, size {image.GetSize()}; expected one 3D scan.")
    array = sitk.GetArrayFromImage(image)
    spacing, origin, size = image.GetSpacing(), image.GetOrigin(), image.GetSize()
    grid = ImageGrid((size[2], size[1], size[0]), (spacing[2], spacing[1], spacing[0]), (origin[0], origin[1], origin[2]),
                     np.array(image.GetDirection(), dtype=float).reshape(3, 3))
    return _checked(array, grid, what)


def _from_nibabel(image: Any) -> Volume:
    """A nibabel image means what the file means that it came from, or that it would be saved as."""
    import nibabel

    what = "The nibabel image"
    values = image.dataobj
    try:
        scaled = nibabel.is_proxy(values) and hasattr(values, "get_unscaled")
        array = np.asanyarray(values.get_unscaled() if scaled else values)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{what} cannot be read to its end ({type(error).__name__}); is its file truncated? Copy it again.") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    _check_array(array, what)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if scaled:
        array = rescale(array, float(values.slope), float(values.inter), what)
    if isinstance(image, nibabel.Nifti1Pair):
        grid, flags = _grid_of_nifti(image, array.shape, what)
        return _checked(array.transpose(), grid, what, flags)
    return _checked(array.transpose(), grid_of_affine(image.affine, array.shape, what), what)


def _grid_of_nifti(image: Any, shape: Sequence[int], what: str) -> tuple[ImageGrid, tuple[Flag, ...]]:
    """The grid that the header states, as for files."""
    header = type(image)(image.dataobj, image.affine, image.header).header  # brought up to date, as saving would
    grid, flags = nifti_geometry(what, header, (int(shape[2]), int(shape[1]), int(shape[0])))
    return grid, tuple(flags)
