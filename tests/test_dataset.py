"""Raw datasets, splits and preprocessed folders as training meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from blocks import lumbar_dataset, spine, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2 import adapters
from spineclue_v2.anatomy import LABEL_OF_NAME, LEVELS
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.dataset.raw import RawDataset, verse_values
from spineclue_v2.dataset.splits import fold_cases, load_splits, make_splits
from spineclue_v2.errors import InputError


@pytest.fixture(scope="module")
def lumbar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lumbar_dataset(tmp_path_factory.mktemp("raw") / "Dataset501_Lumbar")


def edited(source: Path, target: Path, **changes: object) -> Path:
    """Copy of a raw dataset with keys of dataset.json replaced (None removes one)."""
    shutil.copytree(source, target)
    content = json.loads((target / "dataset.json").read_text()) | changes
    (target / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return target


def test_raw_dataset_lists_cases_with_their_files(lumbar: Path) -> None:
    raw = RawDataset(lumbar)
    assert raw.name == "Dataset501_Lumbar" and raw.cases == ["case_00", "case_01", "case_02"] and raw.patients == {}
    assert raw.image("case_01").name == "case_01_0000.nii.gz" and raw.label("case_01").name == "case_01.nii.gz"
    assert raw.verse_value[24] == LABEL_OF_NAME["L5"] and raw.channel_name == "CT"
    with pytest.raises(InputError, match="case_99"):
        raw.image("case_99")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "lacks labels"),
        ({"numTraining": 7}, "numTraining 7 but 3"),
        ({"channel_names": {"1": "CT"}}, "channel_names"),
        ({"labels": {"background": 0, "liver": 1}}, "no label is named after a vertebra"),
        ({"labels": {"L1": 20}}, "background"),
        ({"labels": {"background": 0, "L1": 1, "vertebrae_L1": 2}}, "mean the same vertebra"),
        ({"labels": {"background": 0, "L1": [1, 2]}}, "regions"),
        ({"labels": {"background": 0, "L1": 1, "L2": 1}}, "share a value"),
        ({"file_ending": "nii"}, "file_ending"),
        ({"patients": {"nobody": "p"}}, "unknown cases"),
        ({"dataset": {"case_00": {}}}, "'dataset' must be"),
    ],
)
def test_a_broken_dataset_json_is_named(lumbar: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RawDataset(edited(lumbar, tmp_path / "Dataset501_Lumbar", **changes))


def test_missing_parts_are_named(lumbar: Path, tmp_path: Path) -> None:
    broken = edited(lumbar, tmp_path / "Dataset501_Lumbar")
    (broken / "labelsTr" / "case_01.nii.gz").unlink()
    with pytest.raises(InputError, match="1 of 3 cases have no label map"):
        RawDataset(broken)
    with pytest.raises(InputError, match="does not exist"):
        RawDataset(tmp_path / "Dataset999_Nothing")
    (broken / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        RawDataset(broken)


def test_images_may_be_referenced_instead_of_copied(lumbar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", str(lumbar))
    folder = tmp_path / "Dataset502_Links"
    folder.mkdir()
    entry = {"images": ["$WHERE/imagesTr/case_00_0000.nii.gz"], "label": str(lumbar / "labelsTr" / "case_00.nii.gz")}
    content = json.loads((lumbar / "dataset.json").read_text()) | {"dataset": {"one": entry}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(content))
    raw = RawDataset(folder)
    assert raw.cases == ["one"] and raw.image("one").is_file()


def test_label_names_map_to_verse_values() -> None:
    labels = {"background": 0, "vertebrae_L5": 1, "l4": 2, "Vertebra T13": 3, "S1": 4, "rib": 5}
    assert verse_values(labels) == {0: 0, 1: 24, 2: 23, 3: 28, 4: 26, 5: 0}


def test_content_hash_follows_the_content_only(lumbar: Path, tmp_path: Path) -> None:
    first = RawDataset(lumbar).content_hash()
    copy = edited(lumbar, tmp_path / "Dataset777_Elsewhere")
    assert RawDataset(copy).content_hash() == first
    before = RawDataset(copy).case_digest("case_00")
    shutil.copyfile(copy / "labelsTr" / "case_01.nii.gz", copy / "labelsTr" / "case_00.nii.gz")
    assert RawDataset(copy).content_hash() != first and RawDataset(copy).case_digest("case_00") != before


def test_splits_equal_nnunets_and_are_kept(tmp_path: Path) -> None:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    cases = [f"case_{i:03d}" for i in range(23)]
    splits = load_splits(tmp_path, cases)
    assert [{k: [str(c) for c in v] for k, v in s.items()} for s in generate_crossval_split(cases)] == splits
    assert json.loads((tmp_path / "splits_final.json").read_text()) == splits
    reversed_splits = splits[::-1]
    (tmp_path / "splits_final.json").write_text(json.dumps(reversed_splits))
    assert load_splits(tmp_path, cases) == reversed_splits


def test_new_and_vanished_cases_are_errors(tmp_path: Path) -> None:
    load_splits(tmp_path, ["a", "b", "c", "d", "e", "f"])
    with pytest.raises(InputError, match="lacks 1 of the 7 cases .*'g'.*never train"):
        load_splits(tmp_path, list("abcdefg"))
    with pytest.raises(InputError, match="names 1 cases that are not preprocessed"):
        load_splits(tmp_path, list("abcde"))
    (tmp_path / "splits_final.json").write_text('{"train": []}')
    with pytest.raises(InputError, match="no split file"):
        load_splits(tmp_path, list("abc"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=40))
def test_no_patient_is_in_both_parts(owners: list[int]) -> None:
    cases = [f"c{i:02d}" for i in range(len(owners))]
    patients = {case: f"p{owner}" for case, owner in zip(cases, owners, strict=True)}
    splits = make_splits(cases, patients)
    people = set(patients.values())
    assert len(splits) == min(5, len(people))
    for split in splits:
        assert set(split["train"]) | set(split["val"]) == set(cases)
        if len(people) > 1:
            assert not {patients[c] for c in split["train"]} & {patients[c] for c in split["val"]}
            assert split["val"]
    assert sorted(c for s in splits for c in s["val"]) == cases


def test_few_cases_and_special_folds() -> None:
    splits = make_splits(["a", "b", "c"])
    assert len(splits) == 3 and all(len(s["val"]) == 1 for s in splits)
    assert make_splits(["a"]) == [{"train": ["a"], "val": ["a"]}]
    assert fold_cases(splits, "all") == (["a", "b", "c"], ["a", "b", "c"])
    assert fold_cases(splits, 1) == (splits[1]["train"], splits[1]["val"])
    many = [f"c{i}" for i in range(10)]
    train, val = fold_cases(make_splits(many), 7)
    assert len(train) == 8 and sorted(train + val) == many
    for wrong in ("x", -1):
        with pytest.raises(InputError):
            fold_cases(splits, wrong)
    with pytest.raises(InputError, match="only one case"):
        fold_cases(make_splits(["a"]), 3)


def test_preprocessed_folder_needs_complete_cases(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        PreprocessedDataset(tmp_path / "none")
    (tmp_path / "case.b2nd").write_bytes(b"half")
    with pytest.raises(InputError, match="no complete case"):
        PreprocessedDataset(tmp_path)


def test_crop_and_pad_keeps_air_outside() -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    inside = adapters.crop_and_pad(array, (-1, 0, 2), (3, 3, 4), pad_value=-1024)
    assert inside.shape == (3, 3, 4) and (inside[0] == -1024).all() and np.array_equal(inside[1:, :, :2], array[:, :, 2:])
    assert (adapters.crop_and_pad(array, (5, 0, 0), (2, 2, 2), pad_value=-1024) == -1024).all()


def test_nnunets_own_check_accepts_and_refuses(tmp_path: Path) -> None:
    names = list(LEVELS[17:20])
    good = write_dataset(tmp_path / "Dataset503_Good", {"one": spine(names)[:2]})
    adapters.verify_dataset_integrity(good, 1)
    bad = edited(good, tmp_path / "Dataset504_Bad", numTraining=2)
    with pytest.raises(InputError, match="integrity check refuses"):
        adapters.verify_dataset_integrity(bad, 1)


def test_scans_without_any_label_say_what_to_do(tmp_path):
    place = lumbar_dataset(tmp_path / "Dataset501_Lumbar")
    shutil.rmtree(place / "labelsTr")
    with pytest.raises(InputError, match="training needs some labelled scans; label them, or .*spineclue_predict -i"):
        RawDataset(place)


def test_a_patient_on_both_sides_of_a_fold_is_refused(tmp_path):
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["a1", "b1"], "val": ["a2"]}]))
    with pytest.raises(InputError, match="fold 0 has patient 'anna' among its training and its validation cases"):
        load_splits(tmp_path, ["a1", "a2", "b1"], {"a1": "anna", "a2": "anna", "b1": "bo"})


def test_a_case_on_both_sides_of_a_fold_is_refused_and_a_single_one_is_not(tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": ["a", "b"], "val": ["b"]}]))
    with pytest.raises(InputError, match="fold 0 has case 'b' among its training and its validation cases"):
        load_splits(tmp_path, ["a", "b"])
    file.write_text(json.dumps([{"train": ["a"], "val": ["a"]}]))
    assert load_splits(tmp_path, ["a"])[0]["val"] == ["a"]
