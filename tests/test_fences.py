"""Masks end between known centres, and each known centre gets a mask."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from analytic import ThresholdSegmenter
from hypothesis import given, settings
from hypothesis import strategies as st
from test_segment import PLAN

from spineclue_v2.anatomy.morphology import component_at
from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.volume import Volume
from spineclue_v2.stages.segment.fences import Fence, fence_in, fences_of, hand_over, shows_centre
from spineclue_v2.stages.segment.predictor import segment
from spineclue_v2.stages.segment.spine import segment_located

CPU = torch.device("cpu")
GRID = ImageGrid((60, 40, 40), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), np.eye(3))


def at(z: float, centre_score: float | None = 0.8, score: float = 0.6) -> Vertebra:
    place = (40.0, 40.0, 2 * z)
    return Vertebra(place, (20.0, 20.0, 20.0), score, body_centre=place, centre_score=centre_score)


def merged() -> Volume:
    """Two bodies without a disc between them: z 22..38 around (20, 20), centres at 26 and 35."""
    array = np.full(GRID.shape, -100, np.int16)
    array[22:40, 16:25, 16:25] = 600
    return Volume(array, GRID)


def test_fences_stand_between_neighbours_that_are_known():
    fences = fences_of([at(20), at(44), at(30, centre_score=None), at(35)], GRID)
    assert [len(own) for own in fences] == [1, 1, 0, 2]
    assert {float(fence.other[0]) for fence in fences[3]} == {20.0, 44.0} and float(fences[3][0].own[0]) == 35.0
    assert fences_of([at(20, None)], GRID) == [[]]
    neck = fences_of([at(55), at(43), at(35), at(27), at(19)], GRID)                 # C1 and its dens
    assert [len(own) for own in neck] == [0, 1, 2, 2, 1] and float(neck[1][0].other[0]) == 35.0


@given(z=st.integers(4, 12), y=st.integers(-3, 3), x=st.integers(-3, 3))
@settings(max_examples=30, deadline=None)
def test_a_fence_leaves_the_own_half_and_what_lies_far_from_the_row(z: int, y: int, x: int):
    own = np.array([15.0, 15.0, 15.0])
    crop = np.ones((32, 32, 32), np.float16)
    fence_in(crop, np.zeros(3, int), [Fence(own, own + (z, y, x))])     # it shows everything
    grid = np.indices(crop.shape).transpose(1, 2, 3, 0)
    way = np.array([z, y, x], float)
    along = (grid - own) @ way / (way @ way)
    across = np.linalg.norm(grid - own - along[..., None] * way, axis=-1)
    assert (crop[along <= 0.54] == 1).all() and (crop[across >= 0.61 * np.linalg.norm(way)] == 1).all()
    other = np.rint(own + way).astype(int)
    assert crop[tuple(other)] == 0 and crop[15, 15, 15] == 1


def test_a_crop_that_shows_the_neighbour_gets_its_own_body():
    a, b = np.array([10.0, 10, 10]), np.array([20.0, 10, 10])
    both, other = np.zeros((32, 20, 20), np.float16), np.zeros((32, 20, 20), np.float16)
    both[6:25, 6:15, 6:15] = 0.9
    other[4:14, 6:15, 6:15] = 0.8                       # the second crop shows the first body
    starts = np.zeros((2, 3), int)
    fences = [[Fence(a, b)], [Fence(b, a)]]
    assert not shows_centre(other, starts[1], b)
    hand_over([both, other], starts, fences)
    assert shows_centre(other, starts[1], b) and shows_centre(both, starts[0], a)
    assert not other[25:].any() and np.array_equal(both[6:25, 6:15, 6:15], np.full((19, 9, 9), 0.9, np.float16))


def test_two_bodies_in_one_mask_are_two_vertebrae_where_their_centres_are_known():
    volume, networks = merged(), [ThresholdSegmenter()]
    unknown = segment(volume, [at(26, None), at(35, None)], networks, PLAN, CPU)
    assert len(unknown) == 1                            # of masks that are the same, one stays
    known = segment(volume, [at(35), at(26)], networks, PLAN, CPU)
    np.testing.assert_allclose([v.body_centre[2] / 2 for v in known], [35, 26], atol=1.5)
    masks = np.zeros((2, *GRID.shape), bool)
    for mask, vertebra in zip(masks, known, strict=True):
        mask[vertebra.mask_box] = vertebra.mask
    assert not (masks[0] & masks[1]).any()
    assert masks[0][35, 20, 20] and masks[1][26, 20, 20] and not masks[0][27, 20, 20] and not masks[1][34, 20, 20]


def test_a_known_centre_where_nothing_is_segmented_is_no_vertebra():
    known = segment(merged(), [at(52), at(35), at(26)], [ThresholdSegmenter()], PLAN, CPU)
    np.testing.assert_allclose([v.body_centre[2] / 2 for v in known], [35, 26], atol=1.5)


def test_a_followed_row_is_not_looked_at_again(monkeypatch):
    asked = []
    monkeypatch.setattr("spineclue_v2.stages.segment.spine.propose_missed", lambda *_, **__: asked.append(True) or [])
    volume = merged()
    segment_located(volume, [at(35), at(26)], [ThresholdSegmenter()], PLAN, CPU, GRID)
    assert not asked
    segment_located(volume, [replace(at(35), centre_score=None)], [ThresholdSegmenter()], PLAN, CPU, GRID)
    assert asked


def apart() -> Volume:
    """Two bodies with a disc between them: z 12..20 and 30..38 around (20, 20)."""
    array = np.full(GRID.shape, -100, np.int16)
    array[12:21, 16:25, 16:25] = array[30:39, 16:25, 16:25] = 600
    return Volume(array, GRID)


def test_a_prompt_that_shows_the_neighbour_is_asked_again_at_the_body():
    astray = replace(at(34), box_centre=(40.0, 40.0, 2 * 17.0))         # where the other one is
    found = segment(apart(), [astray, at(16)], [ThresholdSegmenter()], PLAN, CPU)
    np.testing.assert_allclose([v.body_centre[2] / 2 for v in found], [34, 16], atol=1.5)
    assert len(segment(apart(), [replace(astray, centre_score=None), at(16)], [ThresholdSegmenter()], PLAN, CPU)) == 1


def test_a_mask_that_ends_before_the_neighbours_centre_is_left_as_it_is():
    crop = np.zeros((32, 20, 20), np.float16)
    crop[4:19, 6:15, 6:15] = 0.9                                         # beyond half the way, but the neighbour at 24 is not in it
    before = crop.copy()
    fence_in(crop, np.zeros(3, int), [Fence(np.array([10.0, 10, 10]), np.array([24.0, 10, 10]))])
    assert np.array_equal(crop, before)


def test_the_piece_at_the_centre_is_the_mask():
    mask = np.zeros((20, 20, 20), bool)
    mask[2:5, 2:5, 2:5] = True
    mask[8:18, 8:18, 8:18] = True
    assert component_at(mask, np.array([3.0, 3, 3]), 2.0).sum() == 27
    assert component_at(mask, np.array([3.0, 3, 6]), 2.0).sum() == 27      # two voxels beside it
    assert component_at(mask, np.array([0.0, 19, 0]), 2.0).sum() == 1000   # near neither: the largest
    assert not component_at(np.zeros((3, 3, 3), bool), np.zeros(3), 2.0).any()


def test_no_mask_reaches_into_the_neighbours_body():
    crop = np.zeros((32, 20, 20), np.float16)
    crop[4:22, 6:15, 6:15] = 0.9                                         # not the neighbour's centre at 24, but its upper end
    fence_in(crop, np.zeros(3, int), [Fence(np.array([10.0, 10, 10]), np.array([24.0, 10, 10]))])
    assert crop[19, 10, 10] > 0 and not crop[20:, 10, 10].any()


def test_a_centre_far_from_that_of_the_mask_is_believed():
    near, far = (replace(at(34), body_centre=(40.0, 40.0, 2 * z)) for z in (33.0, 31.0))
    assert abs(segment(apart(), [near], [ThresholdSegmenter()], PLAN, CPU)[0].body_centre[2] - 68) < 2
    assert segment(apart(), [far], [ThresholdSegmenter()], PLAN, CPU)[0].body_centre == far.body_centre


class Astray(torch.nn.Module):
    """All bone where the heat map's peak lies on the body (600 HU); its process alone (900 HU) where it lies there."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        logits = torch.full((len(crops), 2, *crops.shape[2:]), -4.0)
        for i, crop in enumerate(crops):
            on_process = float(crop[1].flatten()[int(crop[-1].argmax())]) > 0.6
            logits[i, 1][crop[1] > (0.6 if on_process else 0.3)] = 4.0
        logits[:, 0] = -logits[:, 1]
        return logits


def test_a_crop_is_moved_onto_its_mask_only_where_it_still_shows_the_centre():
    volume = apart()
    volume.array[30:39, 25:38, 16:25] = 900                              # a process behind the body: the mask's middle lies on it
    other = at(16)
    bodies = {score: segment(volume, [replace(at(34), centre_score=score), other], [Astray()], PLAN, CPU)[0] for score in (0.8, None)}
    shown = {score: v.mask[34 - v.mask_start[0], max(0, 20 - v.mask_start[1]), 20 - v.mask_start[2]] and v.mask_start[1] <= 20
             for score, v in bodies.items()}
    assert shown == {0.8: True, None: False}
