"""Reading scan files and DICOM folders, distrustfully: a broken file is an InputError, never a plausible volume.

ITK fills a truncated NIfTI file with zeros, turns NaN voxels into 0 HU and a spacing of 0 into 1 mm, all without a word.
So NIfTI voxels are read here, and ITK is asked for the geometry only.
"""
from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import InputError
from .geometry import Geometry
from .scan_headers import check_header, stored_bytes

logger = logging.getLogger(__name__)

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
MAX_VOXELS = 2 ** 31
MIN_SLICES = 5
# Deflate never packs better than about 1032:1, so a smaller file cannot hold what its header claims.
MAX_PACKING = 1040
MAX_HEADER_BYTES = 64 << 20  # NIfTI extensions included
_DICOM_LOOK_BYTES = 1 << 20
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_SPACING_RANGE_MM = (1e-3, 100.0)


def read_scan(path: Path) -> tuple[np.ndarray, Geometry]:
    """Array (z, y, x) as stored (rescaled where the header says so) and grid of a scan file or a folder with a DICOM series."""
    with _itk_silent():
        if path.is_dir():
            return _read_dicom_series(path)
        if not path.exists():
            raise InputError(f"{path} does not exist.")
        if not path.name.lower().endswith(FILE_ENDINGS):
            raise InputError(f"{path} is of no known format; expected {', '.join(FILE_ENDINGS)} or a DICOM folder.")
        try:
            return _read_nifti(path) if ".nii" in path.name.lower() else _read_with_itk(path)
        except MemoryError as error:
            raise InputError(f"{path} does not fit into memory.") from error


def is_dicom_folder(folder: Path) -> bool:
    """True when the folder holds DICOM files directly and no scan file of another format."""
    import SimpleITK as sitk

    if any(entry.name.lower().endswith(FILE_ENDINGS) for entry in folder.iterdir()):
        return False
    with _itk_silent():
        return bool(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def _check_grid(path: Path, size: Sequence[int], spacing: Sequence[float], voxel_bytes: int, stored_bytes: int) -> None:
    """Refuse what is no 3D scan. `size` and `spacing` in the file's order (x, y, z, ...); `stored_bytes`: where the voxels lie."""
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
    lowest, highest = _SPACING_RANGE_MM
    if not all(np.isfinite(s) and lowest <= s <= highest for s in spacing[:3]):
        raise InputError(f"{path} has spacing {tuple(float(s) for s in spacing[:3])} mm; expected {lowest:g} to {highest:g} mm "
                         "along each axis. Mend the header.")
    if voxels * voxel_bytes > stored_bytes * MAX_PACKING:
        raise InputError(f"{path} claims {voxels} voxels but its {stored_bytes} bytes cannot hold them; is it truncated? "
                         "Copy it again.")


def _check_placement(path: Path, geometry: Geometry) -> None:
    if not (np.isfinite(geometry.origin).all() and np.isfinite(geometry.direction).all()):
        raise InputError(f"{path} has an origin or orientation that is not finite; mend the header.")
    if abs(abs(np.linalg.det(geometry.direction)) - 1) > 0.02:
        raise InputError(f"{path} has axes {np.round(geometry.direction, 3).tolist()}, not at right angles; mend the header.")


def _read_with_itk(path: Path) -> tuple[np.ndarray, Geometry]:
    import SimpleITK as sitk

    fields = check_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path} is no readable image of its kind ({_reason(error)}).") from error
    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"{path} holds {reader.GetNumberOfComponents()} values per voxel (colour?); expected one, in HU.")
    _check_grid(path, reader.GetSize(), reader.GetSpacing(), sitk.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent(),
                stored_bytes(path, fields))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read to its end ({_reason(error)}); is it truncated? Copy it again.") from error
    return _from_itk(path, image[:, :, :, 0] if image.GetDimension() == 4 else image)


def _from_itk(path: Path, image: Any) -> tuple[np.ndarray, Geometry]:
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    geometry = Geometry(array.shape, tuple(image.GetSpacing()[::-1]), tuple(image.GetOrigin()),
                        np.array(image.GetDirection(), dtype=float).reshape(3, 3))
    _check_placement(path, geometry)
    return array, geometry


