"""The MR phantom: the same seed gives the same scan, contrast is MR's, labels are bodies and discs."""
from __future__ import annotations

import numpy as np
import pytest

from spineclue_v2.anatomy.structures import VALUE
from spineclue_v2.errors import InputError
from spineclue_v2.phantom.mr import sample_mr


@pytest.fixture(scope="module")
def quiet() -> object:
    return sample_mr(5, plane_mm=2.0, slice_mm=6.0, top="L2", bias=0.0, noise=0.0)


def test_nothing_above_the_highest_level_shown_is_labelled() -> None:
    """A sliver of the next body reached into most phantoms and counted as a structure of its own."""
    case = sample_mr(8, plane_mm=2.0, slice_mm=6.0, top="L2", bias=0.0, noise=0.0)
    found = {name for name, value in VALUE.items() if (case.labels == value).any()}
    assert "L2" in found and not {"L1", "T12"} & found


def test_the_same_seed_gives_the_same_voxels(quiet: object) -> None:
    again = sample_mr(5, plane_mm=2.0, slice_mm=6.0, top="L2", bias=0.0, noise=0.0)
    assert np.array_equal(quiet.image, again.image) and np.array_equal(quiet.labels, again.labels)


def test_bodies_and_discs_alternate_from_the_sacrum_upwards(quiet: object) -> None:
    middle = quiet.labels[:, :, quiet.labels.shape[2] // 2]
    heights = {name: np.argwhere(middle == value)[:, 0].mean() for name, value in VALUE.items() if (middle == value).any()}
    chain = ["S", "L5/S", "L5", "L4/L5", "L4", "L3/L4", "L3", "L2/L3", "L2"]
    assert set(chain) <= set(heights)
    assert all(heights[a] < heights[b] for a, b in zip(chain, chain[1:], strict=False))


@pytest.mark.parametrize(("contrast", "brighter", "darker"), [("t2", "nucleus", "annulus"), ("water", "nucleus", "marrow"),
                                                              ("fat", "marrow", "nucleus")])
def test_contrast_is_that_of_the_sequence(contrast: str, brighter: str, darker: str) -> None:
    from spineclue_v2.phantom.mr import CONTRASTS

    assert CONTRASTS[contrast][brighter] > 1.2 * CONTRASTS[contrast][darker]


def test_water_and_fat_images_see_marrow_differently() -> None:
    means = {}
    for contrast in ("water", "fat"):
        case = sample_mr(6, contrast=contrast, plane_mm=2.0, slice_mm=6.0, top="L2", bias=0.0, noise=0.0)
        body, disc = case.labels == VALUE["L4"], case.labels == VALUE["L3/L4"]
        means[contrast] = case.image[body].mean() / case.image[disc].mean()
    assert means["fat"] > 2 * means["water"]


def test_slices_are_thick_and_the_coil_is_uneven() -> None:
    case = sample_mr(7, plane_mm=2.0, top="L2", bias=0.8)
    assert 4.0 <= case.spacing[2] <= 4.8 and case.spacing[:2] == (2.0, 2.0) and case.image.shape == case.labels.shape
    flat = sample_mr(7, plane_mm=2.0, top="L2", bias=0.0)
    assert np.std(case.image / np.maximum(flat.image, 1)) > 0.1


def test_unknown_switches_are_refused() -> None:
    with pytest.raises(InputError, match="contrast 't3'"):
        sample_mr(1, contrast="t3")
    with pytest.raises(InputError, match="level 'X9'"):
        sample_mr(1, top="X9")
