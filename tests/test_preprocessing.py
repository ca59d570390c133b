"""Network space: exact geometry, faithful values, resumable folders."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from blocks import lumbar_dataset, spine, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.anatomy import LABEL_OF_NAME
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.orientation import check_same_grid
from spineclue_v2.imageio.volume import Volume
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.plans.data import Data
from spineclue_v2.plans.plans import Plans
from spineclue_v2.preprocessing.ct import preprocess_dataset, vertebra_properties
from spineclue_v2.preprocessing.resampling import labels_to_network_space, network_grid, to_network_space, windows

ORIENTATIONS = [a + b + c for a in "LR" for b in "PA" for c in "SI"] + ["PIR", "ASL", "SRA", "IPL"]


def ramp(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Volume:
    """HU that rise linearly with the world position: 2 x + 3 y + 4 z."""
    geometry = ImageGrid(shape, spacing, (3.0, -20.0, 7.0), np.eye(3))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return Volume((geometry.index_to_world(index) @ (2.0, 3.0, 4.0)).astype(np.float32), geometry)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(9, 30)] * 3), st.tuples(*[st.floats(0.5, 3.0)] * 3), st.floats(0.8, 3.0))
def test_a_linear_field_keeps_its_place(shape: tuple, spacing: tuple, target: float) -> None:
    """A linear field shows where every voxel lies: right to 2 % of a voxel (the stretched kernel's own unevenness)."""
    volume = ramp(shape, spacing)
    result = to_network_space(volume, Data(target))
    assert result.array.dtype == np.int16 and result.array.shape == result.geometry.shape
    assert result.geometry.same_grid(network_grid(volume.geometry, Data(target)))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in result.geometry.shape), indexing="ij"), -1)
    world = result.geometry.index_to_world(index)
    source = volume.geometry.world_to_index(world)
    reach = 2 * np.maximum(1, target / np.array(spacing)) + 1
    inside = ((source >= reach) & (source <= np.array(shape) - 1 - reach)).all(-1)
    assert np.abs(result.array[inside] - (world @ (2.0, 3.0, 4.0))[inside]).max(initial=0) <= 0.51 + 0.02 * target * (2 + 3 + 4)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_any_storage_order_gives_the_same_model_space(orientation: str) -> None:
    ct, labels, _ = spine(["L1", "L2"], (3.0, 2.0, 2.5))
    expected, seg = to_network_space(ct, Data(2.0)), None
    seg = labels_to_network_space(labels, expected.geometry)
    found = to_network_space(ct.reoriented(orientation), Data(2.0))
    assert found.geometry.same_grid(expected.geometry, 1e-3) and found.geometry.orientation == "LPS"
    assert np.abs(found.array.astype(int) - expected.array).max() <= 1
    assert np.array_equal(labels_to_network_space(labels.reoriented(orientation), expected.geometry).array, seg.array)


def test_identity_limits_and_the_input_stays() -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(-3000, 5000, (60, 20, 20)).astype(np.float32)
    before = array.copy()
    geometry = ImageGrid(array.shape, (1.5, 1.5, 1.5), (0.0, 0.0, 0.0), np.eye(3))
    result = to_network_space(Volume(array, geometry), Data(1.5))
    assert np.array_equal(result.array, np.clip(before, -1024, 3071)) and np.array_equal(array, before)


