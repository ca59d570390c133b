"""DICOM objects on the source's own slices, read back by highdicom, pydicom and, where installed, dciodvfy."""
from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blocks import spine
from dicom_series import PATIENT, PRIVATE, write_series
from test_formats import crossings, result_of
from test_predict import QUIET, run, trained, trained_once  # noqa: F401

from spineclue_v2.anatomy import LABEL_OF_NAME, NAME_OF_LABEL, colour
from spineclue_v2.errors import InputError
from spineclue_v2.export.formats import check_volume
from spineclue_v2.export.formats.dicom_source import labels_on_frames, read_source
from spineclue_v2.flags import Flag
from spineclue_v2.imageio.volume import Volume, read_volume
from spineclue_v2.results import SpineResult

hd = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

ALL = ("dicom_seg", "dicom_sr", "dicom_rtstruct")
SERIES = {"axial": ("LPS", 0.0, False), "head first, numbers against the slices": ("LPI", 0.0, True), "mirrored": ("RPS", 0.0, False),
          "sagittal": ("PIR", 0.0, False), "tilted gantry": ("LPS", 0.6, False)}


def turned(volume: Volume, orientation: str) -> Volume:
    """Stored in another orientation by a scanner that lies obliquely."""
    result = volume.reoriented(orientation)
    a, b = np.radians(7), np.radians(-4)
    turn = (np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
            @ np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]))
    return replace(result, geometry=replace(result.geometry, direction=turn @ result.geometry.direction))


def exported(folder: Path, kind: str = "axial", names: tuple[str, ...] = ("T12", "L1", "L6"), **tags: object) -> tuple[SpineResult, dict]:
    """The result of a made-up series with known labels, and its files."""
    orientation, shear, reverse = SERIES[kind]
    ct, labels, _ = spine(names, (2.5, 1.5, 2.0))
    ct, labels = turned(ct, orientation), turned(labels, orientation)
    scan = read_volume(write_series(ct, folder / "series", shear, reverse, **tags))
    # The reader may have turned the order of the slices; each file's labels are known by its pixels.
    by_pixels = {ct.array[i].tobytes(): labels.array[i] for i in range(len(ct.array))}
    truth = np.stack([by_pixels[plane.astype(np.int16).tobytes()] for plane in scan.array])
    result = replace(result_of(scan, truth), flags=(Flag("thick_slices", "read", "warning", "Slices are 9 mm apart."),))
    assert np.array_equal(result.labels, truth)
    return result, result.save(folder / "out", "case", report=False, describe=False, also=ALL)


def header(file: Path) -> pydicom.Dataset:
    return pydicom.dcmread(file, stop_before_pixels=True)


@pytest.fixture(scope="module")
def axial(tmp_path_factory) -> tuple[SpineResult, dict]:
    return exported(tmp_path_factory.mktemp("axial"))


@pytest.mark.parametrize("kind", SERIES)
def test_seg_and_contours_give_back_every_voxel_of_the_label_map(kind, tmp_path):
    result, files = exported(tmp_path, kind)
    planes = [header(file) for file in result.scan.files]
    uids = [str(plane.SOPInstanceUID) for plane in planes]
    seg = hd.seg.segread(files["dicom_seg"])
    values = seg.get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=True,
                                               assert_missing_frames_are_empty=True)
    table = np.array([0] + [LABEL_OF_NAME[seg.get_segment_description(n).segment_label] for n in seg.segment_numbers])
    assert np.array_equal(table[values], result.labels)

    contours, found = pydicom.dcmread(files["dicom_rtstruct"]), np.zeros(result.labels.shape, int)
    names = {roi.ROINumber: roi.ROIName for roi in contours.StructureSetROISequence}
    for roi in contours.ROIContourSequence:
        for contour in roi.ContourSequence:
            number = uids.index(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)
            plane = planes[number]
            points = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(plane.ImagePositionPatient, float)
            row, column = np.array(plane.ImageOrientationPatient, float).reshape(2, 3)
            assert np.abs(points @ np.cross(row, column)).max() < 0.01
            place = np.stack([points @ column / plane.PixelSpacing[0], points @ row / plane.PixelSpacing[1]], axis=1)
            found[number] += crossings(place, found.shape[1:]) * LABEL_OF_NAME[names[roi.ReferencedROINumber]]
    assert np.array_equal(found, result.labels)


