"""TransUNet in 3D: a convolutional encoder, a transformer on its coarsest feature map, a U-Net decoder with skips.

Source: Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation", arXiv 2102.04306, which
SpineCLUE (arXiv 2401.07271) uses to segment. Taken over: a residual encoder, a 1-voxel patch embedding of its coarsest map with a
learned position embedding, pre-norm transformer layers with GELU and a fourfold hidden layer, a 3 x 3 convolution back to a map, then
per resolution upsampling, the encoder's map beside it and two convolutions. **Decision** where the 3D form differs: instance norm and
leaky ReLU as in the residual-encoder U-Net; transposed convolutions instead of bilinear upsampling (half the channels at the
finest resolution, where the memory goes); a skip at full resolution too (processes are a few voxels thin); no dropout, since
attention with dropout has no memory-efficient kernel on CPU; widths and depths from the plan, not ViT-Base's.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError

HEAD_WIDTH = 64           # channels per attention head, as in ViT-Base
LAYERS_PER_BLOCK = 4      # transformer layers per residual block of the coarsest resolution: 3 blocks give ViT-Base's 12


class TransUNet3D(nn.Module):
    """Crops (B, channels, z, y, x) -> logits (B, classes, z, y, x); z, y and x are multiples of `total_stride`.

    `features` (channels per resolution) and `blocks` (residual blocks per resolution) are the plan's; resolutions halve from one to
    the next. `crop_size` (z, y, x) is the crop whose tokens the position embedding has one vector each for; it is interpolated
    for any other crop. The transformer is `features[-1]` wide and LAYERS_PER_BLOCK * `blocks[-1]` layers deep.
    """

    def __init__(self, channels: int, classes: int, features: Sequence[int], blocks: Sequence[int], crop_size: Sequence[int]):
        super().__init__()
        self.total_stride = 2 ** (len(features) - 1)
        self.stem = conv_norm_act(channels, features[0])
        before = (features[0], *features[:-1])
        self.encoder = nn.ModuleList(residual_stage(a, b, number, stride=1 if level == 0 else 2)
                                     for level, (a, b, number) in enumerate(zip(before, features, blocks, strict=True)))
        self.bottleneck = TransformerBottleneck(features[-1], LAYERS_PER_BLOCK * blocks[-1], self._grid(crop_size))
        self.decoder = nn.ModuleList(UpBlock(coarse, fine) for fine, coarse in zip(features[-2::-1], features[:0:-1], strict=True))
        self.head = nn.Conv3d(features[0], classes, 1)
        self.apply(_he_initialisation)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops (B, channels, z, y, x) -> logits (B, classes, z, y, x); InputError where an edge is no multiple of the stride."""
        self._grid(crops.shape[2:])
        maps, x = [], self.stem(crops)
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        x = self.bottleneck(maps.pop())
        for block in self.decoder:
            x = block(x, maps.pop())
        return self.head(x)

    def _grid(self, crop_size: Sequence[int]) -> tuple[int, ...]:
        """Tokens along z, y and x of a crop of this many voxels."""
        if any(n < self.total_stride or n % self.total_stride for n in crop_size):
            raise InputError(f"TransUNet3D got a crop of {' x '.join(map(str, crop_size))} voxels; expected positive multiples of "
                             f"{self.total_stride} (z, y, x). Change segment's crop_size in the plan.")
        return tuple(n // self.total_stride for n in crop_size)


class TransformerBottleneck(nn.Module):
    """Attention among all voxels of a feature map: (B, width, z, y, x) -> the same shape."""

    def __init__(self, width: int, layers: int, grid: Sequence[int]):
        super().__init__()
        heads = next(n for n in range(max(1, width // HEAD_WIDTH), 0, -1) if width % n == 0)
        self.embed = nn.Conv3d(width, width, 1)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, width, *grid), std=0.02))
        # Sequence first: with batch_first, torch's inference path writes out all N x N attention weights (287 MB against 63 MB for
        # one layer, 4 heads and 16 cubed tokens); sequence-first layers use the scaled-dot-product kernel in training and inference.
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation=F.gelu,
                                                               norm_first=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = conv_norm_act(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Feature map (B, width, z, y, x), any grid -> feature map of the same shape."""
        grid = x.shape[2:]
        tokens = (self.embed(x) + self.position_embedding(grid)).flatten(2).permute(2, 0, 1)     # (z * y * x, B, width)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.out(self.norm(tokens).permute(1, 2, 0).unflatten(2, grid))

    def position_embedding(self, grid: Sequence[int]) -> torch.Tensor:
        """Learned positions (1, width, *grid), stretched trilinearly where the grid (z, y, x) is not the one they were made for."""
        if tuple(grid) == self.position.shape[2:]:
            return self.position
        return F.interpolate(self.position, size=tuple(grid), mode="trilinear", align_corners=False)


class UpBlock(nn.Module):
    """Map at the coarser resolution and the encoder's at the finer one -> (B, fine, 2z, 2y, 2x)."""

    def __init__(self, coarse: int, fine: int):
        super().__init__()
        self.up = nn.ConvTranspose3d(coarse, fine, 2, stride=2)
        self.convolutions = nn.Sequential(conv_norm_act(2 * fine, fine), conv_norm_act(fine, fine))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, coarse, z, y, x) and (B, fine, 2z, 2y, 2x) -> (B, fine, 2z, 2y, 2x)."""
        return self.convolutions(torch.cat((self.up(x), skip), 1))


class ResidualBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions beside a shortcut: (B, before, z, y, x) -> (B, after, z / stride, y / stride, x / stride)."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first = conv_norm_act(before, after, stride)
        self.second = nn.Sequential(nn.Conv3d(after, after, 3, padding=1, bias=False), norm(after))
        shortcut: list[nn.Module] = [nn.AvgPool3d(stride)] if stride > 1 else []
        if before != after:
            shortcut += [nn.Conv3d(before, after, 1, bias=False), norm(after)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.second(self.first(x)) + self.shortcut(x), inplace=True)


def residual_stage(before: int, after: int, number: int, stride: int) -> nn.Sequential:
    """`number` residual blocks, the first of which halves the resolution where `stride` is 2."""
    return nn.Sequential(*(ResidualBlock(after if n else before, after, 1 if n else stride) for n in range(number)))


def conv_norm_act(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 x 3 convolution (no bias: the norm would take it away again), instance norm, leaky ReLU."""
    return nn.Sequential(nn.Conv3d(before, after, 3, stride, padding=1, bias=False), norm(after), nn.LeakyReLU(inplace=True))


def norm(channels: int) -> nn.InstanceNorm3d:
    return nn.InstanceNorm3d(channels, eps=1e-5, affine=True)


def _he_initialisation(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
