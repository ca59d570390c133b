"""DICOM series, slice by slice: each slice by its own header, and which slices belong to the scan. The files are not ours."""
from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import codes, pet
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from benchmarks.dicom_files import SHAPE, enhanced, hu, write_series
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.dicom_headers import check_inflation
from spineclue_v2.imageio.volume import read_volume


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
@pytest.mark.parametrize(("kinds", "said"), [(["ORIGINAL", "PRIMARY", "LOCALIZER"], "9 scout views .localizers. and no other image"),
                                             (["ORIGINAL", "PRIMARY"], "3 slices, and 6 of other directions or sizes, as a localizer")])
def test_a_localizer_alone_is_named_as_one(tmp_path, kinds, said):
    def planes(number: int, ds) -> None:
        ds.Modality, ds.ImageType = "MR", kinds
        ds.ImageOrientationPatient = [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]][number // 3]

    with pytest.raises(InputError, match=said):
        read_volume(write_series(tmp_path / "s", hu((9, 12, 12)), edit=planes))


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
