"""Stage centres: what labels tell of a row, patches and their targets, the best chain of peaks, and what it changes of what was located."""
from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.volume import Volume
from spineclue_v2.plans.data import Data
from spineclue_v2.stages.centres.data import cut_patch, row_of
from spineclue_v2.stages.centres.predictor import follow_row, heat_maps, patch_starts
from spineclue_v2.stages.centres.row import Peak, best_chain, fill_gaps, find_peaks, reconcile, step_price
from spineclue_v2.stages.centres.trainer import heat_loss

MM = 3.0
GRID = ImageGrid((100, 40, 40), (MM, MM, MM), (0.0, 0.0, 0.0), np.eye(3))


def plan(patch=(32, 16, 16)) -> SimpleNamespace:
    return SimpleNamespace(network=SimpleNamespace(patch_size=patch), data=Data(MM),
                           run=SimpleNamespace(sigma_mm=4.5, inference_batch=2, least_score=0.2))


def column(heights_mm: list[float], at: float = 60.0) -> np.ndarray:
    """Bodies (n, 3) LPS mm of a straight spine."""
    return np.array([[at, at, z] for z in heights_mm])


def located(bodies: np.ndarray, score: float = 0.5) -> list[Vertebra]:
    """Vertebrae whose boxes' middles lie 15 mm behind and 4 mm below their bodies."""
    return [Vertebra(tuple(b + (0.0, 15.0, -4.0)), (30.0, 60.0, 60.0), score, body_centre=tuple(b)) for b in bodies]


def heat_of(bodies: np.ndarray, heights: list[float] | None = None) -> np.ndarray:
    grid = np.indices(GRID.shape).transpose(1, 2, 3, 0)
    heat = np.zeros(GRID.shape, np.float32)
    for body, height in zip(GRID.world_to_index(bodies), heights or [0.9] * len(bodies), strict=True):
        heat = np.maximum(heat, height * np.exp(-((grid - body) ** 2).sum(-1) / (2 * (4.5 / MM) ** 2)).astype(np.float32))
    return heat


def chain_of(heat: np.ndarray) -> np.ndarray:
    """(n, 3) LPS mm."""
    return GRID.index_to_world(np.array([peak.place for peak in best_chain(find_peaks(heat, 0.2, MM), MM)]).reshape(-1, 3))


def test_labels_end_where_the_last_one_is_known():
    row = row_of(["C3", "C4", "C5"], np.array([[50.0, 9, 9], [44, 9, 9], [38, 9, 9]]), MM)
    assert row.top == pytest.approx(53.6) and row.bottom == pytest.approx(34.4)
    assert row_of(["C1", "C2"], np.array([[50.0, 9, 9], [44, 9, 9]]), MM).top == np.inf          # above C1 there is a skull
    lumbar = row_of(["L5", "L4"], np.array([[20.0, 9, 9], [31, 9, 9]]), MM)                       # in any order
    assert lumbar.bottom == -np.inf and lumbar.sacrum_known and lumbar.sacrum.shape == (1, 3) and lumbar.sacrum[0, 0] < 12
    assert not row_of(["L3", "L4"], np.array([[31.0, 9, 9], [20, 9, 9]]), MM).sacrum_known        # it may be in view, unlabelled
    empty = row_of([], np.zeros((0, 3)), MM)
    assert not len(empty.bodies) and empty.sacrum_known and empty.top == np.inf


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10 ** 6), augment=st.booleans())
def test_a_patch_and_its_target_agree(seed: int, augment: bool):
    bodies = np.array([[60.0, 20, 20], [54, 20, 20], [48, 20, 20], [42, 20, 20]])
    array = np.full(GRID.shape, 40, np.int16)
    image, target, weight = cut_patch(array, row_of(["T3", "T4", "T5", "T6"], bodies, MM), plan(), np.random.default_rng(seed), augment)
    again = cut_patch(array, row_of(["T3", "T4", "T5", "T6"], bodies, MM), plan(), np.random.default_rng(seed), augment)
    assert all(torch.equal(a, b) for a, b in zip((image, target, weight), again, strict=True))
    assert image.shape == (2, 32, 16, 16) and target.shape == weight.shape == (2, 32, 16, 16)
    assert float(target.min()) >= 0 and float(target.max()) <= 1 and set(weight.unique().tolist()) <= {0.0, 1.0}
    if augment:      # noise may look like air
        return
    air = torch.from_numpy(ndimage.binary_erosion((image == 0).all(0).numpy()))   # its border is half air
    assert not target[:, air].any() and weight[:, air].all()      # what is not in view is no body


