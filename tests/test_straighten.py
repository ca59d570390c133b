"""Sheared scans on a grid with right angles: nothing moves in the patient, and the field of view stays that of the content."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from benchmarks.reading_variants import AIR, sheared
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.volume import Volume
from spineclue_v2.preprocessing.straighten import sheared_labels, straight_grid, straightened

shears = st.tuples(*[st.floats(-0.5, 0.5)] * 3)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shears, st.permutations(range(3)), st.tuples(*[st.sampled_from((-1, 1))] * 3))
def test_straightening_moves_nothing_in_the_patient(shear, order, signs):
    """A linear function of the place in the patient is the same function on the straight grid, wherever the scan reaches."""
    affine = np.eye(4)
    affine[:3, :3] = (np.array([[0.8, shear[0], shear[1]], [0, 0.9, shear[2]], [0, 0, 1.5]]) * signs)[:, order]
    affine[:3, 3] = (-30, 12, 7)
    grid = ImageGrid.from_affine(affine, (14, 16, 18))
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    scan = Volume((grid.index_to_world(index) @ [2.0, -3.0, 1.5]).astype(np.float32), grid)
    straight = straightened(scan, fill=-1e4)
    axes = straight.geometry.direction
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9) and straight.geometry.spacing == straight_grid(grid).spacing
    target = np.stack(np.meshgrid(*map(np.arange, straight.array.shape), indexing="ij"), -1)
    inside = grid.world_to_index(straight.geometry.index_to_world(target))
    deep = ((inside >= 3) & (inside <= np.array(grid.shape) - 4)).all(-1)
    assert deep.any()
    assert np.allclose(straight.array[deep], (straight.geometry.index_to_world(target) @ [2.0, -3.0, 1.5])[deep], atol=0.05)


def test_labels_come_back_onto_the_sheared_grid():
    grid = ImageGrid.from_affine(np.array([[1, 0, 0.1, 0], [0, 1, 0.4, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]]), (12, 30, 30))
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    ball = (np.linalg.norm(grid.index_to_world(index) - grid.index_to_world((6, 15, 15)), axis=-1) < 8).astype(np.uint8) * 21
    straight = straightened(Volume(ball.astype(np.int16), grid), 0)
    back = sheared_labels(Volume((straight.array > 10).astype(np.uint8) * 21, straight.geometry), grid)
    assert back.array.shape == grid.shape and back.array.dtype == np.uint8
    both = (back.array > 0) & (ball > 0)
    assert 2 * both.sum() / ((back.array > 0).sum() + (ball > 0).sum()) > 0.97


@pytest.mark.parametrize("shear", [
    [[1, 0, 0], [0, 1, -np.tan(np.radians(12)) * 2 / 0.9], [0, 0, 1]],      # a gantry tilted by 12 degrees
    [[1, 0, 0.37], [0, 1, -0.6], [0, 0, 1]],
    [[1, 0.1, 0.05], [0, 1, -0.08], [0, 0, 1]],                            # sheared within the slices, too
])
def test_a_scan_that_was_sampled_on_a_sheared_grid_comes_back_onto_its_own(shear):
    """Tissue up to the edge of the field, as in cropped scans: the straight grid is the scan's own, and so are its voxels."""
    tissue = gaussian_filter(np.random.default_rng(3).normal(0, 1, (16, 60, 50)), (0, 1.2, 1.2))
    tissue = (60 + 300 * tissue / tissue.std()).clip(-800, 1500).astype(np.int16)
    grid = ImageGrid.from_affine(np.array([[0.8, 0, 0, -10], [0, 0.9, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]]), tissue.shape)
    straight = straightened(sheared(Volume(tissue, grid), np.array(shear, float)))
    assert straight.geometry.same_grid(grid, tolerance=1e-3)
    inner = np.abs(straight.array.astype(float) - tissue)[:, 2:-2, 2:-2]
    assert np.sqrt((inner ** 2).mean()) < 0.03 * tissue.std() and straight.array.min() >= AIR


def test_no_spline_swings_beside_padding():
    array = np.full((8, 40, 40), AIR, np.int16)
    array[:, 8:30, 6:33] = 400
    straight = straightened(Volume(array, ImageGrid.from_affine(np.array([[0.8, 0, 0, 0], [0, 0.9, 0.4, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]]),
                                                                array.shape)))
    assert set(np.unique(straight.array)) == {AIR, 400} and (straight.array == 400).sum() == (array == 400).sum()
    assert straight.array.shape[2] == 27
