"""The bank of vertebrae: what is stored, what a crop of it promises, and that it comes again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spineclue_v2.anatomy import LEVEL_INDEX
from spineclue_v2.errors import InputError
from spineclue_v2.phantom import sample
from spineclue_v2.phantom.bank import STILL, ShapeBank, Warp, batches

LEVELS = ("C4", "T7", "L2", "L3")
SIZE, SPACING = (36, 44, 48), 2.5
LUMBAR = {"first": "L2", "last": "L4", "spacing": 2.0, "variant": None, "wide": False, "fractures": {}, "screws": 0, "cement": 0}


@pytest.fixture(scope="module")
def bank():
    return ShapeBank.from_shapes(2, 5, spacing=2.5, levels=LEVELS)


@pytest.fixture(scope="module")
def pictures():
    return ShapeBank.from_cases([sample(9001, oblique=0, **LUMBAR)], spacing=2.0)


def volume(masks: torch.Tensor, spacing: float) -> list[float]:
    """cm3 of each mask (B, 1, z, y, x)."""
    return (masks.sum((1, 2, 3, 4)) * spacing**3 / 1000).tolist()


def test_levels_and_spines_are_those_drawn(bank):
    assert bank.levels.tolist() == [LEVEL_INDEX[n] for n in LEVELS] * 2 and bank.spines.tolist() == [0] * 4 + [1] * 4
    assert bank.spine(1).tolist() == [4, 5, 6, 7] and bank.fields.dtype == torch.int8


def test_still_crops_hold_the_vertebra_in_their_middle(bank):
    masks, images = bank.crops(torch.arange(8), 0, SIZE, SPACING, STILL)
    assert images is None and masks.shape == (8, 1, *SIZE)
    for mask, size in zip(masks[:, 0], volume(masks, SPACING), strict=True):
        inside = torch.nonzero(mask > 0.5).float()
        middle = (inside.amin(0) + inside.amax(0)) / 2
        assert torch.allclose(middle, (torch.tensor(SIZE) - 1) / 2, atol=1.0)
        assert 5 < size < 95
    sizes = np.array(volume(masks, SPACING)).reshape(2, 4)
    assert (sizes[:, 0] < 0.6 * sizes[:, 1]).all() and (sizes[:, 1] < 0.7 * sizes[:, 2]).all()  # C4 < T7 < L2


def test_equal_seeds_equal_crops_and_no_global_state(bank):
    index = torch.tensor([2, 2, 6])
    first, _ = bank.crops(index, 11, SIZE, SPACING)
    torch.manual_seed(3)
    again, _ = bank.crops(index, 11, SIZE, SPACING)
    other, _ = bank.crops(index, 12, SIZE, SPACING)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])  # one vertebra twice in a batch is warped twice
    assert float(first.min()) >= 0 and float(first.max()) <= 1


def test_warps_keep_size_within_their_range(bank):
    still = np.array(volume(bank.crops(torch.arange(8), 0, SIZE, SPACING, STILL)[0], SPACING))
    moved = np.mean([volume(bank.crops(torch.arange(8), s, SIZE, SPACING)[0], SPACING) for s in range(6)], 0)
    assert np.allclose(moved, still, rtol=0.2)


def test_mirror_swaps_left_and_right(bank):
    index = torch.tensor([2])
    mirrored = Warp(**{**STILL.__dict__, "mirror": True})
    one, _ = bank.crops(index, 0, SIZE, SPACING, STILL)
    found = [bank.crops(index, s, SIZE, SPACING, mirrored)[0] for s in range(8)]
    same = [torch.allclose(f, one, atol=1e-4) for f in found]
    swapped = [torch.allclose(f.flip(-1), one, atol=1e-4) for f in found]
    assert any(same) and any(swapped) and all(a or b for a, b in zip(same, swapped, strict=True))


def test_members_of_one_spine_turn_together(bank):
    """Their common turn is four fifths of the whole: measured on the position of what is stored, through the sampling grid."""
    warp = Warp(turn=(0.0, 0.0, 30.0), scale=0, shift=0, bend=0, offset=0, mirror=False)
    apart = []
    for seed in range(8):
        grid = bank._grid(torch.arange(4), torch.Generator().manual_seed(seed), SIZE, SPACING, warp)
        step = grid[:, 0, 0, -1] - grid[:, 0, 0, 0]  # along x: its y component is the sine of the turn
        apart.append([float(torch.atan2(s[1], s[0])) for s in step])
    apart = np.degrees(apart)
    assert np.ptp(apart, axis=1).max() < 0.2 * 30 * 2 + 3 < np.ptp(apart[:, 0])


def test_ct_crops_show_the_bone_where_the_mask_is(pictures):
    assert set(pictures.levels.tolist()) >= {LEVEL_INDEX[n] for n in ("L2", "L3", "L4")}
    masks, images = pictures.crops(torch.arange(len(pictures.levels)), 1, SIZE, SPACING)
    for mask, image in zip(masks, images, strict=True):
        assert image[mask > 0.5].mean() > image[(mask < 0.5) & (image > -900)].mean() + 60
    assert float(images.min()) >= -1025  # beyond the scan lies air


def test_stored_images_are_the_scan(pictures):
    case = sample(9001, oblique=0, **LUMBAR)
    masks, images = pictures.crops(torch.tensor([1]), 0, (40, 40, 40), 2.0, STILL)
    value = int(pictures.levels[1]) + 1
    label = case.labels == value
    assert abs(float(masks.sum()) - label.sum()) < 0.06 * label.sum()
    assert abs(float(images[masks > 0.5].mean()) - case.ct[label].mean()) < 25


def test_batches_hold_every_level_equally_often(bank, pictures):
    make = batches(bank, SIZE, SPACING, 8, seed=3)
    batch = make(4)
    assert sorted(batch["level"].tolist()) == sorted([LEVEL_INDEX[n] for n in LEVELS] * 2) and batch["image"].shape == (8, 1, *SIZE)
    assert torch.equal(make(4)["image"], batch["image"]) and not torch.equal(make(5)["image"], batch["image"])
    assert set(batches(pictures, SIZE, SPACING, 4, 0)(0)) == {"image", "level", "mask"}


def test_saved_bank_is_the_same_bank(bank, pictures, tmp_path):
    for one in (bank, pictures):
        one.save(tmp_path / "bank.pt")
        read = ShapeBank.load(tmp_path / "bank.pt")
        assert torch.equal(read.fields, one.fields) and read.spacing == one.spacing
        assert (read.images is None) == (one.images is None)
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no shape bank"):
        ShapeBank.load(tmp_path / "bad.pt")


def test_crops_on_a_device(bank):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    there, _ = bank.to(device).crops(torch.arange(4), 2, SIZE, SPACING)
    here, _ = bank.crops(torch.arange(4), 2, SIZE, SPACING)
    assert there.device.type == device and torch.allclose(there.cpu(), here, atol=1e-2)


def test_an_empty_bank_is_one_sentence():
    with pytest.raises(InputError):
        ShapeBank.from_shapes(0, 1)
    with pytest.raises(InputError):
        ShapeBank.from_shapes(1, 1, levels=("T13",))
    with pytest.raises(InputError, match="whole vertebra"):
        ShapeBank.from_cases([sample(3, spine=False, spacing=4.0)])
