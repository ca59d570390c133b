"""The DICOM files that a scan was read from: what derived objects take over, and the label map on their own frames."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...imageio.volume import Volume
from .base import Exportable

_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns")
_MAY_BE_EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
                 "ReferringPhysicianName")
_OF_THE_IMAGES = ("SpecificCharacterSet", "Modality", "InstanceNumber", "ImageType", "SeriesNumber", "SeriesDescription",
                  "PositionReferenceIndicator", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                  "SpacingBetweenSlices", "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
                  "DimensionIndexSequence", "DimensionOrganizationSequence", "DimensionOrganizationType")
# A list of what may pass, not of what may not: comments, addresses, institutions and private elements stay behind.


@dataclass(frozen=True)
class Frame:
    """One image plane: `header` of its object, `number` in it (from 1), world position of its first pixel, and the steps from pixel to
    pixel along a row and along a column, LPS mm."""

    header: Any
    number: int
    origin: np.ndarray
    along_row: np.ndarray
    along_column: np.ndarray


@dataclass(frozen=True)
class DicomSource:
    """Headers without pixels, and their frames in the order of the files."""

    headers: tuple[Any, ...]
    frames: tuple[Frame, ...]

    @property
    def multi_frame(self) -> bool:
        return "NumberOfFrames" in self.headers[0]


def made_from(result: Exportable) -> tuple[Path, ...]:
    """The DICOM files that the scan of a result was read from; empty where there were none."""
    return result.provenance.files if result.provenance is not None else ()


def source_files(files: Sequence[Path], case: str) -> tuple[Path, ...]:
    """`files`; InputError where there are none: the scan was not read from DICOM."""
    if not files:
        raise InputError(f"DICOM objects of {case} cannot be written: its scan was not read from DICOM files, to which they would belong; "
                         "give the DICOM series as input, or leave DICOM out.")
    return tuple(files)


def check_source(files: Sequence[str | Path]) -> None:
    """InputError when the first file of a series is not what `read_source` needs: cheap enough to ask before the prediction."""
    read_source(files[:1])


def read_source(files: Sequence[str | Path]) -> DicomSource:
    """Headers of the files of a series, reduced to what derived objects need.

    Raises InputError for a file that cannot be read or lacks what DICOM demands of an image with a place in the patient.
    """
    headers = tuple(_header(Path(file)) for file in files)
    try:
        return DicomSource(headers, tuple(frame for header in headers for frame in _frames(header)))
    except (AttributeError, IndexError, TypeError, ValueError):
        raise InputError(f"The DICOM series of {files[0]} does not say where its slices lie; DICOM objects for it cannot be "
                         "made.") from None


def _header(path: Path) -> Any:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        full = pydicom.dcmread(path, stop_before_pixels=True)
    except (OSError, InvalidDicomError, EOFError) as error:
        raise InputError(f"{path} cannot be read again for DICOM output ({error}); leave the scan where it is until the run "
                         "ends.") from error
    lacking = [name for name in _REQUIRED if not full.get(name)]
    if lacking:
        raise InputError(f"{path} has no {', '.join(lacking)}, without which DICOM objects cannot refer to it; take the original series.")
    header = pydicom.Dataset()
    for name in (*_REQUIRED, *_OF_THE_IMAGES):
        if name in full:
            header[name] = full[name]
    for name in _MAY_BE_EMPTY:
        setattr(header, name, full.get(name) or "")
    header.file_meta = full.file_meta
    return header


def _frames(header: Any) -> list[Frame]:
    if "NumberOfFrames" not in header:
        return [_frame(header, 1, header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing)]
    shared = header.SharedFunctionalGroupsSequence[0]
    frames = []
    for number, own in enumerate(header.PerFrameFunctionalGroupsSequence, start=1):
        place = own.PlanePositionSequence[0].ImagePositionPatient
        orientation = _group(own, shared, "PlaneOrientationSequence").ImageOrientationPatient
        frames.append(_frame(header, number, place, orientation, _group(own, shared, "PixelMeasuresSequence").PixelSpacing))
    return frames


def _group(own: Any, shared: Any, name: str) -> Any:
    return (own if name in own else shared)[name].value[0]


def _frame(header: Any, number: int, position: Any, orientation: Any, spacing: Any) -> Frame:
    # PS3.3 C.7.6.2.1.1: the first spacing is that between rows, so along a column.
    row, column = np.array(orientation, dtype=float).reshape(2, 3)
    between_rows, between_columns = (float(value) for value in spacing)
    return Frame(header, number, np.array(position, dtype=float).reshape(3), row * between_columns, column * between_rows)


def labels_on_frames(labels: Volume, source: DicomSource) -> np.ndarray:
    """Label values (frames, rows, columns) on the pixels of the source's frames, in their order.

    Where the label map has a slice for every frame, of the same pixels, each frame takes its slice as it is, whatever the order of the
    slices. Else (a resampled scan) each pixel takes the nearest voxel; outside the label map there is background.
    """
    first = source.headers[0]
    values = np.zeros((len(source.frames), int(first.Rows), int(first.Columns)), dtype=labels.array.dtype)
    if any((int(header.Rows), int(header.Columns)) != values.shape[1:] for header in source.headers):
        raise InputError(f"The DICOM series of {first.SeriesInstanceUID} has slices of several sizes; DICOM objects for it cannot be made.")
    own_slices = labels.array.shape == values.shape
    for number, frame in enumerate(source.frames):
        found = _slice_of(labels, frame) if own_slices else None
        values[number] = _nearest(labels, frame, values.shape[1:]) if found is None else labels.array[found]
    return values


def _slice_of(labels: Volume, frame: Frame) -> int | None:
    """Number of the slice whose pixels are the frame's; None where it has none. What counts is the place across the slices: along them
    a tilted gantry moves the frames against a grid of right angles."""
    start, by_row, by_column = _steps(labels, frame)
    number = round(float(start[0]))
    same = 0 <= number < len(labels.array) and abs(start[0] - number) < 0.25
    # Over the whole frame pixels and voxels part by less than a tenth of a voxel.
    apart = np.abs([by_row - (0, 1, 0), by_column - (0, 0, 1)]).max() * max(labels.array.shape)
    return number if same and apart < 0.1 else None


def _steps(labels: Volume, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index (z, y, x) of the frame's first pixel in the label map, and the steps to the next row and to the next column."""
    start = labels.geometry.world_to_index(frame.origin)
    return (start, labels.geometry.world_to_index(frame.origin + frame.along_column) - start,
            labels.geometry.world_to_index(frame.origin + frame.along_row) - start)


def _nearest(labels: Volume, frame: Frame, shape: tuple[int, ...]) -> np.ndarray:
    start, by_row, by_column = _steps(labels, frame)
    index = np.rint(start + np.arange(shape[0])[:, None, None] * by_row + np.arange(shape[1])[None, :, None] * by_column).astype(int)
    inside = ((index >= 0) & (index < labels.array.shape)).all(axis=-1)
    values = np.zeros(shape, dtype=labels.array.dtype)
    values[inside] = labels.array[tuple(index[inside].T)]
    return values
