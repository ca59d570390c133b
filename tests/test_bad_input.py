"""Bad input of every kind: one clear sentence, exit code 2, and nothing half-written."""
from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bad_scans import BAD_SCANS, ct, save

from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import ImageGrid, Volume, is_dicom_folder, read_labels, read_volume, write_volume

KINDS = pytest.mark.parametrize("kind", BAD_SCANS)


def is_one_sentence(text: str) -> bool:
    return text.count("\n") == 0 and 20 < len(text) < 600 and text.rstrip()[-1] in ".?)" and "0x" not in text


@KINDS
def test_a_bad_scan_is_refused_with_its_path_and_reason(kind, tmp_path):
    make, reason = BAD_SCANS[kind]
    path = make(tmp_path)
    with pytest.raises(InputError, match=reason) as refusal:
        read_volume(path)
    assert str(path) in str(refusal.value)
    assert is_one_sentence(str(refusal.value)), str(refusal.value)


def test_thick_slices_are_read_with_a_warning(tmp_path, caplog):
    path = save(ct(), tmp_path / "thick.nii.gz", (1.0, 1.0, 8.0))
    with caplog.at_level(logging.WARNING):
        assert read_volume(path).spacing == (8.0, 1.0, 1.0)
    assert "thick.nii.gz has slices 8.0 mm apart" in caplog.text


@pytest.mark.parametrize("header", [{"sform": True, "pixdim": 2.0}, {"sform": False, "pixdim": 1.0}])
def test_headers_that_contradict_themselves_or_say_nothing_are_read_with_a_warning(tmp_path, caplog, header):
    import nibabel

    image = nibabel.Nifti1Image(ct().T, np.eye(4))
    image.header["pixdim"][3] = header["pixdim"]
    image.header["qform_code"], image.header["sform_code"] = 0, int(header["sform"])
    (tmp_path / "odd.nii").write_bytes(image.header.binaryblock + bytes(4) + ct().tobytes())
    with caplog.at_level(logging.WARNING):
        volume = read_volume(tmp_path / "odd.nii")
    assert volume.spacing[0] == 1.0  # where a matrix is stated, it counts
    assert [flag.code for flag in volume.flags] == ["spacing_contradicts" if header["sform"] else "no_orientation"]
    assert ("contradicts itself" if header["sform"] else "does not state how the patient lies") in caplog.text


def test_sheared_axes_are_kept_as_they_are(tmp_path):
    import nibabel

    affine = np.eye(4)
    affine[0, 1] = 0.05
    image = nibabel.Nifti1Image(ct().T, affine)
    image.set_qform(None, 0)
    image.set_sform(affine, 1)
    nibabel.save(image, tmp_path / "sheared.nii.gz")
    volume = read_volume(tmp_path / "sheared.nii.gz")
    assert [flag.code for flag in volume.flags] == ["sheared_grid"]
    assert np.allclose(volume.geometry.index_to_world((2, 7, 3)), (-(3 + 0.05 * 7), -7, 2), atol=1e-6)
    assert np.array_equal(volume.array, ct())


@pytest.mark.parametrize("values, reason", [(0.5, "no whole numbers"), (float("nan"), "no whole numbers"),
                                            (float("inf"), "no whole numbers"), (-1, "label values -1"), (70000, "70000")])
def test_label_maps_hold_whole_numbers(tmp_path, values, reason):
    array = np.zeros((8, 9, 10), np.float32)
    array[1, 2, 3] = values
    with pytest.raises(InputError, match=reason):
        read_labels(save(array, tmp_path / "labels.nii.gz"))


