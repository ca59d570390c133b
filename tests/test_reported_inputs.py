"""Situations of public reports about readers of scans: read rightly, or refused for the right reason."""
from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from benchmarks.dicom_files import SHAPE, hu, write_series
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import read_volume
from spineclue_v2.inference.cases import list_cases

HEADERS = {"nrrd": b"NRRD0004\ntype: short\ndimension: 3\nsizes: 40 36 12\nspacings: 0.8 0.9 2\nendian: little\nencoding: raw\n\n",
           "mha": b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nElementSpacing = 0.8 0.9 2\n"
                  b"DimSize = 40 36 12\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"}


def nifti(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(hu().T, np.diag([-0.8, -0.9, 2, 1])), path)
    return path


def joined(folder: Path, array: np.ndarray, edit: Callable[[int, Any], object], series: str = "1.2.9") -> Path:
    """The scan `hu()` and another series in one folder."""
    write_series(folder / "s")
    for path in write_series(folder / "other", array, edit=edit, series=series).iterdir():
        path.rename(folder / "s" / f"other_{path.name}")
    return folder / "s"


def rounded(keyword: str, low: list[float], high: list[float]) -> Callable[[int, Any], object]:
    return lambda number, ds: setattr(ds, keyword, high if number % 2 else low)


@pytest.mark.parametrize("edit", [
    rounded("ImageOrientationPatient", [0.704999, 0.709, 0, -0.709, 0.704999, 0], [0.705001, 0.709, 0, -0.709, 0.705001, 0]),
    rounded("PixelSpacing", [0.976499, 0.976499], [0.976501, 0.976501]),
], ids=["orientation", "spacing"])
def test_numbers_that_are_rounded_differently_from_slice_to_slice_are_the_same(tmp_path, edit):
    volume = read_volume(write_series(tmp_path / "s", edit=edit))
    assert np.array_equal(volume.array, hu()) and volume.flags == ()


def colour(number: int, ds: Any) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelData = 8, 8, 7, bytes(ds.Rows * ds.Columns * 3)


def nowhere(number: int, ds: Any) -> None:
    del ds.ImagePositionPatient, ds.ImageOrientationPatient


@pytest.mark.parametrize("edit", [colour, nowhere])
def test_longer_series_of_screenshots_are_not_the_scan(tmp_path, edit):
    volume = read_volume(joined(tmp_path, hu((40, 8, 8)), edit), modality="CT")
    assert np.array_equal(volume.array, hu())
    with pytest.raises(InputError, match="is in colour; expected a CT"):
        read_volume(write_series(tmp_path / "c", edit=colour))


def test_a_screenshot_within_the_series_is_left_out(tmp_path):
    volume = read_volume(joined(tmp_path, hu((1, 36, 40)), colour, series="1.2.826.0.1.3680043.8.498.1"))
    assert np.array_equal(volume.array, hu()) and [flag.code for flag in volume.flags] == ["slices_left_out"]


@pytest.mark.parametrize("uids", [True, False])
def test_patients_whose_uids_an_anonymiser_made_equal_stay_apart(tmp_path, uids):
    def edit(number: int, ds: Any) -> None:
        if not uids:
            del ds.SeriesInstanceUID, ds.StudyInstanceUID

    arrays = {name: hu() + np.int16(more) for name, more in (("p1", 0), ("p2", 5))}
    for name, array in arrays.items():
        write_series(tmp_path / "in" / name, array, edit=edit)
    cases = list_cases(tmp_path / "in")
    assert [case.name for case in cases] == ["p1", "p2"]
    assert all(np.array_equal(read_volume(case.path, series=case.series).array, arrays[case.name]) for case in cases)
    shutil.copytree(tmp_path / "in" / "p1", tmp_path / "copies" / "a")
    shutil.copytree(tmp_path / "in" / "p1", tmp_path / "copies" / "b")
    (case,) = list_cases(tmp_path / "copies")
    assert [flag.code for flag in read_volume(case.path).flags] == ["duplicate_slices"]


@pytest.mark.parametrize("kind", list(HEADERS))
def test_headers_without_orientation_are_said_to_have_none(tmp_path, kind):
    path = tmp_path / f"scan.{kind}"
    path.write_bytes(HEADERS[kind] + hu().astype("<i2").tobytes())
    volume = read_volume(path)
    assert np.array_equal(volume.array, hu()) and [flag.code for flag in volume.flags] == ["no_orientation"]


def parametric(number: int, ds: Any) -> None:
    ds.FloatPixelData = np.zeros(ds.Rows * ds.Columns, "<f4").tobytes()
    del ds.PixelData


@pytest.mark.parametrize("edit, reason", [(parametric, "as floating point numbers"),
                                          (lambda number, ds: setattr(ds, "ImagePositionPatient", [0, 0, 0]),
                                           f"one and the same position for all its {SHAPE[0]} slices")])
def test_the_refusal_names_the_cause(tmp_path, edit, reason):
    with pytest.raises(InputError, match=reason):
        read_volume(write_series(tmp_path / "s", edit=edit))


def test_an_empty_file_of_an_interrupted_copy_is_said(tmp_path):
    folder = write_series(tmp_path / "s")
    (folder / "0999.dcm").touch()
    with pytest.raises(InputError, match=r"the image 0999.dcm that cannot be read; is it truncated"):
        read_volume(folder)


def test_files_that_are_somewhere_else_are_named(tmp_path):
    nifti(tmp_path / "q" / "ct.nii.gz")
    (tmp_path / "p").mkdir()
    os.symlink("/nowhere/annex/ct.nii.gz", tmp_path / "p" / "ct.nii.gz")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "ct.nii.gz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    cases = list_cases(tmp_path)
    assert [case.name for case in cases] == ["p_ct", "q_ct", "r_ct"]
    for case, reason in ((cases[0], "a link to /nowhere/annex/ct.nii.gz"), (cases[2], "a pointer of Git LFS")):
        with pytest.raises(InputError, match=reason):
            read_volume(case.path)


def test_what_lies_there_instead_of_a_scan_is_named(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(hu().T, np.eye(4)), tmp_path / "scan.img")
    with pytest.raises(InputError, match="holds no scan .*; what it holds is scan.hdr, scan.img"):
        list_cases(tmp_path)
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("inner.zip", b"PK")
    with pytest.raises(InputError, match="holds no scan .*; what it holds is inner.zip"):
        list_cases(tmp_path / "outer.zip")


def test_names_that_no_result_can_have_are_changed(tmp_path):
    for name in ("plans", "index", "predict_args", "new\nline", "s" * 100):
        nifti(tmp_path / "in" / f"{name}.nii.gz")
    nifti(tmp_path / "in" / ("p" * 100) / ("q" * 100) / "scan.nii.gz")
    names = sorted(case.name for case in list_cases(tmp_path / "in"))
    assert {"plans_scan", "index_scan", "predict_args_scan", "new_line", "s" * 100} < set(names)
    (long,) = set(names) - {"plans_scan", "index_scan", "predict_args_scan", "new_line", "s" * 100}
    assert len(long) < 170 and long.endswith("q_scan")