def test_most_patches_show_a_body():
    array = np.full(GRID.shape, 40, np.int16)
    row = row_of(["T5"], np.array([[50.0, 20, 20]]), MM)
    heights = [float(cut_patch(array, row, plan((32, 32, 32)), np.random.default_rng(seed), augment=False)[1][0].max())
               for seed in range(20)]
    assert sum(height > 0.7 for height in heights) >= 12      # within half a voxel along each axis of the Gaussian's middle


def test_error_counts_where_the_labels_speak():
    target = torch.zeros(1, 2, 4, 4, 4)
    target[0, 0, 1, 1, 1] = 1.0
    logits, weight = torch.full_like(target, -20.0), torch.ones_like(target)
    assert float(heat_loss(logits, target, weight, 20.0)) == pytest.approx(20 * 21 / target.numel())     # (1 + 20) * 1 ** 2, one voxel
    weight[0, 0, 1, 1, 1] = 0
    assert float(heat_loss(logits, target, weight, 20.0)) == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(step=st.floats(15.0, 34.0), count=st.integers(3, 8))
def test_every_body_is_a_peak_of_the_chain(step: float, count: int):
    bodies = column([30.0 + step * i for i in range(count) if 30.0 + step * i < 280][::-1])
    found = chain_of(heat_of(bodies))
    assert len(found) == len(bodies)
    np.testing.assert_allclose(found, bodies, atol=0.6)


def test_the_chain_leaves_out_what_lies_beside_it_and_between_two_bodies():
    bodies = column([200.0, 180, 160, 140, 120])
    disc, rib = np.array([[60.0, 60, 150]]), np.array([[105.0, 60, 160]])
    found = chain_of(heat_of(np.vstack([bodies, disc, rib]), [0.9] * 5 + [0.3, 0.8]))
    np.testing.assert_allclose(found, bodies, atol=1.5)


def test_a_step_has_its_price():
    assert step_price(np.array([20.0, 0, 0])) == 0.0
    assert step_price(np.array([5.0, 0, 0])) is None and step_price(np.array([-20.0, 0, 0])) is None
    assert step_price(np.array([20.0, 0, 40])) is None
    assert 0 < step_price(np.array([60.0, 0, 0])) < step_price(np.array([90.0, 0, 0]))


def test_what_was_passed_over_is_added_and_what_has_no_room_goes():
    bodies = column([200.0, 180, 160, 140, 120])
    heat = heat_of(bodies)
    chain = best_chain(find_peaks(heat, 0.2, MM), MM)
    seen = located(np.vstack([bodies[[0, 1]], bodies[3:], [[60.0, 60, 130]]]))       # one passed over, one between two
    row = reconcile(seen, chain, heat, GRID)
    np.testing.assert_allclose([v.body_centre for v in row], bodies, atol=1.0)
    added = row[2]
    np.testing.assert_allclose(np.array(added.box_centre) - added.body_centre, (0, 15, -4), atol=1.5)   # as beside it
    assert added.extent == seen[0].extent and 0.5 < added.score <= 1
    assert [v.box_centre for v in row if v.hits == seen[0].hits][0] == seen[0].box_centre              # what was located stays where it was


def test_a_map_that_does_not_know_the_scan_changes_nothing():
    seen = located(column([200.0, 180, 160, 140, 120]))
    elsewhere = heat_of(column([200.0, 110, 60]))
    chain = best_chain(find_peaks(elsewhere, 0.2, MM), MM)
    assert reconcile(seen, chain, elsewhere, GRID) == seen
    assert reconcile(seen, [], np.zeros(GRID.shape, np.float32), GRID) == seen
    assert reconcile([], [Peak(np.zeros(3), 0.9)] * 2, elsewhere, GRID) == []


