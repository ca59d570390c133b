"""Stage 1: boxes from labels, augmentation that keeps boxes on their vertebrae, detection slice by slice over folds and tiles."""
from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from analytic import ThresholdDetector, hu_volume, localize_run
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.plans.data import Data
from spineclue_v2.plans.plans import StagePlan
from spineclue_v2.stages.localize import network as network_module
from spineclue_v2.stages.localize.data import SliceBatches, augment_slice, place_slice, section_areas, section_boxes, take_slice
from spineclue_v2.stages.localize.looks import slice_positions
from spineclue_v2.stages.localize.network import build_network
from spineclue_v2.stages.localize.plan import LocalizeNetwork
from spineclue_v2.stages.localize.predictor import detect, locate
from spineclue_v2.stages.localize.trainer import match_centres, matched_boxes
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.training.checkpoint import Checkpoint, load_weights

PLAN = StagePlan(Data(2.0), LocalizeNetwork("yolo11", "n", (96, 64)), localize_run())
CPU = torch.device("cpu")


def test_slices_show_the_head_at_the_top():
    volume = np.arange(4 * 3 * 2).reshape(4, 3, 2)
    np.testing.assert_array_equal(take_slice(volume, "sagittal", 1), volume[::-1, :, 1])
    np.testing.assert_array_equal(take_slice(volume, "coronal", 2), volume[::-1, 2, :])


def test_boxes_of_a_slice_leave_out_slivers_and_other_structures():
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[5:15, 4:24, 3:17], labels[18:30, 6:20, 3:17] = 20, 19
    labels[35:38, 3:6, 3:17] = 26  # the sacrum is no vertebra to be found
    starts, stops = np.array([[5, 4, 3], [18, 6, 3]]), np.array([[15, 24, 17], [30, 20, 17]])
    areas = section_areas(labels, [20, 19], starts, stops)
    assert areas["sagittal"].tolist() == [10 * 20, 12 * 14] and areas["coronal"].tolist() == [10 * 14, 12 * 14]
    largest = dict(zip([20, 19], areas["sagittal"].tolist(), strict=True))
    cut = take_slice(labels, "sagittal", 10)
    assert sorted(map(tuple, section_boxes(cut, largest, 2.0).tolist())) == [(4, 25, 24, 35), (6, 10, 20, 22)]
    sliver = np.where((cut == 20) & (np.arange(40)[:, None] >= 27), 0, cut)  # L1 keeps two of its ten rows
    assert section_boxes(sliver, largest, 2.0).tolist() == [[6, 10, 20, 22]]
    assert section_boxes(np.zeros((4, 4), np.uint8), largest, 2.0).shape == (0, 4)


