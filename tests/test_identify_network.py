"""The shape network: shapes, one block definition, where dropout lies, what pooling keeps."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from spineclue_v2.stages.identify.network import BLOCKS_PER_STAGE, ResidualBlock, ShapeNetwork


def tiny(**changes) -> ShapeNetwork:
    torch.manual_seed(0)
    settings = {"depth": 18, "width": 6, "stem_stride": 2, "hidden": 16, "projection_dim": 8, "dropout": 0.3}
    return ShapeNetwork(**(settings | changes))


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_every_depth_gives_features_projection_and_logits(depth):
    network = tiny(depth=depth, width=4, stem_stride=4).eval()
    crops = torch.rand(2, 1, 16, 32, 24)
    features = network.features(crops)
    assert features.shape == (2, network.feature_dim)
    projected = network.project(features)
    assert projected.shape == (2, 8)
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(2))
    assert network(crops).shape == (2, 24)
    torch.testing.assert_close(network(crops), network.classify(features))


def test_paper_network_has_the_paper_s_stages():
    with torch.device("meta"):
        network = ShapeNetwork()
    assert BLOCKS_PER_STAGE[101] == (3, 4, 23, 3)
    assert sum(isinstance(m, ResidualBlock) for m in network.modules()) == 33
    assert network.feature_dim == 2048
    assert network.pool.output_size == (1, 1, 1)
    convolutions = sum(isinstance(m, nn.Conv3d) for m in network.blocks.modules())
    assert convolutions == 33 * 3 + 4                     # 99 in the blocks and one projection shortcut per stage


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_stem_keeps_width_and_divides_the_grid(stride):
    stem = tiny(width=7, stem_stride=stride).stem
    assert stem(torch.rand(2, 1, 8, 16, 12)).shape == (2, 7, 8 // stride, 16 // stride, 12 // stride)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="depth"):
        tiny(depth=19)
    with pytest.raises(ValueError, match="stem_stride"):
        tiny(stem_stride=3)
    with pytest.raises(ValueError, match="dropout"):
        tiny(dropout=1.0)


def test_dropout_touches_the_classifier_only():
    network = tiny().train()
    network.freeze_backbone()
    crops = torch.rand(2, 1, 16, 16, 16)
    torch.testing.assert_close(network.features(crops), network.features(crops))
    torch.testing.assert_close(network.project(network.features(crops)), network.project(network.features(crops)))
    assert not torch.equal(network(crops), network(crops))


def test_given_masks_replace_random_dropout():
    network = tiny().train()
    features = torch.rand(3, network.feature_dim)
    masks = network.dropout_masks((5, 3), torch.Generator().manual_seed(1))
    first, second = network.classify(features, masks), network.classify(features, masks)
    assert first.shape == (5, 3, 24)
    assert torch.equal(first, second)
    values = masks[0].unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.7]))
    everything = [torch.ones(16), torch.ones(8)]
    torch.testing.assert_close(network.classify(features, everything), network.eval().classify(features))


def test_frozen_backbone_does_not_learn():
    network = tiny().train()
    network.freeze_backbone()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network(torch.rand(4, 1, 16, 16, 16)).sum().backward()
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1).step()
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith(("projection", "classifier")) for k in changed)


def test_batch_of_one_trains():
    network = tiny().train()
    loss = network(torch.rand(1, 1, 32, 32, 32)).square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_pool_grid_sees_where_the_mask_lies_and_global_pooling_hardly_does():
    """Two boxes of one size at opposite ends: global pooling averages the place away, the grid keeps it."""
    up, down = torch.zeros(1, 1, 32, 32, 32), torch.zeros(1, 1, 32, 32, 32)
    up[..., :16, 12:20, 12:20] = 1
    down[..., 16:, 12:20, 12:20] = 1

    @torch.no_grad()
    def relative_change(network):
        network.train()
        for _ in range(20):                               # batch statistics that fit these inputs
            network(torch.cat([up, down, up.flip(3), down.flip(4)]))
        network.eval()
        a, b = network.features(up), network.features(down)
        return float((a - b).norm() / a.norm())

    assert relative_change(tiny(pool_grid=(2, 3, 3))) > 1.5 * relative_change(tiny(pool_grid=(1, 1, 1)))
