"""Shares of classes as targets of the 2D branches: known answers of their making, their loss and the batches that hold them."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spineclue_v2.adapters import dice_and_cross_entropy
from spineclue_v2.stages.mr.data import SliceBatches
from spineclue_v2.stages.mr.soft_labels import (
    labels_of_pixels,
    soft_dice_and_cross_entropy,
    soft_labels_of_pixels,
    soft_labels_of_tissue_classes,
)

KINDS = torch.tensor([0, 1, 1, 2])


def test_shares_by_hand() -> None:
    labels = torch.tensor([[[1, 1, 0, 0], [1, 2, 0, 3]]])
    shares = soft_labels_of_pixels(labels, 2, 4)
    assert shares.tolist() == [[[[0, 0.75]], [[0.75, 0]], [[0.25, 0]], [[0, 0.25]]]]
    assert soft_labels_of_tissue_classes(shares, KINDS).tolist() == [[[[0, 0.75]], [[1, 0]], [[0, 0.25]]]]
    assert labels_of_pixels(labels, 2, 4).tolist() == [[[1, 0]]]


@pytest.mark.parametrize("kinds", [False, True])
def test_shares_of_one_voxel_are_learned_as_its_label_is(kinds: bool) -> None:
    """At in_plane_factor 1 the loss is nnU-Net's, gradients too; class 3 occurs nowhere."""
    draw = torch.Generator().manual_seed(0)
    labels, logits = torch.randint(0, 3, (2, 6, 8), generator=draw), 3 * torch.randn(2, 4, 6, 8, generator=draw)
    shares, target = soft_labels_of_pixels(labels, 1, 4), labels[:, None]
    if kinds:
        shares, target, logits = soft_labels_of_tissue_classes(shares, KINDS), KINDS[target], logits[:, :3].contiguous()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, expected = soft_dice_and_cross_entropy(ours, shares), dice_and_cross_entropy(batch_dice=True)(theirs, target.float())
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), abs=1e-6) and torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_loss_of_shares_by_hand() -> None:
    """Two pixels, a background and one class: shares 1/2 and 0, probabilities 1/2 and 1/4."""
    shares, found = torch.tensor([[[0.5, 1.0], [0.5, 0.0]]]), torch.tensor([[[0.5, 0.75], [0.5, 0.25]]])
    cross_entropy, dice = (np.log(2) + np.log(4 / 3)) / 2, 2 * 0.25 / (0.75 + 0.5)
    assert soft_dice_and_cross_entropy(found.log(), shares).item() == pytest.approx(cross_entropy - dice, abs=1e-5)


def batches(folder: Path, augment: bool, soft_labels: bool) -> SliceBatches:
    """Of one case: a disc of 3 rows, brighter than all else, from an odd row on, so that pixels of 2 x 2 voxels hold half of it."""
    labels = np.zeros((4, 96, 96), np.uint8)
    labels[:, 41:44, 10:86] = 1
    image = labels.astype(np.float32)
    places = np.argwhere(labels == 1)[::97].tolist()
    stored = {"image": image, "labels": labels}
    maker = SliceBatches(folder, ["a"], 0, 20.0, (0.7, 1.35), torch.tensor([False, True]), 0.0, augment, folder, [], (32, 32), 2,
                         soft_labels, 2, 6, 0, 3, (0.25, 0.5))
    properties = {"structures": {"L5/S": {"voxels": 100, "locations": places}}}
    maker._open[folder] = SimpleNamespace(properties=lambda case: properties)  # type: ignore[assignment]
    maker._arrays = {(folder, "a", what): array for what, array in stored.items()}
    return maker


@pytest.mark.parametrize("augment", [False, True])
def test_batches_hold_the_share_of_each_class(tmp_path: Path, augment: bool) -> None:
    batch = batches(tmp_path, augment, True)(0)
    target = batch["target"]
    assert target.shape == (6, 2, 32, 32) and batch["image"].shape == (6, 3, 32, 32)
    assert torch.allclose(target.sum(1), torch.ones(6, 32, 32)) and set((4 * target).unique().tolist()) <= {0, 1, 2, 3, 4}
    assert ((target > 0) & (target < 1)).any()
    if not augment:                  # the image is the disc itself, so its pixels are the disc's shares
        assert torch.allclose(batch["image"][:, 1], target[:, 1])
    else:
        flat = torch.stack([batch["image"][:, 1].flatten(), target[:, 1].flatten()])
        assert float(torch.corrcoef(flat)[0, 1]) > 0.5       # they move alike


def test_without_shares_batches_hold_labels(tmp_path: Path) -> None:
    hard, soft = batches(tmp_path, False, False)(0)["target"], batches(tmp_path, False, True)(0)["target"]
    assert hard.shape == (6, 1, 32, 32) and torch.equal(hard[:, 0].long(), soft.argmax(1))