def _read_nifti(path: Path) -> tuple[np.ndarray, Geometry]:
    try:
        with _unpacked(path) as stream:
            header = _nifti_header(path, stream.read(540))
        dtype, size = header.get_data_dtype(), [int(n) for n in header["dim"][1:1 + int(header["dim"][0])]]
        if dtype.kind not in "iuf":
            what = "colour" if dtype.names else f"voxels of type {dtype}"
            raise InputError(f"{path} holds {what}; expected one HU value per voxel.")
        _check_grid(path, size, header["pixdim"][1:4], dtype.itemsize, path.stat().st_size)
        shape = (size[2], size[1], size[0])
        array = _nifti_voxels(path, header, shape)
        geometry = _nifti_geometry(path, header, shape)
        _check_placement(path, geometry)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        why = "it ends too early; is it truncated?" if isinstance(error, EOFError) else "its checksum or content is wrong."
        raise InputError(f"{path} is no intact gzip file: {why} Copy it again.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    return array, geometry


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes; whether it is packed says its content, since files get renamed."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if packed else open(path, "rb") as stream:
        yield stream


def _nifti_header(path: Path, head: bytes) -> Any:
    import nibabel

    # Unchecked: nibabel's own checks would quietly mend a spacing of 0.
    for kind, size, magics in ((nibabel.Nifti1Header, 348, (b"n+1",)), (nibabel.Nifti2Header, 540, (b"n+2",))):
        if head[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")) and len(head) >= size:
            header = kind(head[:size], check=False)
            if bytes(header["magic"])[:3] in magics and 1 <= int(header["dim"][0]) <= 7:
                try:
                    header.get_data_dtype()
                except Exception as error:  # an unknown data type code raises a kind of its own
                    raise InputError(f"{path} has an unknown NIfTI data type; mend the header.") from error
                return header
    raise InputError(f"{path} is no NIfTI file, whatever its name says.")


def _nifti_voxels(path: Path, header: Any, shape: tuple[int, int, int]) -> np.ndarray:
    dtype = header.get_data_dtype()
    wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
    offset = float(header["vox_offset"])
    if not 0 <= offset <= MAX_HEADER_BYTES:
        raise InputError(f"{path} says that its voxels begin at byte {offset:g}; expected 0 to {MAX_HEADER_BYTES}. Mend the header.")
    with _unpacked(path) as stream:
        stream.read(max(int(offset), int(header["sizeof_hdr"])))
        content = stream.read(wanted)
        if len(content) < wanted:
            raise InputError(f"{path} ends after {len(content)} of its {wanted} bytes of voxels; is it truncated? Copy it again.")
        while stream.read(1 << 22):  # only at its end does gzip compare the checksum
            pass
    array = np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0 or (slope == 1 and intercept == 0):
        return array  # as the standard says: a slope of 0 means no scaling
    if not np.isfinite(intercept):
        raise InputError(f"{path} has a scaling that is not finite; mend the header.")
    whole = slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < 2 ** 15
    if dtype.kind in "iu" and dtype.itemsize <= 2 and whole:
        return array.astype(np.int32) * np.int32(slope) + np.int32(intercept)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, which read_volume refuses
        return array.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _nifti_geometry(path: Path, header: Any, shape: tuple[int, int, int]) -> Geometry:
    """The grid as ITK (and so nnU-Net) understands the header."""
    import SimpleITK as sitk

    if int(header["qform_code"]) <= 0 and int(header["sform_code"]) <= 0:
        logger.warning("%s does not state how the patient lies; its axes are taken for the standard ones.", path.name)
    if int(header["sform_code"]) > 0:
        affine = np.array([header["srow_x"], header["srow_y"], header["srow_z"]], dtype=float)
        steps, spacing = np.linalg.norm(affine[:, :3], axis=0), np.asarray(header["pixdim"][1:4], dtype=float)
        if not np.isfinite(affine).all():
            raise InputError(f"{path} has an orientation matrix that is not finite; mend the header.")
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
            raise InputError(f"{path} is no readable NIfTI image ({_reason(error)}).") from error
        return _nearest_orthonormal(path, header, shape)
    spacing, (lowest, highest) = reader.GetSpacing()[:3], _SPACING_RANGE_MM
    if not all(lowest <= s <= highest for s in spacing):  # ITK heeds the header's unit: metres make a voxel of 1 a voxel of 1000 mm
        raise InputError(f"{path} has spacing {spacing} mm in the unit that its header names; expected {lowest:g} to {highest:g} mm. "
                         "Mend the header's unit (xyzt_units).")
    return Geometry(shape, tuple(spacing[::-1]), tuple(reader.GetOrigin()[:3]), _direction_3d(reader))


def _direction_3d(reader: Any) -> np.ndarray:
    side = reader.GetDimension()
    return np.array(reader.GetDirection(), dtype=float).reshape(side, side)[:3, :3]


def _nearest_orthonormal(path: Path, header: Any, shape: tuple[int, int, int]) -> Geometry:
    """NIfTI whose direction cosines are sheared (ITK refuses): the nearest orthonormal axes."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ header.get_best_affine()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lowest, highest = _SPACING_RANGE_MM
    if not np.isfinite(affine).all() or (spacing < lowest).any() or (spacing > highest).any():
        raise InputError(f"{path} has an unusable orientation matrix; mend the header.")
    left, singular, right = np.linalg.svd(affine[:3, :3] / spacing)
    if singular[-1] < 0.5:
        raise InputError(f"{path} has index axes that lie almost in one plane; mend the header.")
    logger.warning("%s: its axes are not at right angles; the nearest orthonormal ones are used.", path.name)
    return Geometry(shape, tuple(float(s) for s in spacing[::-1]), tuple(float(o) for o in affine[:3, 3]),  # type: ignore[arg-type]
                    left @ right)


def _read_dicom_series(folder: Path) -> tuple[np.ndarray, Geometry]:
    import SimpleITK as sitk

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise InputError(f"{folder} holds no DICOM series; expected one, or a scan file ({', '.join(FILE_ENDINGS)}).")
    files = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), identifier) for identifier in series]
    _check_leftovers(folder, {Path(name).name for names in files for name in names})
    names = max(files, key=len)
    if len(files) > 1:
        logger.warning("%s holds %d DICOM series; the longest one (%d slices) is used.", folder.name, len(files), len(names))
    if len(names) < MIN_SLICES:
        raise InputError(f"{folder} holds a DICOM series of {len(names)} slices; expected {MIN_SLICES} or more.")
    first = sitk.ImageFileReader()
    first.SetFileName(names[0])
    try:
        first.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"The DICOM series in {folder} cannot be read ({_reason(error)}).") from error
    stored = sum(Path(name).stat().st_size for name in names)
    _check_grid(folder, (*first.GetSize()[:2], len(names)), (1.0, 1.0, 1.0), 1, stored)  # before anything is allocated
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"The DICOM series in {folder} cannot be read ({_reason(error)}).") from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"The DICOM series in {folder} is in colour; expected a CT.")
    if image.GetDimension() == 4:
        image = image[:, :, :, 0]
    spacing = (*image.GetSpacing()[:2], _slice_step(folder, reader, len(names)) or image.GetSpacing()[2])
    _check_grid(folder, image.GetSize(), spacing, 1, stored)
    image.SetSpacing(spacing)
    return _from_itk(folder, image)


def _check_leftovers(folder: Path, used: set[str]) -> None:
    """Files that GDCM left out without a word: a damaged slice is refused, other DICOM objects (reports, ...) are mentioned."""
    others = []
    for entry in folder.iterdir():
        if entry.name not in used and entry.is_file() and entry.name.upper() != "DICOMDIR":
            with open(entry, "rb") as file:
                content = file.read(_DICOM_LOOK_BYTES)
            if content[128:132] == b"DICM":
                others.append(entry.name)
                if _PIXEL_DATA in content:
                    raise InputError(f"{folder} holds the image {entry.name} that cannot be read; is it truncated? Copy it again.")
    if others:
        logger.warning("%s: %d DICOM files belong to no series of images (e.g. %s); they are left out.", folder.name, len(others),
                       others[0])


def _slice_step(folder: Path, reader: Any, count: int) -> float | None:
    """Distance between slices in mm from their positions, None when the files state none. (ITK looks at the first two only.)"""
    position, orientation = "0020|0032", "0020|0037"
    if not all(reader.HasMetaDataKey(i, position) for i in range(count)) or not reader.HasMetaDataKey(0, orientation):
        return None
    try:
        places = np.array([[float(v) for v in reader.GetMetaData(i, position).split("\\")] for i in range(count)]).reshape(count, 3)
        cosines = np.array([float(v) for v in reader.GetMetaData(0, orientation).split("\\")]).reshape(2, 3)
    except ValueError:
        raise InputError(f"The DICOM series in {folder} has slices whose position or orientation is no list of numbers.") from None
    if not (np.isfinite(places).all() and np.isfinite(cosines).all()):
        raise InputError(f"The DICOM series in {folder} has slices whose position or orientation is not finite.")
    moves = np.diff(places, axis=0)
    along = np.abs(moves @ np.cross(cosines[0], cosines[1]))
    step = float(np.median(along))
    if along.min() < 0.01:
        raise InputError(f"The DICOM series in {folder} has several images at one position; expected one phase only.")
    if along.max() > 1.2 * step or along.min() < 0.8 * step:
        raise InputError(f"The DICOM series in {folder} has slices {along.min():g} to {along.max():g} mm apart; expected even "
                         "steps. Are files missing?")
    tilt = np.degrees(np.arccos(np.clip(along / np.linalg.norm(moves, axis=1), 0, 1)).max())
    if tilt > 1:
        logger.warning("%s was scanned with the gantry tilted by %.0f degrees, which is not corrected.", folder.name, tilt)
    return step


@contextmanager
def _itk_silent() -> Iterator[None]:
    """Keep ITK's C++ warnings off the user's screen: what matters is checked and said here."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200].rstrip(".")
