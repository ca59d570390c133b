"""Stage ribs: how far bone is followed to both sides of a body, what a narrow field hides, and what the classifier tells the decoder."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.anatomy import LEVELS
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.volume import Volume
from spineclue_v2.inference.model import load_stage
from spineclue_v2.stages.ribs.data import Beside, sample
from spineclue_v2.stages.ribs.features import AREA, BIN_MM, BINS, DEPTH, FIRST_MM, HEIGHT, SEEN, feature_count, inputs_of, narrowed, reaches
from spineclue_v2.stages.ribs.groups import GROUP_OF, GROUPS, spread
from spineclue_v2.stages.ribs.predictor import evidence_of, group_probabilities, rib_ends
from spineclue_v2.utilities.paths import weights_folder

MM = 3.0
SHAPE = (60, 50, 80)                      # (z, y, x): 180 mm high, 240 mm wide
MIDDLE = np.array([30, 20, 40])           # of the body, index
THRESHOLDS = (110.0, 160.0, 220.0)


def scan(bars: dict[int, tuple[float, float]] | None = None, fall: float = 0.0, hu: int = 400, shape=SHAPE) -> tuple[Volume, np.ndarray]:
    """CT with one vertebra, whose bars of bone reach so far to the left and right ({z shift in voxels: (left mm, right mm)}), and its
    body centre (LPS mm)."""
    ct = np.full(shape, 40, np.int16)
    z, y, x = MIDDLE
    ct[z - 4:z + 5, y - 5:y + 5, x - 5:x + 6] = hu
    for shift, (left, right) in (bars or {}).items():
        for side, reach in ((1, left), (-1, right)):
            for k in range(3, round(reach / MM) + 1):
                down = round(fall * k)
                ct[z + shift - 1 - down:z + shift + 2 - down, y + 5:y + 9, x + side * k] = hu
    grid = ImageGrid(shape, (MM, MM, MM), (-120.0, -60.0, 10.0), np.eye(3))
    return Volume(ct, grid), grid.index_to_world(MIDDLE[None])


def reach_mm(found: np.ndarray, side: int, threshold: int = 0) -> float:
    """Where the bins with bone end."""
    bone = np.flatnonzero(found[0, side, threshold, :, AREA] > 8)
    return FIRST_MM + BIN_MM * (bone[-1] + 1) if len(bone) else 0.0


@pytest.mark.parametrize("left, right", [(72, 72), (72, 42), (0, 48), (30, 30)])
def test_bone_is_followed_as_far_as_it_goes_on_each_side(left, right):
    volume, centre = scan({0: (left, right)})
    found = reaches(volume, centre, THRESHOLDS)
    assert found.shape == (1, 2, 3, BINS, 4)
    for side, true in ((0, left), (1, right)):
        assert reach_mm(found, side) == 0 if true == 0 else abs(reach_mm(found, side) - true) <= BIN_MM


def test_where_bone_runs_is_told():
    level, falling = (reaches(*scan({0: (72, 72)}, fall), THRESHOLDS)[0, 0, 0] for fall in (0.0, 0.25))
    assert level[3, DEPTH] == pytest.approx(5 * MM + 1.5 * MM, abs=MM) and abs(level[3, HEIGHT]) < 0.1
    assert (np.diff(falling[1:6, HEIGHT]) <= 0).all() and falling[5, HEIGHT] < falling[1, HEIGHT] - 0.2


def test_a_neighbours_rib_is_not_taken_for_the_own():
    volume, centre = scan({0: (36, 36)})
    z, y, x = MIDDLE
    volume.array[z + 7:z + 10, y + 5:y + 9, x + 3:x + 26] = 400             # a bar a step higher, joined to the vertebra by its arch
    volume.array[z:z + 9, y + 5:y + 9, x + 2:x + 4] = 400
    assert reach_mm(reaches(volume, centre, THRESHOLDS), 0) <= 36 + BIN_MM


def test_bone_that_is_not_connected_does_not_count():
    volume, centre = scan({0: (36, 36)})
    z, y, x = MIDDLE
    volume.array[z - 1:z + 2, y + 5:y + 9, x + 16:x + 26] = 400
    assert reach_mm(reaches(volume, centre, THRESHOLDS), 0) <= 36 + BIN_MM


def test_beyond_the_field_nothing_is_known():
    volume, centre = scan({0: (72, 72)})
    cut = volume.cropped((0, 0, 0), (SHAPE[0], SHAPE[1], MIDDLE[2] + 15))    # 42 mm to the left
    found = reaches(cut, centre, THRESHOLDS)
    assert (found[0, 0, :, 5:, SEEN] == 0).all() and (found[0, 1, :, :4, SEEN] > 0.9).all()
    there = inputs_of(found)[0, :len(THRESHOLDS) * BINS].reshape(len(THRESHOLDS), BINS)
    assert there[0, -1] == pytest.approx(-0.5)                               # only the right side says that there is none so far out


@settings(max_examples=15, deadline=None)
@given(left=st.integers(0, 24), right=st.integers(0, 24), shift=st.tuples(*[st.integers(-3, 3)] * 3))
def test_sides_and_places_do_not_matter(left, right, shift):
    volume, centre = scan({0: (left * MM, right * MM)})
    moved = Volume(np.roll(volume.array, shift, (0, 1, 2)), volume.geometry)
    mirrored = Volume(np.ascontiguousarray(volume.array[:, :, ::-1]), volume.geometry)
    there = volume.geometry.index_to_world((MIDDLE + np.array(shift))[None])
    mirrored_there = volume.geometry.index_to_world((MIDDLE * np.array([1, 1, 0]) + np.array([0, 0, SHAPE[2] - 1 - MIDDLE[2]]))[None])
    own = inputs_of(reaches(volume, centre, THRESHOLDS))
    np.testing.assert_allclose(inputs_of(reaches(mirrored, mirrored_there, THRESHOLDS)), own, atol=1e-5)
    np.testing.assert_allclose(inputs_of(reaches(moved, there, THRESHOLDS)), own, atol=0.35)      # other parts of the bins are in the field
    assert own.shape == (1, feature_count(len(THRESHOLDS)))


def test_bone_of_contrast_agent_counts_for_low_thresholds_only():
    found = reaches(*scan({0: (60, 60)}, hu=190), THRESHOLDS)
    assert [reach_mm(found, 0, k) > 50 for k in range(3)] == [True, True, False]


def test_no_vertebra_no_rows():
    volume, _ = scan()
    assert reaches(volume, np.zeros((0, 3)), THRESHOLDS).shape == (0, 2, 3, BINS, 4)


def test_every_level_is_in_one_group():
    assert {name for group in GROUPS for name in group} == {*LEVELS, "T13", "L6"}
    np.testing.assert_allclose(spread().sum(1), 1)
    assert spread()[GROUP_OF["T12"], LEVELS.index("T12")] == 1                # T13 is no column of its own


def test_evidence_is_a_probability_that_forbids_nothing():
    groups = np.eye(len(GROUPS))
    evidence = evidence_of(groups, 2.0)
    np.testing.assert_allclose(np.exp(evidence.logs).sum(1), 1)
    assert evidence.logs.min() > np.log(1e-3) and evidence.weight == 2.0
    assert [LEVELS[k] for k in evidence.logs[:, :24].argmax(1)] == [group[0] for group in GROUPS]


def test_the_ends_of_the_ribs_are_told_where_both_neighbours_are_in_the_row():
    ends = rib_ends([0.02, 0.9, 0.95, 0.1])
    np.testing.assert_allclose(ends[:3, 2], [0.02 * 0.1, 0.9 * 0.05, 0.95 * 0.9])
    np.testing.assert_allclose(ends[1:, 3], [0.9 * 0.98, 0.95 * 0.1, 0.1 * 0.05])
    assert np.isnan(ends[3, 2]) and np.isnan(ends[0, 3]) and np.isnan(ends[:, :2]).all()


def test_a_narrowed_field_only_takes_away():
    found = reaches(*scan({0: (72, 72)}), THRESHOLDS)
    rng = np.random.default_rng(0)
    views = [narrowed(found, rng) for _ in range(20)]
    assert all(((view == found) | (view == 0)).all() for view in views)
    assert any((view[:, :, :, -1] == 0).all() and (view[:, :, :, 0] == found[:, :, :, 0]).all() for view in views)


def test_levels_are_drawn_equally_often_however_many_there_are():
    rows = np.zeros((20, 2, 3, BINS, 4), np.float32)
    scans = [Beside(rows, ("T5",) * 19 + ("L1",))]
    _, groups = sample(scans, 400, np.random.default_rng(1), augment=True)
    assert 150 < int((groups == GROUP_OF["L1"]).sum()) < 250


def test_shipped_weights_tell_a_rib_from_a_process():
    """A synthetic scan that the weights have not seen: thorax to lumbar spine in a wide field."""
    from spineclue_v2.phantom import sample as phantom
    from spineclue_v2.preprocessing.resampling import to_network_space

    case = phantom(424242, spacing=(3.0, 2.0, 2.0), spine=True, first="T9", last="L4", wide=True)
    volume = Volume(case.ct, ImageGrid(case.ct.shape, tuple(case.spacing), (0.0, 0.0, 0.0), case.direction))
    model, plans = load_stage(weights_folder() / "ribs.pth", "ribs", torch.device("cpu"))
    names = list(case.centroids)
    centres = np.array([case.centroids[name]["body"] for name in names])
    plan = plans.stage("ribs")
    groups = group_probabilities(to_network_space(volume, plan.data), centres, model, plan, torch.device("cpu"))
    ribs = dict(zip(names, groups[:, [k for k, group in enumerate(GROUPS) if group[0][0] == "T"]].sum(1), strict=True))
    assert min(ribs[name] for name in ("T9", "T10", "T11")) > 0.8 and max(ribs[name] for name in ("L2", "L3", "L4")) < 0.3
