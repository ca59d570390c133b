"""Metal and cement in the CT: pedicle screws, rods, cement blobs, and the streaks that they cause."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .canvas import Canvas
from .primitives import capsule, ellipsoid
from .spine import Placed


def screw_lines(v: Placed, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Entry and tip (LPS mm) of a left and a right pedicle screw of a thoracic or lumbar vertebra."""
    p, out = v.params, []
    px = p["cw"] / 2 + p["pw"] / 2
    inward = math.tan(math.radians(rng.uniform(2, 18)))
    for side in (1, -1):
        through = np.array([side * px, p["dm"] / 2 + 2, p["pz"] + rng.normal(0, 0.8)])
        back, front = p["cd"] + 12, p["dm"] * rng.uniform(0.6, 0.85)
        entry = through + [side * back * inward, back, rng.normal(0, 2)]
        tip = through + [-side * front * inward, -front, rng.normal(0, 2)]
        out.append((v.world(entry), v.world(tip)))
    return out


def paint_screws(canvas: Canvas, placed: list[Placed], rng: np.random.Generator) -> Tensor:
    """Screws in `placed` joined by a rod each side; returns the metal mask (z, y, x) in 0..1."""
    metal = torch.zeros(canvas.shape)
    radius = rng.uniform(2.4, 3.5)
    heads: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for v in placed:
        for side, (entry, tip) in enumerate(screw_lines(v, rng)):
            _rod(canvas, metal, entry, tip, radius)
            _rod(canvas, metal, entry, entry + (entry - tip) / np.linalg.norm(entry - tip) * 9, 5.5)
            heads[side].append(entry + (entry - tip) / np.linalg.norm(entry - tip) * 8)
    for line in heads:
        for a, b in zip(line[:-1], line[1:], strict=True):
            _rod(canvas, metal, a, b, 2.8)
    return metal


def paint_cement(canvas: Canvas, v: Placed, rng: np.random.Generator) -> None:
    """Vertebroplasty cement: a few dense blobs inside the body."""
    p = v.params
    for _ in range(int(rng.integers(2, 5))):
        centre = v.world(
            (rng.uniform(-0.25, 0.25) * p["wm"], rng.uniform(-0.25, 0.15) * p["dm"], rng.uniform(-0.15, 0.15) * p["ha"])
        )
        radii = rng.uniform(3, 7, 3) * [1.2, 1, 0.8]
        box = canvas.box(centre - 14, centre + 14)
        if box is not None:
            canvas.fill(box, ellipsoid(canvas.points(box), centre, radii), float(rng.uniform(1300, 2600)))


def _rod(canvas: Canvas, metal: Tensor, a: np.ndarray, b: np.ndarray, radius: float) -> None:
    box = canvas.box(np.minimum(a, b) - radius - 3, np.maximum(a, b) + radius + 3)
    if box is None:
        return
    d = capsule(canvas.points(box), a, b, radius)
    canvas.fill(box, d, 6000.0)
    metal[box] = torch.maximum(metal[box], torch.sigmoid(-3 * d))


def add_streaks(canvas: Canvas, metal: Tensor, rng: np.random.Generator, strength: float = 1.0) -> None:
    """Dark bands along the long axes of the metal and bright and dark rays that fade as 1/r, per axial slice (by FFT)."""
    rows = torch.nonzero(metal.amax((1, 2)) > 0.5).flatten()
    if not len(rows):
        return
    ny, nx = canvas.shape[1:]
    y = (torch.arange(ny) - ny // 2).float().view(-1, 1) * canvas.spacing[1]
    x = (torch.arange(nx) - nx // 2).float().view(1, -1) * canvas.spacing[2]
    r, angle = torch.hypot(x, y), torch.atan2(y, x)
    rays = torch.zeros_like(r)
    for n in range(2, 26, 2):
        rays += float(rng.normal(0, 1 / math.sqrt(n / 4))) * torch.cos(n * angle + float(rng.uniform(0, 6.3)))
    dark = -2.2 * torch.exp(-(torch.sin(angle) / 0.22).square())
    kernel = (rays * 0.55 + dark) * r / (r + 3).square() * torch.exp(-r / 60) * (r > 1.5)
    kernel = torch.fft.rfft2(torch.fft.ifftshift(kernel))
    area = canvas.spacing[1] * canvas.spacing[2]
    first, last = int(rows[0]), int(rows[-1]) + 1
    streak = torch.fft.irfft2(torch.fft.rfft2(metal[first:last]) * kernel, s=(ny, nx)) * (area * 55 * strength)
    part = canvas.hu[first:last]
    part.add_(streak.clamp(-900, 700) * (1 - metal[first:last]) * (part > -700))
