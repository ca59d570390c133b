"""Malformed input by the hundred: name -> function of a fresh folder that hands one piece of it to a public function.

The makers are deterministic. Every entry must be refused with an `InputError` of one sentence; see test_malformed.py. Scans made by
hand are in bad_scans.py, generated ones in malformed_scans.py, hostile model archives in test_share.py.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_origin

import numpy as np
import torch
from bad_scans import written
from malformed_scans import SCANS, Maker
from small_model import small_plans

from spineclue_v2 import anatomy
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.dataset.splits import load_splits
from spineclue_v2.imageio.centroids import read_ctd
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.model_sharing.install_model import check_checkpoint
from spineclue_v2.plans.plans import GROUPS
from spineclue_v2.plans.schema import fields_of
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import CORE_STAGES, stage_of
from spineclue_v2.training.checkpoint import Checkpoint

CORPUS: dict[str, Maker] = dict(SCANS)

# Numbers that no JSON number of ours may be, as they stand in the text (json.loads takes NaN and Infinity).
NO_NUMBERS = ("null", "[]", "{}", '"x"', "NaN", "-Infinity", "1e999", "-1", "9" * 400)
NESTED = "[" * 100_000


# ---- plans -------------------------------------------------------------------------------------------------------------------
@cache
def plan_json() -> dict[str, Any]:
    return json.loads(json.dumps(small_plans().to_json()))


def plan_text(text: str | bytes) -> Maker:
    content = text if isinstance(text, bytes) else text.encode()
    return lambda folder: load_plans(written(folder / "plan.json", content))


def plan_with(edit: Callable[[dict[str, Any]], Any]) -> Maker:
    content = copy.deepcopy(plan_json())
    edit(content)
    return plan_text(json.dumps(content))


def value_replaced(stage: str, group: str, field: str, text: str) -> Maker:
    content = copy.deepcopy(plan_json())
    content["stages"][stage][group][field] = {"value": "@"}
    return plan_text(json.dumps(content).replace('"@"', text))


SIGNED = {"hu_min", "hu_max"}
WRONG_TEXTS = {str: ("null", "[]", "1"), bool: ("null", "1"), int: NO_NUMBERS + ("1.5", "true"), float: NO_NUMBERS,
               dict: ('"x"', "[1]", "null", "5")}
NUMBERS_BY_NAME = ("decoder_penalties", "classifier_weights")
for _stage in CORE_STAGES:
    for _group in GROUPS:
        for _name, _info in fields_of(stage_of(_stage).groups[_group]).items():
            _texts = WRONG_TEXTS.get(get_origin(_info.annotation) or _info.annotation, ('"x"', "[]", "[null]", "{}"))
            if _name in NUMBERS_BY_NAME:
                _texts += ('{"a": "x"}', '{"a": NaN}')
            for _text in _texts:
                if not (_text == "-1" and _name in SIGNED):
                    CORPUS[f"plan, {_stage}.{_group}.{_name} = {_text[:12]}"] = value_replaced(_stage, _group, _name, _text)
for _key in ("stages", "format", "plans_name", "planner", "dataset_name", "dataset_hash", "budget"):
    for _wrong in (None, [1], 7.5):
        CORPUS[f"plan, {_key} = {_wrong}"] = plan_with(lambda c, key=_key, wrong=_wrong: c.update({key: wrong}))
for _name, _edit in {
    "a stage is a list": lambda c: c["stages"].update(segment=[]),
    "a stage is null": lambda c: c["stages"].update(segment=None),
    "a group is a list": lambda c: c["stages"]["segment"].update(run=[]),
    "negative crop": lambda c: c["stages"]["segment"]["network"]["crop_size"].update(value=[32, -1, 32]),
    "crop of zero": lambda c: c["stages"]["identify"]["network"]["crop_size"].update(value=[0, 0, 0]),
    "crop of a million": lambda c: c["stages"]["segment"]["network"]["crop_size"].update(value=[10**6] * 3),
    "window upside down": lambda c: c["stages"]["localize"]["data"]["windows_hu"].update(value=[[400, -200]]),
    "orientation twice left": lambda c: c["stages"]["localize"]["data"]["orientation"].update(value="LRS"),
    "depth that is not built": lambda c: c["stages"]["identify"]["network"]["depth"].update(value=35),
    "more blocks than features": lambda c: c["stages"]["segment"]["network"]["blocks"].update(value=[1, 1, 1]),
    "a crop that does not halve": lambda c: c["stages"]["segment"]["network"]["crop_size"].update(value=[33, 30, 30]),
    "a crop of one coarse voxel": lambda c: c["stages"]["segment"]["network"]["crop_size"].update(value=[2, 2, 2]),
    "slices that do not fit the detector": lambda c: c["stages"]["localize"]["network"]["slice_size"].update(value=[64, 48]),
    "unknown optimiser": lambda c: c["stages"]["segment"]["run"]["optimizer"].update(value="adam"),
    "extra where it is fingerprinted": lambda c: c["stages"]["segment"]["network"].update(extra={"mine": 1}),
    "an old name beside the new one": lambda c: c["stages"]["identify"]["run"].update(decoder_prices={}),
    "unknown loss": lambda c: c["stages"]["identify"]["run"]["contrastive_loss"].update(value="both"),
    "unknown key at the top of a group": lambda c: c["stages"]["identify"]["data"].update(spacing=1),
}.items():
    CORPUS[f"plan, {_name}"] = plan_with(_edit)

# ---- any JSON file ------------------------------------------------------------------------------------------------------------
BROKEN_TEXTS: dict[str, bytes] = {
    "empty": b"",
    "spaces": b"   \n",
    "no JSON": b"hello",
    "half": b'{"a": [1, 2',
    "two": b"{} {}",
    "a comma": b'{"a": 1,}',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "nested": NESTED.encode(),
    "nested objects": b'{"a":' * 50_000,
    "long number": b'{"a": ' + b"9" * 5000 + b"}",
    "null bytes": bytes(100),
    "a list": b"[]",
    "a number": b"5",
    "a text": b'"text"',
    "null": b"null",
    "true": b"true",
}
GRID = ImageGrid((20, 24, 28), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))


def raw_dataset(folder: Path, dataset: bytes | None = None, **files: bytes) -> RawDataset:
    """A raw dataset of one case (files are empty: opening reads none) with other contents of its JSON files."""
    place = folder / "Dataset501_Example"
    for part, name in (("imagesTr", "a_0000.nii.gz"), ("labelsTr", "a.nii.gz")):
        (place / part).mkdir(parents=True)
        (place / part / name).touch()
    content = {"channel_names": {"0": "CT"}, "labels": anatomy.dataset_labels(), "numTraining": 1, "file_ending": ".nii.gz"}
    (place / "dataset.json").write_bytes(json.dumps(content).encode() if dataset is None else dataset)
    for name, text in files.items():
        (place / f"{name}.json").write_bytes(text)
    return RawDataset(place)


def dataset_with(**changes: Any) -> Maker:
    content = {"channel_names": {"0": "CT"}, "labels": anatomy.dataset_labels(), "numTraining": 1, "file_ending": ".nii.gz"}
    return lambda folder: raw_dataset(folder, json.dumps(content | changes).encode())


def splits_of(text: bytes) -> Maker:
    return lambda folder: load_splits(written(folder / "splits_final.json", text).parent, ["a", "b"])


def preprocessed(case: bytes | None = None, array: bytes | None = None) -> Maker:
    def make(folder: Path) -> object:
        (folder / "a.json").write_bytes(case if case is not None else b'{"geometry": {}, "vertebrae": {}}')
        if array is not None:
            (folder / "a.b2nd").write_bytes(array)
        dataset = PreprocessedDataset(folder)
        return dataset.properties("a"), dataset.image("a")

    return make


for _name, _text in BROKEN_TEXTS.items():
    CORPUS[f"plan file, {_name}"] = plan_text(_text)
    CORPUS[f"dataset.json, {_name}"] = lambda folder, text=_text: raw_dataset(folder, text)
    CORPUS[f"centroid file, {_name}"] = lambda folder, text=_text: read_ctd(written(folder / "a_ctd.json", text), GRID)
    CORPUS[f"splits, {_name}"] = splits_of(_text)
    CORPUS[f"preprocessed case, {_name}"] = preprocessed(_text)
    CORPUS[f"test sets, {_name}"] = lambda folder, text=_text: raw_dataset(folder, test_sets=text)

for _key, _values in {
    "channel_names": (None, [], {}, "CT", {"1": "CT"}),
    "file_ending": (None, 5, "nii", "", [".nii.gz"]),
    "numTraining": (None, 2, "1", -1, [1]),
    "labels": (
        None,
        [],
        {},
        "L1",
        {"background": 0},
        {"L1": 1},
        {"background": 0, "L1": [1, 2]},
        {"background": 0, "L1": "1"},
        {"background": 0, "L1": -1},
        {"background": 0, "L1": 1.5},
        {"background": 0, "L1": True},
        {"background": 1, "L1": 2},
        {"background": 0, "L1": 1, "L2": 1},
        {"background": 0, "L1": 1, "vertebra_L1": 2},
        {"background": 0, "liver": 1},
    ),
    "patients": ([1], "p", 5, {"unknown": "p"}, {"a": None}, {"a": ["p"]}),
    "dataset": (
        [],
        5,
        {"a": 5},
        {"a": {}},
        {"a": {"images": [], "label": "x"}},
        {"a": {"images": [5], "label": "x"}},
        {"a": {"images": ["x"]}},
        {"a": {"images": ["nowhere"], "label": "nowhere"}},
        {"../a": {"images": ["dataset.json"], "label": "dataset.json"}},
        {"..": {"images": ["dataset.json"], "label": "dataset.json"}},
        {"a\u0000": {"images": ["dataset.json"], "label": "dataset.json"}},
    ),
}.items():
    for _value in _values:
        CORPUS[f"dataset.json, {_key} = {str(_value)[:50]!r}"] = dataset_with(**{_key: _value})
for _value in ({"public": "a"}, {"public": 5}, {"public": None}, {"public": [["a"]]}, [["a"]]):
    CORPUS[f"test sets, {_value}"] = lambda folder, value=_value: raw_dataset(folder, test_sets=json.dumps(value).encode())
for _value in (
    [{}],
    [5],
    [None],
    ["train"],
    [{"train": 5, "val": []}],
    [{"train": ["a"]}],
    [{"train": ["a"], "val": None}],
    [{"train": ["a"], "val": []}],
    [{"train": ["a", "b"], "val": ["c"]}],
    {"train": ["a"], "val": ["b"]},
):
    CORPUS[f"splits, {_value}"] = splits_of(json.dumps(_value).encode())
for _value in ({"geometry": 5, "vertebrae": {}}, {"geometry": {}, "vertebrae": []}, {"geometry": {}}, {"vertebrae": {}}):
    CORPUS[f"preprocessed case, {_value}"] = preprocessed(json.dumps(_value).encode())
for _name, _bytes in {"missing": None, "empty": b"", "text": b"no array" * 99, "zeros": bytes(5000)}.items():
    CORPUS[f"preprocessed array, {_name}"] = preprocessed(array=_bytes)

_POINT = {"label": 20, "X": 1.0, "Y": 2.0, "Z": 3.0}
for _head, _row in (
    ({"direction": 5}, _POINT),
    ({"direction": None}, _POINT),
    ({"direction": []}, _POINT),
    ({"direction": "PI"}, _POINT),
    ({"direction": ["P", "I", "X"]}, _POINT),
    ({"direction": ["P", "P", "R"]}, _POINT),
    ({"direction": ["P", "A", "R"]}, _POINT),
    ({"direction": [["P"], "I", "R"]}, _POINT),
    ({"direction": [1, 2, 3]}, _POINT),
    ({}, _POINT),
    (5, _POINT),
    ([], _POINT),
    *(
        ({"direction": ["P", "I", "R"]}, row)
        for row in (
            5,
            None,
            "label",
            _POINT | {"label": "L1"},
            _POINT | {"label": None},
            _POINT | {"label": [20]},
            _POINT | {"label": float("nan")},
            _POINT | {"label": float("inf")},
            _POINT | {"X": "a"},
            _POINT | {"Y": None},
            _POINT | {"Z": [1]},
            _POINT | {"X": 10**400},
            {"label": 20, "X": 1.0, "Y": 2.0},
        )
    ),
):
    CORPUS[f"centroid file, {str(_head)[:40]} and {str(_row)[:60]}"] = lambda folder, content=(_head, _row): read_ctd(
        written(folder / "a_ctd.json", json.dumps(content).encode()), GRID
    )


# ---- checkpoints --------------------------------------------------------------------------------------------------------------
def torch_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


GOOD_CHECKPOINT = {"format": 1, "network_weights": {"w": torch.arange(4000.0)}, "extra": {}, "meta": json.dumps({"stage": "identify"})}


def checkpoint_of(content: bytes) -> Maker:
    return lambda folder: Checkpoint.load(written(folder / "checkpoint_final.pth", content))


def checked_checkpoint(**changes: Any) -> Maker:
    return lambda folder: check_checkpoint(written(folder / "checkpoint_final.pth", torch_bytes(GOOD_CHECKPOINT | changes)))


class Surprise:
    """Cannot be loaded without running code."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


