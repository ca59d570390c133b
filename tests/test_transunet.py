"""TransUNet3D: shapes, gradients, position, and the paper plan's own network."""
from __future__ import annotations

import pytest
import torch
from example_fingerprint import fingerprint
from torch.nn import functional as F

from spineclue_v2.errors import InputError
from spineclue_v2.planning.paper_planner import SpineCLUEPaperPlanner
from spineclue_v2.stages.segment.network import build_network
from spineclue_v2.stages.segment.plan import SegmentNetwork
from spineclue_v2.stages.segment.transunet import LAYERS_PER_BLOCK, TransformerBottleneck, TransUNet3D


def tiny() -> TransUNet3D:
    torch.manual_seed(0)
    return TransUNet3D(3, 2, features=(4, 8, 16), blocks=(1, 1, 1), crop_size=(16, 16, 16))


def toy_crop() -> tuple[torch.Tensor, torch.Tensor]:
    """A bright ball in noise, (1, 3, 16, 16, 16), and its mask (1, 16, 16, 16)."""
    z, y, x = torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij")
    ball = ((z - 6) ** 2 + (y - 8) ** 2 + (x - 9) ** 2 < 20).long()[None]
    return ball[:, None] + 0.3 * torch.randn(1, 3, 16, 16, 16, generator=torch.Generator().manual_seed(1)), ball


@pytest.mark.parametrize("size", [(16, 16, 16), (8, 24, 12)])
def test_logits_have_the_crop_s_size(size):
    assert tiny()(torch.rand(2, 3, *size)).shape == (2, 2, *size)


def test_a_crop_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="16 x 18 x 16 voxels; expected positive multiples of 4"):
        tiny()(torch.rand(1, 3, 16, 18, 16))


def test_training_and_inference_agree():
    network, (crop, _) = tiny(), toy_crop()
    trained = network.train()(crop)
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(crop), trained.detach(), rtol=1e-4, atol=1e-4)


def test_one_step_lowers_the_loss_and_reaches_every_parameter():
    network, (crop, ball) = tiny(), toy_crop()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    before = F.cross_entropy(network(crop), ball)
    before.backward()
    # Gradients of a parameter that cancels in exact arithmetic are rounding noise, far below this bound.
    assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-7] == []
    optimiser.step()
    assert F.cross_entropy(network(crop), ball) < before


def test_the_bottleneck_knows_where_a_token_lies():
    torch.manual_seed(0)
    bottleneck = TransformerBottleneck(16, 2, (2, 2, 2)).eval()
    bottleneck.out = torch.nn.Identity()                       # the convolution after the tokens would mix positions anyway
    x, order = torch.randn(1, 16, 2, 2, 2), torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])

    def permuted(values: torch.Tensor) -> torch.Tensor:
        return values.flatten(2)[:, :, order].unflatten(2, (2, 2, 2))

    with torch.no_grad():
        assert (bottleneck(permuted(x)) - permuted(bottleneck(x))).abs().max() > 1e-3
        bottleneck.position.zero_()                            # without positions attention treats tokens as a set
        torch.testing.assert_close(bottleneck(permuted(x)), permuted(bottleneck(x)), rtol=1e-4, atol=1e-5)


def test_a_token_hears_from_the_other_end_of_the_crop():
    bottleneck = TransformerBottleneck(8, 1, (6, 1, 1)).eval()
    x = torch.randn(1, 8, 6, 1, 1, requires_grad=True)
    bottleneck.norm(bottleneck.out(bottleneck(x))[0, :, 0, 0, 0])[0].backward()
    assert x.grad[0, :, -1].abs().max() > 0


def test_positions_are_stretched_over_other_crops():
    bottleneck = TransformerBottleneck(8, 1, (4, 2, 2))
    with torch.no_grad():
        bottleneck.position.copy_(torch.arange(4.0).view(1, 1, 4, 1, 1).expand_as(bottleneck.position))
    assert bottleneck.position_embedding((4, 2, 2)) is bottleneck.position
    stretched = bottleneck.position_embedding((8, 4, 2))
    assert stretched.shape == (1, 8, 8, 4, 2)
    torch.testing.assert_close(stretched[0, 0, :, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))


@pytest.mark.parametrize("width", [4, 96, 200])
def test_any_width_finds_heads(width):
    assert TransformerBottleneck(width, 1, (1, 1, 2))(torch.rand(1, width, 2, 2, 2)).shape == (1, width, 2, 2, 2)


def test_the_paper_plan_s_network_takes_a_step():
    stage = SpineCLUEPaperPlanner("raw", fingerprint(voxel=0.7), 8, "cuda").plan().stage("segment")
    network = build_network(stage.network, len(stage.data.windows_hu))
    assert isinstance(network, TransUNet3D) and network.bottleneck.position.shape[2:] == (16, 16, 16)
    assert len(network.bottleneck.layers) == LAYERS_PER_BLOCK * stage.network.blocks[-1] == 12
    crop = torch.rand(1, len(stage.data.windows_hu) + 1, 32, 32, 32)
    F.cross_entropy(network(crop), (crop[:, 0] > 0.5).long()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_unknown_architectures_are_named():
    with pytest.raises(InputError, match="'UNet' is unknown; known: ResEnc, TransUNet3D"):
        build_network(SegmentNetwork("UNet", (16, 16, 16), (4, 8), (1, 1), 5.0), 2)
