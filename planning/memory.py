"""Training memory from feature maps: what autograd keeps for the backward pass, plus parameters, gradients and optimiser.

Counted layer by layer from the plan's numbers, nothing is built or run. A convolution keeps its input, a norm its input,
an in-place activation its output (the next input): two maps per convolution. `tests/test_planning_memory.py` holds the count
against the bytes that torch really keeps.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod

from spineclue_v2.plans.plans import StagePlan
from spineclue_v2.stages.grade.plan import GradeNetwork
from spineclue_v2.stages.identify.plan import IdentifyNetwork
from spineclue_v2.stages.localize.plan import LocalizeNetwork
from spineclue_v2.stages.segment.plan import SegmentNetwork

FLOAT = 4
MIXED = 2                       # bytes of a kept value under automatic mixed precision
OPTIMISER_FLOATS = 4            # parameter, gradient and two moments (AdamW), float32
RESERVE = 0.85                  # share of the budget that may be used: workspaces and fragmentation take the rest
# A transformer layer keeps per token and channel: both norms (input, output), query, key, value and what they attend to, and four
# values each before and after GELU.
TOKEN_VALUES = 16
LAYERS_PER_BLOCK = 4            # as in spineclue_v2.stages.segment.transunet

# Values kept per slice pixel in training, and parameters, of the ultralytics detectors (measured, see the test).
DETECTOR_VALUES = {"n": 132.0, "s": 254.0, "m": 541.0, "l": 696.0, "x": 1043.0}
DETECTOR_PARAMETERS = {"n": 2.59e6, "s": 9.43e6, "m": 20.1e6, "l": 25.3e6, "x": 56.9e6}


def stage_bytes(stage: str, plan: StagePlan, value_bytes: int = FLOAT) -> float | None:
    """Bytes of one training step of a stage at its planned batch; None for a stage that has no model here."""
    network, batch = plan.network, plan.run.batch_size
    if stage == "localize":
        return detector_bytes(network, batch, value_bytes)
    if stage == "segment":
        return segment_bytes(network, len(plan.data.windows_hu) + 1, batch, value_bytes)
    if stage == "identify":
        return identify_bytes(network, max(2 * batch, plan.run.classifier_batch), value_bytes)    # two views of every mask, or one
    if stage == "grade":
        return grade_bytes(network, (2 if plan.run.contrastive_weight > 0 else 1) * batch, value_bytes)
    return None


def grade_bytes(network: GradeNetwork, crops: int, value_bytes: int = FLOAT) -> float:
    """Bytes of one training step of the grading network on `crops` crops (both views counted): every resolution halves, the first too."""
    voxels, channels = _voxels(network.crop_size, len(network.features) + 1), len(network.windows_hu) + 1
    kept, parameters = _residual_encoder(voxels[1:], network.features, network.blocks, channels)
    kept += (voxels[0] - voxels[1]) * (channels + 2 * network.features[0])     # the stem sees the whole crop
    return kept * crops * value_bytes + OPTIMISER_FLOATS * FLOAT * parameters


def detector_bytes(network: LocalizeNetwork, batch_size: int, value_bytes: int = FLOAT) -> float:
    """Bytes of one training step of the slice detector."""
    kept = DETECTOR_VALUES[network.scale] * prod(network.slice_size) * batch_size
    return kept * value_bytes + OPTIMISER_FLOATS * FLOAT * DETECTOR_PARAMETERS[network.scale]


def segment_bytes(network: SegmentNetwork, channels: int, batch_size: int, value_bytes: int = FLOAT) -> float:
    """Bytes of one training step of the plan's network on crops with `channels` inputs."""
    count = trans_unet if network.architecture == "TransUNet3D" else residual_unet
    kept, parameters = count(network.crop_size, network.features, network.blocks, channels)
    return kept * batch_size * value_bytes + OPTIMISER_FLOATS * FLOAT * parameters


def identify_bytes(network: IdentifyNetwork, crops: int, value_bytes: int = FLOAT) -> float:
    """Bytes of one training step of the shape network on `crops` mask crops (both views counted)."""
    kept, parameters = shape_network(network)
    return kept * crops * value_bytes + OPTIMISER_FLOATS * FLOAT * parameters


def residual_unet(size: Sequence[int], features: Sequence[int], blocks: Sequence[int], channels: int,
                  classes: int = 2) -> tuple[float, float]:
    """(values kept per crop, parameters) of a residual-encoder U-Net that halves between resolutions."""
    voxels = _voxels(size, len(features))
    kept, parameters = _residual_encoder(voxels, features, blocks, channels)
    for s in range(len(features) - 2, -1, -1):
        kept += 4 * features[s] * voxels[s]                               # concatenation (2), convolution, activation
        parameters += 8.0 * features[s] * features[s + 1] + 27.0 * 2 * features[s] ** 2
    return kept + 2 * classes * voxels[0], parameters + features[0] * classes


