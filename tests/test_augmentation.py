"""Augmentation shared by localize and segment: other scanners, and scans that end within a vertebra."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.preprocessing.augmentation import augment_hu, field_ends, thick_slices
from spineclue_v2.stages.localize.data import KEPT_FRACTION, clip_boxes, cut_field


@pytest.mark.parametrize("shape", [(40, 30), (24, 20, 28)])
def test_augmented_scans_keep_shape_and_order_of_tissues(shape):
    array = np.full(shape, 40, np.int16)
    array[10:20, 8:16] = 700
    before = array.copy()
    for seed in range(20):
        found = augment_hu(array, np.random.default_rng(seed), 2.0)
        assert found.shape == shape and found.dtype == np.float32 and np.isfinite(found).all()
        assert found[13:17, 11:13].mean() > found[:4].mean() + 100
    np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(augment_hu(array, np.random.default_rng(3), 2.0), augment_hu(array, np.random.default_rng(3), 2.0))


def test_thick_slices_smear_a_plane_but_keep_a_constant():
    flat = np.full((30, 30), 5.0, np.float32)
    ramp = np.zeros((30, 30), np.float32)
    ramp[15] = ramp[:, 15] = 100
    for seed in range(6):
        np.testing.assert_allclose(thick_slices(flat, np.random.default_rng(seed), 1.0), 5.0, atol=1e-4)
        smeared = thick_slices(ramp, np.random.default_rng(seed), 1.0)
        assert min(smeared[15, :10].max(), smeared[:10, 15].max()) < 75


@given(seed=st.integers(0, 2 ** 31), start=st.tuples(st.integers(0, 20), st.integers(0, 20)), length=st.integers(12, 30))
@settings(max_examples=60, deadline=None)
def test_the_field_keeps_its_share_of_the_box(seed, start, length):
    stop = tuple(a + length for a in start)
    field = field_ends(start, stop, (60, 60), np.random.default_rng(seed), 0.5)
    assert all(0 <= first < end <= 60 for first, end in field)
    kept = [min(b, end) - max(a, first) for (first, end), a, b in zip(field, start, stop, strict=True)]
    assert min(kept) >= 0.5 * length - 1


def test_boxes_follow_the_cut_and_lose_what_is_gone():
    image = np.arange(60 * 50, dtype=np.float32).reshape(60, 50)
    boxes = np.array([[10, 5, 30, 20], [12, 25, 32, 40], [11, 44, 31, 58]], dtype=np.float32)
    for seed in range(30):
        cut, found = cut_field(image, boxes, np.random.default_rng(seed))
        assert cut.size and len(found) >= 1
        row, column = divmod(int(cut[0, 0]), 50)
        for x0, y0, x1, y1 in found:
            assert 0 <= x0 < x1 <= cut.shape[1] and 0 <= y0 < y1 <= cut.shape[0]
            whole = boxes[int(np.abs(boxes[:, 1] + (boxes[:, 3] - boxes[:, 1]) / 2 - row - (y0 + y1) / 2).argmin())]
            assert x0 + column >= whole[0] - 1e-4 and x1 + column <= whole[2] + 1e-4


def test_boxes_are_kept_by_the_share_that_is_left():
    boxes = np.array([[-10.0, 0, 10, 10], [-12, 0, 8, 10], [0, 0, 10, 10]], dtype=np.float32)
    clipped, kept = clip_boxes(boxes, (40, 40))
    assert kept.tolist() == [True, False, True] and 0.4 < KEPT_FRACTION < 0.5
    assert clipped[0].tolist() == [0, 0, 10, 10]
