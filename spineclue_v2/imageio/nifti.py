"""NIfTI read by its own header: nothing is allocated before the header was found plausible."""
from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..utilities.triples import float_triple
from .grid import ImageGrid
from .grid_checks import SPACING_RANGE_MM, check_grid, check_placement, reason_of
from .itk import direction_3d

logger = logging.getLogger(__name__)


MAX_HEADER_BYTES = 64 << 20  # NIfTI extensions included


def read_nifti(path: Path) -> tuple[np.ndarray, ImageGrid]:
    try:
        with _open(path) as stream:
            header = _nifti_header(path, stream.read(540))
        dtype, size = header.get_data_dtype(), [int(n) for n in header["dim"][1:1 + int(header["dim"][0])]]
        if dtype.kind not in "iuf":
            what = "colour" if dtype.names else f"voxels of type {dtype}"
            raise InputError(f"{path} holds {what}; expected one HU value per voxel.")
        check_grid(path, size, header["pixdim"][1:4], dtype.itemsize, path.stat().st_size)
        shape = (size[2], size[1], size[0])
        array = _nifti_voxels(path, header, shape)
        geometry = nifti_geometry(path, header, shape)
        check_placement(path, geometry)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        why = "it ends too early; is it truncated?" if isinstance(error, EOFError) else "its checksum or content is wrong."
        raise InputError(f"{path} is no intact gzip file: {why} Copy it again.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    return array, geometry


@contextmanager
def _open(path: Path) -> Iterator[gzip.GzipFile | BufferedReader]:
    """The file's bytes; whether it is packed says its content, since files get renamed."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if packed else open(path, "rb") as stream:
        yield stream


def _nifti_header(path: Path, head: bytes) -> Any:
    import nibabel

    # Unchecked: nibabel's own checks would quietly fix a spacing of 0.
    for kind, size, magics in ((nibabel.Nifti1Header, 348, (b"n+1",)), (nibabel.Nifti2Header, 540, (b"n+2",))):
        if head[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")) and len(head) >= size:
            header = kind(head[:size], check=False)
            if bytes(header["magic"])[:3] in magics and 1 <= int(header["dim"][0]) <= 7:
                try:
                    header.get_data_dtype()
                except Exception as error:  # an unknown data type code raises a kind of its own
                    raise InputError(f"{path} has an unknown NIfTI data type; fix the header.") from error
                return header
    raise InputError(f"{path} is no NIfTI file, whatever its name says.")


def _nifti_voxels(path: Path, header: Any, shape: tuple[int, int, int]) -> np.ndarray:
    dtype = header.get_data_dtype()
    wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
    offset = float(header["vox_offset"])
    if not 0 <= offset <= MAX_HEADER_BYTES:
        raise InputError(f"{path} says that its voxels begin at byte {offset:g}; expected 0 to {MAX_HEADER_BYTES}. Fix the header.")
    with _open(path) as stream:
        stream.read(max(int(offset), int(header["sizeof_hdr"])))
        content = stream.read(wanted)
        if len(content) < wanted:
            raise InputError(f"{path} ends after {len(content)} of its {wanted} bytes of voxels; is it truncated? Copy it again.")
        while stream.read(1 << 22):  # only at its end does gzip compare the checksum
            pass
    array = np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    return rescale(array, float(header["scl_slope"]), float(header["scl_inter"]), path)


def rescale(array: np.ndarray, slope: float, intercept: float, what: object) -> np.ndarray:
    """`array` times `slope` plus `intercept` as the header of a NIfTI file means it: int32 where whole numbers stay whole, else float32.

    Raises InputError for a scaling of `what` that is not finite.
    """
    if not np.isfinite(slope) or slope == 0 or (slope == 1 and intercept == 0):
        return array  # as the standard says: a slope of 0 means no scaling
    if not np.isfinite(intercept):
        raise InputError(f"{what} has a scaling that is not finite; fix the header.")
    whole = slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < 2 ** 15
    if array.dtype.kind in "iu" and array.dtype.itemsize <= 2 and whole:
        return array.astype(np.int32) * np.int32(slope) + np.int32(intercept)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, which is refused later
        return array.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def nifti_geometry(path: Path, header: Any, shape: tuple[int, int, int]) -> ImageGrid:
    """The grid as ITK (and so nnU-Net) understands the header."""
    import SimpleITK as sitk

    if int(header["qform_code"]) <= 0 and int(header["sform_code"]) <= 0:
        logger.warning("%s does not state how the patient lies; its axes are taken for the standard ones.", path.name)
    if int(header["sform_code"]) > 0:
        affine = np.array([header["srow_x"], header["srow_y"], header["srow_z"]], dtype=float)
        steps, spacing = np.linalg.norm(affine[:, :3], axis=0), np.asarray(header["pixdim"][1:4], dtype=float)
        if not np.isfinite(affine).all():
            raise InputError(f"{path} has an orientation matrix that is not finite; fix the header.")
        if (steps > 0).all() and (np.abs(steps / spacing - 1) > 0.01).any():
            logger.warning("%s contradicts itself: spacing %s mm, but its orientation matrix steps %s mm; the former is used.",
                           path.name, spacing.round(3).tolist(), steps.round(3).tolist())
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" not in str(error):
            raise InputError(f"{path} is no readable NIfTI image ({reason_of(error)}).") from error
        return _nearest_orthonormal(path, header, shape)
    spacing, (lowest, highest) = reader.GetSpacing()[:3], SPACING_RANGE_MM
    if not all(lowest <= s <= highest for s in spacing):  # ITK heeds the header's unit: metres make a voxel of 1 a voxel of 1000 mm
        raise InputError(f"{path} has spacing {spacing} mm in the unit that its header names; expected {lowest:g} to {highest:g} mm. "
                         "Fix the header's unit (xyzt_units).")
    return ImageGrid(shape, tuple(spacing[::-1]), tuple(reader.GetOrigin()[:3]), direction_3d(reader))


def _nearest_orthonormal(path: Path, header: Any, shape: tuple[int, int, int]) -> ImageGrid:
    """NIfTI whose direction cosines are sheared (ITK refuses): the nearest orthonormal axes."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ header.get_best_affine()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lowest, highest = SPACING_RANGE_MM
    if not np.isfinite(affine).all() or (spacing < lowest).any() or (spacing > highest).any():
        raise InputError(f"{path} has an unusable orientation matrix; fix the header.")
    direction = nearest_orthonormal(affine[:3, :3] / spacing, path)
    return ImageGrid(shape, float_triple(spacing[::-1]), float_triple(affine[:3, 3]), direction)


def nearest_orthonormal(direction: np.ndarray, what: object) -> np.ndarray:
    """The orthonormal axes (3 x 3, columns) nearest to `direction`; InputError where its columns lie almost in one plane."""
    left, singular, right = np.linalg.svd(direction)
    if singular[-1] < 0.5:
        raise InputError(f"{what} has index axes that lie almost in one plane; fix the header.")
    logger.warning("%s: its axes are not at right angles; the nearest orthonormal ones are used.", getattr(what, "name", what))
    return left @ right