def dicom_folder(folder: Path, places: list[float], shift: float = 0.0, **tags: str) -> Path:
    """A CT series with slices at `places` (mm along the body axis), each moved back by `shift` times its place (gantry tilt)."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    series = tags.pop("series", "1.2.826.0.1.3680043.2.1125.1")
    for number, place in enumerate(places):
        image = sitk.GetImageFromArray(ct()[number % len(ct())])
        image.SetSpacing((0.8, 0.9))
        keys = {"0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0018": f"{series}.{number + 1}",
                "0020|000e": series, "0020|000d": "1.2.826.0.1.3680043.2.1125", "0020|0013": str(number + 1),
                "0020|0032": f"-10\\{-20 + shift * place}\\{place}", "0020|0037": "1\\0\\0\\0\\1\\0",
                "0028|1052": "-1024", "0028|1053": "1", "0010|0010": "Doe^Jane", "0010|0020": "secret-4711",
                "0010|0030": "19700101"} | tags
        for key, value in keys.items():
            image.SetMetaData(key, value)
        # File names in another order than the slices, as scanners like to do.
        writer.SetFileName(str(folder / f"{number * 37 % 101:03d}.dcm"))
        writer.Execute(image)
    return folder


def test_a_dicom_folder_is_a_scan_and_its_private_data_stay_behind(tmp_path):
    folder = dicom_folder(tmp_path / "series", [3.0 * i for i in range(20)])
    assert is_dicom_folder(folder)
    volume = read_volume(folder)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, ct())
    assert volume.spacing == pytest.approx((3.0, 0.9, 0.8))
    assert volume.geometry.origin == pytest.approx((-10, -20, 0))
    for ending in (".nii", ".nrrd", ".mha"):
        write_volume(volume, tmp_path / f"out{ending}")
        assert np.array_equal(read_volume(tmp_path / f"out{ending}").array, volume.array)
        content = (tmp_path / f"out{ending}").read_bytes()
        assert not any(word in content for word in (b"Doe", b"secret", b"19700101", b"1.2.826"))


@pytest.mark.parametrize("places, reason", [
    ([0, 3, 6, 9, 15, 18, 21], "3 to 6 mm apart"), ([0, 3, 6, 9, 9, 12], "several images at one position"),
    ([0, 3, 6], "3 slices"),
])
def test_dicom_series_with_holes_doubles_or_too_few_slices_are_refused(tmp_path, places, reason):
    with pytest.raises(InputError, match=reason) as refusal:
        read_volume(dicom_folder(tmp_path / "series", places))
    assert "secret" not in str(refusal.value) and is_one_sentence(str(refusal.value))


def test_a_tilted_gantry_is_said_and_every_slice_stays_where_it_is(tmp_path):
    volume = read_volume(dicom_folder(tmp_path / "series", [3.0 * i for i in range(10)], shift=0.2))
    assert volume.flags[0].code == "sheared_grid" and volume.flags[0].observed == pytest.approx(11.31, abs=0.01)
    assert np.allclose(volume.geometry.index_to_world((4, 0, 0)), (-10, -20 + 0.2 * 12, 12), atol=1e-6)


def test_of_several_dicom_series_the_longest_is_read(tmp_path, caplog):
    folder = dicom_folder(tmp_path / "series", [2.0 * i for i in range(12)])
    scout = dicom_folder(tmp_path / "scout", [0.0, 5.0], series="1.2.826.0.1.3680043.2.1125.2")
    for path in scout.iterdir():
        path.rename(folder / f"scout_{path.name}")
    with caplog.at_level(logging.INFO):
        assert read_volume(folder).array.shape[0] == 12
    assert "2 DICOM files belong to no series that could be the scan" in caplog.text


WRITE_ON_FULL_DISK = """
import resource, sys
import numpy as np
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import ImageGrid, Volume, write_volume
import SimpleITK
noise = np.random.default_rng(0).integers(-1000, 1000, (40, 64, 64)).astype(np.int16)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_volume(Volume(noise, ImageGrid(noise.shape, (1., 1., 1.), (0., 0., 0.), np.eye(3))), sys.argv[1])
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a Unix matter")
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, ending):
    target = tmp_path / f"scan{ending}"
    target.write_text("the older result")
    result = subprocess.run([sys.executable, "-c", WRITE_ON_FULL_DISK, str(target)], capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Cannot write {target}") and is_one_sentence(result.stdout.strip())
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_text() == "the older result"


@pytest.mark.parametrize("name", ["folder/scan.nii.gz", "scan.mhd", "scan.png"])
def test_places_that_cannot_be_written_are_refused(tmp_path, name):
    (tmp_path / "folder").write_text("a file where a folder is needed")  # the superuser ignores permissions, not this
    scan = Volume(ct(), ImageGrid(ct().shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3)))
    with pytest.raises(InputError, match="Cannot write") as refusal:
        write_volume(scan, tmp_path / name)
    assert is_one_sentence(str(refusal.value))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
