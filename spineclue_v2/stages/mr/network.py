"""Networks of the MR stages: two 2D DeepLabv3+ branches, and a 3D DeepLabv3+ with in-plane strides that is fed by them."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...adapters import deeplab_2d
from ...anatomy.structures import kind
from ...plans.plans import Plans
from .attention import CrossTriAttention
from .plan import Hybrid2DNetwork, Hybrid3DNetwork

NEIGHBOURS = 3           # slices seen by a 2D branch: the labelled one and one on each side
FEATURE_STRIDE = 4       # pixels of the input per feature of the decoder
STRIDE_IN_PLANE = 16     # inputs must be multiples of this in rows and columns
DETAIL_CHANNELS = 16     # of the light networks' full-resolution layer
SMALLEST_PRIOR = 1e-3    # of a class: what the 2D branches exclude can still be learned
LOW_LEVEL_CHANNELS = 48  # DeepLabv3+: width of the low-level shortcut


def network_2d_of_plans(plans: Plans) -> TwoBranches:
    """The network of hybrid_2d as the plan says, with fresh weights; classes include the background."""
    plan = plans.stage("hybrid_2d")
    # Channels last: bfloat16 convolutions on a CPU, and half precision ones on a GPU, run a third faster.
    return TwoBranches(plan.network, tissue_classes(plan.data.classes)).to(memory_format=torch.channels_last)


def network_3d_of_plans(plans: Plans) -> HybridNetwork:
    """The network of hybrid_3d as the plan says, which contains the 2D branches; classes include the background."""
    plan = plans.stage("hybrid_3d")
    return HybridNetwork(plan.network, plans.stage("hybrid_2d").network, tissue_classes(plan.data.classes))


def tissue_classes(classes: Sequence[str]) -> torch.Tensor:
    """(classes + 1,) int64: 0 for the background, then 1, 2, ... for the kinds (bodies, discs, others) that there are."""
    found = [kind(name) for name in classes]
    there: list[str] = [k for k in ("body", "disc", "other") if k in found]
    return torch.tensor([0] + [1 + there.index(k) for k in found])


class PixelHead(nn.Module):
    """Features (B, C, h, w) and the image (B, I, 4h, 4w) that they come from -> logits (B, classes, 4h, 4w).

    "bilinear": 1x1 convolution, interpolated (DeepLabv3+); the image is not looked at. "detail": names are interpolated like that, and
    to every class the logit of its kind (body, disc, background, ...) at full resolution is added, from the image and a few channels laid
    out as the 4x4 pixels of each feature (Shi et al. 2016). All discs look alike: their edges are learned once, from all of them.
    """

    kinds: torch.Tensor

    def __init__(self, channels: int, kinds: torch.Tensor, how: str, image_channels: int) -> None:
        super().__init__()
        self.how = how
        self.names = nn.Conv2d(channels, len(kinds), 1)
        if how == "detail":
            self.register_buffer("kinds", kinds, persistent=False)
            self.project = nn.Conv2d(channels, DETAIL_CHANNELS * FEATURE_STRIDE ** 2, 1)
            self.fine = nn.Sequential(*_looks(image_channels, DETAIL_CHANNELS), *_looks(DETAIL_CHANNELS, DETAIL_CHANNELS))
            self.coarse = nn.Sequential(nn.AvgPool2d(2), *_looks(DETAIL_CHANNELS, 2 * DETAIL_CHANNELS),
                                      *_looks(2 * DETAIL_CHANNELS, DETAIL_CHANNELS))
            self.decide = nn.Sequential(*_looks(DETAIL_CHANNELS, DETAIL_CHANNELS), nn.Conv2d(DETAIL_CHANNELS, int(kinds.max()) + 1, 1))

    def start_silent(self) -> None:
        """Logits are 0 until something is learned."""
        for layer in (self.names, self.decide[-1]) if self.how == "detail" else (self.names,):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        names = F.interpolate(self.names(features), scale_factor=FEATURE_STRIDE, mode="bilinear", align_corners=False)
        if self.how != "detail":
            return names
        fine = self.fine(image)
        coarse = F.interpolate(self.coarse(fine), scale_factor=2, mode="bilinear", align_corners=False)
        found = self.decide(F.pixel_shuffle(self.project(features), FEATURE_STRIDE) + fine + coarse)
        return names + found[:, self.kinds]


class Branch(nn.Module):
    """A 2D DeepLabv3+: three neighbouring slices (B, 3, rows, columns) -> features of the decoder and logits of the middle slice."""

    def __init__(self, plan: Hybrid2DNetwork, kinds: torch.Tensor) -> None:
        super().__init__()
        self.encoder, self.decoder = deeplab_2d(plan.encoder, NEIGHBOURS, plan.decoder_channels, plan.atrous_rates,
                                                  plan.dropout)
        self.head = PixelHead(plan.decoder_channels, kinds, plan.head, NEIGHBOURS)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """(B, decoder_channels, rows / 4, columns / 4)."""
        return self.decoder(self.encoder(image))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, rows, columns)."""
        return self.head(self.features(image), image)


