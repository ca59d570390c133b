"""NIfTI read by its own header: nothing is allocated before the header was found plausible.

A NIfTI header can state the place of its voxels twice. The rule here is that of the standard's reference library and of nibabel: the sform
counts where its code is above 0, else the qform where its code is above 0, else the axes are taken for the standard ones. Spacing follows
the form that counts. Where both are stated and differ, a flag says so, and both are written to the results as they were
(`ImageGrid.forms`), so that whoever reads the other one finds scan and labels in the same place.
"""
from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..flags import Flag
from .grid import RIGHT_ANGLES, ImageGrid, NiftiForms
from .grid_checks import SPACING_RANGE_MM, check_grid, check_placement
from .scanned import Scanned

MAX_HEADER_BYTES = 64 << 20  # NIfTI extensions included
BLOCK = 1 << 20              # bytes unpacked at a time

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}
UNIT_NAMES = {0: "no unit", 1: "metre", 2: "millimetre", 3: "micrometre"}
PLAUSIBLE_MM = (0.02, 50.0)     # voxels of scanners, micro-CT of specimens included
SAME_PLACE_MM = 0.1             # forms that differ by less name the same place


def read_nifti(path: Path) -> Scanned:
    try:
        with _open(path) as stream:
            header = _nifti_header(path, stream.read(540))
        dtype, size = header.get_data_dtype(), [int(n) for n in header["dim"][1:1 + int(header["dim"][0])]]
        if dtype.kind not in "iuf":
            what = "colour" if dtype.names else f"voxels of type {dtype}"
            raise InputError(f"{path} holds {what}; expected one HU value per voxel.")
        check_grid(path, size, header["pixdim"][1:4] * unit_of(header)[0], dtype.itemsize, path.stat().st_size)
        shape = (size[2], size[1], size[0])
        geometry, flags = nifti_geometry(path, header, shape)
        array = _nifti_voxels(path, header, shape)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        why = "it ends too early; is it truncated?" if isinstance(error, EOFError) else "its checksum or content is wrong."
        raise InputError(f"{path} is no intact gzip file: {why} Copy it again.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    return Scanned(array, geometry, tuple(flags))


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
    array = np.empty(shape, dtype)      # filled in place: a long scan does not exist twice
    content = memoryview(array.reshape(-1).view(np.uint8).data)
    with _open(path) as stream:
        stream.read(max(int(offset), int(header["sizeof_hdr"])))
        done = 0
        while done < wanted and (count := stream.readinto(content[done:done + BLOCK])):
            done += count
        if done < wanted:
            raise InputError(f"{path} ends after {done} of its {wanted} bytes of voxels; is it truncated? Copy it again.")
        while stream.read(BLOCK):  # only at its end does gzip compare the checksum
            pass
    if not dtype.isnative:
        array = array.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return rescale(array, float(header["scl_slope"]), float(header["scl_inter"]), path, in_place=True)


def rescale(array: np.ndarray, slope: float, intercept: float, what: object, in_place: bool = False) -> np.ndarray:
    """`array` times `slope` plus `intercept` as the header of a NIfTI file means it: int16 (else int32) where whole numbers stay whole,
    else float32.

    `in_place`: `array` is the caller's own and may be overwritten. Raises InputError for a scaling of `what` that is not finite.
    """
    if not np.isfinite(slope) or slope == 0 or (slope == 1 and intercept == 0):
        return array  # as the standard says: a slope of 0 means no scaling
    if not np.isfinite(intercept):
        raise InputError(f"{what} has a scaling that is not finite; fix the header.")
    whole = slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < 2 ** 15
    if array.dtype.kind in "iu" and array.dtype.itemsize <= 2 and whole:
        return _rescaled_whole(array, int(slope), int(intercept), in_place)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, which is refused later
        return array.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _rescaled_whole(array: np.ndarray, slope: int, intercept: int, in_place: bool) -> np.ndarray:
    """Whole numbers of 8 or 16 bits times `slope` plus `intercept`, slice by slice."""
    ends = [int(value) * slope + intercept for value in (array.min(), array.max())] if array.size else [0]
    fits = min(ends) >= -2 ** 15 and max(ends) < 2 ** 15
    own = in_place and fits and array.dtype.itemsize == 2
    result = array.view(np.int16) if own else np.empty(array.shape, np.int16 if fits else np.int32)
    for values, scaled in zip(array, result, strict=True):
        scaled[...] = values.astype(np.int32) * np.int32(slope) + np.int32(intercept)
    return result


def nifti_geometry(path: object, header: Any, shape: tuple[int, int, int]) -> tuple[ImageGrid, list[Flag]]:
    """The grid that `header` gives voxels of `shape` (z, y, x), and what a reader should know of it.

    Raises InputError where the form that counts is no usable affine. `path`: the file, or what else the messages call it.
    """
    scale, flags = unit_of(header)
    forms = _forms(header, scale)
    affine = forms.sform if forms.sform_code > 0 else forms.qform if forms.qform_code > 0 else None
    if affine is None:
        flags.append(unplaced_flag())
        affine = RAS_TO_LPS @ np.diag([*(np.asarray(header["pixdim"][1:4], dtype=float) * scale), 1.0])  # as ITK does
    if not np.isfinite(affine).all():
        raise InputError(f"{path} has an orientation matrix that is not finite; fix the header.")
    steps, (lowest, highest) = np.linalg.norm(affine[:3, :3], axis=0), SPACING_RANGE_MM
    if (steps < lowest).any() or (steps > highest).any():
        raise InputError(f"{path} has an orientation matrix with steps of {steps.round(4).tolist()} mm; expected {lowest:g} to "
                         f"{highest:g} mm. Fix the header.")
    geometry = ImageGrid.from_affine(RAS_TO_LPS @ affine, shape, forms)
    check_placement(path, geometry)
    return geometry, flags + _contradictions(header, scale, forms, shape, steps) + shear_flags(geometry)


def unplaced_flag() -> Flag:
    message = ("The header does not state how the patient lies; its axes are taken for the standard ones (to the left, to the back, to the "
               "head).")
    return Flag("no_orientation", "read", "review", message, what_to_do="Check left and right, or convert the scan again.")


def unit_of(header: Any) -> tuple[float, list[Flag]]:
    """Millimetres per unit of a header's lengths. A unit that makes voxels no scanner has gives way to one that does, with a flag."""
    code = int(header["xyzt_units"]) & 7
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=float))

    def plausible(factor: float) -> bool:
        return bool(((pixdim * factor >= PLAUSIBLE_MM[0]) & (pixdim * factor <= PLAUSIBLE_MM[1])).all())

    stated = MM_PER_UNIT.get(code, 1.0)
    if plausible(stated) or not np.isfinite(pixdim).all():
        return stated, []
    other = next((unit for unit in (2, 3) if MM_PER_UNIT[unit] != stated and plausible(MM_PER_UNIT[unit])), None)
    if other is None:
        return stated, []
    message = (f"The header names {UNIT_NAMES.get(code, 'an unknown unit')} for spacings of {pixdim.round(4).tolist()}; "
               f"{UNIT_NAMES[other]} was taken.")
    return MM_PER_UNIT[other], [Flag("unit_assumed", "read", "review", message, UNIT_NAMES.get(code, str(code)), UNIT_NAMES[other],
                                     "Correct xyzt_units in the header.")]


