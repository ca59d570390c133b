"""Body against arch, islands, holes: known answers and real masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from blocks import spine
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.anatomy import LABEL_OF_NAME
from spineclue_v2.anatomy.morphology import body_centre, fill_holes, largest_component

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "ct"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (1.5, 1.5, 1.5), (3.0, 0.7, 0.7)])
def test_body_centre_ignores_arch_and_spinous_process(spacing: tuple[float, float, float]) -> None:
    _, labels, centres = spine(["L1"], spacing)
    mask = labels.array == LABEL_OF_NAME["L1"]
    found = np.array(body_centre(mask, spacing)) * spacing
    centroid = np.argwhere(mask).mean(0) * spacing
    assert np.abs(found - centres["L1"]).max() <= max(1.5, max(spacing))
    assert centroid[1] - found[1] > 3  # the mask's centroid is pulled towards the arch


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(0, 6)] * 3))
def test_body_centre_moves_with_the_mask(shift: tuple[int, int, int]) -> None:
    _, labels, _ = spine(["L1"], (3.0, 3.0, 3.0))
    mask = labels.array > 0
    moved = np.pad(mask, [(s, 6 - s) for s in shift])
    assert np.allclose(np.subtract(body_centre(moved, (3, 3, 3)), shift), body_centre(mask, (3, 3, 3)), atol=1e-6)


def test_lateral_masses_as_thick_as_the_body_do_not_win() -> None:
    """A cervical vertebra: articular masses beside the canal reach the thickness of the body."""
    z, y, x = np.mgrid[0:24, 0:40, 0:56].astype(float)
    body = (np.abs(z - 12) <= 6) & (np.abs(y - 9) <= 7) & (np.abs(x - 28) <= 8)
    masses = (np.abs(z - 12) <= 7) & (np.hypot(y - 20, np.abs(x - 28) - 16) <= 7)
    arch = (np.abs(z - 12) <= 3) & (np.hypot(y - 20, x - 28) <= 16) & (np.hypot(y - 20, x - 28) >= 12) & (y > 20)
    assert np.abs(np.array(body_centre(body | masses | arch, (1, 1, 1))) - (12, 9, 28)).max() <= 2.5


def test_empty_mask_is_refused_and_a_single_voxel_answers_itself() -> None:
    with pytest.raises(ValueError, match="empty"):
        body_centre(np.zeros((3, 3, 3), bool), (1, 1, 1))
    one = np.zeros((5, 5, 5), bool)
    one[2, 3, 1] = True
    assert body_centre(one, (1, 1, 1)) == (2.0, 3.0, 1.0)


def test_largest_component_and_holes() -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[1:8, 1:8, 1:8] = True
    mask[4, 4, 4] = False  # a cavity
    mask[1, 4, 4] = False  # a dent, open to the outside
    mask[10, 10, 10] = True  # an island
    body = largest_component(mask)
    assert body.sum() == mask.sum() - 1 and not body[10, 10, 10]
    filled = fill_holes(body)
    assert filled[4, 4, 4] and not filled[1, 4, 4] and filled.sum() == body.sum() + 1
    assert not largest_component(np.zeros((3, 3, 3), bool)).any() and not fill_holes(np.zeros((3, 3, 3), bool)).any()


def test_body_centre_lies_in_the_annotated_corpus() -> None:
    """The sub-region annotation of a real CT (49, 50: vertebral body) as reference for L3, the one whole vertebra."""
    from spineclue_v2.imageio.volume import read_labels

    folder = REAL / "tptbox"
    if not folder.is_dir():
        pytest.skip("real data are not here")
    vertebrae = read_labels(folder / "sub-ct_seg-vert_label-22_msk.nii.gz").reoriented()
    regions = read_labels(folder / "sub-ct_seg-subreg_label-22_msk.nii.gz").reoriented()
    mask = vertebrae.array == 22
    corpus = np.argwhere(mask & np.isin(regions.array, (49, 50))).mean(0)
    error = (np.array(body_centre(mask, vertebrae.spacing)) - corpus) * vertebrae.spacing
    assert np.linalg.norm(error) < 1.5
