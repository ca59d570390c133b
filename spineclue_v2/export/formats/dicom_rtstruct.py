"""`CASE_rtstruct.dcm`: an RT Structure Set (PS3.3 A.19) with closed contours on the slices of the scan."""
from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...imageio.volume import Volume
from ...version import __version__
from .base import Exportable, Segment, segments_of
from .dicom_objects import MANUFACTURER, SERIES_NUMBERS, save_object
from .dicom_source import DicomSource, Frame, labels_on_frames, made_from, read_source, source_files
from .outlines import outlines

CONTOUR_DATA = 0x30060050
DECIMALS = 3  # of millimetres: a thousandth moves no pixel centre across a contour


def write_rtstruct(result: Exportable, labels: Volume, folder: Path, case: str) -> Path:
    """One region of interest per structure, with our colour. A region with a hole (the vertebral foramen) is one contour that runs
    through a channel of no width to the hole and back, as PS3.3 C.8.8.6.3 describes."""
    source = read_source(source_files(made_from(result), case))
    values, segments = labels_on_frames(labels, source), segments_of(result)
    dataset = _header(source)
    from pydicom.dataset import Dataset

    for number, segment in enumerate(segments, start=1):
        roi = Dataset()
        roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, segment.name, "AUTOMATIC"
        roi.ReferencedFrameOfReferenceUID = source.headers[0].FrameOfReferenceUID
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(_contours(number, segment, values, source))
        dataset.RTROIObservationsSequence.append(_observation(number, segment))
    return save_object(dataset, folder / f"{case}_rtstruct.dcm")


def _header(source: DicomSource) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    first, now = source.headers[0], datetime.now()
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
                 "AccessionNumber", "ReferringPhysicianName"):
        setattr(dataset, name, first.get(name, ""))
    dataset.Modality, dataset.Manufacturer, dataset.ManufacturerModelName = "RTSTRUCT", MANUFACTURER, MANUFACTURER
    dataset.SoftwareVersions, dataset.OperatorsName = __version__, ""
    dataset.SeriesInstanceUID, dataset.SeriesNumber = generate_uid(prefix=None), SERIES_NUMBERS["rtstruct"]
    dataset.SeriesDescription, dataset.StructureSetLabel, dataset.InstanceNumber = "Vertebrae: contours", "VERTEBRAE", 1
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = dataset.StructureSetDate, dataset.StructureSetTime
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = first.FrameOfReferenceUID, ""
    dataset.ReferencedFrameOfReferenceSequence = [_referenced(source)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    return dataset


def _referenced(source: DicomSource) -> Any:
    """The frame of reference, study, series and images that the contours lie on."""
    from pydicom.dataset import Dataset

    first = source.headers[0]
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [_image(Frame(header, 0, np.zeros(3), np.zeros(3), np.zeros(3))) for header in source.headers]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, [study]
    return frame


def _image(frame: Frame) -> Any:
    from pydicom.dataset import Dataset

    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = frame.header.SOPClassUID, frame.header.SOPInstanceUID
    if frame.number and "NumberOfFrames" in frame.header:
        image.ReferencedFrameNumber = frame.number
    return image


def _contours(number: int, segment: Segment, values: np.ndarray, source: DicomSource) -> Any:
    from pydicom.dataset import Dataset

    roi = Dataset()
    roi.ReferencedROINumber, roi.ROIDisplayColor, roi.ContourSequence = number, list(segment.colour), []
    for position in np.flatnonzero((values == segment.label).any(axis=(1, 2))):
        frame = source.frames[int(position)]
        for points in outlines(values[position] == segment.label):
            contour = Dataset()
            contour.ContourImageSequence = [_image(frame)]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            world = frame.origin + points[:, :1] * frame.along_column + points[:, 1:] * frame.along_row
            contour[CONTOUR_DATA] = _decimal_strings(world)
            roi.ContourSequence.append(contour)
    return roi


def _decimal_strings(points: np.ndarray) -> Any:
    """Numbers as the value of Contour Data, as it is stored: pydicom would look at each of the many thousands one by one."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    value = "\\".join(f"{number:.{DECIMALS}f}" for number in points.ravel().tolist()).encode("ascii")
    value += b" " * (len(value) % 2)  # an even number of bytes (PS3.5 6.2)
    return RawDataElement(Tag(CONTOUR_DATA), "DS", len(value), value, 0, False, True)


def _observation(number: int, segment: Segment) -> Any:
    from pydicom.dataset import Dataset

    code, observation = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = segment.code.value, "SCT", segment.code.meaning
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.RTROIIdentificationCodeSequence = [code]
    observation.RTROIInterpretedType, observation.ROIInterpreter = "ORGAN", ""
    return observation
