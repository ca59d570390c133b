"""CT or MR: told by DICOM files or values, said in the output, refused where scan and model do not go together."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spineclue_v2.errors import InputError
from spineclue_v2.imageio.modality import find_modality, modality_of_values, stored_modality
from spineclue_v2.imageio.volume import ImageGrid, Volume, write_volume
from spineclue_v2.inference.modality import check_modality, modality_of_scans
from spineclue_v2.inference.mr_pipeline import check_mr_scan

RNG = np.random.default_rng(4)
CT = np.where(RNG.random((30, 40, 40)) < 0.5, RNG.normal(-100, 30, (30, 40, 40)), RNG.normal(50, 20, (30, 40, 40))).astype(np.int16)
MR = np.abs(RNG.normal(400, 250, (30, 40, 40))).astype(np.int16)


def volume(array: np.ndarray, spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)) -> Volume:
    return Volume(array, ImageGrid(array.shape, spacing, (0.0, 0.0, 0.0), np.eye(3)))


@pytest.mark.parametrize(("array", "name"), [
    (CT, "CT"), (MR, "MR"), (MR.astype(np.float32) / 400 - 1, "MR"),           # z-scored
    (np.where(RNG.random(MR.shape) < 0.05, -100, MR), ""),                     # a few negative values: neither plainly
    (RNG.normal(40, 10, MR.shape).astype(np.int16), ""),                       # soft tissue alone has no negative values either
    (CT + 1024, ""),                                                           # CT without its offset has no negative value
])
def test_values_tell_modality_or_say_that_they_do_not(array: np.ndarray, name: str) -> None:
    assert modality_of_values(array).name == name


def dicom(folder: Path, modality: str) -> Path:
    import pydicom
    from pydicom.dataset import FileMetaDataset

    folder.mkdir()
    (folder / "0_notes.txt").write_text("no DICOM file")
    header = pydicom.Dataset()
    header.Modality, header.Rows, header.SOPInstanceUID, header.SOPClassUID = modality, 4, "1.2.3", "1.2.840.10008.5.1.4.1.1.4"
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    header.save_as(folder / "slice.dcm", enforce_file_format=True)
    return folder


def test_a_dicom_tag_counts_more_than_values(tmp_path: Path) -> None:
    folder = dicom(tmp_path / "series", "MR")
    assert stored_modality(folder) == stored_modality(folder / "slice.dcm") == "MR" and stored_modality(tmp_path) == ""
    found = find_modality(volume(CT), folder)
    assert found.name == "MR" and found.by_tag
    assert check_modality(volume(CT), str(folder), "MR") == ()
    with pytest.raises(InputError, match="is of modality PT; expected CT or MR"):
        check_modality(volume(CT), str(dicom(tmp_path / "other", "PT")), "CT")


@pytest.mark.parametrize(("array", "model", "other"), [(CT, "MR", "CT"), (MR, "CT", "MR")])
def test_a_model_of_the_other_modality_is_refused_unless_the_user_insists(array: np.ndarray, model: str, other: str) -> None:
    with pytest.raises(InputError, match=f"scan.nii is {other} .* this model labels {model}; .*--modality {model.lower()}"):
        check_modality(volume(array), "scan.nii", model)
    (flag,) = check_modality(volume(array), "scan.nii", model, model.lower())
    assert flag.code == "modality_contradicted" and flag.severity == "review"
    with pytest.raises(InputError, match=f"said to be {other} and the model labels {model}"):
        check_modality(volume(array), "scan.nii", model, other.lower())


def test_what_was_told_by_values_is_said() -> None:
    (flag,) = check_modality(volume(MR), "scan.nii", "MR")
    assert flag.code == "modality_assumed" and flag.severity == "info"
    assert check_modality(volume(MR), "scan.nii", "MR", "mr") == check_modality(volume(CT), "scan.nii", "CT") == ()


def test_the_first_scan_that_can_be_told_decides_for_a_folder(tmp_path: Path) -> None:
    doubtful = np.where(RNG.random(MR.shape) < 0.05, -100, MR).astype(np.int16)
    paths = [tmp_path / name for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz")]
    paths[0].write_bytes(b"broken")
    for path, array in zip(paths[1:], (doubtful, MR), strict=True):
        write_volume(volume(array), path)
    assert modality_of_scans(paths) == "MR" and modality_of_scans(paths[:1]) == "CT"
    with pytest.raises(InputError, match="b.nii.gz is CT or MR cannot be told .*--modality ct or --modality mr"):
        modality_of_scans(paths[:2])


@pytest.mark.parametrize(("shape", "spacing", "said"), [
    ((20, 256, 256), (5.0, 0.9, 0.9), "has axial slices 5.0 mm apart"),          # (z, y, x), LPS
    ((200, 20, 256), (1.0, 6.0, 1.0), "has coronal slices 6.0 mm apart"),
    ((256, 256, 3), (1.0, 1.0, 5.0), "has 3 sagittal slices 5.0 mm apart, as a localizer has"),
    ((256, 256, 7), (1.0, 1.0, 12.0), "has 7 sagittal slices 12.0 mm apart"),
    ((60, 60, 60), (3.5, 3.5, 3.5), "has pixels of 3.5 x 3.5 mm"),
    ((30, 60, 60), (1.0, 1.0, 1.0), "over 30 mm from top to bottom"),
])
def test_what_is_no_sagittal_mr_is_refused_in_one_sentence(shape: tuple[int, int, int], spacing: tuple[float, float, float], said: str
                                                          ) -> None:
    with pytest.raises(InputError, match=said):
        check_mr_scan(volume(np.zeros(shape, np.int16), spacing), "scan.nii")


@pytest.mark.parametrize(("shape", "spacing"), [((300, 260, 15), (0.6, 0.6, 4.8)), ((100, 60, 60), (1.0, 1.0, 1.0)),
                                                ((70, 50, 70), (1.5, 1.5, 1.5))])
def test_sagittal_and_isotropic_mr_pass(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    check_mr_scan(volume(np.zeros(shape, np.int16), spacing))
