"""The shape classifier's network: a 3D ResNet with an inception stem, a contrastive projection and a classifier.

Paper (SpineCLUE, arXiv 2401.07271, stage 3): ResNet-101 with inception blocks on the mask crop. Depths 18, 34, 50 and
101 share one block definition (`ResidualBlock`) and differ only in how often it is stacked and whether it is a bottleneck.

Batch normalisation, and not group normalisation, is a decision: a group norm divides a crop by its own spatial statistics,
and global pooling after it would forget how large the vertebra is, which tells levels apart. Batches here hold whole
spines (two views each), large enough for batch statistics; the fine-tuning phase freezes the backbone in evaluation mode.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...anatomy import NUM_LEVELS
from ...plans.plans import Plans, StagePlan
from ..converted import Graph
from .plan import IdentifyNetwork

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_DEPTHS = (50, 101)
BOTTLENECK_EXPANSION = 4
STEM_STRIDES = (1, 2, 4)


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution of odd `kernel` that keeps the grid (divided by `stride`), then batch normalisation."""
    convolution = nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(outputs))


class Halve(nn.Module):
    """Means of 2 x 2 x 2 cells; odd sizes are filled up with zeros, so that any size n gives ceil(n / 2)."""

    def forward(self, x: Tensor) -> Tensor:
        odd = [size % 2 for size in x.shape[2:]]
        return F.avg_pool3d(F.pad(x, (0, odd[2], 0, odd[1], 0, odd[0])), 2)


class ResidualBlock(nn.Module):
    """The one block: 3-3 (basic) or 1-3-1 (bottleneck) convolutions beside a shortcut; (B, C, z, y, x) -> (B, C', z', y', x').

    `groups` above 1 makes a bottleneck the one of ResNeXt (Xie et al. 2017): twice the inner channels, in that many groups.
    """

    def __init__(self, inputs: int, planes: int, stride: int, bottleneck: bool, groups: int = 1):
        super().__init__()
        outputs = planes * BOTTLENECK_EXPANSION if bottleneck else planes
        if bottleneck:
            inner = planes if groups == 1 else 2 * planes
            layers = [conv_norm(inputs, inner, 1), conv_norm(inner, inner, 3, stride, groups), conv_norm(inner, outputs, 1)]
        else:
            layers = [conv_norm(inputs, planes, 3, stride), conv_norm(planes, outputs, 3)]
        self.layers = nn.ModuleList(layers)
        self.shortcut: nn.Module = nn.Identity() if stride == 1 and inputs == outputs else conv_norm(inputs, outputs, 1)
        if stride == 2:                                   # a strided 1x1x1 convolution would skip seven of eight cells
            self.shortcut = nn.Sequential(Halve(), self.shortcut)
        nn.init.zeros_(layers[-1][1].get_parameter("weight"))         # each block starts as its shortcut: deep stacks train from the start

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers[:-1]:
            y = F.relu(layer(y), inplace=True)
        return F.relu(self.layers[-1](y) + self.shortcut(x), inplace=True)


