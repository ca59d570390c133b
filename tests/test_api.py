"""The Python interface: results that draw and save themselves, options, batches, threads, and what bad input says."""
from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from analytic import ThresholdDetector, ThresholdSegmenter
from blocks import spine
from example_fingerprint import fingerprint
from tiny_dataset import edited

import spineclue_v2
from spineclue_v2 import SpineCLUE, SpineResult
from spineclue_v2.anatomy.vertebra import vertebra_record
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_labels, write_volume
from spineclue_v2.inference.model import Model, build_network
from spineclue_v2.inference.predict_folder import predict
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.results import MRResult
from spineclue_v2.stages.localize.network import SliceDetector
from spineclue_v2.stages.localize.plan import LocalizeNetwork
from spineclue_v2.training.stage_model import StageModel

NAMES = ("T12", "L1", "L2")
CPU = torch.device("cpu")


@cache
def plans() -> Any:
    edits: dict[str, dict[str, Any]] = {
        "localize": {"network": {"slice_size": (96, 64)}, "run": {"slice_gap_mm": 4.0}},
        "segment": {"network": {"features": (4, 8), "blocks": (1, 1), "crop_size": (24, 32, 32)}},
        "identify": {"network": {"width": 4, "hidden": 16, "projection_dim": 8, "crop_size": (16, 32, 32), "pool_grid": (1, 1, 1)}}}
    return edited(SpineCLUEPlanner("raw", fingerprint(), 1, "cpu").plan(), edits, spacing=2.0)


def model(detector: torch.nn.Module | None = None) -> SpineCLUE:
    """Thresholds that find the block spines of `blocks`, and a fresh network that names them."""
    torch.manual_seed(0)
    networks = {"localize": detector or ThresholdDetector(), "segment": ThresholdSegmenter(),
                "identify": build_network("identify", plans())}
    stages = {name: StageModel([network.eval()], [{"temperature": 0.1}], [{}], ["0" * 64]) for name, network in networks.items()}
    return SpineCLUE(Model(plans(), CPU, stages, "test", {"name": "test", "source": "thresholds"}))


@pytest.fixture(scope="module")
def api() -> SpineCLUE:
    return model()


@pytest.fixture(scope="module")
def scan() -> Volume:
    return spine(NAMES)[0]


@pytest.fixture(scope="module")
def soft() -> Volume:
    """Tissue without a spine."""
    array = np.random.default_rng(0).normal(20, 20, (30, 30, 30)).astype(np.int16)
    return Volume(array, ImageGrid(array.shape, (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), np.eye(3)))


@pytest.fixture(scope="module")
def found(api: SpineCLUE, scan: Volume) -> SpineResult:
    return api.predict(scan)


def said(result: SpineResult) -> list[dict[str, Any]]:
    """All plain values of the vertebrae, without the seconds."""
    return [vertebra_record(v) for v in result.vertebrae]


def same(a: SpineResult, b: SpineResult) -> bool:
    return said(a) == said(b) and np.array_equal(a.labels, b.labels) and len(a) > 0


def test_what_is_no_scan_is_one_sentence(api, scan):
    with pytest.raises(InputError, match=r"says nothing of its grid; give spacing=\(z, y, x\)"):
        api.predict(scan.array)
    with pytest.raises(InputError, match="expected three numbers"):
        api.predict(scan.array, spacing=(1, 1))


def test_the_same_scan_gives_the_same_result_in_every_form(api, scan, found, tmp_path):
    write_volume(scan, tmp_path / "a.nii.gz")
    image = nibabel.load(tmp_path / "a.nii.gz")
    forms: dict[str, tuple[Any, dict[str, Any]]] = {
        "path": (tmp_path / "a.nii.gz", {}), "text": (str(tmp_path / "a.nii.gz"), {}), "SimpleITK": (scan.to_sitk(), {}),
        "nibabel": (image, {}), "affine": (np.asanyarray(image.dataobj), {"affine": image.affine}),
        "floating point": (image.get_fdata(), {"affine": image.affine})}
    assert len(found) == len(NAMES)
    for name, (form, where) in forms.items():
        assert same(api.predict(form, **where), found), name
    at_origin = replace(scan, geometry=replace(scan.geometry, origin=(0.0, 0.0, 0.0)))
    assert same(api.predict(scan.array, spacing=scan.spacing), api.predict(at_origin))


