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


def test_varied_examinations_differ_and_repeat() -> None:
    first, again = (sample_mr(5, "t1", top="L2", plane_mm=2.5, varied=True) for _ in range(2))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.labels, again.labels)
    other = sample_mr(6, "t1", top="L2", plane_mm=2.5, varied=True)
    assert first.image.shape != other.image.shape and first.spacing[2] != other.spacing[2] and 3.0 <= other.spacing[2] <= 5.0
    for case in (first, other):
        assert {VALUE["L5"], VALUE["S"], VALUE["L5/S"]} <= set(np.unique(case.labels))


def test_metal_and_saturation_take_signal_away_where_they_lie() -> None:
    from dataclasses import replace

    from spineclue_v2.phantom import mr
    from spineclue_v2.phantom.mr_variety import draw_look

    plain = replace(draw_look(5, "t2", mr.CONTRASTS), metal=False, saturation=None, ghost=0.0, noise=0.0, skin_mm=60.0)
    images = {}
    for name, look in (("plain", plain), ("metal", replace(plain, metal=True)), ("band", replace(plain, saturation=0.1))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mr, "draw_look", lambda *_, look=look: look)
            images[name] = sample_mr(5, top="L2", plane_mm=2.5, noise=0.0, bias=0.0, varied=True)
    lost = {name: images[name].image / np.maximum(images["plain"].image, 1) for name in ("metal", "band")}
    shown = images["plain"].image > 50
    dark = shown & (lost["metal"] < 0.2)
    assert 0 < dark.sum() < 0.05 * shown.sum()
    rows = np.where(shown, lost["band"], np.nan)
    assert np.nanmedian(rows[:, :4]) < 0.2 < 0.9 < np.nanmedian(rows[:, -8:])


def test_unknown_switches_are_refused() -> None:
    with pytest.raises(InputError, match="contrast 't3'"):
        sample_mr(1, contrast="t3")
    with pytest.raises(InputError, match="level 'X9'"):
        sample_mr(1, top="X9")
