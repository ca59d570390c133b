"""Real-world layouts and headers of scans, made by tools that are not ours: read rightly, or refused for the right reason."""
from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import codes, pet

from benchmarks.dicom_files import SHAPE, axial_grid, hu, write_series
from benchmarks.malformed_inputs import LAYOUTS, layout, malformed, outcome
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.hounsfield import checked_ct
from spineclue_v2.imageio.volume import Volume, read_labels, read_volume, write_volume


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