# -- results ---------------------------------------------------------------------------------------------------------------------
def test_a_result_owns_its_grid_and_draws_its_labels(found, scan):
    labels = found.labels
    assert labels.dtype == np.uint8 and labels.shape == scan.array.shape and found.grid == scan.geometry
    assert found.labels is labels and not labels.flags.writeable
    assert set(np.unique(labels)) == {0} | {row["label"] for row in found.to_dict()["vertebrae"]}
    assert [row["structure"] for row in found.structures] == [v.level for v in found]
    with pytest.warns(DeprecationWarning, match="result.labels"):
        assert np.array_equal(SpineCLUE.label_map(found, scan), labels)


def test_a_result_is_a_collection_of_levels(found):
    levels = [v.level for v in found]
    assert len(found) == len(levels) == 3 and levels[0] in found and "C1" not in found
    assert found[levels[1]] in found.vertebrae and found[levels[1]].level == levels[1]
    with pytest.raises(KeyError, match=f"'C1' was not found; there are {levels[0]}"):
        found["C1"]
    assert len(repr(found)) < 80 and all(level in repr(found) for level in levels) and "no vertebra" in repr(SpineResult((), True))
    doubled = replace(found, vertebrae=tuple(replace(v, level="L1", confidence=c) for v, c in zip(found, (0.2, 0.9, 0.4), strict=True)))
    assert doubled["L1"].confidence == 0.9


def test_a_result_is_a_table(found):
    table = found.to_dataframe()
    assert table["level"].tolist() == [v.level for v in found]
    np.testing.assert_allclose(table[["x_mm", "y_mm", "z_mm"]].to_numpy(float), [v.body_centre for v in found], atol=1e-3)
    empty = SpineResult((), True).to_dataframe()
    assert len(empty) == 0 and list(empty.columns) == list(table.columns)


def test_a_notebook_shows_the_table_and_nothing_of_it_is_markup(found):
    shown = replace(found, notes=("<script>alert(1)</script>",), vertebrae=(replace(found.vertebrae[0], level="<b>L1</b>"),))._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "&lt;b&gt;L1&lt;/b&gt;" in shown
    assert shown.count("<tr>") == 2 and "no vertebra found" in SpineResult((), True)._repr_html_()


def without_times(folder: Path) -> dict[str, Any]:
    """Content of all files; seconds and where the scan lay are left out."""
    content: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".html":
            content[path.name] = "a page, which says the seconds"
        elif path.suffix == ".json":
            content[path.name] = json.loads(path.read_text())
            if isinstance(content[path.name], dict):
                content[path.name].pop("seconds", None)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                content[path.name] = {name: arrays[name].tolist() for name in arrays}
        else:
            content[path.name] = path.read_bytes()
    return content


def test_save_writes_what_the_command_writes(api, scan, tmp_path):
    path = tmp_path / "case.nii.gz"
    write_volume(scan, path)
    predict(path, tmp_path / "command", api.model, progress=False, save_probabilities=True)
    result = api.predict(path)
    files = result.save(tmp_path / "python", "case", probabilities=True)
    command = {name: content for name, content in without_times(tmp_path / "command").items() if not name.endswith((".csv", ".parquet"))
               or name.startswith("case_")}
    assert command == without_times(tmp_path / "python")
    assert set(files.values()) | {tmp_path / "python" / name for name in ("labels_slicer.ctbl", "labels_itksnap.txt")} == {
        path for path in (tmp_path / "python").rglob("*") if path.is_file()}
    assert np.array_equal(read_labels(files["labels"]).array, result.labels)
    record = json.loads(files["record"].read_text())
    assert {"read", "report", "total"} <= set(record["seconds"])
    assert {k: v for k, v in record.items() if k != "seconds"} == {k: v for k, v in result.to_dict().items() if k != "seconds"}


def test_what_cannot_be_saved_is_one_sentence(api, scan, found, tmp_path):
    bare = api.predict(scan, keep_scan=False)
    with pytest.raises(InputError, match="a.png cannot be drawn: the scan was not kept"):
        bare.save(tmp_path / "out", "a")
    assert not (tmp_path / "out").exists()
    assert set(bare.save(tmp_path / "out", "a", report=False)) == {"arguments", "plans", "labels", "centroids", "evidence", "record",
                                                                   "measures", "parts"}
    for name in ("", "a/b", ".."):
        with pytest.raises(InputError, match="is no name of a case"):
            found.save(tmp_path / "out", name)
    write_volume(scan, tmp_path / "one.nii.gz")
    with pytest.raises(InputError, match="would replace the scan itself"):
        api.predict(tmp_path / "one.nii.gz").save(tmp_path, "one")
    with pytest.raises(InputError, match="does not know the grid"):
        replace(found, grid=None).save(tmp_path, "x")


