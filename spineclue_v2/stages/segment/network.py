"""Networks of stage 2: CT windows and a heat map in, background and vertebra logits out."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...errors import InputError
from ...plans.plans import Plans, StagePlan
from ..converted import Graph
from .plan import SegmentNetwork

CLASSES = 2


def build_network(network: SegmentNetwork, windows: int) -> nn.Module:
    """The plan's network for `windows` CT channels plus the heat map: (B, windows + 1, z, y, x) -> logits (B, 2, z, y, x)."""
    if network.architecture == "ResEnc":
        return residual_encoder_unet(network.features, network.blocks, windows + 1)
    if network.architecture == "TransUNet3D":
        from .transunet import TransUNet3D

        return TransUNet3D(windows + 1, CLASSES, network.features, network.blocks, network.crop_size)
    raise InputError(f"Segmentation architecture '{network.architecture}' is unknown; known: ResEnc, TransUNet3D.")


def residual_encoder_unet(features: Sequence[int], blocks: Sequence[int], channels: int) -> nn.Module:
    """nnU-Net's residual-encoder U-Net with two classes: resolutions halve between stages, instance norm, leaky ReLU.

    Args:
        features: channels per resolution.
        blocks: residual blocks per resolution of the encoder.
        channels: of the input.
    """
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    from dynamic_network_architectures.initialization.weight_init import InitWeights_He

    stages = len(features)
    unet = ResidualEncoderUNet(
        channels, stages, tuple(features), nn.Conv3d, [3] * stages, [1] + [2] * (stages - 1), tuple(blocks), CLASSES,
        [1] * (stages - 1), conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False)
    unet.apply(InitWeights_He(1e-2))
    return unet


def foreground_probability(logits: torch.Tensor) -> torch.Tensor:
    """Logits (B, 2, z, y, x) -> probability of the vertebra (B, z, y, x), float32."""
    return (logits[:, 1].float() - logits[:, 0].float()).sigmoid()


def foreground(network: nn.Module, crops: torch.Tensor) -> torch.Tensor:
    """Crops (B, C, z, y, x) -> probability of the vertebra (B, z, y, x), float32."""
    return foreground_probability(network(crops))


def graphs(network: nn.Module, plan: StagePlan) -> dict[str, Graph]:  # noqa: ARG001 - as in every stage
    """What a prediction asks of the network."""
    channels, size, shape = len(plan.data.windows_hu) + 1, plan.network.crop_size, plan.network
    example = (2 ** (len(shape.features) + 1),) * 3 if shape.architecture == "ResEnc" else size    # a small one is traced sooner
    return {"foreground": Graph(foreground, (torch.zeros(1, channels, *example),), ((-1, channels, *size),))}


def network_of_plans(plans: Plans) -> nn.Module:
    """The network of the stage as `plans` has it, with fresh weights."""
    plan = plans.stage("segment")
    return build_network(plan.network, len(plan.data.windows_hu))