def trans_unet(size: Sequence[int], features: Sequence[int], blocks: Sequence[int], channels: int,
               classes: int = 2) -> tuple[float, float]:
    """(values kept per crop, parameters) of TransUNet3D: attention among the voxels of the coarsest of `features` grids.

    Attention weights are not kept (torch's fused kernel computes them again), so memory grows with the number of tokens, not its square.
    """
    voxels = _voxels(size, len(features))
    kept, parameters = _residual_encoder(voxels, features, blocks, channels)
    width, tokens, layers = features[-1], voxels[-1], LAYERS_PER_BLOCK * blocks[-1]
    kept += (layers * TOKEN_VALUES + 4) * width * tokens
    parameters += layers * (12.0 * width ** 2 + 13 * width) + 28.0 * width ** 2 + width * tokens
    for s in range(len(features) - 2, -1, -1):
        kept += 6 * features[s] * voxels[s]                               # concatenation (2), two convolutions, two activations
        parameters += 8.0 * features[s] * features[s + 1] + 27.0 * 3 * features[s] ** 2
    return kept + 2 * classes * voxels[0], parameters + features[0] * classes


def _voxels(size: Sequence[int], resolutions: int) -> list[float]:
    return [float(prod(ceil(n / 2 ** s) for n in size)) for s in range(resolutions)]


def _residual_encoder(voxels: Sequence[float], features: Sequence[int], blocks: Sequence[int], channels: int) -> tuple[float, float]:
    """(values kept, parameters) of stem and residual blocks, `voxels` per resolution."""
    kept = voxels[0] * (channels + 2 * features[0])                       # input, stem convolution, stem activation
    parameters = 27.0 * channels * features[0]
    inputs = features[0]
    for s, (width, count) in enumerate(zip(features, blocks, strict=True)):
        kept += 4 * width * voxels[s] * count
        parameters += 27.0 * width * (inputs + width + 2 * width * (count - 1))
        if inputs != width:                                               # averaged and projected shortcut
            kept += (inputs + width) * voxels[s]
            parameters += inputs * width
        inputs = width
    return kept, parameters


def shape_network(network: IdentifyNetwork, levels: int = 24) -> tuple[float, float]:
    """(values kept per crop, parameters) of the shape classifier's ResNet."""
    counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[network.depth]
    expansion = 4 if network.depth in (50, 101) else 1
    step = min(network.stem_stride, 2)
    grid = [ceil(n / step) for n in network.crop_size]
    width = network.width
    # Pooling indices are 64-bit, two or four values of what is counted here.
    kept = prod(network.crop_size) + prod(grid) * (2.0 * width + 3)
    parameters = width / 4 * (1 + 27 + 125 + 1)
    if network.stem_stride == 4:
        grid = [ceil(n / 2) for n in grid]
        kept += prod(grid) * 3.0 * width
    inputs = width
    for stage, count in enumerate(counts):
        planes = width * 2 ** stage
        for block in range(count):
            before = float(prod(grid))
            if stage > 0 and block == 0:
                grid = [ceil(n / 2) for n in grid]
            voxels, outputs = float(prod(grid)), planes * expansion
            if expansion == 4:
                kept += 2 * planes * before + 2 * planes * voxels + 2 * outputs * voxels
                parameters += inputs * planes + 27.0 * planes ** 2 + planes * outputs
            else:
                kept += 2 * planes * voxels + 2 * outputs * voxels
                parameters += 27.0 * inputs * planes + 27.0 * planes * outputs
            if inputs != outputs:
                kept += (inputs + outputs) * voxels
                parameters += inputs * outputs
            inputs = outputs
    cells = prod(network.pool_grid)
    parameters += (inputs * cells * inputs if cells > 1 else 0) + inputs * network.hidden
    return kept, parameters + network.hidden * network.projection_dim + network.projection_dim * levels


def largest_batch(bytes_of: Callable[[int], float], budget_gb: float, low: int, high: int) -> int:
    """Largest batch in low..high whose `bytes_of(batch)` fits into the usable share of the budget; `low` when none does."""
    fitting = [n for n in range(low, high + 1) if bytes_of(n) <= RESERVE * budget_gb * 1e9]
    return max(fitting, default=low)
