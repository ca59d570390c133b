"""Real-world layouts and headers of scans, made by tools that are not ours: read rightly, or refused for the right reason."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    PositronEmissionTomographyImageStorage,
    RLELossless,
)

from benchmarks.dicom_files import SHAPE, axial_grid, enhanced, hu, write_series
from benchmarks.malformed_inputs import LAYOUTS, layout, malformed, outcome
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.dicom_headers import check_inflation
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.hounsfield import checked_ct
from spineclue_v2.imageio.volume import Volume, read_labels, read_volume, write_volume


def codes(volume: Volume) -> list[str]:
    return [flag.code for flag in volume.flags]


# ---- every slice by its own header ----------------------------------------------------------------------------------------------
def empty_first_slice(number, ds):
    if number == 0:
        ds.RescaleIntercept, ds.PixelData = "0", bytes(len(ds.PixelData))


def signed_slices(number, ds):
    if number % 2:
        values = np.frombuffer(ds.PixelData, "<u2").astype(np.int32) - 1024
        ds.PixelRepresentation, ds.RescaleIntercept, ds.PixelData = 1, "0", values.astype("<i2").tobytes()


def other_slopes(number, ds):
    if number % 3 == 0:
        values = np.frombuffer(ds.PixelData, "<u2").astype(np.int32)
        ds.RescaleSlope, ds.RescaleIntercept, ds.PixelData = "0.5", "-1024.0", (values * 2).astype("<u2").tobytes()


def overlay_bits(number, ds):
    values = np.frombuffer(ds.PixelData, "<u2")
    ds.BitsStored, ds.HighBit, ds.PixelData = 12, 11, (values | 0xA000).astype("<u2").tobytes()


def signed_twelve_bits(number, ds):
    values = (np.frombuffer(ds.PixelData, "<u2").astype(np.int32) - 1024).clip(-2048, 2047)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.RescaleIntercept = 12, 11, 1, "0"
    ds.PixelData = (values & 0x0FFF).astype("<u2").tobytes()


def wide_pixels(number, ds):
    values = np.frombuffer(ds.PixelData, "<u2").astype("<u4")
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelData = 32, 32, 31, values.tobytes()


@pytest.mark.parametrize("edit", [empty_first_slice, signed_slices, other_slopes, overlay_bits, signed_twelve_bits, wide_pixels])
def test_every_slice_is_read_by_its_own_header(tmp_path, edit):
    expected = hu().astype(float)
    if edit is empty_first_slice:
        expected[0] = 0
    volume = read_volume(write_series(tmp_path / "s", edit=edit))
    assert np.array_equal(volume.array, expected) and codes(volume) == []
    assert volume.spacing == pytest.approx((2.0, 0.9, 0.8)) and volume.geometry.origin == pytest.approx((-10, -20, 5))
    assert [pydicom.dcmread(path).InstanceNumber for path in volume.files] == list(range(1, SHAPE[0] + 1))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
                                    JPEG2000Lossless])
def test_transfer_syntaxes_of_pydicom(tmp_path, syntax):
    if syntax is JPEG2000Lossless:
        pytest.importorskip("openjpeg")

    def edit(number, ds):
        if syntax.is_encapsulated:
            ds.compress(syntax, generate_instance_uid=False)
        elif syntax is ExplicitVRBigEndian:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax

    assert np.array_equal(read_volume(write_series(tmp_path / "s", edit=edit)).array, hu())


@pytest.mark.parametrize("command", [("dcmcjpeg", "+e1"), ("dcmcjpeg", "+el"), ("dcmcjpls", "+el"), ("dcmcrle",), ("gdcmconv", "--j2k"),
                                     ("gdcmconv", "--jpegls"), ("dcmconv", "+tb")])
@pytest.mark.parametrize("signed", [False, True])
def test_transfer_syntaxes_of_other_tools(tmp_path, command, signed):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    folder, packed = write_series(tmp_path / "s", edit=signed_slices if signed else None), tmp_path / "packed"
    packed.mkdir()
    for path in folder.iterdir():
        subprocess.run([*command, str(path), str(packed / path.name)], check=True, capture_output=True)
    assert np.array_equal(read_volume(packed).array, hu())


def test_a_deflated_bomb_is_not_unpacked(tmp_path, monkeypatch):
    import spineclue_v2.imageio.dicom_headers as headers

    folder = write_series(tmp_path / "s")
    path = next(folder.iterdir())
    ds = pydicom.dcmread(path)
    ds.PixelData = bytes(8 << 20)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    check_inflation(path)
    monkeypatch.setattr(headers, "MAX_INFLATED", 4 << 20)
    with pytest.raises(InputError, match="unpacks to more than"):
        check_inflation(path)


@pytest.mark.parametrize("packed", [False, True])
def test_an_enhanced_multi_frame_ct_is_the_same_scan(tmp_path, packed):
    pytest.importorskip("highdicom")
    plain = write_series(tmp_path / "s")
    path = enhanced(plain, tmp_path / "enhanced.dcm")
    if packed:
        ds = pydicom.dcmread(path)
        ds.compress(RLELossless, generate_instance_uid=False)
        ds.save_as(path)
    volume = read_volume(path)
    assert np.array_equal(volume.array, hu()) and volume.geometry.same_grid(read_volume(plain).geometry, 1e-6)
    assert volume.files == (path,)
    (tmp_path / "alone").mkdir()
    path.rename(tmp_path / "alone" / "IM0")
    assert np.array_equal(read_volume(tmp_path / "alone").array, hu())


# ---- which slices belong to the scan ---------------------------------------------------------------------------------------------
def test_a_localizer_and_a_slice_of_another_orientation_are_left_out(tmp_path):
    def edit(number, ds):
        if number == 0:
            ds.ImageType, ds.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [1, 0, 0, 0, 0, -1]
        if number == 11:
            ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    volume = read_volume(write_series(tmp_path / "s", edit=edit))
    assert np.array_equal(volume.array, hu()[1:11]) and codes(volume) == ["slices_left_out"] and volume.flags[0].observed == 2


def test_duplicate_slices_are_dropped_where_they_are_identical_and_named_where_they_differ(tmp_path):
    folder = write_series(tmp_path / "s")
    shutil.copy(folder / "0037.dcm", folder / "copy.dcm")
    volume = read_volume(folder)
    assert np.array_equal(volume.array, hu()) and codes(volume) == ["duplicate_slices"] and len(volume.files) == 12
    ds = pydicom.dcmread(folder / "copy.dcm")
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(folder / "copy.dcm")
    with pytest.raises(InputError, match=r"several images at one position that differ \(e.g. (0037.dcm and copy|copy.dcm and 0037)"):
        read_volume(folder)


def test_a_missing_slice_is_named(tmp_path):
    folder = write_series(tmp_path / "s", edit=lambda number, ds: number != 5)
    with pytest.raises(InputError, match="2 to 4 mm apart.*between 0148.dcm and 0222.dcm"):
        read_volume(folder)


def pet(number, ds):
    ds.Modality, ds.SOPClassUID = "PT", PositronEmissionTomographyImageStorage
    ds.file_meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage


def test_of_ct_and_pet_the_ct_is_the_scan(tmp_path):
    folder = write_series(tmp_path / "s")
    write_series(tmp_path / "pet", hu((30, 8, 8)), edit=pet, series="1.2.3.9")
    for path in (tmp_path / "pet").iterdir():
        path.rename(folder / f"a{path.name}")
    volume = read_volume(folder, modality="CT")
    assert np.array_equal(volume.array, hu()) and codes(volume) == ["other_objects"]
    assert read_volume(folder, series="3.9").array.shape == (30, 8, 8)
    with pytest.raises(InputError, match="no series '77'"):
        read_volume(folder, series="77")


def test_a_folder_of_pet_alone_is_refused_by_its_modality(tmp_path):
    with pytest.raises(InputError, match="holds PT, 12 slices; expected CT"):
        read_volume(write_series(tmp_path / "s", edit=pet), modality="CT")


def test_of_two_ct_series_the_longest_is_read_and_said(tmp_path):
    folder = write_series(tmp_path / "s")
    write_series(folder / "thick", hu((6, 8, 8)), series="1.2.3.9")
    volume = read_volume(folder)
    assert np.array_equal(volume.array, hu()) and codes(volume) == ["several_series"]


def test_missing_rescale_tags_and_odd_units_are_said(tmp_path):
    def edit(number, ds):
        del ds.RescaleSlope, ds.RescaleIntercept
        ds.RescaleType = "MGML"

    assert codes(read_volume(write_series(tmp_path / "s", edit=edit))) == ["missing_rescale", "unit_not_hu"]


@pytest.mark.parametrize("edit, reason", [
    (lambda n, ds: setattr(ds, "RescaleSlope", "0"), "rescale slope or intercept"),
    (lambda n, ds: delattr(ds, "PixelSpacing"), "does not state the spacing"),
    (lambda n, ds: setattr(ds, "PhotometricInterpretation", "RGB"), "in colour"),
    (lambda n, ds: setattr(ds, "PixelData", ds.PixelData[:50]), "truncated"),
    (lambda n, ds: delattr(ds, "PixelData") if n == 4 else None, "no pixels"),
    (lambda n, ds: setattr(ds, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "almost on one line"),
    (lambda n, ds: setattr(ds, "BitsAllocated", 12), "bits"),
    (lambda n, ds: setattr(ds, "ImagePositionPatient", [0, 7 * (n % 3), 2 * n]), "beside a straight line"),
])
def test_series_that_are_no_scan_are_refused_for_the_reason(tmp_path, edit, reason):
    with pytest.raises(InputError, match=reason) as refusal:
        read_volume(write_series(tmp_path / "s", edit=edit))
    assert "\n" not in str(refusal.value)


def test_every_file_that_comes_with_pydicom_is_read_or_refused_in_a_sentence(tmp_path):
    files = [path for path in Path(pydicom.__file__).parent.glob("data/test_files/**/*") if path.is_file()]
    assert len(files) > 50
    for number, path in enumerate(files):
        place = tmp_path / str(number)
        place.mkdir()
        shutil.copy(path, place / path.name)
        for source in (place, place / path.name):
            try:
                assert min(read_volume(source).array.shape) >= 5
            except InputError as error:
                assert "\n" not in str(error) and not re.search("0x[0-9a-f]{8}", str(error)), path


# ---- geometry ------------------------------------------------------------------------------------------------------------------
def test_both_forms_of_a_nifti_header_reach_the_result(tmp_path):
    turned = np.array([[0, -1, 0, 3], [1, 0, 0, -7], [0, 0, 1, 2], [0, 0, 0, 1]], float)
    image = nibabel.Nifti1Image(hu().T, np.diag([0.8, 0.9, 2, 1]))
    image.set_qform(np.diag([0.8, 0.9, 2, 1]), 1)
    image.set_sform(turned @ np.diag([0.8, 0.9, 2, 1]), 2)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert codes(volume) == ["forms_differ"] and volume.flags[0].severity == "review"
    # The sform is the place: voxel (x, y, z) = (2, 3, 4) by hand.
    assert np.allclose(volume.geometry.index_to_world((4, 3, 2)), (-(-2.7 + 3), -(1.6 - 7), 10))
    write_volume(Volume((volume.array > 0).astype(np.uint8), volume.geometry), tmp_path / "labels.nii.gz")
    written = nibabel.load(tmp_path / "labels.nii.gz")
    for name in ("qform", "sform"):
        (before, code), (after, written_code) = (getattr(i, f"get_{name}")(coded=True) for i in (image, written))
        assert code == written_code and np.allclose(before, after, atol=1e-5)
    assert np.allclose(written.affine, image.affine)


@pytest.mark.parametrize("unit, factor, code", [("micron", 1000, None), ("meter", 0.001, None), (None, 1000, "unit_assumed"),
                                                ("micron", 1, "unit_assumed")])
def test_headers_in_micrometres_and_metres(tmp_path, unit, factor, code):
    image = nibabel.Nifti1Image(hu().T, np.diag([-0.8 * factor, -0.9 * factor, 2 * factor, 1]))
    image.header.set_xyzt_units(unit or 0)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert volume.spacing == pytest.approx((2, 0.9, 0.8)) and codes(volume) == ([code] if code else [])
    write_volume(volume, tmp_path / "out.nii.gz")
    assert np.allclose(nibabel.load(tmp_path / "out.nii.gz").header.get_zooms(), (0.8, 0.9, 2))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_sheared_grid_survives_every_format(tmp_path, ending):
    volume = read_volume(write_series(tmp_path / "s", grid=axial_grid(step=(0.1, 0.45))))
    assert codes(volume) == ["sheared_grid"]
    write_volume(volume, tmp_path / f"out{ending}")
    again = read_volume(tmp_path / f"out{ending}")
    assert np.allclose(again.geometry.affine, volume.geometry.affine, atol=1e-4) and np.array_equal(again.array, volume.array)


def test_a_volume_of_one_phase_in_four_dimensions_is_a_scan(tmp_path):
    nibabel.save(nibabel.Nifti1Image(hu().T[..., None], np.eye(4)), tmp_path / "scan.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "scan.nii.gz").array, hu())


# ---- names and archives -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd", ".mhd", ""])
def test_names_that_are_no_utf8_are_read(tmp_path, ending):
    from spineclue_v2.inference.cases import list_cases

    name = os.fsdecode(b"M\xfcller")
    try:
        (tmp_path / name).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    path = tmp_path / name / (name + ending) if ending else tmp_path / name
    if ending:
        sitk.WriteImage(sitk.GetImageFromArray(hu()), str(tmp_path / f"scan{ending}"))
        if ending == ".mhd":
            (tmp_path / "scan.raw").rename(tmp_path / name / "scan.raw")
        (tmp_path / f"scan{ending}").rename(path)
    else:
        write_series(path)
    assert np.array_equal(read_volume(path).array, hu())
    assert [case.name for case in list_cases(path)] == ["Müller"]


def zipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def test_archives_are_folders(tmp_path):
    from spineclue_v2.inference.cases import list_cases

    folder = tmp_path / "in"
    write_series(folder / "p1" / "s1", study="1.2.1", series="1.2.1.1")
    write_series(folder / "p2" / "s1", hu((9, 10, 11)), study="1.2.2", series="1.2.2.1")
    sitk.WriteImage(sitk.GetImageFromArray(hu()), str(folder / "extra.nii.gz"))
    (folder / "viewer.exe").write_bytes(b"MZ" + bytes(1000))
    archive = zipped(tmp_path / "many.zip", folder)
    cases = list_cases(archive)
    assert [case.name for case in cases] == ["extra", "p1_s1", "p2_s1"]
    assert [read_volume(case.path).array.shape for case in cases] == [SHAPE, SHAPE, (9, 10, 11)]
    one = zipped(tmp_path / "one.zip", folder / "p2")
    assert [case.name for case in list_cases(tmp_path)] == ["in_extra", "many_extra", "many_p1_s1", "many_p2_s1", "one",
                                                           "in_p1_s1", "in_p2_s1"]
    assert read_volume(one).array.shape == (9, 10, 11)


@pytest.mark.parametrize("kind, reason", [("escape", "leads out of it"), ("absolute", "leads out of it"), ("link", "a link"),
                                          ("bomb", "more than scans do"), ("text", "no intact ZIP"), ("cut", "no intact ZIP"),
                                          ("empty", "holds no")])
def test_hostile_archives_are_refused(tmp_path, kind, reason, monkeypatch):
    import spineclue_v2.imageio.archives as archives

    monkeypatch.setattr(archives, "UNSUSPICIOUS", 1 << 20)
    path = tmp_path / "scan.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if kind in ("escape", "absolute"):
            archive.writestr("../../evil.nii" if kind == "escape" else "/tmp/evil.nii", b"x")
        if kind == "link":
            info = zipfile.ZipInfo("scan.nii")
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
        if kind == "bomb":
            archive.writestr("scan.nii", bytes(8 << 20))
        if kind == "cut":
            archive.writestr("scan.nii", os.urandom(5000))
    if kind == "text":
        path.write_text("no archive")
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=reason) as refusal:
        read_volume(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not list(tmp_path.parent.glob("evil*"))


# ---- which cases there are --------------------------------------------------------------------------------------------------------
def test_trees_media_and_studies_in_one_folder(tmp_path, capsys):
    from pydicom.fileset import FileSet

    from spineclue_v2.cli._common import main
    from spineclue_v2.inference.cases import list_cases

    root = tmp_path / "in"
    write_series(root / "A" / "ST1" / "SE1", study="1.2.1", series="1.2.1.1")
    write_series(root / "A" / "ST1" / "SE2", hu((30, 8, 8)), study="1.2.1", series="1.2.1.2", edit=pet)
    write_series(root / "B" / "ST1" / "SE1", hu((9, 10, 11)), study="1.2.2", series="1.2.2.1")
    assert [case.name for case in list_cases(root)] == ["A_ST1_SE1", "B_ST1_SE1"]
    assert [case.name for case in list_cases(root, ["1.2.2.1"])] == ["in"]
    assert [case.name for case in list_cases(root, ["all"])] == ["in_s3_1", "in_s3_2"]
    medium = FileSet()
    for path in sorted((root / "A").rglob("*.dcm")) + sorted((root / "B").rglob("*.dcm")):
        ds = pydicom.dcmread(path)
        ds.PatientID = "b" if ds.StudyInstanceUID == "1.2.2" else "a"
        medium.add(ds)
    medium.write(tmp_path / "cd")
    cases = list_cases(tmp_path / "cd")
    assert sorted(read_volume(case.path, series=case.series, modality="CT").array.shape[0] for case in cases) == [9, 12]
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(root.rglob("*.dcm"))):
        shutil.copy(path, flat / f"IM{number}")
    cases = list_cases(flat)
    assert [case.name for case in cases] == ["flat_1", "flat_2"]
    assert sorted(read_volume(case.path, series=case.series, modality="CT").array.shape[0] for case in cases) == [9, 12]
    assert main("predict", ["-i", str(root), "--list"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4 and "1.2.1.2" in rows[1] and " no " in rows[1] and all(" yes " in row for row in rows[2:])


def test_lists_of_paths(tmp_path, monkeypatch):
    import io

    from spineclue_v2.inference.cases import list_cases

    for name in ("a", "b"):
        sitk.WriteImage(sitk.GetImageFromArray(hu()), str(tmp_path / f"{name}.nii.gz"))
    text = f"# scans\n{tmp_path / 'a.nii.gz'}\n\nb.nii.gz\nmissing.nii.gz\n"
    (tmp_path / "list.txt").write_text(text)
    assert [case.name for case in list_cases(f"@{tmp_path / 'list.txt'}")] == ["a", "b", "missing"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    cases = list_cases("-")
    assert [case.name for case in cases] == ["a", "b", "missing"]
    with pytest.raises(InputError, match="missing.nii.gz does not exist"):
        read_volume(cases[2].path)
    with pytest.raises(InputError, match="cannot be read"):
        list_cases("@nowhere.txt")
    for name in ("p1", "p2"):
        shutil.copytree(write_series(tmp_path / "s", hu((6, 8, 8))), tmp_path / name / "ct")
    (tmp_path / "twice.txt").write_text(f"{tmp_path}/p1/ct\n{tmp_path}/p2/ct\n{tmp_path}/p1/ct\n{tmp_path}/p1\n")
    assert [case.name for case in list_cases(f"@{tmp_path}/twice.txt")] == ["p1_ct", "p2_ct", "p1"]
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match="holds no scan"):
        list_cases("@none.txt")


def test_label_maps_of_an_earlier_run_are_no_scans(tmp_path):
    from spineclue_v2.inference.cases import list_cases

    for name in ("a_0000", "a"):
        sitk.WriteImage(sitk.GetImageFromArray(hu()), str(tmp_path / f"{name}.nii.gz"))
    with pytest.raises(InputError, match="would both become case 'a'"):
        list_cases(tmp_path)
    (tmp_path / "a.json").write_text('{"status": "ok", "versions": {}, "plans": {}, "seconds": {}, "vertebrae": []}')
    assert [case.path.name for case in list_cases(tmp_path)] == ["a_0000.nii.gz"]


# ---- values -----------------------------------------------------------------------------------------------------------------------
def body() -> np.ndarray:
    """Air, fat, soft tissue and bone in the shares of a trunk, int16 HU."""
    rng = np.random.default_rng(2)
    kind = rng.choice(4, SHAPE, p=(0.4, 0.15, 0.38, 0.07))
    return (np.array([-1000, -90, 50, 400])[kind] + rng.normal(0, 20, SHAPE)).clip(-1024, 1500).astype(np.int16)


def on_grid(array: np.ndarray) -> Volume:
    return Volume(array, ImageGrid(array.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3)))


def test_ct_numbers_with_an_offset_are_put_right_and_said():
    assert checked_ct(on_grid(body()), "x").flags == ()
    moved = checked_ct(on_grid(body() + 1024), "x")
    assert np.array_equal(moved.array, body()) and codes(moved) == ["offset_assumed"] and moved.flags[0].severity == "review"
    asked = checked_ct(on_grid(body() + 500), "x", -500)
    assert np.array_equal(asked.array, body()) and codes(asked) == ["intensity_offset"]
    # Told that the values are HU, nothing is assumed; a HU scan without negative values is left alone.
    assert np.array_equal(checked_ct(on_grid(body() + 1024), "x", 0).array, body() + 1024)
    assert checked_ct(on_grid(body().clip(0)), "x").flags == ()


@pytest.mark.parametrize("array, reason", [
    (np.interp(body(), (-160, 240), (0, 255)).astype(np.uint8).astype(np.int16), "8-bit picture"),
    (np.interp(body(), (-1000, 1000), (0, 1)).astype(np.float32), "normalised values"),
    ((body() / 500).astype(np.float32), "normalised values"),
    ((body() > 100).astype(np.int16) * 20, "a label map"),
])
def test_values_that_are_no_ct_numbers_are_refused(array, reason):
    with pytest.raises(InputError, match=reason):
        checked_ct(on_grid(array), "x")


def test_scaled_label_maps_hold_whole_numbers(tmp_path):
    labels = np.zeros(SHAPE, np.float32)
    labels[2:5], labels[6:9] = 19.00005, 21.99999
    nibabel.save(nibabel.Nifti1Image(labels.T, np.eye(4)), tmp_path / "labels.nii.gz")
    assert np.unique(read_labels(tmp_path / "labels.nii.gz").array).tolist() == [0, 19, 22]


# ---- damage and layouts by the hundred (all of them: python -m benchmarks.malformed_inputs) ------------------------------------------
@pytest.mark.parametrize("seed", [287, *range(0, 400, 13)])  # 287: a hundred million frames
def test_malformed_inputs_are_refused_in_a_sentence_or_read_soundly(tmp_path, seed):
    assert outcome(malformed(seed, tmp_path), None) in ("sentence", "read")


@pytest.mark.parametrize("number", range(0, len(LAYOUTS), 7))
def test_layouts_give_the_scan(tmp_path, number):
    assert outcome(layout(number, tmp_path), hu()) == "right"


# ---- from file to result ------------------------------------------------------------------------------------------------------------
def test_results_of_a_sheared_scan_lie_where_those_of_the_plain_one_do(tmp_path):
    from blocks import spine
    from test_api import NAMES, model

    from benchmarks.reading_variants import sheared

    plain = spine(NAMES)[0]
    wanted = model().predict(plain)
    moved = sheared(plain, np.array([[1, 0.1, 0.05], [0, 1, -0.2], [0, 0, 1]]))
    result = model().predict(write_series(tmp_path / "s", moved.array, moved.geometry))
    assert len(result) == len(wanted) == len(NAMES)
    for one, other in zip(result, wanted, strict=True):
        assert np.linalg.norm(np.subtract(one.body_centre, other.body_centre)) < 1.0  # half a voxel of 2 mm
    files = result.save(tmp_path / "out", "case", report=True)
    labels = nibabel.load(files["labels"])
    assert np.allclose(np.diag([-1, -1, 1, 1]) @ labels.affine, moved.geometry.affine, atol=1e-3)
    # The label map holds each vertebra where its centre says that it is.
    for vertebra in result:
        at = moved.geometry.world_to_index(vertebra.body_centre).round().astype(int)
        assert result.labels[tuple(at)] > 0
    assert "sheared_grid" in [flag["code"] for flag in result.to_dict()["flags"]]


def test_the_command_says_what_was_assumed(tmp_path):
    from blocks import spine
    from test_api import NAMES, model

    from spineclue_v2.inference.cases import list_cases
    from spineclue_v2.inference.pipeline import Options
    from spineclue_v2.inference.predict_folder import predict
    from spineclue_v2.utilities.files import read_json

    plain = spine(NAMES)[0]
    write_volume(Volume((plain.array.astype(np.int32) + 2000).astype(np.int16), plain.geometry), tmp_path / "in" / "a.nii.gz")
    predict(list_cases(tmp_path / "in"), tmp_path / "out", model().model, Options(intensity_offset=-2000), report=False)
    record = read_json(tmp_path / "out" / "a.json")
    assert len(record["vertebrae"]) == len(NAMES) and "intensity_offset" in [flag["code"] for flag in record["flags"]]
    assert "-2000 was added to all values, as asked for." in record["notes"]
