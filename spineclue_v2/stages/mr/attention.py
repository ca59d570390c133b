"""Cross tri-attention: what the 2D branches see steers the 3D features, and the other way round (Huang et al. 2022, Sec. II-C).

Written from the paper's description. Shapes: B batch, C channels, D slices, H and W rows and columns of the feature grid,
N = H W, M = D N. All three parts are residual with a learned gain that starts at 0: at the start the block only concatenates and fuses.
Energies are means over positions, not sums as in dual attention (Fu et al. 2019): the same weights then serve any patch size.
"""
from __future__ import annotations

import contextlib

import torch
from torch import nn
from torch.nn import functional as F


class SpatialAttention(nn.Module):
    """(a) Positions of a slice that look alike in 2D share their 3D features.

    out_3d = g_s * softmax_j(q_i . k_j / sqrt(d)) v_j + f_3d with q, k from f_2d and v from f_3d; i, j run over the N positions of one
    slice. With `stride` s the affinity and the mixed values live on a grid s times coarser and are interpolated back.
    """

    def __init__(self, channels_3d: int, channels_2d: int, key_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.query, self.key = (nn.Conv3d(channels_2d, key_channels, 1) for _ in range(2))
        self.value = nn.Conv3d(channels_3d, channels_3d, 1)
        self.gain = nn.Parameter(torch.zeros(1))
        self.stride = stride

    def forward(self, f_3d: torch.Tensor, f_2d: torch.Tensor) -> torch.Tensor:
        """f_3d (B, C3, D, H, W), f_2d (B, C2, D, H, W) -> (B, C3, D, H, W)."""
        batch, channels, slices, rows, columns = f_3d.shape
        query, key, value = self._coarse(self.query(f_2d)), self._coarse(self.key(f_2d)), self._coarse(self.value(f_3d))
        grid = value.shape[-2:]
        mixed = F.scaled_dot_product_attention(_slice_rows(query), _slice_rows(key), _slice_rows(value))       # (B D, N, C3)
        mixed = mixed.transpose(1, 2).reshape(batch * slices, channels, *grid)
        if grid != (rows, columns):
            mixed = F.interpolate(mixed, size=(rows, columns), mode="bilinear", align_corners=False)
        mixed = mixed.reshape(batch, slices, channels, rows, columns).transpose(1, 2)
        return self.gain * mixed + f_3d

    def _coarse(self, features: torch.Tensor) -> torch.Tensor:
        if self.stride == 1:
            return features
        return F.avg_pool3d(features, (1, self.stride, self.stride), ceil_mode=True, count_include_pad=False)


class SliceAttention(nn.Module):
    """(b) Slices take from 2D features of slices that differ from them in 3D.

    E = f_3d f_3d^T / (C M / D) over slices (D x D); A = softmax_j(max_j E_ij - E_ij); out_2d = g_d * A f_2d + f_2d.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, f_2d: torch.Tensor, f_3d: torch.Tensor) -> torch.Tensor:
        """f_2d (B, C2, D, H, W), f_3d (B, C3, D, H, W) -> (B, C2, D, H, W)."""
        rows_3d, rows_2d = (t.transpose(1, 2).flatten(2) for t in (f_3d, f_2d))                     # (B, D, C N)
        return self.gain * _mix(rows_3d, rows_2d).reshape(f_2d.transpose(1, 2).shape).transpose(1, 2) + f_2d


class ChannelAttention(nn.Module):
    """(c) Channels of both take from channels that differ from them.

    E = x x^T / M over channels (C x C); A = softmax_j(max_j E_ij - E_ij); out = g_c * A x + x.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) -> the same shape."""
        rows = x.flatten(2)
        return self.gain * _mix(rows, rows).reshape(x.shape) + x


class CrossTriAttention(nn.Module):
    """The three parts in a row: (a) on the 3D features, (b) on the 2D features, (c) on their concatenation."""

    def __init__(self, channels_3d: int, channels_2d: int, key_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.spatial = SpatialAttention(channels_3d, channels_2d, key_channels, stride)
        self.slices, self.channels = SliceAttention(), ChannelAttention()

    def forward(self, f_3d: torch.Tensor, f_2d: torch.Tensor) -> torch.Tensor:
        """f_3d (B, C3, D, H, W), f_2d (B, C2, D, H, W) -> (B, C3 + C2, D, H, W); with all gains 0 their plain concatenation."""
        return self.channels(torch.cat([self.spatial(f_3d, f_2d), self.slices(f_2d, f_3d)], dim=1))


def _slice_rows(features: torch.Tensor) -> torch.Tensor:
    """(B, C, D, H, W) -> (B D, N, C): the positions of each slice as rows."""
    batch, channels, slices = features.shape[:3]
    return features.transpose(1, 2).reshape(batch * slices, channels, -1).transpose(1, 2)


def _mix(source: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """softmax_j(max_j E_ij - E_ij) values with E = source source^T / length; source (B, R, K), values (B, R, V) -> (B, R, V)."""
    kind = source.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext():
        energy = torch.bmm(source.float(), source.float().transpose(1, 2)) / source.shape[2]
        weights = (energy.amax(2, keepdim=True) - energy).softmax(2)
    return torch.bmm(weights.to(values.dtype), values)