def test_seg_lies_where_the_slices_lie(axial):
    """By positions instead of references, as viewers do it."""
    result, files = axial
    seg = pydicom.dcmread(files["dicom_seg"])
    pixels = seg.pixel_array
    for number, frame in enumerate(seg.PerFrameFunctionalGroupsSequence):
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        z = result.scan.geometry.world_to_index(place)
        assert np.allclose(z[1:], 0, atol=1e-3)
        segment = seg.SegmentSequence[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
        assert np.array_equal(pixels[number] > 0, result.labels[round(z[0])] == LABEL_OF_NAME[segment.SegmentLabel])


def test_segments_have_codes_colours_and_names(axial):
    seg = hd.seg.segread(axial[1]["dicom_seg"])
    for number, (name, code) in enumerate((("T12", "23215003"), ("L1", "66794005"), ("L6", "51282000")), start=1):
        found = seg.get_segment_description(number)
        kind = found.segmented_property_type
        assert (found.segment_label, kind.value, kind.scheme_designator) == (name, code, "SCT")
        shown = hd.color.CIELabColor.from_dicom_value(found.RecommendedDisplayCIELabValue).to_rgb(clip=True)
        assert np.abs(np.array(shown) - colour(name)).max() <= 2


def test_the_report_holds_place_measurements_confidence_and_flags(axial):
    result, files = axial
    report = hd.sr.srread(files["dicom_sr"])
    groups = report.content.get_planar_roi_measurement_groups()
    assert [g.tracking_identifier for g in groups] == ["T12", "L1", "L6"]
    for group, vertebra in zip(groups, result.vertebrae, strict=True):
        assert np.allclose(group.roi.value, [vertebra.body_centre], atol=1e-3)
        values = {m.name.meaning: (m.value, m.unit.value) for m in group.get_measurements()}
        assert values == {"Volume": (2.0, "ml"), "Anterior height of vertebral body": (20.0, "mm"), "Middle height of vertebral body":
                          (19.0, "mm"), "Posterior height of vertebral body": (21.0, "mm"), "Attenuation Coefficient": (140.0, "[hnsf'U]"),
                          "Certainty of Finding": (75.0, "%")}
    whole, = report.content.get_image_measurement_groups()
    said = {q.name.meaning: q.value.meaning for q in whole.get_qualitative_evaluations() if q.name.meaning != "Finding category"}
    assert said == {"Numbering of the vertebrae is anchored": "Yes", "A person should look before use": "No",
                    "Flag (warning)": "thick slices"}
    segments = hd.seg.segread(files["dicom_seg"]).SegmentSequence
    assert [g.tracking_uid for g in groups] == [s.TrackingUID for s in segments]


def test_objects_belong_to_the_patient_and_tell_no_more_than_dicom_demands(axial):
    result, files = axial
    source = header(result.scan.files[0])
    for kind in ALL:
        found = pydicom.dcmread(files[kind])
        assert found.StudyInstanceUID == source.StudyInstanceUID and found.SeriesInstanceUID != source.SeriesInstanceUID
        assert {name: str(found.get(name)) for name in PATIENT} == PATIENT
        text = Path(files[kind]).read_bytes()
        for name, value in PRIVATE.items():
            assert str(value).encode() not in text, (kind, name)
    for path in Path(files["record"]).parent.iterdir():
        if path.suffix != ".dcm":
            assert not any(word.encode() in path.read_bytes() for word in ("ller^J", "id-7", "Clinic")), path


def test_a_series_without_what_may_be_empty_is_enough(tmp_path):
    gone = dict.fromkeys(("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                          "AccessionNumber", "ReferringPhysicianName", "SpecificCharacterSet", "PositionReferenceIndicator",
                          "InstitutionName", "PatientComments", "OperatorsName", "PatientAddress", "RequestingPhysician"))
    _, files = exported(tmp_path, **gone)
    assert all(str(pydicom.dcmread(files[kind]).PatientName) == "" for kind in ALL)


@pytest.mark.parametrize("tags, said", [
    ({"FrameOfReferenceUID": None}, "has no FrameOfReferenceUID"), ({"StudyInstanceUID": None}, "has no StudyInstanceUID")])
def test_a_series_that_objects_cannot_refer_to_is_refused_before_the_prediction(tmp_path, tags, said):
    folder = write_series(spine(("L1",))[0], tmp_path / "series", **tags)
    with pytest.raises(InputError, match=said):
        check_volume(("dicom_seg",), read_volume(folder), "case")


def test_labels_of_a_resampled_scan_come_by_place(tmp_path):
    """A label map on another grid than the slices': nearest voxels; all within half a voxel of the grid that it was made on."""
    ct, labels, _ = spine(("L1", "L2"), (2.0, 2.0, 2.0))
    series = write_series(ct, tmp_path / "series")
    fine = labels.resampled((1.0, 1.0, 1.0), labels=True)
    found = labels_on_frames(fine, read_source(read_volume(series).files))
    assert (found == labels.array).mean() > 0.999


def test_an_empty_result_leaves_no_object(tmp_path):
    ct, _, _ = spine(("L1",))
    scan = read_volume(write_series(ct, tmp_path / "series"))
    files = result_of(scan, np.zeros(scan.array.shape, np.uint8)).save(tmp_path / "out", "case", report=False, describe=False, also=ALL)
    assert not set(ALL) & set(files)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is not installed")
@pytest.mark.parametrize("kind", ALL)
def test_dciodvfy_finds_no_error(axial, kind):
    said = subprocess.run(["dciodvfy", str(axial[1][kind])], capture_output=True, text=True, check=False)
    assert [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")] == []


def test_the_command_writes_objects_of_a_dicom_folder_and_names_what_is_none(trained, tmp_path, capsys):  # noqa: F811
    from spineclue_v2.imageio.volume import write_volume

    ct, _, _ = spine(("T12", "L1", "L2"))
    write_series(ct, tmp_path / "scans" / "one")
    write_volume(ct, tmp_path / "scans" / "two.nii.gz")
    assert run("-i", tmp_path / "scans", "-o", tmp_path / "out", "-m", trained, "-f", 0, *QUIET, "--dicom") == 1
    assert "DICOM objects of two cannot be written" in capsys.readouterr().out
    assert not (tmp_path / "out" / "two.json").exists()
    seg = hd.seg.segread(tmp_path / "out" / "one_seg.dcm")
    found = {s.SegmentLabel for s in seg.SegmentSequence}
    assert found <= set(NAME_OF_LABEL.values()) and len(found) == 3
    assert (tmp_path / "out" / "one_sr.dcm").exists() and (tmp_path / "out" / "one_rtstruct.dcm").exists()
