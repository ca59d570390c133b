"""What differs between MR examinations beyond the patient: weighting, field of view, coil, saturation, motion, metal.

Drawn so widely that real examinations lie within; no frequency is that of a clinic.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .canvas import Canvas, occupancy
from .spine import Subject
from .surroundings import Frame

SATURATED = 0.4      # of examinations: a band in front of the spine gives little signal
MOVED = 0.15         # show ghosts of the patient's motion
OPERATED = 0.12      # show voids round metal
EDGE_MM = 4.0        # over which a saturation band begins


@dataclass(frozen=True)
class Look:
    """One examination. Distances in mm; `*_mm` of the field are what it shows beyond the narrow field of plain phantoms."""

    seed: int
    tissue: dict[str, float]
    slice_mm: float
    slices: int
    front_mm: float
    behind_mm: float
    below_mm: float
    skin_mm: float                 # behind the fat begins air
    bias: float
    noise: float
    saturation: float | None       # what is left of the signal in front of the spine
    ghost: float                   # strength of the ghosts, 0: none
    metal: bool


def draw_look(seed: int, contrast: str, contrasts: Mapping[str, Mapping[str, float]]) -> Look:
    """An examination led by `contrast`: up to 0.35 of another weighting is mixed in, and tissues vary one by one."""
    rng = np.random.default_rng([int(seed), 733])
    other, share = contrasts[str(rng.choice(sorted(contrasts)))], float(rng.uniform(0, 0.35))
    tissue = {name: ((1 - share) * value + share * other[name]) * float(rng.uniform(0.8, 1.25))
              for name, value in contrasts[contrast].items()}
    return Look(seed=int(seed), tissue=tissue, slice_mm=float(rng.uniform(3.0, 5.0)), slices=int(rng.integers(11, 19)),
                front_mm=float(rng.uniform(0, 70)), behind_mm=float(rng.uniform(0, 50)), below_mm=float(rng.uniform(-20, 70)),
                skin_mm=float(rng.uniform(4, 40)), bias=float(rng.uniform(0.1, 0.6)), noise=float(rng.uniform(0.01, 0.07)),
                saturation=float(rng.uniform(0.05, 0.4)) if rng.random() < SATURATED else None,
                ghost=float(rng.uniform(0.04, 0.15)) if rng.random() < MOVED else 0.0, metal=bool(rng.random() < OPERATED))


def disturb(signal: Tensor, look: Look, canvas: Canvas, subject: Subject, thick: float) -> Tensor:
    """`signal` (z, y, x), one value per slice along x, with air, saturation, metal voids and ghosts of this examination."""
    rng = np.random.default_rng([look.seed, 734])
    _, line = Frame(canvas, subject, 1.0).line()
    y = canvas.axes[1].view(1, -1, 1) - line
    x = canvas.origin[2] + thick * (torch.arange(signal.shape[2], dtype=torch.float32).view(1, 1, -1) + 0.5)
    signal = signal * occupancy(57 + look.skin_mm - y, 1.5)
    if look.saturation is not None:
        signal = signal * (look.saturation + (1 - look.saturation) * occupancy(y + float(rng.uniform(22, 45)), EDGE_MM))
    if look.metal:
        lumbar = [v for v in subject.placed if v.name[0] == "L"]
        first, count = int(rng.integers(0, 4)), int(rng.integers(2, 4))
        z = canvas.axes[0].view(-1, 1, 1)
        for v in lumbar[first:first + count]:
            for side in (-1, 1):
                centre = v.world((side * float(rng.uniform(11, 15)), float(rng.uniform(5, 20)), float(rng.uniform(-3, 6))))
                long, wide = float(rng.uniform(12, 22)), float(rng.uniform(5, 9))
                apart = (((x - centre[0]) / wide).square() + ((canvas.axes[1].view(1, -1, 1) - centre[1]) / long).square()
                         + ((z - centre[2]) / wide).square()).sqrt()
                signal = signal * occupancy((apart - 1) * wide, 1.0)
    if look.ghost:
        axis, step = int(rng.integers(0, 2)), int(rng.integers(12, 40))
        signal = signal + look.ghost * (signal.roll(step, axis) + signal.roll(-step, axis))
    return signal
