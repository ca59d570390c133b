"""`CASE_seg.dcm`: a DICOM Segmentation (PS3.3 A.51) on the slices of the scan itself."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...imageio.volume import Volume
from ...version import __version__
from .base import Exportable, Segment, segments_of
from .codes import ANATOMICAL_STRUCTURE
from .dicom_objects import MANUFACTURER, SERIES_NUMBERS, code_item, save_object, tracking_uid
from .dicom_source import labels_on_frames, made_from, read_source, source_files


def write_seg(result: Exportable, labels: Volume, folder: Path, case: str) -> Path:
    """One binary segment per structure with its SNOMED code and our colour. Only frames that show something are stored."""
    import highdicom as hd

    source = read_source(source_files(made_from(result), case))
    values, segments = labels_on_frames(labels, source), segments_of(result)
    numbers = np.zeros(int(max(labels.array.max(), values.max())) + 1, dtype=np.uint8)
    for number, segment in enumerate(segments, start=1):
        numbers[segment.label] = number
    series = str(source.headers[0].SeriesInstanceUID)
    try:
        seg = hd.seg.Segmentation(
            source_images=list(source.headers), pixel_array=numbers[values], segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_description(number, segment, series) for number, segment in enumerate(segments, start=1)],
            series_instance_uid=hd.UID(), series_number=SERIES_NUMBERS["seg"], sop_instance_uid=hd.UID(), instance_number=1,
            manufacturer=MANUFACTURER, manufacturer_model_name=MANUFACTURER, software_versions=__version__,
            device_serial_number=__version__, content_label="VERTEBRAE", content_description="Vertebrae", series_description="Vertebrae")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"A DICOM segmentation of {case} cannot be made: its series is not as DICOM wants it ({error}).") from error
    return save_object(seg, folder / f"{case}_seg.dcm")


def _description(number: int, segment: Segment, series: str) -> Any:
    import highdicom as hd

    return hd.seg.SegmentDescription(
        segment_number=number, segment_label=segment.name, segmented_property_category=code_item(ANATOMICAL_STRUCTURE),
        segmented_property_type=code_item(segment.code), algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=MANUFACTURER, family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"), version=__version__),
        tracking_uid=tracking_uid(series, segment.name), tracking_id=segment.name,
        display_color=hd.color.CIELabColor.from_rgb(*segment.colour))
