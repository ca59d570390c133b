"""A scan as an array with its geometry: read any format, reorient, resample, crop, write.

Arrays are (z, y, x) as SimpleITK gives them; world coordinates are LPS millimetres (x, y, z).
"""
from __future__ import annotations

import gzip
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..flags import Flag
from ..utilities.files import atomic_path
from .dicom import is_dicom_folder
from .grid import ImageGrid, resample_grid
from .grid_checks import FILE_ENDINGS, MIN_SLICES
from .intensities import scan_values
from .nifti import write_nifti
from .reading import read_scan

__all__ = ["FILE_ENDINGS", "MIN_SLICES", "ImageGrid", "Volume", "is_dicom_folder", "read_labels", "read_volume",
           "resample_grid", "write_volume"]

logger = logging.getLogger(__name__)

THICK_SLICE_MM = 5.0
LABEL_ROUNDING = 2e-4    # nibabel scales whole numbers to 19.00005


@dataclass(frozen=True, eq=False)
class Volume:
    """`array` (z, y, x) on the grid `geometry`.

    Attributes:
        flags: what was noticed or assumed when it was read.
        files: the DICOM files of the slices in array order (of an enhanced multi-frame object that one file); empty for other formats.
    """

    array: np.ndarray
    geometry: ImageGrid
    flags: tuple[Flag, ...] = ()
    files: tuple[Path, ...] = ()

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
        geometry = ImageGrid(array.shape, tuple(image.GetSpacing()[::-1]), tuple(image.GetOrigin()),
                            np.array(image.GetDirection(), dtype=float).reshape(3, 3))
        return Volume(array, geometry)

    def reoriented(self, orientation: str = "LPS") -> Volume:
        """The same voxels with index axes permuted and flipped so that they run towards `orientation` (no interpolation)."""
        if self.geometry.orientation == orientation:
            return self
        geometry, axes, flips = self.geometry.reoriented(orientation)
        # Contiguous, because torch takes no negative strides.
        return Volume(np.ascontiguousarray(np.flip(self.array.transpose(axes), flips)), geometry)

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
        target = self.geometry.resampled(spacing)
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
        """The box [start, stop) in (z, y, x) indices, a view of the same memory. Raises ValueError when it leaves the volume."""
        if not all(0 <= a < b <= n for a, b, n in zip(start, stop, self.array.shape, strict=True)):
            raise ValueError(f"box {tuple(start)}..{tuple(stop)} leaves the volume of shape {self.array.shape}")
        box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        array = self.array[box]
        return Volume(array, self.geometry.cropped(start, array.shape))


def read_volume(path: str | Path, check_intensities: bool = True, series: str | None = None, modality: str | None = None) -> Volume:
    """Read a scan as int16 or float32, (z, y, x), native orientation.

    Args:
        path: NIfTI, NRRD, MetaImage, a DICOM file of several frames, a folder with DICOM series at any depth, a `.zip` of these, or a path
            inside a `.zip`.
        check_intensities: refuse what holds nothing but air, or one single value.
        series: UID, or its end, of the DICOM series; None: the one with the most slices.
        modality: "CT" or "MR": DICOM series of other modalities are no scan. None: either will do.

    Raises:
        InputError: one sentence for anything that is no usable 3D scan.
    """
    path = Path(path)
    scanned = read_scan(path, series, modality)
    array = scan_values(scanned.array, path, check_intensities)
    thickest = max(scanned.geometry.spacing)
    if thickest > THICK_SLICE_MM:
        logger.warning("%s has slices %.1f mm apart; results are unreliable above %.0f mm.", path.name, thickest, THICK_SLICE_MM)
    for flag in scanned.flags:
        logger.log(logging.INFO if flag.severity == "info" else logging.WARNING, "%s: %s", path.name, flag.message)
    return Volume(array, scanned.geometry, scanned.flags, scanned.files)


def read_labels(path: str | Path) -> Volume:
    """Read a label map (z, y, x) as uint8 (or uint16 when values exceed 255), native orientation.

    Values that a scaled header left a rounding error beside whole numbers are whole numbers. Raises InputError for other values that are
    no whole numbers in 0..65535 and for anything that is no 3D image.
    """
    path = Path(path)
    scanned = read_scan(path)
    array = scanned.array
    if array.dtype.kind == "f":
        whole = np.round(array)
        if not (np.isfinite(array).all() and np.allclose(whole, array, rtol=LABEL_ROUNDING / 10, atol=LABEL_ROUNDING)):
            raise InputError(f"{path} holds values that are no whole numbers; expected a label map.")
        array = whole
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise InputError(f"{path} holds label values {low}..{high}; expected 0..65535.")
    return Volume(np.ascontiguousarray(array, dtype=np.uint8 if high < 256 else np.uint16), scanned.geometry, scanned.flags, scanned.files)


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write by rename; the format follows the file ending. Raises InputError when it cannot be written completely.

    Every format keeps sheared grids. NIfTI states the forms that the grid's own file stated (`ImageGrid.forms`).
    """
    name = str(path).lower()
    if not name.endswith((".nii.gz", ".nii", ".nrrd", ".mha")):
        # .mhd and .nhdr name a second file, which does not follow a rename.
        raise InputError(f"Cannot write {path}: choose .nii.gz, .nii, .nrrd or .mha.")
    with atomic_path(path) as temporary:
        try:
            if ".nii" in temporary.name.lower()[-7:]:
                write_nifti(volume.array, volume.geometry, temporary)
            else:
                import SimpleITK as sitk

                sitk.WriteImage(volume.to_sitk(), str(temporary), useCompression=True)
        except (RuntimeError, OSError) as error:
            raise InputError(f"Cannot write {path}; choose a folder that is writable and has space.") from error
        _check_written(temporary, path)


def _check_written(temporary: Path, path: str | Path) -> None:
    # ITK's writers do not always report a full disk: an incomplete file must never be renamed into place.
    try:
        if temporary.name.endswith(".gz"):
            with gzip.open(temporary) as stream:
                while stream.read(1 << 22):
                    pass
        if temporary.stat().st_size == 0:
            raise EOFError("it is empty")
        if not temporary.name.endswith(".gz"):
            read_scan(temporary)
    except (EOFError, OSError, zlib.error, InputError) as error:
        raise InputError(f"Cannot write {path}: the file came out incomplete; is the disk full?") from error
