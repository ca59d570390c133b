"""A scan as an array with its geometry: read any format, reorient, resample, crop, write.

Arrays are (z, y, x) as SimpleITK gives them; world coordinates are LPS millimetres (x, y, z).
"""
from __future__ import annotations

import gzip
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .storage import atomic_path

logger = logging.getLogger(__name__)

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
MAX_VOXELS = 2 ** 31
MIN_SLICES = 5
THICK_SLICE_MM = 5.0
# Deflate never packs better than about 1032:1, so a smaller file cannot hold what its header claims.
MAX_GZIP_RATIO = 1040


@dataclass(frozen=True)
class Geometry:
    """Grid of a volume: shape and spacing (z, y, x), origin (x, y, z) LPS mm, direction 3x3 (columns: x, y, z index axes)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: np.ndarray

    def index_to_world(self, index: Any) -> np.ndarray:
        """Indices (..., 3) in (z, y, x) order -> world points (..., 3) in (x, y, z) LPS mm."""
        steps = (np.asarray(index, dtype=float) * np.asarray(self.spacing))[..., ::-1]
        return steps @ self.direction.T + np.asarray(self.origin)

    def world_to_index(self, point: Any) -> np.ndarray:
        """World points (..., 3) in (x, y, z) LPS mm -> continuous indices (..., 3) in (z, y, x) order."""
        steps = (np.asarray(point, dtype=float) - np.asarray(self.origin)) @ np.linalg.inv(self.direction).T
        return steps[..., ::-1] / np.asarray(self.spacing)

    @property
    def orientation(self) -> str:
        """Three letters, x, y, z index axes: the patient side each runs towards (nearest axis), e.g. 'LPS'."""
        letters = []
        remaining = [0, 1, 2]
        for column in range(3):
            row = max(remaining, key=lambda r: abs(self.direction[r, column]))
            remaining.remove(row)
            letters.append("RAI"[row] if self.direction[row, column] < 0 else "LPS"[row])
        return "".join(letters)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Field of view (z, y, x) in mm."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True))  # type: ignore[return-value]

    def same_grid(self, other: Geometry, tolerance: float = 1e-2) -> bool:
        """True when both grids have the same shape and their corners lie within `tolerance` mm of each other."""
        if self.shape != other.shape:
            return False
        corners = np.array([[0, 0, 0], [self.shape[0], 0, 0], [0, self.shape[1], 0], [0, 0, self.shape[2]]])
        return bool(np.abs(self.index_to_world(corners) - other.index_to_world(corners)).max() <= tolerance)

    def cropped(self, start: Any, shape: Any) -> Geometry:
        """Geometry of the box that begins at index `start` (z, y, x) and has `shape` voxels."""
        return replace(self, shape=tuple(int(s) for s in shape), origin=tuple(self.index_to_world(start)))

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "spacing": list(self.spacing), "origin": list(self.origin),
                "direction": np.asarray(self.direction).ravel().tolist()}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Geometry:
        return Geometry(tuple(content["shape"]), tuple(content["spacing"]), tuple(content["origin"]),
                        np.array(content["direction"], dtype=float).reshape(3, 3))


@dataclass(frozen=True)
class Volume:
    """`array` (z, y, x) on the grid `geometry`."""

    array: np.ndarray
    geometry: Geometry

    @property
    def spacing(self) -> tuple[float, float, float]:
        return self.geometry.spacing

    def to_sitk(self) -> Any:
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(self.array)
        image.SetSpacing([float(s) for s in self.geometry.spacing[::-1]])
        image.SetOrigin([float(o) for o in self.geometry.origin])
        image.SetDirection([float(d) for d in np.asarray(self.geometry.direction).ravel()])
        return image

    @staticmethod
    def from_sitk(image: Any) -> Volume:
        import SimpleITK as sitk

        array = sitk.GetArrayFromImage(image)
        geometry = Geometry(array.shape, tuple(image.GetSpacing()[::-1]), tuple(image.GetOrigin()),
                            np.array(image.GetDirection(), dtype=float).reshape(3, 3))
        return Volume(array, geometry)

    def reoriented(self, orientation: str = "LPS") -> Volume:
        """The same voxels with index axes permuted and flipped so that they run towards `orientation` (no interpolation)."""
        if self.geometry.orientation == orientation:
            return self
        import SimpleITK as sitk

        return Volume.from_sitk(sitk.DICOMOrient(self.to_sitk(), orientation))

    def resampled(self, spacing: tuple[float, float, float], labels: bool = False) -> Volume:
        """Resample to `spacing` (z, y, x) mm over the same field of view.

        Intensities: averaging over whole voxels first where the new grid is at least twice as coarse (no aliasing), then
        linear; labels: nearest neighbour. Air (-1024 HU) or background is never invented: edges are clamped.
        """
        import SimpleITK as sitk

        image = self.to_sitk()
        if not labels:
            factors = [max(1, int(new / old + 1e-6)) for new, old in zip(spacing[::-1], image.GetSpacing(), strict=True)]
            factors = [min(f, n) for f, n in zip(factors, image.GetSize(), strict=True)]
            if max(factors) > 1:
                image = sitk.BinShrink(image, factors)
        target = resampled_geometry(self.geometry, spacing)
        if Volume.from_sitk(image).geometry.same_grid(target, tolerance=1e-6):
            return Volume.from_sitk(image)
        resampler = sitk.ResampleImageFilter()
        resampler.SetSize([int(n) for n in target.shape[::-1]])
        resampler.SetOutputSpacing([float(s) for s in target.spacing[::-1]])
        resampler.SetOutputOrigin([float(o) for o in target.origin])
        resampler.SetOutputDirection([float(d) for d in target.direction.ravel()])
        resampler.SetInterpolator(sitk.sitkNearestNeighbor if labels else sitk.sitkLinear)
        resampler.UseNearestNeighborExtrapolatorOn()
        return Volume.from_sitk(resampler.Execute(image))

    def cropped(self, start: Any, stop: Any) -> Volume:
        """The box [start, stop) in (z, y, x) indices, a view of the same memory."""
        box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        array = self.array[box]
        return Volume(array, self.geometry.cropped(start, array.shape))


def resampled_geometry(geometry: Geometry, spacing: tuple[float, float, float]) -> Geometry:
    """Grid of `spacing` (z, y, x) mm that covers the same field of view (outer voxel faces stay in place)."""
    old = np.asarray(geometry.spacing)
    new = np.asarray(spacing, dtype=float)
    shape = np.maximum(1, np.round(np.asarray(geometry.shape) * old / new)).astype(int)
    first = ((new - old) / 2) / old
    return Geometry(tuple(int(n) for n in shape), tuple(float(s) for s in new), tuple(geometry.index_to_world(first)),
                    np.asarray(geometry.direction))


def read_volume(path: str | Path, check_intensities: bool = True) -> Volume:
    """Read a CT (NIfTI, NRRD, MetaImage or a folder with one DICOM series) as int16 or float32, (z, y, x), native orientation.

    Raises InputError with one sentence for anything that is no usable 3D scan.
    """
    path = Path(path)
    image = _read_dicom_series(path) if path.is_dir() else _read_file(path)
    volume = Volume.from_sitk(image)
    array = volume.array
    if array.dtype.kind == "f":
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            raise InputError(f"{path} holds {bad} voxels that are NaN or infinite; replace them with air (-1024 HU) first.")
        array = array.astype(np.float32, copy=False)
    elif array.dtype != np.int16:
        array = np.clip(array, -32768, 32767).astype(np.int16)
    if check_intensities:
        highest = float(array.max())
        if highest <= -500:
            raise InputError(f"{path} holds nothing but air (highest value {highest:g} HU); expected a CT in Hounsfield units.")
        if highest == float(array.min()):
            raise InputError(f"{path} holds the single value {highest:g} everywhere; expected a CT in Hounsfield units.")
    thickest = max(volume.spacing)
    if thickest > THICK_SLICE_MM:
        logger.warning("%s has slices %.1f mm apart; results are unreliable above %.0f mm.", path.name, thickest, THICK_SLICE_MM)
    return Volume(np.ascontiguousarray(array), volume.geometry)


def read_labels(path: str | Path) -> Volume:
    """Read a label map (z, y, x) as uint8 (or uint16 when values exceed 255), native orientation."""
    path = Path(path)
    volume = Volume.from_sitk(_read_file(path))
    array = volume.array
    if array.dtype.kind == "f":
        rounded = np.round(array)
        if not np.array_equal(rounded, array):
            raise InputError(f"{path} holds values that are no whole numbers; expected a label map.")
        array = rounded
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high > 65535:
        raise InputError(f"{path} holds label values {low}..{high}; expected 0..65535.")
    return Volume(array.astype(np.uint8 if high < 256 else np.uint16), volume.geometry)


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write by rename; the format follows the file ending."""
    import SimpleITK as sitk

    with atomic_path(path) as temporary:
        try:
            sitk.WriteImage(volume.to_sitk(), str(temporary), useCompression=True)
        except RuntimeError as error:
            raise InputError(f"Cannot write {path}: {_last_line(error)}; choose a folder that is writable and has space.") from error
        _check_written(temporary, path)


