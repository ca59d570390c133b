"""nnU-Net's label "ignore": what nobody annotated is neither vertebra nor background, in no stage."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks import spine, write_dataset

from spineclue_v2.adapters import dice_and_cross_entropy
from spineclue_v2.anatomy import IGNORED, LABEL_OF_NAME
from spineclue_v2.anatomy.structures import canonical_values
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.dataset.raw import RawDataset, verse_values
from spineclue_v2.errors import InputError
from spineclue_v2.evaluation.ignored import without_ignored
from spineclue_v2.evaluation.summary import evaluate_files
from spineclue_v2.imageio.volume import ImageGrid, Volume, write_volume
from spineclue_v2.planning.fingerprint import measure_case
from spineclue_v2.preprocessing.ct import preprocess_case
from spineclue_v2.stages.localize.data import SliceBatches
from spineclue_v2.stages.mr.soft_labels import labels_of_pixels, soft_dice_and_cross_entropy, soft_labels_of_pixels
from spineclue_v2.stages.mr.trainer import batch_dice, dice_per_class
from spineclue_v2.stages.segment.data import CropBatches

LEVELS = ["T12", "L1", "L2", "L3"]
LABELS = {"background": 0, **{name: LABEL_OF_NAME[name] for name in LEVELS}, "ignore": 40}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One case T12..L3 in a raw dataset; what lies higher than the middle of T12 was not annotated and is called "ignore"."""
    folder = tmp_path_factory.mktemp("raw") / "Dataset503_Ignore"
    scan, labels = spine(LEVELS, (2.0, 1.5, 1.5))[:2]
    top = np.argwhere(labels.array == LABELS["T12"])[:, 0]
    hidden = labels.array.copy()
    hidden[int(top.mean()):] = LABELS["ignore"]
    write_dataset(folder, {"a": (scan, Volume(hidden, labels.geometry))}, labels=LABELS)
    return folder


def test_the_label_is_read_as_nnunet_means_it(dataset: Path) -> None:
    raw = RawDataset(dataset)
    assert raw.verse_value[40] == IGNORED and canonical_values(raw.labels) == {name: LABEL_OF_NAME[name] for name in LEVELS}
    assert verse_values({"background": 0, "L1": 1, "Ignored tissue": 2})[2] == 0


@pytest.mark.parametrize(("edit", "sentence"), [
    ({"labels": LABELS | {"ignore": 18}}, "label 'ignore' has value 18; nnU-Net wants the highest of all"),
    ({"labels": LABELS | {"lumbar": [20, 21]}}, r"label 'lumbar' is a region \(\[20, 21\]\); regions are not supported"),
    ({"overwrite_image_reader_writer": "NaturalImage2DIO"}, "overwrite_image_reader_writer is 'NaturalImage2DIO'"),
    ({"channel_names": {"0": "noNorm"}}, "channel 0 is called 'noNorm', so its values are no HU"),
])
def test_what_is_not_supported_is_one_sentence(dataset: Path, tmp_path: Path, edit: dict[str, Any], sentence: str) -> None:
    from spineclue_v2.planning.mr_fingerprint import recognise

    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).symlink_to(dataset / name)
    (tmp_path / "dataset.json").write_text(json.dumps(json.loads((dataset / "dataset.json").read_text()) | edit))
    with pytest.raises(InputError, match=sentence):
        recognise(RawDataset(tmp_path))