def test_a_result_of_mr_is_of_the_same_kind(tmp_path):
    array = np.zeros((6, 20, 20), np.uint8)
    array[2:4, 3:9, 4:12], array[2:4, 10:13, 4:12] = 24, 52
    grid = ImageGrid(array.shape, (4.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    image = Volume((array.astype(np.int16) + 100), grid)
    result = MRResult((), False, grid=grid, label_volume=Volume(array, grid), classes={"L5": 24, "L4/L5": 52, "S": 26}, stage="hybrid_2d",
                      scan=image)
    assert isinstance(result, SpineResult) and len(result) == 2 and "L4/L5" in result and result["L5"]["volume_ml"] == 0.384
    assert np.array_equal(result.labels, array) and not result.labels.flags.writeable and array.flags.writeable
    assert result.to_dataframe()["structure"].tolist() == ["L5", "L4/L5"] and "2 structures" in result._repr_html_()
    assert set(result.save(tmp_path, "m")) == {"arguments", "report", "page", "thumbnail", "labels", "record"}
    assert json.loads((tmp_path / "m.json").read_text())["structures"] == [dict(row) for row in result.structures]
    with pytest.raises(InputError, match="no meaning for a model of MR"):
        result.save(tmp_path, "m", probabilities=True)
    with pytest.raises(KeyError, match="'L1' was not found; there are L5, L4/L5"):
        result["L1"]


# -- calls -----------------------------------------------------------------------------------------------------------------------
def test_progress_is_told_and_can_stop(api, scan):
    told: list[tuple[str, float]] = []
    api.predict(scan, progress=lambda step, fraction: told.append((step, fraction)))
    steps, fractions = zip(*told, strict=True)
    assert {"read", "localize", "segment", "identify"} <= set(steps)
    assert list(fractions) == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1

    def stop(step: str, fraction: float) -> None:
        if step == "segment":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.predict(scan, progress=stop)


def test_many_scans_come_one_by_one_and_failures_do_not_stop_them(api, scan, soft):
    taken: list[int] = []

    def scans() -> Iterator[Any]:
        for number, item in enumerate((scan, "nowhere.nii.gz", soft)):
            taken.append(number)
            yield item

    outcomes = api.predict_many(scans())
    assert taken == []
    item, first = next(outcomes)
    assert item is scan and isinstance(first, SpineResult) and len(first) == 3 and taken == [0]
    (_, second), (_, third) = outcomes
    assert isinstance(second, InputError) and "does not exist" in str(second)
    assert isinstance(third, SpineResult) and len(third) == 0
    with pytest.raises(InputError, match="classifiers asked for are unknown: color"):
        api.predict_many([scan], classifiers=["color"])


@pytest.mark.parametrize("options, sentence", [({"classifiers": ("shape", "witness")}, "unknown: witness; give some of shape, geometry"),
                                               ({"classifiers": ()}, "asked for are none")])
def test_options_that_do_not_exist_are_refused(api, scan, options, sentence):
    with pytest.raises(InputError, match=sentence):
        api.predict(scan, **options)


def test_options_count(api, scan, found):
    plain = api.predict(scan, forbid_anomalies=True, mirror=True, classifiers="shape")
    assert plain.provenance is not None
    asked = {"forbid_anomalies": True, "mirror": True, "classifiers": ("shape",), "modality": "auto"}
    assert {name: plain.provenance.options[name] for name in asked} == asked
    assert found.provenance is not None and found.provenance.options["forbid_anomalies"] is False


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="Model folder .* does not exist"):
        SpineCLUE.from_pretrained(tmp_path / "none")
    with pytest.raises(InputError, match="have no folds"):
        SpineCLUE.from_pretrained(folds=[0])
    with pytest.raises(InputError, match="'typo' is no dataset"):
        SpineCLUE.from_pretrained("typo", device="cpu")


def test_the_top_level_names_come_when_asked_for():
    assert spineclue_v2.__all__ == ["BaseTrainer", "SpineCLUE", "SpineCLUEPlanner", "SpineResult", "Stage", "Volume", "__version__"]
    for name in spineclue_v2.__all__:
        assert getattr(spineclue_v2, name) is not None and name in dir(spineclue_v2)
    with pytest.raises(AttributeError, match="no attribute 'Spine'"):
        spineclue_v2.Spine  # noqa: B018
    assert (Path(spineclue_v2.__file__).parent / "py.typed").is_file()


# -- no vertebra -----------------------------------------------------------------------------------------------------------------
def test_no_vertebra_anchors_nothing(api, soft, tmp_path):
    result = api.predict(soft)
    assert len(result) == 0 and not result and result.numbering_anchored is False and not result.labels.any()
    assert result.to_dict()["numbering_anchored"] is False and result.to_dict()["status"] == "no vertebra found"
    assert SpineResult((), True).numbering_anchored is False
    result.save(tmp_path, "leg")
    assert json.loads((tmp_path / "leg.json").read_text())["numbering_anchored"] is False


def test_the_command_counts_scans_without_vertebra_apart(scan, soft, tmp_path, capsys):
    from argparse import Namespace

    from spineclue_v2.cli.predict import predict_and_report

    for name, volume in (("a", scan), ("b", soft)):
        write_volume(volume, tmp_path / "in" / f"{name}.nii.gz")

    def printed(source: Path) -> str:
        args = Namespace(i=str(source), o=str(tmp_path / "out"), forbid_anomalies=False, mirror=False, classifiers=("shape",), dask=None,
                         np=0, no_measures=True,
                         continue_prediction=False, num_parts=1, part_id=0, save_probabilities=False, no_report=True,
                         disable_progress_bar=True, intensity_offset=None, json=False, levels=[], also=[], dicom=None, bids=False,
                         crops=None, modality="auto", sacrum="yes")
        assert predict_and_report(args, model().model) == 0
        return capsys.readouterr().out

    assert f"1 of 2 scans are labelled in {tmp_path / 'out'}; no vertebra was found in 1: b." in printed(tmp_path / "in")
    assert "0 of 1 scans are labelled" in printed(tmp_path / "in" / "b.nii.gz")
    assert printed(tmp_path / "in" / "a.nii.gz") == f"1 of 1 scans are labelled in {tmp_path / 'out'}.\n"


# -- threads ---------------------------------------------------------------------------------------------------------------------
def small_detector() -> SliceDetector:
    torch.manual_seed(0)
    return SliceDetector(LocalizeNetwork("yolo11", "n", (96, 64)), 2).eval()


def test_two_threads_with_other_slice_sizes_do_not_share_anchors():
    """Both are held where the head has checked its anchors and not yet used them, so shared ones would be the other's every time."""
    detector, sizes = small_detector(), ((160, 96), (96, 160))
    slices = [torch.rand((1, 2, *size), generator=torch.Generator().manual_seed(1)) for size in sizes]

    def boxes(number: int) -> torch.Tensor:
        with torch.inference_mode():
            return detector.boxes(slices[number], 1e-6, 0.5)[0]

    wanted, meeting = [boxes(0), boxes(1)], threading.Barrier(2, timeout=30)
    assert all(len(rows) for rows in wanted)

    def meet(*_: Any) -> None:
        meeting.wait()

    detector.model.model[-1].dfl.register_forward_hook(meet)

    def work(number: int) -> int:
        return sum(not torch.equal(boxes(number), wanted[number]) for _ in range(10))

    with ThreadPoolExecutor(2) as executor:
        assert list(executor.map(work, (0, 1))) == [0, 0]


class WatchedDetector(ThresholdDetector):
    """Threshold boxes whose scores depend on every box of a real detection head, so that a wrong one is seen in the result."""

    def __init__(self) -> None:
        super().__init__()
        self.head = small_detector()
        self.head.model.model[-1].dfl.register_forward_hook(lambda *_: time.sleep(0.003))  # another thread's turn

    def boxes(self, slices: torch.Tensor, min_score: float, nms_iou: float) -> list[torch.Tensor]:
        found = super().boxes(slices, min_score, nms_iou)
        for rows, real in zip(found, self.head.boxes(slices, 1e-6, nms_iou), strict=True):
            rows[:, 4] = 0.6 + 0.3 * torch.sin(real.sum())
        return found


def test_eight_threads_get_what_one_gets():
    """Scans of different sizes by one model: every value and every label to the last bit."""
    api = model(WatchedDetector())
    scans = [spine(NAMES[:2 + k % 2], margin=10.0 + 4 * k)[0] for k in range(8)]
    alone = [api.predict(volume, keep_scan=False) for volume in scans]
    assert len({volume.array.shape for volume in scans}) == 8 and all(len(result) for result in alone)
    random = torch.random.get_rng_state()
    with ThreadPoolExecutor(8) as executor:
        together = list(executor.map(lambda volume: api.predict(volume, keep_scan=False), scans))
    assert torch.equal(torch.random.get_rng_state(), random)  # nobody draws from, or seeds, what all share
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_threads_may_save_at_once(found, tmp_path):
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda k: found.save(tmp_path, f"case_{k}"), range(4)))
    pictures = [(tmp_path / f"case_{k}.nii.gz").read_bytes() for k in range(4)]
    assert len(set(pictures)) == 1 and all((tmp_path / f"case_{k}.png").stat().st_size > 10_000 for k in range(4))