def _check_written(temporary: Path, path: str | Path) -> None:
    # zlib writers do not always report a full disk: an incomplete gzip stream must never be renamed into place.
    if temporary.stat().st_size == 0:
        raise InputError(f"Cannot write {path}: the disk is full.")
    if temporary.name.endswith(".gz"):
        try:
            with gzip.open(temporary) as stream:
                while stream.read(1 << 22):
                    pass
        except (EOFError, OSError) as error:
            raise InputError(f"Cannot write {path}: the file came out incomplete ({error}); is the disk full?") from error


def _read_file(path: Path) -> Any:
    import SimpleITK as sitk

    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if not path.name.lower().endswith(FILE_ENDINGS):
        raise InputError(f"{path} is none of the supported formats ({', '.join(FILE_ENDINGS)}, or a folder with one DICOM series).")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        return _read_sheared_nifti(path, error)
    _check_header(path, reader)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read to its end ({_last_line(error)}); is it truncated? Copy it again.") from error
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory ({reader.GetSize()} voxels).") from error
    return image[:, :, :, 0] if image.GetDimension() == 4 else image


def _check_header(path: Path, reader: Any) -> None:
    size = reader.GetSize()
    if len(size) == 4 and size[3] > 1:
        raise InputError(f"{path} is 4D with {size[3]} volumes; expected one 3D scan per file.")
    if len(size) < 3 or (len(size) == 4 and min(size[:3]) < 2):
        raise InputError(f"{path} is {len(size)}D with size {tuple(size)}; expected a 3D scan.")
    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"{path} holds {reader.GetNumberOfComponents()} values per voxel (colour?); expected one HU value per voxel.")
    spacing = np.array(reader.GetSpacing()[:3])
    if not np.isfinite(spacing).all() or (spacing <= 1e-4).any() or (spacing > 100).any():
        raise InputError(f"{path} has spacing {tuple(float(s) for s in spacing)} mm; expected finite positive values. Mend the header.")
    voxels = int(np.prod([int(n) for n in size[:3]], dtype=object))
    if voxels > MAX_VOXELS:
        raise InputError(f"{path} claims {voxels} voxels, more than the {MAX_VOXELS} that are accepted; is its header broken?")
    if min(size[:3]) < MIN_SLICES:
        raise InputError(f"{path} has only {min(size[:3])} slices along one axis (size {tuple(size[:3])}); expected {MIN_SLICES} or more.")
    stored = path.stat().st_size
    if path.name.endswith(".gz") and voxels > stored * MAX_GZIP_RATIO:
        raise InputError(f"{path} claims {voxels} voxels but its {stored} bytes cannot hold them; is it truncated? Copy it again.")


