"""Which files below a folder are scans, and what their cases are called."""
from __future__ import annotations

import shutil
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks.dicom_files import hu, write_series
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import read_volume
from spineclue_v2.inference.cases import list_cases

RECORD = '{"status": "ok", "versions": {}, "plans": {}, "seconds": {}, "vertebrae": []}'


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(hu()), str(path))
    return path


def laid(folder, scan, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scan, folder / name)
    return folder


def names(folder):
    cases = list_cases(folder)
    assert len({case.name for case in cases}) == len(cases)
    return [case.name for case in cases]


@pytest.mark.parametrize("files, expected", [
    (["p1/ct.nii.gz", "p2/ct.nii.gz", "top.nii.gz"], ["top", "p1_ct", "p2_ct"]),
    (["A/B/C/scan_0000.nii.gz"], ["A_B_C_scan"]),
    (["p1/p1.nii.gz", "p1/p1_late.nii.gz", "1/10.nii.gz"], ["1_10", "p1", "p1_late"]),
    (["sub-1/ses-2/ct/sub-1_ses-2_ct.nii.gz", "sub-2/ct/sub-2_ct.nii.gz", "derivatives/sub-1/sub-1_seg-vert_msk.nii.gz"],
     ["sub-1_ses-2_ct", "sub-2_ct"]),
    (["rawdata/sub-verse004/sub-verse004_ct.nii.gz", "derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz"], ["sub-verse004_ct"]),
    (["s0001/ct.nii.gz", "s0001/segmentations/vertebrae_L1.nii.gz", "s0002/ct.nii.gz", "s0002/ct_seg.nii.gz"], ["s0001_ct", "s0002_ct"]),
    (["imagesTr/a_0000.nii.gz", "imagesTs/b_0000.nii.gz", "labelsTr/a.nii.gz"], ["imagesTr_a", "imagesTs_b"]),
    (["labelsTr/a.nii.gz", "b_mask.nii.gz"], ["b_mask", "labelsTr_a"]),
    (["p/.hidden/ct.nii.gz", "p/ct.nii.gz"], ["p_ct"]),
])
def test_scans_in_subfolders_are_found_and_named_after_their_folders(tmp_path, scan, files, expected):
    assert names(laid(tmp_path / "in", scan, *files)) == expected


def test_folders_of_every_kind_together(tmp_path, scan):
    root = laid(tmp_path / "in", scan, "b/ct.nii.gz", "c/ct.mha.nii.gz")
    write_series(root / "a" / "series")
    with zipfile.ZipFile(root / "b" / "more.zip", "w") as archive:
        archive.write(scan, "x/ct.nii.gz")
        archive.write(scan, "y/ct.nii.gz")
    assert names(root) == ["b_ct", "c_ct.mha", "b_more_x_ct", "b_more_y_ct", "a_series"]
    assert all(np.array_equal(read_volume(case.path, series=case.series).array, hu()) for case in list_cases(root))


def test_a_zip_with_folders_inside(tmp_path, scan):
    path = tmp_path / "upload.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(scan, "export/patient/ct.nii.gz")
        archive.write(scan, "__MACOSX/export/patient/._ct.nii.gz")
    assert names(path) == ["export_patient_ct"]
    assert np.array_equal(read_volume(list_cases(path)[0].path).array, hu())


def test_names_that_two_folders_give_are_told_apart_by_their_own_paths(tmp_path, scan):
    root = laid(tmp_path / "in", scan, "a_b/c.nii.gz", "a/b_c.nii.gz", "d.nii.gz")
    before = list_cases(root)
    assert len({case.name for case in before}) == 3
    assert sorted(case.name[:6] for case in before) == ["a_b_c-", "a_b_c-", "d"]
    laid(root, scan, "a/b/c.nii.gz", "e/f.nii.gz")
    after = {case.path: case.name for case in list_cases(root)}
    assert all(after[case.path] == case.name for case in before) and len(set(after.values())) == 5
    moved = root.rename(tmp_path / "elsewhere")
    assert {case.name for case in list_cases(moved)} == set(after.values())


def test_two_endings_in_one_folder_are_refused(tmp_path, scan):
    laid(tmp_path, scan, "p/ct.nii.gz", "p/ct_0000.nii.gz")
    with pytest.raises(InputError, match=r"ct.nii.gz, ct_0000.nii.gz would both become case 'p_ct'"):
        list_cases(tmp_path)


def test_results_of_an_earlier_run_are_left_out_at_any_depth(tmp_path, scan, caplog):
    root = laid(tmp_path / "in", scan, "a_0000.nii.gz", "out/a.nii.gz", "out/a_parts.nii.gz", "out/a.seg.nrrd", "out/other.nii.gz",
                "out/a_crops/a_L1_ct.nii.gz")
    (root / "out" / "a.json").write_text(RECORD)
    assert names(root) == ["a", "out_other"]
    assert "out/a.nii.gz is a result of an earlier run (so are 3 more); left out" in caplog.text


def test_an_empty_zip_is_called_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(InputError, match=r"^The archive .*in\.zip holds no scan"):
        list_cases(tmp_path / "in.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="^Input folder .*empty holds no scan"):
        list_cases(tmp_path / "empty")