def test_the_reader_that_nnunet_would_use_is_none_of_our_business(dataset: Path, tmp_path: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).symlink_to(dataset / name)
    content = json.loads((dataset / "dataset.json").read_text()) | {"overwrite_image_reader_writer": "SimpleITKIO"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert RawDataset(tmp_path).cases == ["a"]


def test_statistics_leave_out_what_is_not_annotated(dataset: Path) -> None:
    raw = RawDataset(dataset)
    record = measure_case(raw.image("a"), raw.label("a"), "a", raw.verse_value)
    assert not [finding for finding in record["findings"] if finding["severity"] == "error"]
    assert {name: v["touches_border"] for name, v in record["vertebrae"].items()} == dict.fromkeys(LEVELS, False) | {"T12": True}
    assert 0 < record["annotated_share"] < 1
    plain = measure_case(raw.image("a"), raw.label("a"), "a", raw.verse_value | {40: 0})
    assert record["intensity"]["mean"] > plain["intensity"]["mean"] + 20   # soft tissue called foreground


@pytest.fixture(scope="module")
def preprocessed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from spineclue_v2.plans.data import Data

    raw, folder = RawDataset(dataset), tmp_path_factory.mktemp("data")
    preprocess_case(raw.image("a"), raw.label("a"), folder, "a", Data(spacing_mm=2.0), raw.verse_value)
    return folder


def test_the_preprocessed_map_keeps_it(preprocessed: Path) -> None:
    data = PreprocessedDataset(preprocessed)
    labels, properties = data.labels("a")[:], data.properties("a")
    assert set(np.unique(labels)) == {0, IGNORED, *(LABEL_OF_NAME[name] for name in LEVELS)} and properties["partly_annotated"]
    assert list(properties["vertebrae"]) == LEVELS and properties["vertebrae"]["T12"]["touches_border"]


def test_crops_call_it_ignored_and_the_loss_passes_over_it(preprocessed: Path) -> None:
    maker = CropBatches(preprocessed, ["a"], ((-200.0, 800.0),), -1024, (32, 32, 32), 3.0, 1.0, 8, 1)
    target = torch.cat([maker(i)["target"] for i in range(2)])
    assert set(target.unique().tolist()) == {0, 1, IGNORED}
    logits = torch.randn(len(target), 2, *target.shape[2:])
    other = torch.where(target == IGNORED, torch.randn_like(logits) * 9, logits)
    loss = dice_and_cross_entropy(ignored=IGNORED)
    assert torch.allclose(loss(logits, target), loss(other, target), atol=1e-5)
    annotated = torch.where(target == IGNORED, 0, target)
    assert torch.allclose(loss(logits, annotated), dice_and_cross_entropy()(logits, annotated), atol=0)


def test_slices_show_air_where_nobody_looked_for_vertebrae(preprocessed: Path) -> None:
    from spineclue_v2.stages.localize.data import take_slice

    maker = SliceBatches(preprocessed, ["a"], ((-200.0, 800.0),), (96, 96), 2.0, 4, 1, augment=False)
    image, labels, _ = maker._case("a")
    rows = np.flatnonzero((take_slice(labels, "sagittal", labels.shape[2] // 2) == IGNORED).all(1))
    batch = maker(0)
    assert len(rows) > 3 and len(batch["boxes"]) > 0
    # Cranial is up: the upper part of every slice is what was ignored.
    shown = batch["image"][:, 0]
    first = [int(np.flatnonzero(picture.numpy().max(1) > 0)[0]) for picture in shown if picture.max() > 0]
    offset = (96 - labels.shape[0]) // 2
    assert min(first) >= max(0, offset) + len(rows) - 1


def test_pixels_of_mr_weigh_as_much_as_is_annotated_of_them() -> None:
    labels = torch.tensor([[[1, IGNORED], [1, IGNORED]], [[IGNORED, IGNORED], [2, IGNORED]]])
    shares = soft_labels_of_pixels(labels, 2, 3)
    assert torch.allclose(shares[:, :, 0, 0], torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.25]]))
    assert labels_of_pixels(labels, 2, 3).flatten().tolist() == [IGNORED, IGNORED]
    assert labels_of_pixels(torch.tensor([[[1, 1], [1, IGNORED]]]), 2, 3).item() == 1
    whole = soft_labels_of_pixels(torch.randint(0, 3, (2, 8, 8)), 2, 3)
    logits = torch.randn(whole.shape)
    half = whole.clone()
    half[:, :, :2] = 0
    far = torch.where(half.sum(1, keepdim=True) > 0, logits, torch.randn_like(logits) * 9)
    assert torch.allclose(soft_dice_and_cross_entropy(logits, half), soft_dice_and_cross_entropy(far, half), atol=1e-5)
    plain = torch.nn.functional.cross_entropy(logits[:, :, 2:], whole[:, :, 2:])
    assert soft_dice_and_cross_entropy(logits, half) < plain + 1 and torch.isfinite(plain)


def test_dice_of_mr_passes_over_it() -> None:
    target, predicted = np.array([1, 1, 2, IGNORED, IGNORED, 0]), np.array([1, 1, 2, 1, 2, 0])
    assert dice_per_class(predicted, target, ("L5", "L4")) == {"L5": 1.0, "L4": 1.0}
    assert batch_dice(torch.from_numpy(predicted), torch.from_numpy(target), 3) == 1.0


def test_a_vertebra_where_nobody_annotated_is_no_false_positive(tmp_path: Path) -> None:
    """L1 right; L2 all in the unannotated part; L3 a quarter in it."""
    from spineclue_v2.evaluation.files import CaseFiles

    grid = ImageGrid((24, 12, 12), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), np.eye(3))
    truth, guess = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)
    truth[2:6, 2:8, 2:8] = guess[2:6, 2:8, 2:8] = LABEL_OF_NAME["L1"]
    truth[12:] = 40
    guess[13:18, 2:8, 2:8], guess[9:13, 2:8, 2:8] = LABEL_OF_NAME["L2"], LABEL_OF_NAME["L3"]
    write_volume(Volume(truth, grid), tmp_path / "labelsTr" / "a.nii.gz")
    write_volume(Volume(guess, grid), tmp_path / "guess" / "a.nii.gz")
    files = CaseFiles("a", tmp_path / "labelsTr" / "a.nii.gz", tmp_path / "guess" / "a.nii.gz")
    found = evaluate_files(files, values=verse_values(LABELS))
    assert [row["level"] for row in found["spineclue"]["false_positives"]] == ["L3"]
    assert found["spineclue"]["counts"]["missed"] == 0 and found["metrics"][20]["Dice"] == 1.0
    assert found["metrics"][21]["n_pred"] == 0 and IGNORED not in found["metrics"] and found["metrics"][22]["n_pred"] == 3 * 36
    plain = Volume(np.where(truth == 40, 0, truth), grid)
    assert without_ignored(plain, Volume(guess, grid))[1] is not None and (without_ignored(plain, None)[0].array == plain.array).all()
