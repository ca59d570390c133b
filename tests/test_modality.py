"""CT or MR: told by DICOM files or values, said in the output, refused where scan and model do not go together."""
from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest

from benchmarks.dicom_files import write_series
from spineclue_v2.cli.predict import add_arguments, cases_and_modality
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.modality import ScanModality, find_modality, modality_of_path, modality_of_values
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_volume, write_volume
from spineclue_v2.inference.cases import Case
from spineclue_v2.inference.modality import check_modality, modality_of_cases
from spineclue_v2.inference.mr_pipeline import check_mr_scan

RNG = np.random.default_rng(4)
CT = np.where(RNG.random((30, 40, 40)) < 0.5, RNG.normal(-100, 30, (30, 40, 40)), RNG.normal(50, 20, (30, 40, 40))).astype(np.int16)
MR = np.abs(RNG.normal(400, 250, (30, 40, 40))).astype(np.int16)


def volume(array: np.ndarray, spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)) -> Volume:
    return Volume(array, ImageGrid(array.shape, spacing, (0.0, 0.0, 0.0), np.eye(3)))


@pytest.mark.parametrize(("array", "name"), [
    (CT, "CT"), (MR, "MR"),
    (np.where(RNG.random(MR.shape) < 0.05, -100, MR), ""),                     # a few negative values: neither plainly
    (RNG.normal(40, 10, MR.shape).astype(np.int16), ""),                       # soft tissue alone has no negative values either
    (CT + 1024, "CT"),                                                         # without its offset it has no negative value
    (MR // 8, ""), (MR.astype(np.float32) / 400 - 1, ""),                      # 8 bits, z-scored: so may CT be
])
def test_values_tell_modality_or_say_that_they_do_not(array: np.ndarray, name: str) -> None:
    assert modality_of_values(array).name == name


def test_a_dicom_tag_counts_more_than_values(tmp_path: Path) -> None:
    def of(modality: str) -> Path:
        return write_series(tmp_path / modality, edit=lambda number, ds: setattr(ds, "Modality", modality))

    assert modality_of_path(of("MR")) == ScanModality("MR", True) and modality_of_path(of("OT")).name == "CT"
    scan = read_volume(tmp_path / "MR", modality="MR")
    assert find_modality(scan).by_tag and check_modality(scan, "series", "MR") == ()
    with pytest.raises(InputError, match="is MR .its DICOM files say so. and this model labels CT"):
        check_modality(scan, "series", "CT")
    of("PT")
    scan = read_volume(tmp_path / "PT", series="1.2.826.0.1.3680043.8.498.1")
    with pytest.raises(InputError, match="is of modality PT; expected CT or MR; say --modality"):
        check_modality(scan, "series", "CT")
    (flag,) = check_modality(scan, "series", "CT", "ct")
    assert flag.code == "modality_contradicted" and flag.severity == "review" and "looks like PT" in flag.message


def test_a_folder_of_mr_series_alone_becomes_cases_of_mr_and_ct_goes_first(tmp_path: Path) -> None:
    def cases(*words: str) -> tuple[list[str], str]:
        parser = ArgumentParser()
        add_arguments(parser)
        found, modality = cases_and_modality(parser.parse_args(["-i", str(tmp_path), *words]))
        return [case.name for case in found], modality

    write_series(tmp_path / "b", edit=lambda number, ds: setattr(ds, "Modality", "MR"), series="1.2.3.8")
    assert cases() == (["b"], "MR") and cases("--modality", "mr") == (["b"], "MR")
    write_series(tmp_path / "a")
    assert cases() == (["a"], "CT") and cases("--modality", "mr") == (["b"], "MR")


@pytest.mark.parametrize(("array", "model", "other"), [(CT, "MR", "CT"), (MR, "CT", "MR")])
def test_a_model_of_the_other_modality_is_refused_unless_the_user_insists(array: np.ndarray, model: str, other: str) -> None:
    with pytest.raises(InputError, match=f"scan.nii is {other} .* this model labels {model}; .*--modality {model.lower()}"):
        check_modality(volume(array), "scan.nii", model)
    (flag,) = check_modality(volume(array), "scan.nii", model, model.lower())
    assert flag.code == "modality_contradicted" and flag.severity == "review"
    (flag,) = check_modality(volume(np.where(RNG.random(MR.shape) < 0.05, -100, MR).astype(np.int16)), "scan.nii", model, model.lower())
    assert flag.severity == "info" and "do not show it" in flag.message
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
    listed = [Case(path.name, path) for path in paths]
    assert modality_of_cases(listed) == "MR"
    write_volume(volume((MR > 900).astype(np.int16) * 20), tmp_path / "d.nii.gz")
    labels = [Case("d", tmp_path / "d.nii.gz")]
    assert modality_of_cases(labels + listed[:1]) == "CT"               # each fails by itself, for its own reason
    for single, reason in ((listed[:1], "a.nii.gz is no intact|a.nii.gz is no NIfTI"), (labels, "d.nii.gz is a label map .*_relabel -i ")):
        with pytest.raises(InputError, match=reason):
            modality_of_cases(single)
    with pytest.raises(InputError, match="b.nii.gz is CT or MR cannot be told .*--modality ct or --modality mr"):
        modality_of_cases(listed[:2])


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