class InceptionStem(nn.Module):
    """Receptive fields 1, 3, 5 and a pooling branch side by side; (B, 1, z, y, x) -> (B, width, z / s, y / s, x / s)."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        if stride not in STEM_STRIDES:
            raise ValueError(f"stem_stride must be one of {STEM_STRIDES}, got {stride}")
        step = min(stride, 2)
        shares = [width // 4 + (branch < width % 4) for branch in range(4)]
        self.convolutions = nn.ModuleList(
            nn.Conv3d(inputs, share, kernel, stride=step, padding=kernel // 2, bias=False)
            for share, kernel in zip(shares[:3], (1, 3, 5), strict=True))
        self.pooling = nn.Sequential(nn.MaxPool3d(3, stride=step, padding=1), nn.Conv3d(inputs, shares[3], 1, bias=False))
        self.norm = nn.BatchNorm3d(width)
        self.reduce = nn.MaxPool3d(3, stride=2, padding=1) if stride == 4 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branches = [convolution(x) for convolution in self.convolutions] + [self.pooling(x)]
        return self.reduce(F.relu(self.norm(torch.cat(branches, dim=1)), inplace=True))


class LevelNetwork(nn.Module):
    """What every network over the 24 levels has behind its features: projection (contrastive phase) and classifier.

    A subclass builds its backbone, then calls `add_head`, and says what `features` are.
    """

    def add_head(self, feature_dim: int, levels: int, hidden: int, projection_dim: int, dropout: float) -> None:
        """The projection MLP and the classifier; see `ShapeNetwork` for the arguments."""
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.feature_dim, self.dropout = feature_dim, dropout
        self.projection = nn.ModuleList([nn.Linear(feature_dim, hidden), nn.Linear(hidden, projection_dim)])
        self.classifier = nn.Linear(projection_dim, levels)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, z, y, x) -> (B, feature_dim). The only pass through the backbone."""
        raise NotImplementedError

    def project(self, features: Tensor) -> Tensor:
        """(B, feature_dim) -> (B, projection_dim) of length 1, for the contrastive loss. No dropout."""
        first, second = self.projection
        return F.normalize(second(F.relu(first(features))), dim=-1)

    def classify(self, features: Tensor, keep: Sequence[Tensor] | None = None) -> Tensor:
        """(..., feature_dim) -> logits (..., levels) through the projection MLP and the classifier.

        The vector before `project`'s normalisation feeds the classifier: what the contrastive phase arranged on the
        sphere is separable by one linear layer. `keep` replaces the random dropout by given masks (`dropout_masks`), whose
        leading dimension multiplies only the cheap last two layers: the long feature vector is read once.
        """
        first, second = self.projection
        x = F.relu(first(features))
        for index, layer in enumerate((second, self.classifier)):
            x = F.dropout(x, self.dropout, self.training) if keep is None else x * keep[index]
            x = layer(x)
        return x

    def dropout_masks(self, shape: Sequence[int], generator: torch.Generator | None = None) -> list[Tensor]:
        """Masks (*shape, inputs) of `classify`'s last two linear layers: 0, or 1 / (1 - dropout) where the input is kept."""
        weight = self.classifier.weight
        device = weight.device if generator is None else generator.device
        masks = []
        for width in mask_widths(self):
            drawn = torch.rand((*shape, width), generator=generator, device=device) >= self.dropout
            masks.append((drawn / (1.0 - self.dropout)).to(weight))
        return masks

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters that fine-tuning freezes: everything before the projection MLP."""
        return [p for name, p in self.named_parameters() if not name.startswith(("projection", "classifier"))]

    def freeze_backbone(self) -> None:
        """Stop gradients of the backbone and fix its batch statistics until `train()` is called again; the head stays."""
        for parameter in self.backbone_parameters():
            parameter.requires_grad_(False)
        for name, part in self.named_children():
            if name not in ("projection", "classifier"):
                part.eval()


def mask_widths(network: LevelNetwork) -> tuple[int, int]:
    """Inputs of the head's last two linear layers, which dropout hides."""
    first, second = network.projection[1], network.classifier
    return int(first.get_parameter("weight").shape[1]), int(second.weight.shape[1])


