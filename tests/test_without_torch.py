"""What a prediction computes with arrays alone equals what training computes with PyTorch."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from spineclue_v2.stages.geometry.features import Batch, along, features
from spineclue_v2.stages.geometry.landmarks import Landmarks, row_features
from spineclue_v2.stages.identify.arrays import dropout_masks, entropy, fuse
from spineclue_v2.stages.identify.fusion import fusion_with
from spineclue_v2.stages.identify.network import ShapeNetwork
from spineclue_v2.stages.identify.uncertainty import entropy as torch_entropy


def test_dropout_draws_as_torch_does() -> None:
    network = ShapeNetwork(18, 4, hidden=40, projection_dim=24, dropout=0.3)
    wanted = network.dropout_masks((5, 7), torch.Generator().manual_seed(3))
    for mask, found in zip(wanted, dropout_masks((5, 7), (40, 24), 0.3, seed=3), strict=True):
        np.testing.assert_array_equal(found, mask.numpy())


@pytest.mark.parametrize("offsets", [None, 5, 9])
def test_fusion_is_that_of_training(offsets: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 24, generator=generator).softmax(1)
    positions = torch.tensor([0, 1, 2, 4, 5, 6, 9, 10])
    phi = None if offsets is None else torch.rand(offsets, 24, 24, generator=generator) - 0.2
    with torch.no_grad():
        wanted = fusion_with(0.1, 3, 7, phi)(rows, torch_entropy(rows), positions)
    np.testing.assert_allclose(entropy(rows.numpy()), torch_entropy(rows), atol=1e-6)
    np.testing.assert_allclose(fuse(rows.numpy(), entropy(rows.numpy()), positions.numpy(), 0.1, 3, 7, phi), wanted, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_features_of_a_row_are_those_of_training(count: int) -> None:
    centres = np.cumsum(np.random.default_rng(count).normal((1, 2, -27), (2, 4, 6), (count, 3)), axis=0)
    batch = Batch.of([Landmarks(centres)])
    rows, arc = row_features(centres)
    np.testing.assert_allclose(rows, features(batch)[0], atol=1e-5)
    np.testing.assert_allclose(arc, along(batch)[0], atol=1e-5)
