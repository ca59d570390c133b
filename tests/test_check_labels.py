"""Labels that are wrong are found, and corrected in a copy."""
from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from block_spine import BlockSpine, Pose, block_spine

from benchmarks.planted import PLANTS
from spineclue_v2.anatomy import LABEL_OF_NAME, dataset_labels
from spineclue_v2.cli._common import main
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import Volume, read_labels, write_volume
from spineclue_v2.planning.label_check.check import check_labels
from spineclue_v2.planning.label_check.corrections import correct, parse_correction
from spineclue_v2.planning.label_check.suspicion import Suspicion, worst_first
from spineclue_v2.utilities.files import read_json, write_json

LEVELS = ("T11", "T12", "L1", "L2", "L3", "L4", "L5")
ALL = dataset_labels()


@pytest.fixture(scope="module")
def spine() -> BlockSpine:
    return block_spine({level: Pose() for level in LEVELS}, (2.0, 2.0, 2.0))


def changed(spine: BlockSpine, array: np.ndarray) -> Volume:
    return Volume(np.ascontiguousarray(array), spine.labels.geometry)


def alarms(found: list[Suspicion]) -> set[str]:
    return {s.kind for s in found if s.alarm}


def test_nothing_is_said_of_a_good_map(spine: BlockSpine) -> None:
    assert alarms(check_labels("good", spine.labels, spine.ct)) == set()


@pytest.mark.parametrize(("kind", "named"), [("swapped", "swapped"), ("merged", "merged"), ("cut", "cut"), ("missing", "missing"),
                                             ("flip", "flip"), ("mixed", "cut")])
def test_planted_errors_are_found(spine: BlockSpine, kind: str, named: str) -> None:
    bad = PLANTS[kind](spine.labels.array, None, np.array(spine.labels.spacing), np.random.default_rng(3))
    assert bad is not None
    assert named in alarms(check_labels("bad", changed(spine, bad)))


def test_an_island_is_found_and_dropped(spine: BlockSpine) -> None:
    bad = spine.labels.array.copy()
    bad[2:6, 2:6, 2:6] = LABEL_OF_NAME["L4"]
    found = [s for s in check_labels("bad", changed(spine, bad)) if s.alarm]
    assert [(s.kind, s.levels) for s in found] == [("island", ("L4",))]
    mended = correct(changed(spine, bad), [found[0].correction], LABEL_OF_NAME)
    assert np.array_equal(mended.array, spine.labels.array)


def test_a_mirrored_map_is_turned_back(spine: BlockSpine) -> None:
    moved = changed(spine, spine.labels.array[:, ::-1])
    found = [s for s in check_labels("bad", moved, spine.ct) if s.alarm]
    assert "flip y" in {s.correction for s in found}
    assert np.array_equal(correct(moved, ["flip y"], LABEL_OF_NAME).array, spine.labels.array)


def test_a_scan_turned_with_its_labels_is_not_corrected_by_the_labels(spine: BlockSpine) -> None:
    both = changed(spine, spine.labels.array[::-1]), changed(spine, spine.ct.array[::-1])
    flips = [s for s in check_labels("bad", *both) if s.kind == "flip"]
    assert flips and all(s.correction == "" for s in flips)


def test_a_slab_labelled_l6_is_called_the_sacrum(spine: BlockSpine) -> None:
    bad = spine.labels.array.copy()
    bad[1:18, 12:45, 2:30] = LABEL_OF_NAME["L6"]
    found = check_labels("bad", changed(spine, bad))
    assert "sacrum" in alarms(found) and "rename L6=sacrum" in {s.correction for s in found}


def test_the_worst_case_comes_first() -> None:
    rows = [Suspicion("a", "cut", (), 0.4, ""), Suspicion("b", "cut", (), 0.6, ""), Suspicion("a", "flip", (), 0.9, "")]
    assert [(s.case, s.sure) for s in worst_first(rows)] == [("a", 0.9), ("a", 0.4), ("b", 0.6)]


@pytest.mark.parametrize("text", ["rename L2", "rename L2=Q3", "flip w", "move L2", "drop islands", ""])
def test_an_unknown_correction_is_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match="correction"):
        parse_correction(text)


def test_a_swap_is_renamed_at_once(spine: BlockSpine) -> None:
    swapped = correct(spine.labels, ["rename L2=L3 L3=L2"], LABEL_OF_NAME)
    assert np.array_equal(correct(swapped, ["rename L2=L3 L3=L2"], LABEL_OF_NAME).array, spine.labels.array)


@pytest.fixture
def dataset(spine: BlockSpine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cases, the second with two neighbours swapped."""
    monkeypatch.setenv("spineclue_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("spineclue_preprocessed", str(tmp_path / "preprocessed"))
    folder = tmp_path / "raw" / "Dataset501_Blocks"
    bad = correct(spine.labels, ["rename L2=L3 L3=L2"], LABEL_OF_NAME)
    for case, labels in (("good", spine.labels), ("bad", bad)):
        write_volume(labels, folder / "labelsTr" / f"{case}.nii.gz")
        write_volume(spine.ct, folder / "imagesTr" / f"{case}_0000.nii.gz")
    write_json(folder / "dataset.json", {"channel_names": {"0": "CT"}, "labels": ALL, "numTraining": 2, "file_ending": ".nii.gz"})
    return folder


def test_the_command_lists_shows_and_corrects(dataset: Path, spine: BlockSpine, tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main("check_labels", ["-d", "501", "--no_model", "-o", str(out), "-np", "0", "--no_pbar"]) == 0
    assert "1 of 2 cases have an alarm" in capsys.readouterr().out
    table = out / "label_check.csv"
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["case"] == "bad" and rows[0]["kind"] == "swapped" and rows[0]["alarm"] == "yes"
    page = (out / "label_check.html").read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in page and "L2 lies" in page and "http" not in page.split("<main>")[1]

    assert main("check_labels", ["-d", "501", "--fix", str(table), "-o", "Dataset502_Fixed"]) == 2      # nothing is confirmed
    rows[0]["confirmed"] = "yes"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert main("check_labels", ["-d", "501", "--fix", str(table), "-o", "Dataset502_Fixed"]) == 0
    fixed = dataset.parent / "Dataset502_Fixed"
    assert np.array_equal(read_labels(fixed / "labelsTr" / "bad.nii.gz").array, spine.labels.array)
    assert not np.array_equal(read_labels(dataset / "labelsTr" / "bad.nii.gz").array, spine.labels.array)   # the original stays
    assert read_json(fixed / "label_corrections.json") == {"from": "Dataset501_Blocks", "corrections": {"bad": ["rename L2=L3 L3=L2"]}}
    assert main("check_labels", ["-d", "502", "--no_model", "-o", str(out), "-np", "0", "--no_pbar", "--pictures", "0"]) == 0
    assert "0 of 2 cases have an alarm" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "said"), [(["--fix", "none.csv", "-o", "Dataset502_Fixed"], "none.csv does not exist"),
                                                 (["-m", "nowhere"], "Model folder nowhere does not exist")])
def test_a_missing_table_or_model_is_one_sentence(dataset: Path, arguments: list[str], said: str,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert main("check_labels", ["-d", "501", "-np", "0", "--no_pbar", *arguments]) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
