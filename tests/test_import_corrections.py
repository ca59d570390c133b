"""Corrected results come back as training cases; the next cases worth labelling are ranked."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from block_spine import BlockSpine, Pose, block_spine

from spineclue_v2.anatomy import LABEL_OF_NAME, dataset_labels
from spineclue_v2.cli._common import main
from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.volume import Volume, read_labels, write_volume
from spineclue_v2.planning.suggest import doubt_of, rank
from spineclue_v2.utilities.files import read_json, write_json


@pytest.fixture(scope="module")
def spine() -> BlockSpine:
    return block_spine({level: Pose() for level in ("L1", "L2", "L3")}, (3.0, 3.0, 3.0))


@pytest.fixture
def dataset(spine: BlockSpine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One labelled and one unlabelled scan, which is stored in another orientation."""
    monkeypatch.setenv("spineclue_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("spineclue_results", str(tmp_path / "results"))
    folder = tmp_path / "raw" / "Dataset501_Blocks"
    write_volume(spine.labels, folder / "labelsTr" / "old.nii.gz")
    write_volume(spine.ct, folder / "imagesTr" / "old_0000.nii.gz")
    write_volume(spine.ct.reoriented("RAS"), folder / "imagesUl" / "new_0000.nii.gz")
    write_json(folder / "dataset.json", {"channel_names": {"0": "CT"}, "labels": dataset_labels(), "numTraining": 1,
                                         "file_ending": ".nii.gz"})
    return folder


def segmentation(labels: Volume, path: Path, names: dict[str, int], layers: bool = False) -> Path:
    """As 3D Slicer saves it: segments with names and values of its own, in one layer or one layer each."""
    import SimpleITK as sitk

    if layers:
        array = np.stack([(labels.array == LABEL_OF_NAME[name]).astype(np.uint8) for name in names], -1)
        image = sitk.GetImageFromArray(array, isVector=True)
        image.CopyInformation(labels.to_sitk())
    else:
        renumbered = np.zeros_like(labels.array)
        for name, value in names.items():
            renumbered[labels.array == LABEL_OF_NAME.get(name, LABEL_OF_NAME["L2"])] = value
        image = Volume(renumbered, labels.geometry).to_sitk()
    for number, (name, value) in enumerate(names.items()):
        fields = {"ID": f"Segment_{number}", "Name": name, "LabelValue": "1" if layers else str(value),
                  "Layer": str(number if layers else 0)}
        for key, text in fields.items():
            image.SetMetaData(f"Segment{number}_{key}", text)
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


@pytest.mark.parametrize("layers", [False, True])
def test_a_corrected_segmentation_becomes_a_training_case(dataset: Path, spine: BlockSpine, tmp_path: Path, layers: bool) -> None:
    file = segmentation(spine.labels, tmp_path / "new.seg.nrrd", {"L3": 1, "L1": 2, "L2": 3}, layers)
    assert main("import_corrections", ["-i", str(file), "-d", "501"]) == 0
    raw = RawDataset(dataset)
    assert raw.cases == ["new", "old"] and not raw.unlabelled
    stored = read_labels(raw.label("new"))
    assert stored.geometry.orientation == "RAS"             # that of its scan
    assert np.array_equal(stored.reoriented("LPS").array, spine.labels.array)
    assert read_json(dataset / "provenance.json")["new"]["levels"] == ["L1", "L2", "L3"]


def test_a_part_of_the_grid_is_put_in_its_place(dataset: Path, spine: BlockSpine, tmp_path: Path) -> None:
    inside = np.argwhere(spine.labels.array > 0)
    low, high = inside.min(0), inside.max(0) + 1
    part = spine.labels.array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    cropped = Volume(np.ascontiguousarray(part), spine.labels.geometry.cropped(low, high - low))
    file = segmentation(cropped, tmp_path / "new.seg.nrrd", {"L1": 1, "L2": 2, "L3": 3})
    assert main("import_corrections", ["-i", str(file), "-d", "501"]) == 0
    assert np.array_equal(read_labels(RawDataset(dataset).label("new")).reoriented("LPS").array, spine.labels.array)


def test_another_grid_is_one_sentence_and_changes_nothing(dataset: Path, spine: BlockSpine, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    grid = spine.labels.geometry
    moved = Volume(spine.labels.array, ImageGrid(grid.shape, grid.spacing, (1.0, 2.0, 3.5), grid.direction))
    file = segmentation(moved, tmp_path / "new.seg.nrrd", {"L1": 1, "L2": 2, "L3": 3})
    before = sorted(p.relative_to(dataset) for p in dataset.rglob("*"))
    assert main("import_corrections", ["-i", str(file), "-d", "501"]) == 2
    said = capsys.readouterr().err
    assert "another grid" in said and said.count("\n") == 1
    assert sorted(p.relative_to(dataset) for p in dataset.rglob("*")) == before


def test_labels_that_are_there_are_replaced_only_when_told(dataset: Path, spine: BlockSpine, tmp_path: Path) -> None:
    corrected = spine.labels.array.copy()
    corrected[corrected == LABEL_OF_NAME["L1"]] = 0
    file = segmentation(Volume(corrected, spine.labels.geometry), tmp_path / "old.seg.nrrd", {"L2": 2, "L3": 3})
    assert main("import_corrections", ["-i", str(file), "-d", "501"]) == 2
    assert main("import_corrections", ["-i", str(file), "-d", "501", "--replace"]) == 0
    assert np.array_equal(read_labels(dataset / "labelsTr" / "old.nii.gz").array, corrected)
    assert np.array_equal(read_labels(dataset / "labelsReplaced" / "old.nii.gz").array, spine.labels.array)


@pytest.mark.parametrize(("names", "said"), [({"Segment_1": 1}, "vertebra"), ({"L1": 1, "vertebrae_L1": 2}, "same vertebra")])
def test_segments_that_name_no_level_are_one_sentence(dataset: Path, spine: BlockSpine, tmp_path: Path, names: dict[str, int], said: str,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    file = segmentation(spine.labels, tmp_path / "new.seg.nrrd", names)
    assert main("import_corrections", ["-i", str(file), "-d", "501"]) == 2
    assert said in capsys.readouterr().err


def record(confidence: float, levels: tuple[str, ...], anchored: bool = True) -> dict[str, Any]:
    return {"vertebrae": [{"level": level, "confidence": confidence} for level in levels], "numbering_anchored": anchored}


def test_doubt_rises_with_what_is_unsure() -> None:
    sure, unsure = record(0.99, ("L1",)), record(0.6, ("L1",))
    assert doubt_of(sure) < doubt_of(unsure) < doubt_of(unsure | {"numbering_anchored": False})


def test_doubted_cases_of_rare_levels_come_first_and_do_not_repeat() -> None:
    records = {"a": record(0.6, ("L1", "L2")), "b": record(0.6, ("C3", "C4")), "c": record(0.6, ("C3", "C4")), "d": record(0.99, ("C3",))}
    chosen = rank(records, {"L1": 2, "L2": 2}, 3)
    assert [entry.case for entry in chosen] == ["b", "c", "a"]
    assert chosen[1].rarity == pytest.approx(1 / np.sqrt(2), abs=1e-4)     # "b" shows its levels already
    assert [entry.case for entry in rank(records, {"L1": 0, "L2": 0}, 2)] == ["a", "b"]


def test_the_command_suggests_or_says_what_to_run(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("suggest", ["501"]) == 2
    assert "spineclue_predict -i" in capsys.readouterr().err
    write_json(tmp_path / "results" / "Dataset501_Blocks" / "predictionsUl" / "new.json", record(0.8, ("L1", "L2")))
    assert main("suggest", ["501", "-n", "3"]) == 0
    assert "new" in capsys.readouterr().out
