"""The volume that a phantom is painted on: tissue edges and cortical shells blurred by the scanner's point spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..utilities.triples import Box, Ints3, box_slices
from .primitives import Points, Vector

SLAB_VOXELS = 250_000


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread and without gradients: with many small tensors more threads only wait for each other, badly so when busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def occupancy(depth: Tensor, sigma: float) -> Tensor:
    """Fraction of tissue in a voxel `depth` mm inside an edge: the normal integral, as 1.7-logistic."""
    return (depth * (1.702 / sigma)).sigmoid_()


def noise(shape: tuple[int, ...], sigma: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Gaussian noise of unit variance smoothed by `sigma` voxels per axis (0 leaves an axis white)."""
    field = torch.randn(shape, generator=generator)
    for axis, s in enumerate(sigma):
        field = smooth(field, s, axis)
    return field / field.std().clamp_min(1e-6)


def smooth(field: Tensor, sigma: float, axis: int) -> Tensor:
    """Gaussian filter of `sigma` voxels along one axis, edges repeated."""
    radius = int(np.ceil(2.5 * sigma))
    if sigma < 0.2 or field.shape[axis] < 2:
        return field
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel /= kernel.sum()
    n = field.shape[axis]
    padded = torch.cat(
        [
            field.narrow(axis, 0, 1).expand(*[radius if a == axis else -1 for a in range(field.ndim)]),
            field,
            field.narrow(axis, n - 1, 1).expand(*[radius if a == axis else -1 for a in range(field.ndim)]),
        ],
        axis,
    )
    out = torch.zeros_like(field)
    for i, w in enumerate(kernel.tolist()):
        out.add_(padded.narrow(axis, i, n), alpha=w)
    return out


def smooth_field(shape: Sequence[int], cells: Sequence[int], generator: torch.Generator, channels: int = 1) -> Tensor:
    """Coarse normal noise of `cells` points stretched over `shape`: (channels, z, y, x)."""
    coarse = torch.randn((1, channels, *[max(c, 2) for c in cells]), generator=generator)
    return F.interpolate(coarse, size=tuple(shape), mode="trilinear", align_corners=True)[0]


def average(volume: Tensor, factor: Ints3) -> Tensor:
    """Mean of blocks of `factor` voxels: the slice profile of supersampled axes."""
    if factor == (1, 1, 1):
        return volume
    z, y, x = (n // f for n, f in zip(volume.shape, factor, strict=True))
    return volume.reshape(z, factor[0], y, factor[1], x, factor[2]).mean((1, 3, 5))


class Canvas:
    """HU on a grid of `spacing` (z, y, x) mm whose voxel (0, 0, 0) has its centre at `origin` (z, y, x) mm."""

    def __init__(
        self,
        shape: Ints3,
        spacing: tuple[float, float, float],
        origin: tuple[float, float, float],
        psf: float,
        generator: torch.Generator,
    ):
        self.shape, self.spacing, self.origin, self.generator = shape, spacing, origin, generator
        self.hu = torch.full(shape, -1000.0)
        self.axes = tuple(o + s * torch.arange(n, dtype=torch.float32) for o, s, n in zip(origin, spacing, shape, strict=True))
        self.sigma = float(np.sqrt(psf**2 + (float(np.mean(spacing)) * 0.35) ** 2))

    @property
    def whole(self) -> Box:
        """Index slices of all voxels."""
        return box_slices((0, 0, 0), self.shape)

    def slabs(self) -> Iterator[tuple[slice, Canvas]]:
        """The canvas in slabs of rows that fit a processor's cache: (rows, a canvas of them that shares the voxels)."""
        step = max(int(SLAB_VOXELS / (self.shape[1] * self.shape[2])), 1)
        for start in range(0, self.shape[0], step):
            rows, slab = slice(start, min(start + step, self.shape[0])), copy(self)
            slab.hu, slab.axes = self.hu[rows], (self.axes[0][rows], *self.axes[1:])
            slab.shape, slab.origin = (rows.stop - start, *self.shape[1:]), (float(slab.axes[0][0]), *self.origin[1:])
            yield rows, slab

    def box(self, low: np.ndarray, high: np.ndarray) -> Box | None:
        """Index slices of the LPS box low..high (x, y, z mm), or None outside the grid."""
        start, stop = [], []
        for axis, (a, b) in enumerate(zip(low[::-1], high[::-1], strict=True)):
            i = max(int(np.floor((a - self.origin[axis]) / self.spacing[axis])), 0)
            j = min(int(np.ceil((b - self.origin[axis]) / self.spacing[axis])) + 1, self.shape[axis])
            if i >= j:
                return None
            start.append(i)
            stop.append(j)
        return box_slices(start, np.subtract(stop, start))

    def points(self, box: Box) -> Points:
        """World coordinates of a box, broadcastable."""
        z, y, x = (axis[s] for axis, s in zip(self.axes, box, strict=True))
        return Points(x.view(1, 1, -1), y.view(1, -1, 1), z.view(-1, 1, 1))

    def local(self, box: Box, centre: np.ndarray, frame: np.ndarray) -> Points:
        """Coordinates of a box in a frame: frame.T @ (world - centre), three (z, y, x) tensors."""
        q = self.points(box)
        r = q.x - centre[0], q.y - centre[1], q.z - centre[2]
        return Points(*((r[0] * frame[0, k] + r[1] * frame[1, k] + r[2] * frame[2, k]).float() for k in range(3)))

    def local_box(self, centre: np.ndarray, frame: np.ndarray, low: Vector, high: Vector) -> tuple[Box, Points] | None:
        """Index box round the rotated box low..high (x, y, z mm in the frame) and its local coordinates; None outside."""
        corners = np.array([[a, b, c] for a in (low[0], high[0]) for b in (low[1], high[1]) for c in (low[2], high[2])])
        corners = corners @ frame.T + centre
        box = self.box(corners.min(0), corners.max(0))
        return None if box is None else (box, self.local(box, centre, frame))

    def fill(self, box: Box, d: Tensor, value: Tensor | float, sigma: float | None = None) -> None:
        """Paint soft tissue of `value` HU where d < 0, with a blurred edge."""
        target = self.hu[box]
        weight = occupancy(d, -(sigma or self.sigma))
        if isinstance(value, Tensor):
            target.add_(weight.mul_(value - target))
        else:  # the common case, without temporaries
            target.mul_(1 - weight).add_(weight, alpha=value)

    def bone(self, box: Box, d: Tensor, inner: Tensor | float, shell: Tensor | float, cortex: float) -> None:
        """Paint bone: `cortex` HU in a shell of `shell` mm under the surface d = 0, `inner` HU (cancellous) below it."""
        target = self.hu[box]
        outer = occupancy(d, -self.sigma)
        core = occupancy(-d - shell, self.sigma)
        target.mul_(1 - outer).add_(outer.sub_(core) * cortex).add_(core * inner)