def test_beyond_the_chain_what_the_map_sees_stays():
    bodies = column([200.0, 180, 160, 140, 120])
    heat = heat_of(np.vstack([bodies, [[60.0, 60, 100]]]), [0.9] * 5 + [0.15])       # the last one is cut: too weak for a peak
    chain = best_chain(find_peaks(heat, 0.2, MM), MM)
    row = reconcile(located(np.vstack([[[60.0, 60, 228]], bodies, [[60.0, 60, 100]]])), chain, heat, GRID)
    assert [round(v.body_centre[2], -1) for v in row] == [200, 180, 160, 140, 120, 100]   # nothing is seen where a skull is


def test_patches_cover_the_row_and_beyond():
    bodies = np.array([[80.0, 20, 20], [70, 20, 20], [60, 24, 20], [50, 28, 20]])
    starts = patch_starts(bodies, GRID.shape, plan())
    covered = {z for start in starts for z in range(start[0], start[0] + 32)}
    assert covered >= set(range(31, 98)) and all((start[1:] > 0).all() for start in starts)
    assert len(patch_starts(bodies[:1], (20, 40, 40), plan())) == 1


def test_heat_maps_are_the_same_whatever_the_batch():
    class Bright(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x[:, :1] - 0.5).repeat(1, 2, 1, 1, 1) * 8

    rng = np.random.default_rng(0)
    array = rng.integers(-200, 800, GRID.shape).astype(np.int16)
    bodies = np.array([[80.0, 20, 20], [40, 20, 20]])
    one, many = plan(), plan()
    one.run.inference_batch = 1
    many.run.inference_batch = 16
    first, second = (heat_maps(array, bodies, [Bright()], p, torch.device("cpu")) for p in (one, many))
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert first.shape == (2, *GRID.shape) and first.max() > 0.9 and first[:, 5].max() < first.max()


def test_a_gap_is_filled_where_the_map_is_high_all_the_way():
    bodies = column([200.0, 180, 160, 120, 100])
    ridge = heat_of(np.vstack([bodies, column([147.0, 140, 133])]))
    chain = [Peak(place, 0.9) for place in GRID.world_to_index(bodies)]
    np.testing.assert_allclose(GRID.index_to_world(np.array([p.place for p in fill_gaps(chain, ridge, MM)]))[:, 2],
                               [200, 180, 160, 140, 120, 100], atol=5)
    assert fill_gaps(chain, heat_of(bodies), MM) == chain                            # nothing is seen there
    dens = [Peak(place, 0.9) for place in GRID.world_to_index(column([200.0, 168, 150, 132]))]
    assert fill_gaps(dens, np.ones(GRID.shape, np.float32), MM) == dens              # between C1 and C2


def test_a_box_beside_a_peak_at_the_end_of_the_chain_is_that_peaks():
    bodies = column([200.0, 180, 160, 140])
    heat = heat_of(bodies)
    chain = best_chain(find_peaks(heat, 0.2, MM), MM)
    seen = located(np.vstack([bodies, [[60.0, 72, 201]]]))
    assert len(reconcile(seen, chain, heat, GRID)) == 4


def test_a_row_that_the_detector_is_sure_of_stays_as_it_is(monkeypatch):
    asked = []
    monkeypatch.setattr("spineclue_v2.stages.centres.predictor.heat_maps",
                        lambda array, *_: asked.append(True) or np.zeros((2, *array.shape), np.float32))
    volume = Volume(np.full(GRID.shape, 40, np.int16), GRID)
    bodies = column([200.0, 180, 160])
    sure, unsure = located(bodies, 0.7), located(bodies, 0.5)
    assert follow_row(volume, sure, [], plan(), torch.device("cpu")) == sure and not asked
    assert follow_row(volume, unsure, [], plan(), torch.device("cpu")) == unsure and asked
    assert follow_row(volume, [], [], plan(), torch.device("cpu")) == []


def test_what_nobody_annotated_counts_for_nothing():
    row = row_of(["T3", "T4", "T5"], np.array([[60.0, 20, 20], [54, 20, 20], [48, 20, 20]]), MM)
    array, labels = np.full(GRID.shape, 40, np.int16), np.zeros(GRID.shape, np.uint8)
    known = cut_patch(array, row, plan(), np.random.default_rng(5), False, labels)[2]
    assert torch.equal(known, cut_patch(array, row, plan(), np.random.default_rng(5), False)[2]) and known.any()
    labels[:] = 255
    image, _, weight = cut_patch(array, row, plan(), np.random.default_rng(5), False, labels)
    assert not weight[:, (image != 0).any(0)].any()
