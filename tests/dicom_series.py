"""Small complete CT series in DICOM from a volume: one file per slice, in any orientation, upright or with the gantry tilted."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from spineclue_v2.imageio.volume import Volume

PATIENT = {"PatientName": "Müller^Jörg", "PatientID": "id-7", "PatientBirthDate": "19500102", "PatientSex": "M"}
PRIVATE = {"InstitutionName": "Clinic by the lake", "PatientComments": "likes chess", "OperatorsName": "Doe^Jane",
           "PatientAddress": "1 Main Street", "RequestingPhysician": "Roe^Richard"}


def write_series(volume: Volume, folder: Path, shear: float = 0.0, reverse: bool = False, **tags: object) -> Path:
    """Write `volume` (HU, whole numbers) as a series; `shear`: mm along the columns from slice to slice, as a tilted gantry leaves it.

    `reverse`: the files' names and numbers run against the slices. `tags` are set on every file; None leaves one out.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    study, series, frame = (generate_uid(prefix=None) for _ in range(3))
    grid, count = volume.geometry, volume.array.shape[0]
    between = grid.spacing[0]
    for number in range(count):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid(prefix=None)
        ds.SpecificCharacterSet = "ISO_IR 100"
        for name, value in {**PATIENT, **PRIVATE}.items():
            setattr(ds, name, value)
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "20200304", "101500", "1", "", ""
        ds.Modality, ds.Manufacturer, ds.SeriesNumber = "CT", "made up", 3
        ds.ImageType, ds.PositionReferenceIndicator = ["ORIGINAL", "PRIMARY", "AXIAL"], ""
        ds.InstanceNumber = count - number if reverse else number + 1
        place = grid.index_to_world((number, 0, 0)) + number * shear * grid.direction[:, 1]
        ds.ImagePositionPatient = [f"{v:.6f}" for v in place]
        ds.ImageOrientationPatient = [f"{v:.9f}" for v in grid.direction[:, :2].T.ravel()]
        ds.PixelSpacing, ds.SliceThickness = [f"{grid.spacing[1]:.6f}", f"{grid.spacing[2]:.6f}"], f"{between:.6f}"
        ds.Rows, ds.Columns = volume.array.shape[1:]
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, "MONOCHROME2", 16, 16, 15
        ds.PixelRepresentation, ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType, ds.KVP = 1, 0, 1, "HU", "120"
        ds.AcquisitionNumber = 1
        ds.PixelData = np.ascontiguousarray(volume.array[number], dtype="<i2").tobytes()
        for name, wanted in tags.items():
            if wanted is None:
                if name in ds:
                    delattr(ds, name)
            else:
                setattr(ds, name, wanted)
        ds.save_as(folder / f"IM{count - number if reverse else number:04d}.dcm", enforce_file_format=True)
    return folder


def codes(volume: Volume) -> list[str]:
    """Codes of what was noticed while reading."""
    return [flag.code for flag in volume.flags]


def pet(number, ds):
    """The slice as one of a PET: an edit for `benchmarks.dicom_files.write_series`."""
    from pydicom.uid import PositronEmissionTomographyImageStorage

    ds.Modality, ds.SOPClassUID = "PT", PositronEmissionTomographyImageStorage
    ds.file_meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