class TwoBranches(nn.Module):
    """Two branches of one shape and different initial weights; their mean probability is the 2D stage's answer."""

    def __init__(self, plan: Hybrid2DNetwork, kinds: torch.Tensor) -> None:
        super().__init__()
        self.a, self.b = Branch(plan, kinds), Branch(plan, kinds)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, rows, columns) -> (features of both (B, 2 C, rows / 4, columns / 4), mean probability (B, classes, rows, columns))."""
        features = [branch.features(image) for branch in (self.a, self.b)]
        logits = [branch.head(f, image) for branch, f in zip((self.a, self.b), features, strict=True)]
        return torch.cat(features, 1), (logits[0].float().softmax(1) + logits[1].float().softmax(1)) / 2


class Bottleneck(nn.Module):
    """SE-ResNeXt bottleneck (B, C, D, H, W): 1x1x1, grouped convolution, 1x1x1, squeeze and excitation; `deep` kernels see 3 slices."""

    def __init__(self, inputs: int, planes: int, stride: int, groups: int, deep: bool) -> None:
        super().__init__()
        # ResNeXt 32x4d doubles the middle width; without groups it is plain ResNet's.
        middle, outputs = planes * 2 if groups > 1 else planes, planes * 4
        kernel, padding = ((3, 3, 3), (1, 1, 1)) if deep else ((1, 3, 3), (0, 1, 1))
        self.body = nn.Sequential(
            nn.Conv3d(inputs, middle, 1, bias=False), norm(middle), nn.ReLU(inplace=True),
            nn.Conv3d(middle, middle, kernel, (1, stride, stride), padding, groups=groups, bias=False), norm(middle), nn.ReLU(inplace=True),
            nn.Conv3d(middle, outputs, 1, bias=False), norm(outputs))
        self.excite = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(outputs, max(4, outputs // 16), 1), nn.ReLU(inplace=True),
                                    nn.Conv3d(max(4, outputs // 16), outputs, 1), nn.Sigmoid())
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else nn.Sequential(
            nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False), norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return F.relu(y * self.excite(y) + self.shortcut(x))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling in plane: 1x1, three dilated 3x3 convolutions and the mean of the image, fused, dropout."""

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.parts = nn.ModuleList([_layer(inputs, outputs, 1)] + [_layer(inputs, outputs, 3, rate) for rate in rates])
        self.image = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(inputs, outputs, 1), nn.ReLU(inplace=True))
        self.fuse = nn.Sequential(_layer(outputs * (len(rates) + 2), outputs, 1), nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [part(x) for part in self.parts]
        return self.fuse(torch.cat([*parts, self.image(x).expand(-1, -1, *x.shape[2:])], 1))


class DeepLab3D(nn.Module):
    """(B, C, D, H, W) -> features (B, decoder_channels, D, H / 4, W / 4). The slice axis is never reduced: slices are far apart."""

    def __init__(self, inputs: int, plan: Hybrid3DNetwork) -> None:
        super().__init__()
        width, outputs = plan.width, plan.decoder_channels
        self.stem = nn.Sequential(nn.Conv3d(inputs, width, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False), norm(width), nn.ReLU(inplace=True),
                                  nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        layers, channels = [], width
        for number, (count, stride) in enumerate(zip(plan.blocks, (1, 2, 2, 1), strict=True)):
            planes = width * 2 ** number
            blocks = [Bottleneck(channels if i == 0 else planes * 4, planes, stride if i == 0 else 1, plan.groups, deep=number == 3)
                      for i in range(count)]
            layers.append(nn.Sequential(*blocks))
            channels = planes * 4
        self.layers = nn.ModuleList(layers)
        self.aspp = ASPP(channels, outputs, plan.atrous_rates, plan.dropout)
        self.low = _layer(width * 4, LOW_LEVEL_CHANNELS, 1)
        self.fuse = _layer(outputs + LOW_LEVEL_CHANNELS, outputs, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.layers[0](self.stem(x))
        high = low
        for layer in self.layers[1:]:
            high = layer(high)
        high = F.interpolate(self.aspp(high), size=low.shape[2:], mode="trilinear", align_corners=False)
        return self.fuse(torch.cat([high, self.low(low)], 1))


class HybridNetwork(nn.Module):
    """3D DeepLabv3+ on the image and the 2D probabilities, 2D features fused in by cross tri-attention; the 2D branches are frozen.

    With `residual` it starts as the 2D answer and learns what to correct. `use_2d` False: the 3D network alone on the image. `attention`
    False: 2D and 3D features are concatenated and fused.
    """

    def __init__(self, plan: Hybrid3DNetwork, plan_2d: Hybrid2DNetwork, kinds: torch.Tensor) -> None:
        super().__init__()
        classes = len(kinds)
        self.plan, self.factor, self.num_classes = plan, plan_2d.in_plane_factor, classes
        channels_3d, channels_2d = plan.decoder_channels, 2 * plan_2d.decoder_channels if plan.use_2d else 0
        self.branches = TwoBranches(plan_2d, kinds).requires_grad_(False).eval() if plan.use_2d else None
        self.deeplab = DeepLab3D(1 + (classes if plan.use_2d else 0), plan)
        self.attention = CrossTriAttention(channels_3d, channels_2d, plan.attention_channels, plan.attention_stride) \
            if plan.use_2d and plan.attention else None
        self.fuse = _layer(channels_3d + channels_2d, channels_3d, 3)
        self.head = PixelHead(channels_3d, kinds, plan.head, 1)
        if plan.residual and plan.use_2d:
            self.head.start_silent()

    def train(self, mode: bool = True) -> HybridNetwork:
        """The frozen branches stay in evaluation mode: their statistics must not drift."""
        super().train(mode)
        if self.branches is not None:
            self.branches.eval()
        return self

    def forward(self, region: torch.Tensor, corner: torch.Tensor | None = None) -> torch.Tensor:
        """Region (B, D + 2, H + 2 c0, W + 2 c1): patch, context, a slice at both ends -> logits (B, classes, D, H, W).

        `corner` (B, 2): row and column of each patch in its region, multiples of the grid of the 2D features; None: in the middle.
        """
        size = [n - 2 * c for n, c in zip(region.shape[2:], self.plan.context, strict=True)]
        corners = [list(self.plan.context)] * len(region) if corner is None else corner.tolist()

        def patches(source: torch.Tensor, scale: int) -> torch.Tensor:
            cuts = [[slice(c // scale, (c + n) // scale) for c, n in zip(first, size, strict=True)] for first in corners]
            return torch.stack([source[k, ..., rows, columns] for k, (rows, columns) in enumerate(cuts)])

        image = patches(region[:, 1:-1], 1)
        if self.branches is None:
            return self.refine(image, None, None)
        features, prior = self.look(region)
        return self.refine(image, patches(prior, self.factor), patches(features, FEATURE_STRIDE * self.factor))

    @torch.no_grad()
    def look(self, region: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """2D branches on (B, D + 2, H, W): features (B, 2 C, D, H / 4f, W / 4f) and prior (B, classes, D, H / f, W / f)."""
        assert self.branches is not None
        batch, slices = region.shape[0], region.shape[1] - 2
        stacks = neighbour_stacks(shrink(region, self.factor))
        features, prior = self.branches(stacks.flatten(0, 1))
        features, prior = (t.reshape(batch, slices, *t.shape[1:]).transpose(1, 2) for t in (features, prior))
        return features, prior

    def refine(self, image: torch.Tensor, prior: torch.Tensor | None, features: torch.Tensor | None) -> torch.Tensor:
        """Image (B, D, H, W), prior and features on their own grids over the same field -> logits (B, classes, D, H, W)."""
        volume = image[:, None]
        if prior is not None:
            volume = torch.cat([volume, _in_plane(prior, image.shape[1:])], 1)
        f_3d = self.deeplab(volume)
        if features is not None:
            f_2d = _in_plane(features.float(), f_3d.shape[2:]).to(f_3d.dtype)
            f_3d = self.attention(f_3d, f_2d) if self.attention is not None else torch.cat([f_3d, f_2d], 1)
        fused = self.fuse(f_3d)
        batch, _, slices = fused.shape[:3]
        logits = self.head(fused.transpose(1, 2).flatten(0, 1), image.flatten(0, 1)[:, None])
        logits = logits.reshape(batch, slices, *logits.shape[1:]).transpose(1, 2)
        if prior is not None and self.plan.residual:
            logits = logits.float() + volume[:, 1:].float().clamp_min(SMALLEST_PRIOR).log()
        return logits


def shrink(image: torch.Tensor, factor: int) -> torch.Tensor:
    """(..., rows, columns) averaged over factor x factor voxels: the pixels that the 2D branches see."""
    return image if factor == 1 else F.avg_pool2d(image, factor)


def neighbour_stacks(image: torch.Tensor) -> torch.Tensor:
    """(B, D + 2, rows, columns) -> (B, D, 3, rows, columns): each inner slice between its neighbours."""
    return torch.stack([image[:, :-2], image[:, 1:-1], image[:, 2:]], 2)


def norm(channels: int) -> nn.Module:
    """Group norm: batches are few patches of one volume, whose statistics say little about the next."""
    return nn.GroupNorm(next(n for n in (8, 4, 2, 1) if channels % n == 0), channels)


def _layer(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """In-plane convolution, norm, ReLU."""
    pad = dilation * (kernel // 2)
    convolution = nn.Conv3d(inputs, outputs, (1, kernel, kernel), padding=(0, pad, pad), dilation=(1, dilation, dilation), bias=False)
    return nn.Sequential(convolution, norm(outputs), nn.ReLU(inplace=True))


def _looks(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    """3x3 convolution of an image and ReLU."""
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)


def _in_plane(features: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(B, C, D, h, w) interpolated to (B, C, D, H, W) over the same field of view."""
    if tuple(features.shape[2:]) == tuple(shape):
        return features
    return F.interpolate(features, size=tuple(shape), mode="trilinear", align_corners=False)