def picture(height: int, width: int, box: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A dark slice (2, h, w) with a bright rectangle x0, y0, x1, y1, and that box."""
    cut = np.full((2, height, width), 0.02, np.float32)
    cut[:, box[1]:box[3], box[0]:box[2]] = 0.9
    return cut, np.array([box], np.float32)


def in_pixels(relative: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Relative (cx, cy, w, h) -> corners x0, y0, x1, y1 in pixels."""
    scale = np.array([size[1], size[0]])
    return np.concatenate([(relative[:, :2] - relative[:, 2:] / 2) * scale, (relative[:, :2] + relative[:, 2:] / 2) * scale], axis=1)


@given(height=st.integers(30, 140), width=st.integers(30, 140), corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
       extent=st.tuples(st.integers(10, 24), st.integers(10, 24)), where=st.tuples(st.floats(0, 1), st.floats(0, 1)),
       scale=st.floats(0.8, 1.25), flip=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_placed_box_stays_on_its_object(height, width, corner, extent, where, scale, flip):
    size = (96, 64)
    x0, y0 = int(corner[0] * (width - extent[0])), int(corner[1] * (height - extent[1]))
    cut, boxes = picture(height, width, (x0, y0, x0 + extent[0], y0 + extent[1]))
    out, relative = place_slice(cut, boxes, size, where, scale, flip)
    assert out.shape == (2, *size)
    rows, columns = np.nonzero(out[0] > 0.45)
    if not len(relative):  # at least half of the object lies outside
        assert len(rows) <= 0.5 * extent[0] * extent[1] * scale ** 2 + 2 * scale * sum(extent)
        return
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    np.testing.assert_allclose(in_pixels(relative, size)[0], found, atol=2.0)
    assert (relative >= 0).all() and (relative <= 1).all()


@given(seed=st.integers(0, 2 ** 31), mirror=st.booleans())
@settings(max_examples=40, deadline=None)
def test_augmentation_never_turns_a_vertebra_upside_down(seed, mirror):
    cut, boxes = picture(96, 64, (16, 30, 48, 60))
    cut[:, 45:60, 16:48] = 0.45   # darker below
    cut[:, 30:60, 38:48] *= 0.6   # darker at the right edge
    out, relative = augment_slice(cut, boxes, (96, 64), np.random.default_rng(seed), mirror)
    assert out.min() >= 0 and out.max() <= 1 and out.dtype == np.float32
    if not len(relative):
        return
    x0, y0, x1, y1 = in_pixels(relative, (96, 64))[0].round().astype(int)
    rows = out[0, y0:y1, x0:x1].mean(axis=1)
    assert rows[:len(rows) // 3].mean() > rows[-(len(rows) // 3):].mean()
    if not mirror and x1 - x0 > 20:
        columns = out[0, y0:y1, x0:x1].mean(axis=0)
        assert columns[:5].mean() > columns[-5:].mean()


def test_coronal_slices_are_mirrored_now_and_then():
    cut, boxes = picture(96, 64, (16, 30, 48, 60))
    cut[:, 30:60, 38:48] *= 0.6
    sides = []
    for seed in range(12):
        out, relative = augment_slice(cut, boxes, (96, 64), np.random.default_rng(seed), mirror=True)
        if len(relative):
            x0, y0, x1, y1 = in_pixels(relative, (96, 64))[0].round().astype(int)
            sides.append(out[0, y0:y1, x0:x0 + 5].mean() > out[0, y0:y1, x1 - 5:x1].mean())
    assert set(sides) == {True, False}


def test_batches_are_functions_of_seed_and_index(tiny):
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset

    plan = load_plans(tiny / "SpineCLUEPlans.json").stage("localize")
    dataset = PreprocessedDataset(tiny / plan.data_fingerprint)
    make = [SliceBatches(dataset.folder, dataset.cases, plan.data.windows_hu, (64, 64), plan.data.spacing_mm, 6, seed=3) for _ in range(2)]
    make[0](0)
    first, again, other = make[0](5), make[1](5), make[0](6)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], other["image"])
    assert first["image"].shape == (6, 2, 64, 64) and first["boxes"].shape[1] == 4
    assert len(first["boxes"]) == len(first["batch_index"]) > 0 and int(first["batch_index"].max()) < 6


def test_a_reloaded_checkpoint_gives_the_same_boxes(tmp_path):
    torch.manual_seed(0)
    trained = build_network(PLAN.network, 2).eval()
    slices = torch.rand(3, 2, 96, 64)
    with torch.inference_mode():
        wanted = trained.boxes(slices, 1e-6, 0.5)
    assert all(len(boxes) for boxes in wanted)
    Checkpoint(trained.state_dict(), {"stage": "localize"}).save(tmp_path / "checkpoint_final.pth")
    fresh = build_network(PLAN.network, 2).eval()
    load_weights(fresh, Checkpoint.load(tmp_path / "checkpoint_final.pth"), tmp_path)
    with torch.inference_mode():
        found = fresh.boxes(slices, 1e-6, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_a_slice_without_vertebrae_has_a_loss_too():
    torch.manual_seed(0)
    net = build_network(PLAN.network, 2).train()
    loss = net.loss(torch.rand(2, 2, 64, 64), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    loss.backward()
    assert torch.isfinite(loss)


def test_opencv_without_its_system_library_is_one_sentence(monkeypatch):
    import builtins

    from spineclue_v2.errors import InputError

    def broken(name, *arguments, **keywords):
        if name.startswith("ultralytics"):
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
        return original(name, *arguments, **keywords)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(InputError, match=r"libgl1 libglib2\.0-0"):
        network_module._ultralytics()


def column(count: int, rows: int, step: int = 13) -> tuple[np.ndarray, np.ndarray]:
    """HU volume (z, y, x) of `count` bright blocks above each other, and their centres (z, y, x) index."""
    array = np.full((rows, 40, 40), 40, np.int16)
    centres = []
    for number in range(count):
        low = 4 + step * number
        array[low:low + 9, 10:28, 10:30] = 400
        centres.append((low + 4, 18.5, 19.5))
    return array, np.array(centres)[::-1]


@pytest.mark.parametrize("count, rows", [(5, 90), (6, 96), (16, 230), (30, 402)])
def test_scans_of_any_length_are_tiled_without_losing_a_vertebra(count, rows):
    array, centres = column(count, rows)
    detector = ThresholdDetector()
    found = locate(hu_volume(array, PLAN), [detector], PLAN, CPU)
    assert len(found) == count
    np.testing.assert_allclose([v.box_centre[::-1] for v in found], centres * 2.0, atol=1.0)
    np.testing.assert_allclose([v.extent for v in found], [[18.0, 36.0, 40.0]] * count, atol=3.0)
    assert all(0 < v.score <= 1 and v.hits > 5 for v in found)


def test_plans_of_short_scans_do_not_cut_long_ones_into_countless_tiles():
    array, _ = column(30, 402)
    short = replace(PLAN, data=Data(1.0), network=replace(PLAN.network, slice_size=(64, 64)))
    detector = ThresholdDetector()
    detect(hu_volume(array, short), [detector], short, CPU)
    assert detector.calls <= 2 * 2 * 2 * (402 // 32 + 1)  # two planes, two batches each, two looks; tiles half a tile apart


def test_no_slice_no_box_no_vertebra():
    assert locate(hu_volume(np.full((30, 30, 30), 40), PLAN), [ThresholdDetector()], PLAN, CPU) == []
    assert slice_positions(5, 0.3).tolist() == [0, 1, 2, 3, 4]
    assert slice_positions(100, 25.0).tolist() == [12, 37, 62, 87]


def test_boxes_of_all_folds_are_pooled():
    array, centres = column(4, 60)
    array[:20] = np.where(array[:20] == 400, 300, array[:20])  # the lowest one is dimmer
    volume = hu_volume(array, PLAN)
    sharp, blind = ThresholdDetector(), ThresholdDetector(0.3)  # the second fold misses the dim one
    alone = [detect(volume, [network], PLAN, CPU)[0] for network in (sharp, blind)]
    pooled, _ = detect(volume, [sharp, blind], PLAN, CPU)
    assert len(alone[0]) > len(alone[1]) > 0
    assert len(pooled) == len(alone[0]) + len(alone[1])
    assert len(locate(volume, [blind], PLAN, CPU)) == 3
    both = locate(volume, [sharp, blind], PLAN, CPU)
    assert len(both) == 4
    assert both[-1].hits < 0.75 * both[0].hits  # half of the votes
    np.testing.assert_allclose([v.box_centre[::-1] for v in both], centres * 2.0, atol=1.0)


def test_matches_are_one_to_one():
    true = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    assert matched_boxes(true[[0, 0, 1]] + 1, true) == 2
    assert matched_boxes(true[:1] + 6, true) == 0
    assert matched_boxes(torch.zeros(0, 4), true) == 0
    assert match_centres(np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([[0.0, 0, 3]])) == (1, [3.0])
    assert match_centres(np.zeros((0, 3)), np.zeros((2, 3))) == (0, [])
    assert match_centres(np.array([[0.0, 0, 0]]), np.array([[0.0, 0, 30]])) == (0, [])


def test_nms_has_time_on_a_busy_machine(monkeypatch):
    """ultralytics gives up after some seconds by the wall clock and leaves slices empty; ours must not."""
    from ultralytics.utils import nms

    clock = SimpleNamespace(now=0.0)

    def slow() -> float:
        clock.now += 5.0
        return clock.now

    monkeypatch.setattr(nms.time, "time", slow)
    torch.manual_seed(0)
    found = build_network(PLAN.network, 2).eval().boxes(torch.rand(4, 2, 64, 64), 1e-6, 0.5)
    assert all(len(boxes) for boxes in found)


def test_the_detector_predicts_where_torchvision_cannot_be_imported():
    """Builds of torch and torchvision that do not match, as CPU installations have them, say so when torchvision is imported."""
    program = ("import sys\n"
               "class Absent:\n"
               "    def find_spec(self, name, path=None, target=None):\n"
               "        if name.split('.')[0] == 'torchvision':\n"
               "            raise ImportError('operator torchvision::nms does not exist')\n"
               "sys.meta_path.insert(0, Absent())\n"
               "import torch\n"
               "from spineclue_v2.stages.localize.network import build_network\n"
               "from spineclue_v2.stages.localize.plan import LocalizeNetwork\n"
               "network = build_network(LocalizeNetwork('yolo11', 'n', (64, 64)), 2).eval()\n"
               "assert len(network.boxes(torch.rand(2, 2, 64, 64), 1e-6, 0.5)) == 2\n")
    subprocess.run([sys.executable, "-c", program], check=True)
