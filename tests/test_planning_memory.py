"""The memory model against the bytes that torch really keeps: six networks, three sizes each, everything within 15 %."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from torch import nn

from spineclue_v2.planning import memory
from spineclue_v2.stages.identify.plan import IdentifyNetwork
from spineclue_v2.stages.localize.plan import LocalizeNetwork
from spineclue_v2.stages.segment.plan import SegmentNetwork

WITHIN = 0.15
CROPS = [(16, 32, 32), (16, 32, 48), (32, 32, 32)]
SLICES = [(64, 64), (96, 64), (128, 96)]
CHANNELS = 2


def unet(architecture: str, features: tuple, blocks: tuple, size: tuple) -> tuple[nn.Module, torch.Tensor, Callable]:
    from spineclue_v2.stages.segment.network import build_network

    plan = SegmentNetwork(architecture, size, features, blocks, 7.0)
    batch = torch.rand(2, CHANNELS + 1, *size)
    return build_network(plan, CHANNELS), batch, lambda n: memory.segment_bytes(plan, CHANNELS + 1, n)


def shape_network(depth: int, width: int, stride: int, pool: tuple, size: tuple) -> tuple[nn.Module, torch.Tensor, Callable]:
    from spineclue_v2.stages.identify.network import ShapeNetwork

    plan = IdentifyNetwork(depth, width, stride, size, pool, 256, 128, 0.3)
    network = ShapeNetwork(depth, width, stride, hidden=256, pool_grid=pool)
    return network, torch.rand(4, 1, *size), lambda n: memory.identify_bytes(plan, n)


def detector(size: tuple) -> tuple[nn.Module, torch.Tensor, Callable]:
    from spineclue_v2.stages.localize.network import SliceDetector

    plan = LocalizeNetwork("yolo11", "n", size)
    return SliceDetector(plan, CHANNELS), torch.rand(2, CHANNELS, *size), lambda n: memory.detector_bytes(plan, n)


NETWORKS: dict[str, Callable[[tuple], tuple[nn.Module, torch.Tensor, Callable]]] = {
    "ResEnc, small": lambda size: unet("ResEnc", (12, 24, 48, 96), (1, 1, 1, 1), size),
    "ResEnc, large": lambda size: unet("ResEnc", (32, 64, 128, 256), (1, 3, 4, 6), size),
    "TransUNet3D": lambda size: unet("TransUNet3D", (24, 48, 96, 192), (1, 2, 3, 3), size),
    "ResNet-18": lambda size: shape_network(18, 12, 2, (2, 3, 3), size),
    "ResNet-101": lambda size: shape_network(101, 16, 4, (1, 1, 1), size),
    "detector": detector,
}
CASES = [(name, size) for name in NETWORKS for size in (SLICES if name == "detector" else CROPS)]


def kept_bytes(module: nn.Module, batch: torch.Tensor) -> tuple[int, Any]:
    """Bytes of the distinct storages that autograd keeps for the backward pass (parameters and buffers left out), and the result."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    seen: dict[int, tuple[int, Any]] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that addresses are not used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = module.train()(batch)
    return sum(size for size, _ in seen.values()), result


def state_bytes(module: nn.Module, result: Any) -> int:
    """Bytes of parameters, gradients and AdamW's moments after a real step."""
    optimiser = torch.optim.AdamW(module.parameters())
    sum(t.float().square().mean() for t in tensors(result)).backward()
    optimiser.step()
    owned = [t for p in module.parameters() for t in (p, p.grad) if t is not None]
    owned += [t for state in optimiser.state.values() for t in state.values() if torch.is_tensor(t)]
    return sum(t.nbytes for t in owned)


def tensors(result: Any) -> list[torch.Tensor]:
    if torch.is_tensor(result):
        return [result] if result.requires_grad else []
    values = result.values() if isinstance(result, dict) else result if isinstance(result, list | tuple) else ()
    return [t for value in values for t in tensors(value)]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_a_training_step_needs_what_the_model_says(name: str, size: tuple) -> None:
    """Kept values and owned tensors each on their own, so that neither hides an error of the other."""
    torch.manual_seed(0)
    network, batch, bytes_of = NETWORKS[name](size)
    owned_wanted = 2 * bytes_of(len(batch)) - bytes_of(2 * len(batch))          # the part that does not grow with the batch
    kept, result = kept_bytes(network, batch)
    assert kept == pytest.approx(bytes_of(len(batch)) - owned_wanted, rel=WITHIN)
    owned = state_bytes(network, result)
    assert owned == pytest.approx(owned_wanted, rel=WITHIN)
    assert kept + owned == pytest.approx(bytes_of(len(batch)), rel=WITHIN)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_training_step_on_a_gpu(name: str) -> None:
    """Larger crops than on the CPU, so that what counts is the network and not the allocator's rounding."""
    network, batch, bytes_of = NETWORKS[name]((256, 160) if name == "detector" else (64, 96, 96))
    network, batch = network.cuda(), batch.cuda()
    torch.cuda.reset_peak_memory_stats()
    kept, result = kept_bytes(network, batch)
    state_bytes(network, result)
    assert torch.cuda.max_memory_allocated() == pytest.approx(bytes_of(len(batch)), rel=WITHIN)


def test_transformer_layers_per_block_are_the_networks_own() -> None:
    from spineclue_v2.stages.segment import transunet

    assert memory.LAYERS_PER_BLOCK == transunet.LAYERS_PER_BLOCK


def test_attention_costs_grow_with_the_tokens_not_their_square() -> None:
    plan = SegmentNetwork("TransUNet3D", (64, 64, 64), (8, 16, 256), (1, 1, 6), 7.0)
    double = dataclasses.replace(plan, crop_size=(128, 64, 64))
    grown = [memory.segment_bytes(p, 3, 2) - memory.segment_bytes(p, 3, 1) for p in (plan, double)]
    assert grown[1] == pytest.approx(2 * grown[0]) and prod(double.crop_size) == 2 * prod(plan.crop_size)


def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    plan = SegmentNetwork("ResEnc", (64, 64, 64), (32, 64, 128), (1, 1, 1), 7.0)

    def bytes_of(n: int) -> float:
        return memory.segment_bytes(plan, 3, n)

    best = memory.largest_batch(bytes_of, 4.0, 2, 64)
    assert bytes_of(best) <= memory.RESERVE * 4e9 < bytes_of(best + 1) and 2 < best < 64
    assert memory.largest_batch(bytes_of, 0.001, 2, 64) == 2
