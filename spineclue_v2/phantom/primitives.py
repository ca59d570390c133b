"""Signed distance primitives in torch, evaluated on separable grids (millimetres, negative inside)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Vector = Sequence[float] | np.ndarray


class Points(NamedTuple):
    """Coordinates in mm that broadcast to (z, y, x): x left, y posterior, z cranial of the local frame."""

    x: Tensor
    y: Tensor
    z: Tensor


def smooth_min(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Polynomial smooth union (I. Quilez' quadratic form); equals min(a, b) where |a - b| >= k."""
    h = ((b - a) * (0.5 / k) + 0.5).clamp_(0, 1)
    return torch.lerp(b, a, h) - k * h * (1 - h)


def smooth_max(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Smooth intersection, the mirror of `smooth_min`."""
    return -smooth_min(-a, -b, k)


def capsule(
    q: Points,
    a: Vector,
    b: Vector,
    r0: float,
    r1: float | None = None,
    stretch: Sequence[float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Tapered capsule from a to b (x, y, z mm), radius r0 -> r1; `stretch` scales its section per axis."""
    sx, sy, sz = stretch
    ax, ay, az = a[0] / sx, a[1] / sy, a[2] / sz
    bx, by, bz = b[0] / sx - ax, b[1] / sy - ay, b[2] / sz - az
    px, py, pz = q.x / sx - ax, q.y / sy - ay, q.z / sz - az
    length = max(bx * bx + by * by + bz * bz, 1e-6)
    t = ((px * (bx / length) + py * (by / length)) + pz * (bz / length)).clamp_(0, 1)
    d = (px - t * bx).square_() + (py - t * by).square_()
    d += (pz - t * bz).square_()
    d = d.sqrt_()
    d -= t.mul_((r0 if r1 is None else r1) - r0).add_(r0)
    return d.mul_(min(stretch))


def ellipsoid(q: Points, centre: Vector, radii: Vector) -> Tensor:
    """Ellipsoid; first-order distance k0 (k0 - 1) / k1, exact for spheres."""
    px, py, pz = q.x - centre[0], q.y - centre[1], q.z - centre[2]
    k0 = ((px / radii[0]).square() + (py / radii[1]).square() + (pz / radii[2]).square()).sqrt_()
    k1 = ((px / radii[0] ** 2).square() + (py / radii[1] ** 2).square() + (pz / radii[2] ** 2).square()).sqrt_()
    return (k0 / k1.clamp_min_(1e-9)).clamp_(min(radii), max(radii)) * (k0 - 1)  # the clamp serves the centre, 0 / 0


def superellipse_radius(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float, n: float) -> Tensor:
    """(|x/a|^n + |y/b|^n)^(1/n), 1 on the outline."""
    return ((x / a).abs().pow(n) + (y / b).abs().pow(n)).pow(1.0 / n)


def polyline(
    q: Points, points: Sequence[Sequence[float]], r0: float, r1: float, stretch: Sequence[float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """Union of capsules along points; the radius runs from r0 to r1."""
    n = len(points) - 1
    radius = [r0 + (r1 - r0) * i / n for i in range(n + 1)]
    d = capsule(q, points[0], points[1], radius[0], radius[1], stretch)
    for i in range(1, n):
        d = torch.minimum(d, capsule(q, points[i], points[i + 1], radius[i], radius[i + 1], stretch))
    return d
