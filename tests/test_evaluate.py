"""Evaluation of folders: pairing, nnU-Net's summary shape, failures that stay with their case, and the two commands."""
from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from spineclue_v2 import anatomy
from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.cli._common import main
from spineclue_v2.errors import InputError
from spineclue_v2.evaluation.files import pair_files, read_groups
from spineclue_v2.evaluation.summary import evaluate, evaluate_simple
from spineclue_v2.imageio.centroids import write_ctd
from spineclue_v2.imageio.volume import ImageGrid, Volume, write_volume
from spineclue_v2.utilities.files import write_json

VERSE = Path(__file__).parents[1].parent / "shared" / "data" / "ct" / "verse"


def spine(names: list[str], path: Path, spacing: float = 1.0) -> Volume:
    """Write boxes of 8 x 10 x 10 voxels, 12 apart from top to bottom, as a label map."""
    array = np.zeros((64, 20, 20), dtype=np.uint8)
    for i, name in enumerate(names):
        top = 60 - 12 * i
        array[top - 8:top, 5:15, 5:15] = anatomy.LABEL_OF_NAME[name]
    volume = Volume(array, ImageGrid(array.shape, (spacing,) * 3, (0.0, 0.0, 0.0), np.eye(3)))
    write_volume(volume, path)
    return volume


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Case a right, case b shifted by one level."""
    truth, guess = tmp_path / "labels", tmp_path / "out"
    for case, given in (("a", ["T12", "L1", "L2"]), ("b", ["L1", "L2", "L3"])):
        spine(["T12", "L1", "L2"], truth / f"{case}.nii.gz")
        spine(given, guess / f"{case}.nii.gz")
    return truth, guess


def test_figures_pool_both_cases(folders):
    found = evaluate(*folders)["spineclue"]
    assert found["scans"] == 2 and found["vertebrae"] == 6
    assert found["id_rate"] == 0.5 and found["all_right_rate"] == 0.5 and found["dice"] == 1.0
    assert [case["case"] for case in found["cases"]] == ["a", "b"] and not found["failed"]


def test_summary_has_the_shape_and_the_numbers_of_nnunet(folders, tmp_path):
    evaluate_predictions = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions")
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    summary = evaluate(*folders, output=tmp_path / "summary.json")
    theirs = evaluate_predictions.load_summary_json(str(tmp_path / "summary.json"))
    assert list(summary)[:3] == ["foreground_mean", "mean", "metric_per_case"]
    labels = [19, 20, 21, 22]
    assert list(theirs["mean"]) == labels
    for case, ours in zip("ab", theirs["metric_per_case"], strict=True):
        expected = evaluate_predictions.compute_metrics(str(folders[0] / f"{case}.nii.gz"), str(folders[1] / f"{case}.nii.gz"),
                                                        SimpleITKIO(), labels)
        for label in labels:
            assert ours["metrics"][label] == pytest.approx(expected["metrics"][label], nan_ok=True)
    # Label 22 is absent from case a: its mean is case b's alone.
    assert summary["mean"]["22"]["Dice"] == 0.0 and summary["mean"]["19"]["Dice"] == 0.5
    assert summary["foreground_mean"]["Dice"] == pytest.approx((0.5 + 0.5 + 0.5 + 0.0) / 4)


def test_a_missing_prediction_counts_as_all_missed(folders):
    (folders[1] / "b.nii.gz").unlink()
    found = evaluate(*folders)
    assert found["spineclue"]["without_prediction"] == ["b"]
    assert found["spineclue"]["id_rate"] == 0.5 and found["spineclue"]["dice"] == 0.5
    assert found["metric_per_case"][1]["metrics"]["19"]["FN"] == 800 and found["metric_per_case"][1]["prediction_file"] is None


def test_a_case_that_fails_is_listed_and_the_others_go_on(folders):
    spine(["T12"], folders[1] / "b.nii.gz", spacing=2.0)
    (folders[0] / "c.nii.gz").write_bytes(b"no image")
    spine(["T12"], folders[1] / "c.nii.gz")
    found = evaluate(*folders)["spineclue"]
    assert [item["case"] for item in found["failed"]] == ["b", "c"]
    assert "different grids" in found["failed"][0]["error"] and "2.0" in found["failed"][0]["error"]
    assert found["scans"] == 1 and found["id_rate"] == 1.0


def test_processes_and_executors_give_the_same_summary(folders):
    alone = json.dumps(evaluate(*folders))
    assert json.dumps(evaluate(*folders, num_processes=2)) == alone
    with ThreadPoolExecutor(2) as executor:
        assert json.dumps(evaluate(*folders, executor=executor)) == alone


def test_groups_repeat_every_figure(folders, tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("case,group\na,straight\nb,scoliosis\n")
    groups = evaluate(*folders, groups=read_groups(table))["spineclue"]["groups"]
    assert groups["straight"]["id_rate"] == 1.0 and groups["scoliosis"]["id_rate"] == 0.0
    table.write_text("name;kind\na;b\n")
    with pytest.raises(InputError, match="expected case,group"):
        read_groups(table)


def test_a_case_may_be_in_several_groups_and_the_command_prints_each(folders, tmp_path, capsys):
    table = tmp_path / "groups.csv"
    table.write_text("case,group\na,implants\na,cervical\nb,implants; scoliosis\nelsewhere,implants\n")
    assert read_groups(table)["a"] == "implants;cervical"
    assert main("evaluate", ["-ref", str(folders[0]), "-pred", str(folders[1]), "--groups", str(table), "-np", "0"]) == 0
    out, err = capsys.readouterr()
    rates = {line.split("Group ")[1]: out.split(line)[1].split("ID-rate ")[1].split()[0] for line in out.splitlines() if "Group " in line}
    assert rates == {"implants": "0.500", "cervical": "1.000", "scoliosis": "0.000"}
    assert "1 cases that are not evaluated (first: elsewhere)" in err
    table.write_text("case,group\nelsewhere,implants\n")
    assert main("evaluate", ["-ref", str(folders[0]), "-pred", str(folders[1]), "--groups", str(table), "-np", "0"]) == 2
    assert "none of the 2 that are evaluated" in capsys.readouterr().err


def test_confidences_are_read_beside_the_prediction(folders):
    for case, confidence in (("a", 0.9), ("b", 0.6)):
        names = ["T12", "L1", "L2"] if case == "a" else ["L1", "L2", "L3"]
        write_json(folders[1] / f"{case}.json", {"numbering_anchored": case == "a", "vertebrae": [
            {"level": name, "label": anatomy.LABEL_OF_NAME[name], "confidence": confidence} for name in names]})
    found = evaluate(*folders)["spineclue"]["calibration"]
    assert found["vertebrae"] == 6 and found["ece"] == pytest.approx((0.1 + 0.6) / 2)
    assert found["risk_coverage"]["risk_at"]["0.5"] == 0.0 and found["numbering_anchored"]["flagged_of_wrong"] == 1.0


def test_body_centres_come_from_centroid_files(folders, tmp_path):
    def centres(path: Path, volume: Volume, names: list[str], off: float) -> None:
        write_ctd(path, [Vertebra((0, 0, 0), (0, 0, 0), 1.0, level=name, body_centre=(10.0 + off, 9.5, 55.5 - 12 * i))
                         for i, name in enumerate(names)], volume.geometry)
    names = ["T12", "L1", "L2"]
    for case in "ab":
        centres(tmp_path / "centroids" / f"{case}_ctd.json", spine(names, folders[0] / f"{case}.nii.gz"), names, 0.0)
        centres(folders[1] / f"{case}_ctd.json", spine(names, folders[1] / f"{case}.nii.gz"), names, 4.0)
    found = evaluate(*folders, centroids="body")["spineclue"]
    assert found["verse_d_mean_mm"] == pytest.approx(4.0, abs=1e-3) and found["verse_id_rate"] == 1.0
    assert evaluate(*folders, centroids="mask")["spineclue"]["verse_d_mean_mm"] == 0.0
    (tmp_path / "centroids" / "a_ctd.json").unlink()
    failed = evaluate(*folders, centroids="body")["spineclue"]["failed"]
    assert [item["case"] for item in failed] == ["a"] and "--centroids mask" in failed[0]["error"]


def test_other_label_values_are_mapped_by_the_dataset(tmp_path):
    truth = spine(["L1", "L2"], tmp_path / "Dataset900_X" / "labelsTr" / "a.nii.gz")
    spine(["L1", "L2"], tmp_path / "out" / "a.nii.gz")
    moved = np.where(truth.array > 0, truth.array - 19, 0).astype(np.uint8)  # L1 = 1, L2 = 2
    write_volume(Volume(moved, truth.geometry), tmp_path / "Dataset900_X" / "labelsTr" / "a.nii.gz")
    write_json(tmp_path / "Dataset900_X" / "dataset.json", {"labels": {"background": 0, "L1": 1, "L2": 2}})
    assert evaluate(tmp_path / "Dataset900_X" / "labelsTr", tmp_path / "out")["spineclue"]["id_rate"] == 1.0


def test_pairing_knows_the_names_of_verse_and_nnunet(tmp_path):
    spine(["L1"], tmp_path / "ref" / "sub-verse005_seg-vert_msk.nii.gz")
    spine(["L1"], tmp_path / "ref" / "sub-verse005_ct.nii.gz")
    spine(["L1"], tmp_path / "pred" / "sub-verse005_ct.nii.gz")
    spine(["L1"], tmp_path / "pred" / "other_0000.nii.gz")
    pairs, surplus = pair_files(tmp_path / "ref", tmp_path / "pred")
    assert [(p.case, p.reference.name, p.prediction.name) for p in pairs] == [
        ("sub-verse005_ct", "sub-verse005_seg-vert_msk.nii.gz", "sub-verse005_ct.nii.gz")]
    assert surplus == ["other_0000.nii.gz"]


def test_two_references_for_one_prediction_are_refused(folders):
    spine(["T12"], folders[0] / "a.nrrd")
    with pytest.raises(InputError, match="several references"):
        evaluate(*folders)


def test_two_single_files(folders):
    assert evaluate(folders[0] / "a.nii.gz", folders[1] / "b.nii.gz")["spineclue"]["id_rate"] == 0.0


@pytest.mark.parametrize(("reference", "prediction", "sentence"), [
    ("nowhere", "out", "does not exist"), ("labels", "out/a.nii.gz", "two folders"), ("empty", "out", "no label map"),
    ("labels", "empty", "No prediction")])
def test_nothing_to_compare_is_one_sentence(folders, tmp_path, reference, prediction, sentence):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=sentence):
        evaluate(tmp_path / reference, tmp_path / prediction)


def test_command_prints_a_table_and_writes_the_summary(folders, capsys):
    assert main("evaluate", ["-ref", str(folders[0]), "-pred", str(folders[1]), "-np", "0", "--by_level"]) == 0
    text = capsys.readouterr().out
    assert "2 scans, 6 reference vertebrae" in text and "ID-rate 0.500" in text and "lumbar" in text
    assert json.loads((folders[1] / "summary.json").read_text())["spineclue"]["id_rate"] == 0.5


def test_command_ends_with_one_when_a_case_fails_and_two_on_bad_input(folders, capsys):
    spine(["T12"], folders[1] / "b.nii.gz", spacing=2.0)
    assert main("evaluate", ["-ref", str(folders[0]), "-pred", str(folders[1]), "-np", "0"]) == 1
    assert "1 cases failed" in capsys.readouterr().out
    assert main("evaluate", ["-ref", str(folders[0] / "x"), "-pred", str(folders[1])]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_command_evaluates_a_named_test_set(folders, tmp_path, monkeypatch, capsys):
    raw = tmp_path / "raw"
    for case in "ab":
        spine(["T12", "L1", "L2"], raw / "Dataset901_X" / "labelsTs" / f"{case}.nii.gz")
    write_json(raw / "Dataset901_X" / "test_sets.json", {"public": ["a"], "hidden": ["b"]})
    monkeypatch.setenv("spineclue_raw", str(raw))
    assert main("evaluate", ["-d", "901", "--set", "public", "-pred", str(folders[1]), "-np", "0"]) == 0
    assert "1 scans" in capsys.readouterr().out
    assert json.loads((folders[1] / "summary.json").read_text())["spineclue"]["id_rate"] == 1.0
    assert main("evaluate", ["-d", "901", "--set", "secret", "-pred", str(folders[1])]) == 2
    assert "known: public, hidden" in capsys.readouterr().err


def test_evaluate_simple_like_nnunet(folders, capsys):
    summary, failed = evaluate_simple(*folders, [19, 20, 21])
    assert not failed and summary["mean"]["19"]["Dice"] == 0.5 and summary["foreground_mean"]["Dice"] == 0.5
    (folders[1] / "b.nii.gz").unlink()
    arguments = [str(folders[0]), str(folders[1]), "-l", "19", "20", "-np", "0"]
    assert main("evaluate_simple", arguments) == 2
    assert "--chill" in capsys.readouterr().err
    assert main("evaluate_simple", [*arguments, "--chill"]) == 0
    assert "foreground mean Dice 1.0000" in capsys.readouterr().out


@pytest.mark.skipif(not VERSE.is_dir(), reason="no VerSe masks beside the repository")
def test_a_real_mask_against_itself_and_against_a_shifted_copy(tmp_path):
    from spineclue_v2.imageio.volume import read_labels

    truth = read_labels(VERSE / "sub-verse008_seg-vert_msk.nii.gz")
    shifted = np.where(truth.array > 0, truth.array - 1, 0).astype(np.uint8)
    write_volume(truth, tmp_path / "right" / "sub-verse008_ct.nii.gz")
    write_volume(Volume(shifted, truth.geometry), tmp_path / "shifted" / "sub-verse008_ct.nii.gz")
    right = evaluate(VERSE / "sub-verse008_seg-vert_msk.nii.gz", tmp_path / "right" / "sub-verse008_ct.nii.gz")["spineclue"]
    assert right["vertebrae"] == 6 and right["id_rate"] == right["verse_id_rate"] == right["dice"] == 1.0
    wrong = evaluate(VERSE / "sub-verse008_seg-vert_msk.nii.gz", tmp_path / "shifted" / "sub-verse008_ct.nii.gz")["spineclue"]
    assert wrong["id_rate"] == 0.0 and wrong["mse"] == 1.0 and wrong["dice"] == 1.0 and wrong["verse_id_rate"] == 0.0
    assert math.isnan(wrong["verse_d_mean_mm"])
