"""From a scan on disk to labels on its own grid: any orientation, folders, parts, folds, failures."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import ThresholdDetector, ThresholdSegmenter
from blocks import spine
from example_fingerprint import fingerprint
from tiny_dataset import edited

from spineclue_v2.cli import _common
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_labels, write_volume
from spineclue_v2.inference import model as model_module
from spineclue_v2.inference.model import build_network, load_trained
from spineclue_v2.inference.predict_folder import case_name, predict
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.plans.plans import Plans
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import CORE_STAGES, stage_folder_name
from spineclue_v2.training.checkpoint import Checkpoint

NAMES = ("T12", "L1", "L2", "L3", "L4")
CPU = torch.device("cpu")
QUIET = ("-device", "cpu", "--disable_progress_bar", "--no_report")


def plans() -> Plans:
    edits = {"localize": {"network": {"slice_size": (96, 64)}, "run": {"slice_gap_mm": 4.0}},
             "segment": {"network": {"features": (4, 8), "blocks": (1, 1), "crop_size": (24, 32, 32)}},
             "identify": {"network": {"width": 4, "hidden": 16, "projection_dim": 8, "crop_size": (16, 32, 32), "pool_grid": (1, 1, 1)}}}
    return edited(SpineCLUEPlanner("raw", fingerprint(), 1, "cpu").plan(), edits, spacing=2.0)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory) -> Path:
    """A results folder with two folds: thresholds that find the blocks for localize and segment, fresh networks for identify."""
    folder, agreed = tmp_path_factory.mktemp("results") / "Dataset498_Blocks", plans()
    for stage in CORE_STAGES:
        agreed.save(folder / stage_folder_name(stage) / "plans.json")
        for fold in (0, 1):
            torch.manual_seed(fold)
            network = {"localize": ThresholdDetector(0.25 + 0.02 * fold), "segment": ThresholdSegmenter(0.2 + 0.02 * fold)}.get(stage)
            network = network or build_network(stage, agreed)
            meta = {"stage": stage, "model_fingerprint": agreed.stage(stage).model_fingerprint, "fold": fold,
                    "fitted": {"temperature": 0.1}, "plans": agreed.to_json()}
            Checkpoint(network.state_dict(), meta).save(folder / stage_folder_name(stage) / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


@pytest.fixture
def trained(trained_once, monkeypatch) -> Path:
    """That folder, with the loader told about its analytic networks."""
    analytic: dict[str, Callable[[], torch.nn.Module]] = {"localize": ThresholdDetector, "segment": ThresholdSegmenter}
    monkeypatch.setattr(model_module, "build_network", lambda stage, agreed, trainer=None: (
        analytic[stage]() if stage in analytic else build_network(stage, agreed, trainer)))
    return trained_once


def run(*arguments: object) -> int:
    try:
        return _common.main("predict", [str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def record(output: Path, case: str) -> dict:
    return json.loads((output / f"{case}.json").read_text())


def spine_dice(found: Volume, truth: Volume) -> float:
    """Dice of all vertebrae together: which level is which is not asked of untrained networks."""
    a, b = found.array > 0, truth.array > 0
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def turned(volume: Volume, orientation: str, degrees: float) -> Volume:
    """The same voxels stored in another orientation by a scanner whose table is tilted."""
    result = volume.reoriented(orientation)
    angle = np.radians(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return Volume(result.array, replace(result.geometry, direction=turn @ result.geometry.direction,
                                        origin=tuple(turn @ np.array(result.geometry.origin))))


@pytest.mark.parametrize("orientation, degrees, spacing, ending", [
    ("LPS", 0, (2.0, 2.0, 2.0), ".nii.gz"), ("RAI", 0, (2.5, 1.5, 1.5), ".nrrd"), ("PIR", 12, (2.0, 1.6, 1.6), ".nii.gz"),
    ("SLA", -20, (1.5, 2.0, 2.0), ".mha"),
])
def test_any_orientation_gives_labels_on_the_scan_s_own_grid(trained, tmp_path, orientation, degrees, spacing, ending):
    ct, labels, centres = spine(NAMES, spacing)
    ct, labels = turned(ct, orientation, degrees), turned(labels, orientation, degrees)
    write_volume(ct, tmp_path / f"case_0000{ending}")
    assert run("-i", tmp_path / f"case_0000{ending}", "-o", tmp_path / "out", "-m", trained, "-f", 0, *QUIET) == 0
    found = read_labels(tmp_path / "out" / "case.nii.gz")
    assert found.geometry.same_grid(ct.geometry, tolerance=1e-2)
    assert spine_dice(found, labels) > 0.9
    content = record(tmp_path / "out", "case")
    assert content["status"] == "ok" and len(content["vertebrae"]) == len(NAMES)
    # Centres of the bodies in world coordinates: the scan's own centres of gravity of each block are near.
    for vertebra in content["vertebrae"]:
        index = ct.geometry.world_to_index(np.array(vertebra["body_centre_mm"]))
        assert found.array[tuple(np.round(index).astype(int))] == vertebra["label"]
    assert len(centres) == len({v["label"] for v in content["vertebrae"]})


@pytest.fixture
def scan(tmp_path) -> Path:
    path = tmp_path / "scans" / "one.nii.gz"
    write_volume(spine(NAMES[:3])[0], path)
    return path


def test_files_of_a_case(trained, tmp_path, scan):
    out = tmp_path / "out"
    assert run("-i", scan, "-o", out, "-m", trained, "-device", "cpu", "--save_probabilities", "--disable_progress_bar") == 0
    assert {p.name for p in out.iterdir() if p.suffix != ".parquet"} == {
        "vertebrae.csv", "cases.csv", "measures.csv", "one.nii.gz", "one_ctd.json", "one.json", "one.png", "one.html", "thumbnails",
        "one.npz", "plans.json", "one_evidence.npz", "one_measures.csv", "one_measures.png", "one_parts.nii.gz", "predict_args.json",
        "labels_slicer.ctbl", "labels_itksnap.txt"}
    with np.load(out / "one.npz") as arrays:
        np.testing.assert_allclose(arrays["probabilities"].sum(1), 1, atol=1e-4)
        assert arrays["probabilities"].shape == (len(record(out, "one")["vertebrae"]), 24)
    fingerprints = record(out, "one")["plans"]["fingerprints"]
    assert {s: fingerprints[s] for s in CORE_STAGES} == {s: plans().stage(s).model_fingerprint for s in CORE_STAGES}
    assert record(out, "one")["plans"]["shipped_stands_in"] == ["geometry"]
    assert load_plans(out / "plans.json").stage("segment") == plans().stage("segment")


def test_nothing_of_an_earlier_run_stays_beside_a_new_result(trained, tmp_path, scan):
    model, out = load_trained(trained, ["0"], CPU), tmp_path / "out"

    def again(**wanted) -> int:
        """Time at which CASE.json was written."""
        predict(scan, out, model, **{"report": False, "progress": False, **wanted})
        return (out / "one.json").stat().st_mtime_ns

    first = again(save_probabilities=True, report=True)
    assert again(save_probabilities=True, report=True, continue_prediction=True) == first
    plain = again()
    assert plain > first and not (out / "one.npz").exists() and not (out / "one.png").exists()
    # Files that are asked for now and are not there are no complete case.
    assert again(continue_prediction=True) == plain
    assert again(continue_prediction=True, save_probabilities=True) > plain and (out / "one.npz").exists()
    assert again(continue_prediction=True, report=True) > plain and (out / "one.png").exists() and not (out / "one.npz").exists()


def test_known_levels_and_numbering_again(trained, tmp_path, scan, capsys):
    """The picture is drawn again from the scan, the probabilities stay, and a wrong place is told before any network runs."""
    out = tmp_path / "out"
    arguments = ["-i", scan, "-o", out, "-m", trained, "-device", "cpu", "--disable_progress_bar"]
    assert run(*arguments, "--known", "T12@0,0,9999") == 2 and not (out / "one.nii.gz").exists()
    assert "outside the scan" in capsys.readouterr().err
    assert run(*arguments, "--save_probabilities", "--known", "lowest=L2") == 0
    first = record(out, "one")
    assert first["vertebrae"][-1]["level"] == "L2" and first["known"]["given"] == "lowest=L2"
    assert json.loads((out / "predict_args.json").read_text())["options"]["known"]["known"] == ["lowest=L2"]
    picture, probabilities = (out / "one.png").read_bytes(), (out / "one.npz").read_bytes()
    assert _common.main("renumber", [str(out), "--known", "lowest=L3"]) == 0
    again = record(out, "one")
    assert again["vertebrae"][-1]["level"] == "L3" and len(again["vertebrae"]) == len(first["vertebrae"])
    assert (out / "one.png").read_bytes() != picture and (out / "one.npz").read_bytes() == probabilities


def test_scans_of_one_patient(trained, tmp_path, scan):
    shutil.copy(scan, scan.parent / "two.nii.gz")
    assert run("--series-of", scan.parent, "-o", tmp_path / "out", "-m", trained, *QUIET) == 0
    one, two = (record(tmp_path / "out", name) for name in ("one", "two"))
    assert [v["level"] for v in one["vertebrae"]] == [v["level"] for v in two["vertebrae"]]
    assert one["known"]["source"] == "series" and "two" in one["known"]["given"]


def test_the_same_scan_gives_the_same_result(trained, tmp_path, scan):
    for name in ("first", "second"):
        torch.manual_seed(len(name))
        assert run("-i", scan, "-o", tmp_path / name, "-m", trained, *QUIET) == 0
    first, second = (record(tmp_path / name, "one")["vertebrae"] for name in ("first", "second"))
    assert first == second


def noting(used: list[int], fold: int, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """`function`, noting in `used` that `fold` was asked."""
    def spied(crops: torch.Tensor) -> torch.Tensor:
        used.append(fold)
        return function(crops)

    return spied


def test_every_fold_s_own_weights_are_used(trained, tmp_path, scan):
    model = load_trained(trained, ["0", "1"], CPU)
    for stage, loaded in ((name, model.stages[name]) for name in CORE_STAGES):
        for fold, network in enumerate(loaded.networks):
            file = trained / stage_folder_name(stage) / f"fold_{fold}" / "checkpoint_final.pth"
            wanted = Checkpoint.load(file).network
            assert all(torch.equal(value, wanted[key]) for key, value in network.state_dict().items())
        assert any(not torch.equal(a, b) for a, b in zip(*[n.state_dict().values() for n in loaded.networks], strict=True))
        assert len(set(loaded.sha256)) == 2
    used = []
    for fold, network in enumerate(model.stages["identify"].networks):
        network.features = noting(used, fold, network.features)
    predict(scan, tmp_path / "out", model, report=False, progress=False)
    assert {0, 1} == set(used)
    for stage in ("localize", "segment"):
        assert all(network.calls > 0 for network in model.stages[stage].networks)


def test_two_folds_give_another_answer_than_each_alone_and_it_lies_between(trained, tmp_path, scan):
    rows = {}
    for folds in ((0,), (1,), (0, 1), (1, 0, 1)):
        out = tmp_path / "_".join(map(str, folds))
        assert run("-i", scan, "-o", out, "-m", trained, "-f", *folds, "--save_probabilities", *QUIET) == 0
        with np.load(out / "one.npz") as arrays:
            rows[folds] = arrays["probabilities"]
        assert record(out, "one")["plans"]["source"].endswith("folds " + ", ".join(dict.fromkeys(map(str, folds))))
    assert np.abs(rows[0,] - rows[1,]).max() > 1e-3
    np.testing.assert_allclose(rows[0, 1], (rows[0,] + rows[1,]) / 2, atol=1e-5)  # the thresholds agree on every voxel of a block
    np.testing.assert_allclose(rows[1, 0, 1], rows[0, 1], atol=1e-6)  # naming a fold twice does not count it double


def test_stages_that_look_at_different_spaces_are_refused(trained_once, trained, tmp_path, scan, capsys):
    import shutil

    folder = tmp_path / "Dataset497_Mixed"
    shutil.copytree(trained_once, folder)
    place = folder / stage_folder_name("identify")
    other = edited(plans(), {"identify": {"data": {"spacing_mm": 1.5}}})
    other.save(place / "plans.json")
    assert run("-i", scan, "-o", tmp_path / "out", "-m", folder, *QUIET) == 2
    assert "segments at 2 mm LPS but identifies at 1.5 mm LPS" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def folder_of_scans(tmp_path) -> Path:
    """Three good scans and one that is none."""
    folder = tmp_path / "scans"
    for i, name in enumerate(("a", "b", "d")):
        write_volume(spine(NAMES[:2 + i % 2], (2.5, 2.5, 2.5))[0], folder / f"{name}.nii.gz")
    (folder / "c.nii.gz").write_text("no scan at all")
    return folder


def test_a_bad_scan_among_others_is_listed_and_the_others_are_done(trained, tmp_path, folder_of_scans, capsys, monkeypatch):
    from spineclue_v2.inference import predict_scan as module

    original = module.predict_volume

    def sometimes(volume, *arguments):
        if volume.geometry.shape == spine(NAMES[:3], (2.5, 2.5, 2.5))[0].geometry.shape:
            raise ValueError("nobody thought of this")
        return original(volume, *arguments)

    monkeypatch.setattr(module, "predict_volume", sometimes)
    assert run("-i", folder_of_scans, "-o", tmp_path / "out", "-m", trained, "-f", 0, *QUIET) == 1
    said = capsys.readouterr().out
    assert "2 of 4 scans" in said
    assert "c.nii.gz is no NIfTI file" in said and "nobody thought of this" in said
    assert sorted(p.name for p in (tmp_path / "out").glob("?.nii.gz")) == ["a.nii.gz", "d.nii.gz"]


def test_complete_cases_are_kept_and_cut_ones_done_again(trained, tmp_path, folder_of_scans):
    out, arguments = tmp_path / "out", ("-i", folder_of_scans, "-o", tmp_path / "out", "-m", trained, "-f", 0, *QUIET)
    assert run(*arguments) == 1
    (out / "b_ctd.json").unlink()
    stamps = {name: (out / f"{name}.json").stat().st_mtime_ns for name in "abd"}
    assert run(*arguments, "--continue_prediction") == 1
    redone = {name for name in "abd" if (out / f"{name}.json").stat().st_mtime_ns != stamps[name]}
    assert redone == {"b"} and (out / "b_ctd.json").is_file()


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_parts_cover_every_case_once(trained, tmp_path, folder_of_scans, parts):
    (folder_of_scans / "c.nii.gz").unlink()
    done = []
    model = load_trained(trained, ["0"], CPU)
    for part in range(parts):
        done += predict(folder_of_scans, tmp_path / "out", model, num_parts=parts, part_id=part, report=False, progress=False)
    assert sorted(done) == ["a", "b", "d"]
    assert {p.stem for p in (tmp_path / "out").glob("?.json")} == {"a", "b", "d"}


def test_a_scan_without_a_spine_is_a_valid_empty_result(trained, tmp_path):
    geometry = ImageGrid((40, 40, 40), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), np.eye(3))
    array = np.random.default_rng(0).normal(40, 10, geometry.shape).astype(np.int16)
    write_volume(Volume(array, geometry), tmp_path / "soft.nii.gz")
    assert run("-i", tmp_path / "soft.nii.gz", "-o", tmp_path / "out", "-m", trained, "-device", "cpu") == 0
    content = record(tmp_path / "out", "soft")
    assert content["status"] == "no vertebra found" and content["vertebrae"] == []
    assert not read_labels(tmp_path / "out" / "soft.nii.gz").array.any()
    assert json.loads((tmp_path / "out" / "soft_ctd.json").read_text())[1:] == []


def test_a_bad_scan_alone_leaves_nothing_behind(trained, tmp_path, capsys):
    (tmp_path / "bad.nii.gz").write_text("no scan")
    assert run("-i", tmp_path / "bad.nii.gz", "-o", tmp_path / "out", "-m", trained, *QUIET) == 2
    assert "bad.nii.gz is no NIfTI file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_scan_is_never_replaced_by_its_labels(trained, tmp_path, scan, capsys):
    before = scan.read_bytes()
    assert run("-i", scan, "-o", scan.parent, "-m", trained, *QUIET) == 2
    assert "would replace the scan itself" in capsys.readouterr().err
    assert run("-i", scan.parent, "-o", scan.parent, "-m", trained, *QUIET) == 2
    assert scan.read_bytes() == before and [p.name for p in scan.parent.iterdir()] == ["one.nii.gz"]


def test_names_of_cases(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "MD5E-s12--0815.nii.gz").touch()
    (tmp_path / "sub-01_ct.nii.gz").symlink_to(tmp_path / "store" / "MD5E-s12--0815.nii.gz")
    assert case_name(tmp_path / "sub-01_ct.nii.gz") == "sub-01_ct"
    assert case_name(tmp_path / "store" / ".." / "store") == "store"
    (tmp_path / "x_0000.NRRD").touch()
    assert case_name(tmp_path / "x_0000.NRRD") == "x"


ON_FULL_DISK = """
import resource, sys
from spineclue_v2.cli._common import main
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
sys.exit(main("predict", sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a Unix matter")
def test_a_full_disk_is_one_sentence(tmp_path, scan):
    agreed, folder = plans(), tmp_path / "Dataset496_Fresh"
    for stage in CORE_STAGES:
        agreed.save(folder / stage_folder_name(stage) / "plans.json")
        meta = {"stage": stage, "model_fingerprint": agreed.stage(stage).model_fingerprint}
        file = folder / stage_folder_name(stage) / "fold_0" / "checkpoint_final.pth"
        Checkpoint(build_network(stage, agreed).state_dict(), meta).save(file)
    command = [sys.executable, "-c", ON_FULL_DISK, "-i", scan, "-o", tmp_path / "out", "-m", folder, *QUIET]
    result = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1 and errors[0].startswith(f"error: Cannot write {tmp_path / 'out'}")
    assert "Traceback" not in result.stderr
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert "one.json" not in left and not [name for name in left if name.startswith(".")]


def test_an_executor_predicts_what_this_process_would(trained_once, tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from small_model import write_results

    from spineclue_v2.inference.model import ModelSource, model_of

    model = write_results(tmp_path / "results", folds=(0, 1))
    for name in ("a", "b"):
        write_volume(spine(NAMES[:2], (3.0, 3.0, 3.0))[0], tmp_path / "scans" / f"{name}.nii.gz")
    (tmp_path / "scans" / "c.nii.gz").write_text("no scan")
    source = ModelSource("cpu", str(model), ("1",))
    loaded = model_of(source)
    assert loaded is model_of(source) and len(loaded.stages["segment"].networks) == 1
    here = predict(tmp_path / "scans", tmp_path / "here", loaded, report=False, progress=False)
    beside = predict(tmp_path / "scans", tmp_path / "beside", loaded, report=False, progress=False, model_source=source, num_processes=2)
    with ThreadPoolExecutor(2) as executor:
        there = predict(tmp_path / "scans", tmp_path / "there", loaded, report=False, progress=False, executor=executor,
                        model_source=source)
    assert here == there == beside and "no NIfTI file" in here["c"]
    for name in ("a", "b"):
        assert len({(tmp_path / folder / f"{name}.nii.gz").read_bytes() for folder in ("here", "there", "beside")}) == 1
    with pytest.raises(InputError, match="-1; expected 0"):
        predict(tmp_path / "scans", tmp_path / "negative", loaded, model_source=source, num_processes=-1)
    stamp = (tmp_path / "there" / "a.json").stat().st_mtime_ns
    with ThreadPoolExecutor(2) as executor:
        predict(tmp_path / "scans", tmp_path / "there", loaded, continue_prediction=True, report=False, progress=False, executor=executor,
                model_source=source)
    assert (tmp_path / "there" / "a.json").stat().st_mtime_ns == stamp


def test_folds_share_all_work_but_their_networks(trained, tmp_path, scan, monkeypatch):
    """Reading, resampling, slices and crops are made once however many folds there are: two cost less than twice one."""
    from spineclue_v2.stages.identify import predictor as identify_module
    from spineclue_v2.stages.localize import looks
    from spineclue_v2.stages.segment import predictor as segment_module
    from spineclue_v2.stages.segment import spine

    counts: dict[str, int] = {}

    def counting(module, name):
        original = getattr(module, name)

        def counted(*arguments, **named):
            counts[name] = counts.get(name, 0) + 1
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, counted)

    for module, name in ((spine, "to_network_space"), (looks, "take_slice"), (segment_module, "crop_channels"),
                         (identify_module, "mask_crop")):
        counting(module, name)
    seen = []
    for folds in (["0"], ["0", "1"]):
        counts.clear()
        predict(scan, tmp_path / "_".join(folds), load_trained(trained, folds, CPU), report=False, progress=False)
        seen.append(dict(counts))
    assert seen[0] == seen[1] and all(count > 0 for count in seen[0].values()) and len(seen[0]) == 4


def test_boxes_of_all_folds_are_pooled_before_clustering(trained, scan, monkeypatch):
    from spineclue_v2.imageio.volume import read_volume
    from spineclue_v2.stages.localize import predictor as module

    seen = []
    original = module.cluster_boxes
    monkeypatch.setattr(module, "cluster_boxes", lambda boxes, run, gaps, folds=1, *rest: seen.append((len(boxes), folds)) or original(
        boxes, run, gaps, folds, *rest))
    from spineclue_v2.inference.pipeline import predict_volume

    last = []
    for folds in (["0"], ["1"], ["0", "1"]):
        predict_volume(read_volume(scan), load_trained(trained, folds, CPU))
        last.append(seen[-1])
    (first, one), (second, also_one), (both, two) = last
    assert (one, also_one, two) == (1, 1, 2) and both == first + second