def test_coarser_grids_average_noise_and_do_not_alias() -> None:
    rng = np.random.default_rng(2)
    geometry = ImageGrid((64, 64, 64), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    noise = Volume(rng.normal(0, 100, geometry.shape).astype(np.float32), geometry)
    assert to_network_space(noise, Data(2.0)).array.std() < 45  # 100 / sqrt(8) for whole voxels
    stripes = Volume(np.broadcast_to(np.where(np.arange(64) % 2, 500, -500), geometry.shape).astype(np.int16), geometry)
    assert np.abs(to_network_space(stripes, Data(3.0)).array[4:-4, 4:-4, 4:-4]).max() < 60


def test_labels_are_mapped_and_keep_their_volume() -> None:
    ct, labels, centres = spine(["T12", "L1", "L2"], (1.0, 1.0, 1.0))
    model = to_network_space(ct, Data(1.5))
    stored = Volume(labels.array * (labels.array != 21), labels.geometry)
    table = {0: 0, 19: 22, 20: 0, 24: 24}  # T12 stored where L3 is meant; L1 is no vertebra here
    result = labels_to_network_space(stored, model.geometry, table)
    assert set(np.unique(result.array)) == {0, 22}
    assert (result.array == 22).sum() * 1.5**3 == pytest.approx((labels.array == 19).sum(), rel=0.05)
    everything = labels_to_network_space(labels, model.geometry)
    assert everything.geometry is model.geometry and everything.array.dtype == np.uint8
    properties = vertebra_properties(everything)
    assert list(properties) == ["T12", "L1", "L2"] and not any(p["touches_border"] for p in properties.values())
    for name, p in properties.items():
        place = model.geometry.index_to_world(p["body_centre"])[::-1]
        wanted = np.add(centres[name], labels.geometry.origin[::-1])
        assert np.abs(place - wanted).max() < 1.6
        inside = everything.array[tuple(slice(a, b) for a, b in zip(p["start"], p["stop"], strict=True))] == p["label"]
        assert inside.sum() == p["voxels"] == (everything.array == p["label"]).sum()


def test_touching_labels_leave_no_gap_between_them() -> None:
    geometry = ImageGrid((30, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    array = np.zeros(geometry.shape, np.uint8)
    array[3:13, 4:16, 4:16], array[13:27, 4:16, 4:16] = 20, 21
    result = labels_to_network_space(Volume(array, geometry), geometry.resampled((1.7,) * 3)).array
    column = result[:, 5, 5]
    filled = np.flatnonzero(column)
    assert np.array_equal(filled, np.arange(filled[0], filled[-1] + 1)) and np.array_equal(np.unique(column), [0, 20, 21])


def test_turned_grids_are_matched_through_world_coordinates() -> None:
    _, labels, _ = spine(["L1", "L2"], (2.0, 2.0, 2.0))
    angle = np.radians(8)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    target = ImageGrid(labels.geometry.shape, (2.0, 2.0, 2.0), labels.geometry.origin, turn)
    result = labels_to_network_space(labels, target, {20: 20, 21: 21})
    index = np.argwhere(result.array == 20)
    back = np.round(labels.geometry.world_to_index(target.index_to_world(index))).astype(int)
    assert len(index) > 100 and (labels.array[tuple(back.T)] == 20).all()


def test_windows_scale_and_clip() -> None:
    array = np.array([[-1000, -200], [100, 2000]], np.int16)
    channels = windows(array, [(-200.0, 400.0), (-100.0, 1300.0)])
    assert channels.dtype == np.float32 and channels.shape == (2, 2, 2)
    assert np.allclose(channels[0], [[0, 0], [0.5, 1]]) and channels[1, 1, 0] == pytest.approx(200 / 1400)


def test_labels_on_another_grid_are_refused() -> None:
    geometry = ImageGrid((20, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    check_same_grid(geometry, geometry.reoriented("RAI")[0], "a", "a.nii.gz")
    shifted = ImageGrid(geometry.shape, geometry.spacing, (0.5, 0.0, 0.0), np.eye(3))
    with pytest.raises(InputError, match="Case 'a'.*another grid.*origin"):
        check_same_grid(geometry, shifted, "a", "a.nii.gz")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> RawDataset:
    return RawDataset(lumbar_dataset(tmp_path_factory.mktemp("raw") / "Dataset501_Lumbar"))


@pytest.fixture(scope="module")
def plans(raw: RawDataset, tmp_path_factory: pytest.TempPathFactory) -> Plans:
    from spineclue_v2.planning.fingerprint import extract_fingerprint

    fingerprint = extract_fingerprint(raw, tmp_path_factory.mktemp("fingerprint"), progress=False)
    return SpineCLUEPlanner(raw.folder, fingerprint, 1, "cpu").plan()


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_stages_with_equal_data_share_a_folder(raw: RawDataset, plans: Plans, tmp_path: Path) -> None:
    failures = preprocess_dataset(raw, plans, tmp_path, progress=False)
    wanted = {plans.stage(s).data_fingerprint for s in ("localize", "centres", "segment", "identify")}
    assert {p.name for p in failures} == wanted == {p.name for p in tmp_path.iterdir()} and not any(failures.values())
    assert plans.stage("segment").data_fingerprint == plans.stage("identify").data_fingerprint
    data = PreprocessedDataset(tmp_path / plans.stage("segment").data_fingerprint)
    assert data.cases == raw.cases
    image, labels, properties = data.image("case_01"), data.labels("case_01"), data.properties("case_01")
    assert image.dtype == np.int16 and labels.dtype == np.uint8 and image.shape == labels.shape
    assert image.shape == ImageGrid.from_json(properties["geometry"]).shape
    assert ImageGrid.from_json(properties["source_geometry"]).spacing == pytest.approx((2.1, 1.5, 1.5))
    assert list(properties["vertebrae"]) == ["T12", "L1", "L2", "L3", "L4", "L5"]
    assert np.array_equal(image[5:20, 3:9, 4:8], image[:][5:20, 3:9, 4:8])


def test_an_interrupted_run_ends_in_the_same_bytes(raw: RawDataset, plans: Plans, tmp_path: Path) -> None:
    """Whatever a killed process left (half-written parts, volumes without their JSON) is replaced or removed."""
    preprocess_dataset(raw, plans, tmp_path / "whole", ["segment"], progress=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    folder = tmp_path / "cut" / plans.stage("segment").data_fingerprint
    (folder / "case_00.json").unlink()
    (folder / "case_00.b2nd").write_bytes(b"half")
    (folder / "case_02.json").unlink()
    (folder / "case_02_seg.b2nd").unlink()
    (folder / ".part_ab12cd34_case_02_seg.b2nd").write_bytes(b"left over")
    assert PreprocessedDataset(folder).cases == ["case_01"]
    with ThreadPoolExecutor(2) as executor:
        preprocess_dataset(raw, plans, tmp_path / "cut", ["segment"], executor, progress=False)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_finished_cases_are_kept_and_changed_ones_redone(plans: Plans, tmp_path: Path) -> None:
    own = RawDataset(lumbar_dataset(tmp_path / "Dataset501_Lumbar", 2))
    out = tmp_path / "out"
    folder = out / plans.stage("segment").data_fingerprint
    preprocess_dataset(own, plans, out, ["segment"], progress=False)
    times = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    preprocess_dataset(own, plans, out, ["segment"], progress=False)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == times
    write_dataset(own.folder, {"case_01": spine(["L1", "L2"])[:2]}, numTraining=2)
    preprocess_dataset(RawDataset(own.folder), plans, out, ["segment"], progress=False)
    assert list(PreprocessedDataset(folder).properties("case_01")["vertebrae"]) == ["L1", "L2"]
    assert (folder / "case_00.b2nd").stat().st_mtime_ns == times["case_00.b2nd"]
    for kind in ("imagesTr/case_00_0000.nii.gz", "labelsTr/case_00.nii.gz"):
        (own.folder / kind).unlink()
    write_dataset(own.folder, {}, numTraining=1)
    preprocess_dataset(RawDataset(own.folder), plans, out, ["segment"], progress=False)
    assert PreprocessedDataset(folder).cases == ["case_01"] and not (folder / "case_00.b2nd").exists()


def test_one_bad_case_does_not_stop_the_others(plans: Plans, tmp_path: Path) -> None:
    own = RawDataset(lumbar_dataset(tmp_path / "Dataset501_Lumbar"))
    own.image("case_01").write_bytes(b"no image")
    failures = preprocess_dataset(own, plans, tmp_path / "out", ["localize"], num_processes=0, progress=False)
    folder = tmp_path / "out" / plans.stage("localize").data_fingerprint
    assert list(failures[folder]) == ["case_01"] and "case_01_0000.nii.gz" in failures[folder]["case_01"]
    assert PreprocessedDataset(folder).cases == ["case_00", "case_02"]
    assert not [p for p in folder.iterdir() if p.name.startswith((".part", "case_01"))]


def test_processes_give_the_same_files(raw: RawDataset, plans: Plans, tmp_path: Path) -> None:
    preprocess_dataset(raw, plans, tmp_path / "here", ["localize"], progress=False)
    preprocess_dataset(raw, plans, tmp_path / "there", ["localize"], num_processes=2, progress=False)
    assert content(tmp_path / "here") == content(tmp_path / "there")


def test_a_label_value_keeps_its_meaning_through_dataset_json(plans: Plans, tmp_path: Path) -> None:
    ct, labels, _ = spine(["L4", "L5"])
    own = Volume(
        np.where(labels.array == LABEL_OF_NAME["L4"], 2, np.where(labels.array > 0, 1, 0)).astype(np.uint8), labels.geometry
    )
    raw = RawDataset(
        write_dataset(tmp_path / "Dataset505_Own", {"a": (ct, own)}, {"background": 0, "vertebrae_L5": 1, "vertebrae_L4": 2})
    )
    preprocess_dataset(raw, plans, tmp_path / "out", ["segment"], progress=False)
    data = PreprocessedDataset(tmp_path / "out" / plans.stage("segment").data_fingerprint)
    assert {n: v["label"] for n, v in data.properties("a")["vertebrae"].items()} == {"L4": 23, "L5": 24}
    assert set(np.unique(data.labels("a")[:])) == {0, 23, 24}
