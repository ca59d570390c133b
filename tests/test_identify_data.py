"""Batches of stage 3: what the contrastive phase sees."""
from __future__ import annotations

import pytest
import torch
from tiny_dataset import trainer


@pytest.mark.parametrize("batch_size", [3, 4, 6, 8])
def test_a_contrastive_batch_holds_other_masks_of_every_level_in_it(tiny, tmp_path, batch_size):
    maker = trainer(tiny, "identify", tmp_path, run={"batch_size": batch_size}).batch_sampler(training=True)
    maker.augment = False
    seen = set()
    for index in range(4):                                                                     # the rest are whole spines
        batch = maker(index)
        first, second = batch["image"].split(batch_size)
        assert torch.equal(first, second) and torch.equal(*batch["level"].split(batch_size))   # two views of each mask, here the same
        levels, counts = batch["level"][:batch_size].unique(return_counts=True)
        assert len(levels) == min(4, batch_size // 2)                                          # the dataset has L1 to L4
        assert counts.min() >= 2 and counts.max() - counts.min() <= 1
        for level in levels:
            masks = first[batch["level"][:batch_size] == level].flatten(1)
            assert len(masks.unique(dim=0)) == min(len(masks), 4)                              # four training cases
        seen |= set(levels.tolist())
    assert len(seen) > min(3, batch_size // 2)


def test_contrastive_batches_are_functions_of_seed_and_index(tiny, tmp_path):
    maker, again = (trainer(tiny, "identify", tmp_path / name).batch_sampler(training=True) for name in "ab")
    again(1)
    assert torch.equal(maker(0)["image"], again(0)["image"])
    assert not torch.equal(maker(0)["image"], maker(1)["image"])
