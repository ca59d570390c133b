"""A scan without a spine: a limb with one or two long bones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..utilities.triples import Floats3, float_triple, int_triple
from .canvas import Canvas, noise, smooth_field
from .primitives import capsule, superellipse_radius


def limb(rng: np.random.Generator, generator: torch.Generator, o: dict[str, Any]) -> tuple[np.ndarray, Floats3]:
    """One or two legs or arms: fat, muscle, one or two tubular bones with thick cortex and a joint end; labels are all 0."""
    spacing = np.broadcast_to(np.asarray(o["spacing"] if o["spacing"] is not None else rng.uniform(1.2, 2.0), float), 3)
    extent = np.array([rng.uniform(120, 260), rng.uniform(110, 190), rng.uniform(110, 190)])
    legs = 2 if rng.random() < 0.35 else 1
    width, radius = extent[2], 0.42 * min(extent[1:])
    extent[2] += (legs - 1) * 2.1 * radius
    shape = int_triple(np.ceil(extent / spacing))
    canvas = Canvas(shape, float_triple(spacing), (0.0, 0.0, 0.0), 0.6, generator)
    two = rng.random() < 0.5
    for leg in range(legs):
        _leg(canvas, rng, generator, extent, width / 2 + leg * 2.1 * radius, radius, two)
    sd = o["noise"] if o["noise"] is not None else rng.uniform(8, 40)
    ct = canvas.hu + noise(shape, (0.6, 0.6, 0.6), generator) * sd
    return ct.clamp(-1024, 3071).round().to(torch.int16).numpy(), canvas.spacing


def _leg(canvas: Canvas, rng: np.random.Generator, generator: torch.Generator, extent: np.ndarray, cx: float, radius: float,
         two: bool) -> None:
    box = canvas.whole
    q = canvas.points(box)
    blobs = smooth_field(canvas.shape, tuple(int(e / 18) + 2 for e in extent), generator, 2)
    cy = extent[1] / 2
    skin = (superellipse_radius(q.x - cx, q.y - cy, radius, radius * 0.9, 2.0) - 1) * radius + 0 * q.z
    canvas.fill(box, skin, -100.0)
    canvas.fill(box, skin + rng.uniform(4, 14) + 2 * blobs[0], 55 - 60 * (blobs[1] - 1).clamp(0, 1))
    for k in range(2 if two else 1):
        x = cx + (rng.uniform(14, 20) * (1 if k else -1) if two else rng.uniform(-8, 8))
        r = rng.uniform(6, 9) if two else rng.uniform(11, 15)
        top = extent[0] * rng.uniform(0.6, 0.9)
        shaft = capsule(q, (x, cy, -50), (x + rng.normal(0, 8), cy + rng.normal(0, 8), top), r, r * 0.95)
        joint = capsule(q, (x - r, cy, top + r), (x + r, cy, top + r), r * 1.3)
        canvas.bone(
            box, torch.minimum(shaft, joint), torch.where(q.z > top, 180.0, -50.0), torch.where(q.z > top, 1.2, r * 0.4), 1450.0
        )
