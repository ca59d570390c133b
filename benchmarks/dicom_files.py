"""DICOM series for tests and benchmarks, by pydicom and highdicom: classic slices with any tag changed, enhanced multi-frame objects."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from spineclue_v2.imageio.grid import ImageGrid

SHAPE = (12, 36, 40)
Edit = Callable[[int, Dataset], object]


def hu(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Noise around soft tissue, int16 HU, with air."""
    return np.random.default_rng(1).normal(0, 300, shape).clip(-1000, 1500).astype(np.int16)


def slice_dataset(values: np.ndarray, number: int, grid: ImageGrid, series: str, study: str) -> Dataset:
    """Slice `number` of a CT on `grid`: 16 bits unsigned, stored as HU + 1024."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, study, "1.2.826.0.1.3680043.8.498.99"
    ds.Modality, ds.PatientID, ds.PatientName, ds.SeriesNumber, ds.InstanceNumber = "CT", "p", "n", 3, number + 1
    ds.StudyDate, ds.StudyTime, ds.StudyID = "20200101", "120000", "1"
    ds.PatientBirthDate = ds.PatientSex = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.Manufacturer, ds.ImageType, ds.AcquisitionNumber = "m", ["ORIGINAL", "PRIMARY", "AXIAL"], 1
    ds.KVP, ds.PositionReferenceIndicator = "120", ""
    ds.ImagePositionPatient = [f"{v:.6f}" for v in grid.index_to_world((number, 0, 0))]
    ds.ImageOrientationPatient = [f"{v:.9f}"[:16] for axis in (0, 1) for v in grid.direction[:, axis]]
    ds.PixelSpacing, ds.SliceThickness = [f"{v:.9f}" for v in grid.spacing[1:]], f"{grid.spacing[0]:.6f}"
    ds.Rows, ds.Columns = values.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
    ds.PixelData = (values.astype(np.int32) + 1024).astype("<u2").tobytes()
    return ds


def axial_grid(shape: tuple[int, ...] = SHAPE, step: tuple[float, float] = (0.0, 0.0)) -> ImageGrid:
    """Slices of 0.9 x 0.8 mm pixels, 2 mm apart; each moved by `step` mm to the left and to the back of the one before."""
    affine = np.array([[0.8, 0, step[0], -10], [0, 0.9, step[1], -20], [0, 0, 2, 5], [0, 0, 0, 1]])
    return ImageGrid.from_affine(affine, shape)


def write_series(folder: Path, values: np.ndarray | None = None, grid: ImageGrid | None = None, edit: Edit | None = None,
                 series: str = "1.2.826.0.1.3680043.8.498.1", study: str = "1.2.826.0.1.3680043.8.498.2") -> Path:
    """A series as files whose names say nothing of the order of the slices.

    `edit(number, dataset)` changes a slice before it is written, or leaves it out by returning False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = hu() if values is None else values
    grid = axial_grid(values.shape) if grid is None else grid
    for number, plane in enumerate(values):
        ds = slice_dataset(plane, number, grid, series, study)
        if edit is not None and edit(number, ds) is False:
            continue
        ds.save_as(folder / f"{number * 37 % 1009:04d}.dcm", enforce_file_format=True)
    return folder


def datasets_of(folder: Path) -> list[Dataset]:
    """The slices of a folder by instance number."""
    return sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda ds: int(ds.InstanceNumber))


def enhanced(folder: Path, path: Path) -> Path:
    """The series of a folder as one legacy converted enhanced CT, made by highdicom."""
    import highdicom

    made = highdicom.legacy.LegacyConvertedEnhancedCTImage(datasets_of(folder), series_instance_uid=generate_uid(), series_number=1,
                                                           sop_instance_uid=generate_uid(), instance_number=1)
    made.save_as(path)
    return path
