"""`CASE_sr.dcm`: a DICOM Structured Report with one group of measurements per vertebra (PS3.16 TID 1500, groups of TID 1410)."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...flags import review_required
from ...imageio.volume import Volume
from ...version import __version__
from .base import Exportable, Segment, segments_of
from .codes import ANATOMICAL_STRUCTURE, SPINE
from .dicom_objects import MANUFACTURER, PRIVATE_SCHEME, SERIES_NUMBERS, code_item, save_object, tracking_uid
from .dicom_source import made_from, read_source, source_files

MEANING_LIMIT = 64  # characters of a code's meaning (value representation LO)
HEIGHTS = {"anterior": "Anterior height of vertebral body", "middle": "Middle height of vertebral body",
           "posterior": "Posterior height of vertebral body"}


def write_sr(result: Exportable, labels: Volume, folder: Path, case: str) -> Path:
    """Per vertebra: its place (a point in the patient), volume, body heights, trabecular HU, confidence of the level, grade, and what
    limits it; for the spine: whether the numbering is anchored, and the flags. Identifiers of vertebrae are those of the segmentation."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    headers = read_source(source_files(made_from(result), case)).headers
    series, frame_of_reference = str(headers[0].SeriesInstanceUID), str(headers[0].FrameOfReferenceUID)
    observer = hd.sr.ObserverContext(codes.DCM.Device, hd.sr.DeviceObserverIdentifyingAttributes(
        uid=tracking_uid("observer", __version__), name=MANUFACTURER, manufacturer_name=MANUFACTURER, model_name=MANUFACTURER,
        serial_number=__version__))
    groups = [_group(segment, series, frame_of_reference) for segment in segments_of(result)]
    report = hd.sr.MeasurementReport(hd.sr.ObservationContext(observer_device_context=observer),
                                     procedure_reported=_imaging(headers[0]), imaging_measurements=[*groups, _spine_group(result, series)])
    try:
        document = hd.sr.Comprehensive3DSR(
            evidence=list(headers), content=report[0], series_instance_uid=hd.UID(), series_number=SERIES_NUMBERS["sr"],
            sop_instance_uid=hd.UID(), instance_number=1, manufacturer=MANUFACTURER, is_complete=True, is_final=False, is_verified=False,
            series_description="Vertebrae: measurements")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"A DICOM report of {case} cannot be made: its series is not as DICOM wants it ({error}).") from error
    return save_object(document, folder / f"{case}_sr.dcm")


def _imaging(header: Any) -> Any:
    import highdicom as hd

    if header.get("Modality") == "MR":
        return hd.sr.CodedConcept("113091000", "SCT", "Magnetic resonance imaging")
    return hd.sr.CodedConcept("77477000", "SCT", "Computed tomography")


def _group(segment: Segment, series: str, frame_of_reference: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=tracking_uid(series, segment.name), identifier=segment.name),
        referenced_region=hd.sr.ImageRegion3D(hd.sr.GraphicTypeValues3D.POINT, np.array([segment.centre]), frame_of_reference),
        finding_type=code_item(segment.code), finding_category=code_item(ANATOMICAL_STRUCTURE), geometric_purpose=codes.DCM.Center,
        measurements=_measurements(segment), qualitative_evaluations=list(_limits(segment)) or None)


def _measurements(segment: Segment) -> list[Any] | None:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    vertebra = segment.vertebra
    if vertebra is None:
        return None
    rows: list[Any] = []
    if vertebra.volume_ml is not None:
        rows.append(hd.sr.Measurement(codes.SCT.Volume, round(vertebra.volume_ml, 3), hd.sr.CodedConcept("ml", "UCUM", "ml")))
    if vertebra.heights is not None:
        for name, value in zip(HEIGHTS, vertebra.heights.measured, strict=True):
            rows.append(hd.sr.Measurement(_own(f"height_{name}", HEIGHTS[name]), round(value, 2), codes.UCUM.Millimeter))
    if vertebra.trabecular_hu is not None:
        rows.append(hd.sr.Measurement(codes.DCM.AttenuationCoefficient, round(vertebra.trabecular_hu, 1), codes.UCUM.HounsfieldUnit,
                                      derivation=codes.SCT.Median))
    if vertebra.confidence is not None:
        rows.append(hd.sr.Measurement(codes.DCM.CertaintyOfFinding, round(100 * vertebra.confidence, 2), codes.UCUM.Percent))
    return rows or None


def _limits(segment: Segment) -> Iterable[Any]:
    """What a reader should know of the vertebra, as question and answer."""
    from ..tables import vertebra_rows

    if segment.vertebra is None:
        return
    row = vertebra_rows([segment.vertebra])[0]
    yield _answer("touches_border", "Vertebra is cut by the border of the scan", "yes" if row["touches_border"] else "no")
    if row["height_doubt"]:
        yield _answer("height_doubt", "Why the heights are not given", str(row["height_doubt"]))
    for key, meaning in (("grade", "Genant grade"), ("implied_grade", "Genant grade that the heights imply")):
        if row[key] is not None:
            yield _answer(key, meaning, f"grade {row[key]}")


def _spine_group(result: Exportable, series: str) -> Any:
    import highdicom as hd

    said = [_answer("numbering_anchored", "Numbering of the vertebrae is anchored", "yes" if result.numbering_anchored else "no"),
            _answer("review_required", "A person should look before use", "yes" if review_required(result.flags) else "no")]
    said += [_answer("flag", f"Flag ({flag.severity})", flag.code) for flag in result.flags]
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=tracking_uid(series, "spine"), identifier="spine"),
        finding_type=code_item(SPINE), finding_category=code_item(ANATOMICAL_STRUCTURE), qualitative_evaluations=said)


def _answer(key: str, question: str, answer: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    known = {"yes": codes.SCT.Yes, "no": codes.SCT.No}
    value = known.get(answer) or _own(answer[:16].strip().replace(" ", "_"), answer.replace("_", " "))
    return hd.sr.QualitativeEvaluation(_own(key, question), value)


def _own(value: str, meaning: str) -> Any:
    """A private code; its value has 16 characters at most (value representation SH)."""
    import highdicom as hd

    return hd.sr.CodedConcept(value[:16], PRIVATE_SCHEME, meaning[:MEANING_LIMIT])