class ShapeNetwork(LevelNetwork):
    """Mask crop -> features -> unit-norm projection (contrastive phase) or logits over the 24 levels.

    Args:
        depth: 18, 34, 50 or 101 (the paper's: bottleneck stages 3-4-23-3).
        width: channels of the first stage (64 in the paper); later stages double it.
        stem_stride: 1, 2 or 4, grid reduction in the stem (the planner trades detail for time with it).
        levels: classes, C1..L5.
        hidden: width of the hidden layer of the projection MLP.
        projection_dim: length of the projected vector.
        dropout: rate at the inputs of the last two linear layers of `classify`; the backbone and `project` have none.
        pool_grid: (z, y, x) cells of the final pooling. (1, 1, 1) is the paper's global average pooling, the default at
            depth 101; the shallower networks default to (2, 3, 3) and a linear layer, which keeps where the mask ends.
        channels: input channels (1 = mask).
        groups: above 1 every block is a bottleneck of ResNeXt with that many groups.
    """

    def __init__(self, depth: int = 101, width: int = 64, stem_stride: int = 2, levels: int = NUM_LEVELS, hidden: int = 512,
                 projection_dim: int = 128, dropout: float = 0.2, pool_grid: Sequence[int] | None = None, channels: int = 1,
                 groups: int = 1):
        super().__init__()
        if depth not in BLOCKS_PER_STAGE:
            raise ValueError(f"depth must be one of {tuple(BLOCKS_PER_STAGE)}, got {depth}")
        if pool_grid is None:
            pool_grid = (1, 1, 1) if depth == 101 else (2, 3, 3)
        bottleneck = depth in BOTTLENECK_DEPTHS or groups > 1
        self.stem = InceptionStem(channels, width, stem_stride)
        blocks, inputs = [], width
        for stage, count in enumerate(BLOCKS_PER_STAGE[depth]):
            planes = width * 2 ** stage
            for block in range(count):
                blocks.append(ResidualBlock(inputs, planes, 2 if stage > 0 and block == 0 else 1, bottleneck, groups))
                inputs = planes * (BOTTLENECK_EXPANSION if bottleneck else 1)
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool3d(tuple(pool_grid))
        cells = pool_grid[0] * pool_grid[1] * pool_grid[2]
        self.mix = nn.Identity() if cells == 1 else nn.Linear(inputs * cells, inputs)
        self.add_head(inputs, levels, hidden, projection_dim, dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        return self.mix(self.pool(self.blocks(self.stem(x))).flatten(1))


def build_network(network: IdentifyNetwork, windows: int) -> ShapeNetwork:  # noqa: ARG001 - as in every stage
    """The plan's shape network with fresh weights. It sees the mask alone, so the number of CT `windows` changes nothing."""
    return ShapeNetwork(network.depth, network.width, network.stem_stride, hidden=network.hidden, projection_dim=network.projection_dim,
                        dropout=network.dropout, pool_grid=network.pool_grid)


def network_of_plans(plans: Plans) -> ShapeNetwork:
    """The network of the stage as `plans` has it, with fresh weights."""
    plan = plans.stage("identify")
    return build_network(plan.network, len(plan.data.windows_hu))


def crop_features(network: LevelNetwork, crops: Tensor) -> Tensor:
    """Mask crops (B, 1, z, y, x) -> features (B, feature_dim), float32."""
    return network.features(crops).float()


def draw_probabilities(network: LevelNetwork, features: Tensor, first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    """Probabilities (samples, n, levels) of the head under given dropout masks (see `LevelNetwork.dropout_masks`).

    Args:
        network: whose head it is.
        features: (n, feature_dim).
        first: (samples, n, inputs) masks of the last layer but one.
        second: of the last layer.
        temperature: (1,) divides the logits.
    """
    return (network.classify(features, (first, second)).float() / temperature).softmax(dim=-1)


def graphs(network: LevelNetwork, plan: StagePlan) -> dict[str, Graph]:
    """What a prediction asks of the network."""
    size = (1, *plan.network.crop_size)
    widths = mask_widths(network)
    masks = tuple(torch.ones(2, 3, width) for width in widths)
    return {"crop_features": Graph(crop_features, (torch.zeros(2, *size),), ((-1, *size),)),
            "draw_probabilities": Graph(draw_probabilities, (torch.zeros(3, network.feature_dim), *masks, torch.ones(1)),
                                        ((-1, network.feature_dim), *((-1, -1, width) for width in widths), (1,)), bfloat16=False)}