def _read_sheared_nifti(path: Path, error: Exception) -> Any:
    """NIfTI whose direction cosines are slightly sheared (ITK refuses): take the nearest orthonormal axes and say so."""
    import SimpleITK as sitk

    text = str(error)
    if ".nii" not in path.name or "orthonormal" not in text:
        raise InputError(f"{path} is no readable image ({_last_line(error)}).") from error
    import nibabel

    try:
        source = nibabel.load(path)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ source.affine
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if source.ndim != 3 or not np.isfinite(affine).all() or (spacing <= 1e-4).any():
            raise InputError(f"{path} has an unusable orientation matrix; mend the header.")
        if int(np.prod(source.shape, dtype=object)) > min(MAX_VOXELS, path.stat().st_size * MAX_GZIP_RATIO):
            raise InputError(f"{path} claims {source.shape} voxels, which its bytes cannot hold.")
        left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
        array = np.asarray(source.dataobj)
    except InputError:
        raise
    except Exception as cause:  # nibabel raises many kinds; all of them mean an unreadable file
        raise InputError(f"{path} is no readable NIfTI image ({_last_line(cause)}).") from cause
    logger.warning("%s: its axes are not at right angles; the nearest orthonormal ones are used.", path.name)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in affine[:3, 3]])
    image.SetDirection([float(d) for d in (left @ right).ravel()])
    return image


def _read_dicom_series(folder: Path) -> Any:
    import SimpleITK as sitk

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise InputError(f"{folder} holds no DICOM series; expected one, or a scan file ({', '.join(FILE_ENDINGS)}).")
    if len(series) > 1:
        counts = [len(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), s)) for s in series]
        logger.warning("%s holds %d DICOM series; the longest one (%d slices) is used.", folder, len(series), max(counts))
        series = [series[int(np.argmax(counts))]]
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    if len(names) < MIN_SLICES:
        raise InputError(f"{folder} holds a DICOM series of {len(names)} slices; expected {MIN_SLICES} or more.")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"The DICOM series in {folder} cannot be read ({_last_line(error)}).") from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"The DICOM series in {folder} is in colour; expected a CT.")
    return image


def is_dicom_folder(folder: Path) -> bool:
    """True when the folder holds DICOM files directly and no scan file of another format."""
    import SimpleITK as sitk

    if any(entry.name.lower().endswith(FILE_ENDINGS) for entry in folder.iterdir()):
        return False
    return bool(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200].rstrip(".")