def _forms(header: Any, scale: float) -> NiftiForms:
    """Both forms in mm. A quaternion that is none counts as not stated."""
    from nibabel.spatialimages import HeaderDataError

    stretch = np.array([scale, scale, scale, 1.0])[:, None]
    qform_code, sform_code = max(int(header["qform_code"]), 0), max(int(header["sform_code"]), 0)
    try:
        qform = stretch * header.get_qform() if qform_code else None
    except (HeaderDataError, ValueError, FloatingPointError):
        qform = None
    if qform is not None and sform_code and not np.isfinite(qform).all():
        qform = None
    return NiftiForms(qform, qform_code if qform is not None else 0, stretch * header.get_sform() if sform_code else None, sform_code)


def _contradictions(header: Any, scale: float, forms: NiftiForms, shape: tuple[int, int, int], steps: np.ndarray) -> list[Flag]:
    flags = []
    spacing = np.asarray(header["pixdim"][1:4], dtype=float) * scale
    if forms.sform_code and (np.abs(steps / spacing - 1) > 0.01).any():
        flags.append(Flag("spacing_contradicts", "read", "review", f"The header contradicts itself: spacing {spacing.round(3).tolist()} "
                          f"mm, but its orientation matrix (sform) steps {steps.round(3).tolist()} mm; the latter is used.",
                          str(spacing.round(3).tolist()), str(steps.round(3).tolist()), "Convert the scan again from its source."))
    if forms.qform is not None and forms.sform is not None:
        last = np.array(shape[::-1]) - 1
        corners = np.array([(x, y, z, 1) for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])], dtype=float)
        apart = float(np.linalg.norm((corners @ (forms.qform - forms.sform).T)[:, :3], axis=1).max())
        if apart > SAME_PLACE_MM:
            flags.append(Flag("forms_differ", "read", "review", f"The header gives the scan two places, up to {apart:.1f} mm apart (qform "
                              "and sform); the sform is used, and both are written to the label map.", round(apart, 2), SAME_PLACE_MM,
                              "Find out which one is right; programs that read the qform show points in another place."))
    return flags


def shear_flags(geometry: ImageGrid) -> list[Flag]:
    """A flag for a grid whose axes are not at right angles."""
    if not geometry.is_sheared:
        return []
    cosines = np.abs(geometry.direction.T @ geometry.direction - np.eye(3)).max()
    degrees = float(np.degrees(np.arcsin(min(cosines, 1.0))))
    return [Flag("sheared_grid", "read", "info", f"The axes of the scan are not at right angles (off by {degrees:.1f} degrees: a tilted "
                 "gantry, or a registration); it was straightened for the networks, and the results lie on its own grid.",
                 round(degrees, 2), round(float(np.degrees(RIGHT_ANGLES)), 4),
                 "Nothing; programs that cannot show sheared grids may misplace scan and labels alike.")]


def write_nifti(array: np.ndarray, geometry: ImageGrid, path: Path) -> None:
    """`array` (z, y, x) as .nii or .nii.gz with the grid's own forms; without them qform and sform are both the grid (code 1), and a
    sheared grid, which no qform can say, is the sform alone."""
    import nibabel

    forms, affine = geometry.forms, RAS_TO_LPS @ geometry.affine
    if forms is None or not (forms.qform_code or forms.sform_code):
        forms = NiftiForms(None if geometry.is_sheared else affine, 0 if geometry.is_sheared else 1, affine, 1)
    array = array.astype(np.uint8) if array.dtype == bool else array
    image = nibabel.Nifti1Image(array.T, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(forms.sform, forms.sform_code)
    image.set_qform(forms.qform, forms.qform_code)
    if not forms.qform_code:
        image.header["pixdim"][1:4] = np.asarray(geometry.spacing)[::-1]
    if path.name.lower().endswith(".gz"):
        with open(path, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as stream:
            image.to_stream(stream)
    else:
        with open(path, "wb") as file:
            image.to_stream(file)