for _share in (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
    _content = torch_bytes(GOOD_CHECKPOINT)
    CORPUS[f"checkpoint cut at {_share}"] = checkpoint_of(_content[: int(len(_content) * _share)])
for _seed in range(8):
    CORPUS[f"checkpoint of noise {_seed}"] = checkpoint_of(np.random.default_rng(_seed).bytes(3000 + 500 * _seed))
for _name, _content in {
    "code": {"network_weights": {}, "meta": Surprise()},
    "a module": torch.nn.Linear(2, 2),
    "a list": [1, 2],
    "a tensor": torch.ones(3),
    "nothing": None,
    "no weights": {"meta": "{}"},
    "no description": {"network_weights": {}},
    "a newer format": GOOD_CHECKPOINT | {"format": 99},
    "a class": {"network_weights": Path, "meta": "{}"},
}.items():
    CORPUS[f"checkpoint of {_name}"] = checkpoint_of(torch_bytes(_content))
for _key, _values in {
    "network_weights": (None, [], "w", {"w": 5}, {"w": [1.0]}, {5: torch.ones(2)}, {"w": torch.zeros(1).expand(1 << 18, 1 << 18)}),
    "extra": (None, [], {"phi": "x"}, {"phi": torch.zeros(1).expand(1 << 40)}),
    "format": (None, "1", 1.5, [1]),
    "meta": (None, 5, {}, "", "{", "[]", "5", "null", NESTED),
}.items():
    for _number, _value in enumerate(_values):
        CORPUS[f"checkpoint to install, {_key} number {_number}"] = checked_checkpoint(**{_key: _value})
