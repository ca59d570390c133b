"""Monte-Carlo dropout and temperature: formulas, determinism, one pass of the backbone, time of the head."""
from __future__ import annotations

import math
import time

import pytest
import torch

from spineclue_v2.stages.identify.network import ShapeNetwork
from spineclue_v2.stages.identify.uncertainty import entropy, monte_carlo
from spineclue_v2.training.temperature import fit_temperature


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ShapeNetwork(depth=18, width=4, stem_stride=4, hidden=16, projection_dim=8, dropout=0.3).train()


@torch.no_grad()
def test_equals_a_loop_over_the_same_masks(network):
    features = torch.randn(5, network.feature_dim)
    mean, uncertainty = monte_carlo(network, features, samples=7, temperature=2.0, seed=3)
    masks = network.dropout_masks((7, 5), torch.Generator().manual_seed(3))
    draws = torch.stack([(network.classify(features, [m[k] for m in masks]) / 2.0).softmax(1) for k in range(7)])
    torch.testing.assert_close(mean, draws.mean(0))
    expected = [-sum(float(p) * math.log(float(p)) for p in row) for row in draws.mean(0)]
    torch.testing.assert_close(uncertainty, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert draws.std(0).sum() > 0


def test_same_seed_same_answer_and_the_global_state_stays(network):
    features = torch.randn(3, network.feature_dim)
    state = torch.random.get_rng_state()
    first, second, other = (monte_carlo(network, features, 4, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.training


def test_backbone_runs_once_and_the_head_is_quick():
    """24 vertebrae, N = 20, the paper's feature length: at most 100 ms; the backbone is entered once."""
    torch.manual_seed(0)
    network = ShapeNetwork(depth=50, width=64, stem_stride=4, hidden=512, projection_dim=128, pool_grid=(1, 1, 1)).eval()
    calls = []
    network.blocks.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        features = network.features(torch.zeros(24, 1, 8, 8, 8))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        monte_carlo(network, features, samples=20)
        seconds.append(time.perf_counter() - start)
    assert len(calls) == 1
    assert min(seconds) <= 0.1


def test_entropy_known_answers():
    torch.testing.assert_close(entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]])), torch.tensor([0.0, math.log(2)]))
    assert float(entropy(torch.full((24,), 1 / 24))) == pytest.approx(math.log(24), rel=1e-5)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(true_temperature):
    generator = torch.Generator().manual_seed(0)
    calibrated = torch.randn(20000, 24, generator=generator) * 2
    targets = torch.multinomial(calibrated.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(calibrated * true_temperature, targets) == pytest.approx(true_temperature, rel=0.03)


def test_temperature_leaves_unknown_rows_out():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [-50.0, 0.0]])
    assert fit_temperature(logits, torch.tensor([0, 0, 1, -1])) == pytest.approx(2.0 / math.log(2.0), rel=1e-4)
    assert fit_temperature(logits[:0], torch.tensor([])) == 1.0


def test_no_sample_is_an_error(network):
    with pytest.raises(ValueError, match="samples"):
        monte_carlo(network, torch.zeros(1, network.feature_dim), samples=0)
