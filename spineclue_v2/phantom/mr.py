"""MR appearance of the synthetic spine: sagittal slices of many contrasts, bodies and discs labelled.

The anatomy is the CT phantom's (`spine`, `fields`); only the tissues' intensities, the coil and the noise are MR's. Intensities
are drawn round textbook contrast, not fitted to a scanner.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..anatomy.structures import SACRUM, VALUE
from ..errors import InputError
from . import spine
from .canvas import Canvas, average, smooth_field
from .fields import discs, distance_fields
from .mr_variety import Look, disturb, draw_look
from .primitives import Points, smooth_max, smooth_min, superellipse_radius
from .spine import Subject
from .surroundings import Frame

CONTRASTS: dict[str, dict[str, float]] = {
    "t2": {"fat": 0.75, "muscle": 0.20, "marrow": 0.40, "cortex": 0.05, "csf": 1.0, "cord": 0.45, "annulus": 0.14, "nucleus": 0.72,
           "organ": 0.38, "blood": 0.06},
    "water": {"fat": 0.06, "muscle": 0.62, "marrow": 0.30, "cortex": 0.04, "csf": 0.9, "cord": 0.65, "annulus": 0.40, "nucleus": 0.80,
              "organ": 0.60, "blood": 0.75},
    "fat": {"fat": 0.95, "muscle": 0.10, "marrow": 0.52, "cortex": 0.04, "csf": 0.05, "cord": 0.10, "annulus": 0.08, "nucleus": 0.05,
            "organ": 0.10, "blood": 0.05},
    "t1": {"fat": 0.95, "muscle": 0.36, "marrow": 0.58, "cortex": 0.05, "csf": 0.12, "cord": 0.36, "annulus": 0.26, "nucleus": 0.38,
           "organ": 0.42, "blood": 0.08},
    "stir": {"fat": 0.08, "muscle": 0.34, "marrow": 0.22, "cortex": 0.04, "csf": 1.0, "cord": 0.50, "annulus": 0.12, "nucleus": 0.72,
             "organ": 0.50, "blood": 0.10},
}
"""Relative signal of the tissues: T2-weighted spin echo, the two images of a water-fat separation, T1-weighted spin echo, and
fat-suppressed T2 (short inversion time)."""

TOPS = ("T9", "T10", "T11", "T12", "L1")
"""Highest level in the field of view, drawn with these chances: upper levels are rare, as in lumbar examinations."""
TOP_CHANCE = (0.08, 0.14, 0.28, 0.30, 0.20)
MARROW_AGES = {"t2": 0.25, "water": -0.35, "fat": 0.5, "t1": 0.4, "stir": -0.3}
"""How marrow's signal changes over 40 years, as it turns to fat."""
SUBSLICES = 3
FULL_SCALE = 900.0


@dataclass(frozen=True)
class MRCase:
    """A synthetic MR. Arrays (z, y, x), LPS; world = index * spacing (mm), origin at voxel 0."""

    image: np.ndarray                          # int16, arbitrary units, background about 0
    labels: np.ndarray                         # uint8, values of `structures.VALUE`
    spacing: tuple[float, float, float]        # (z, y, x) mm; x is the slice axis
    meta: dict[str, Any]


def sample_mr(seed: int, contrast: str = "t2", top: str | None = None, plane_mm: float = 1.0, slice_mm: float | None = None,
              bias: float | None = None, noise: float | None = None, varied: bool = False) -> MRCase:
    """Draw one sagittal lumbar MR; the same seed and switches give the same voxels.

    contrast: one of `CONTRASTS`; top: highest level shown (default drawn from `TOPS`); plane_mm, slice_mm: in-plane spacing and
    slice distance; bias: standard deviation of the log coil sensitivity; noise: Rician sigma relative to full signal; varied: fields,
    surroundings, signals, coils and artefacts differ more from case to case (`mr_variety`), and `contrast` leads a mixture.
    Bodies (not arches) from `top` down, the sacrum and all discs in the field are labelled, cut ones too; the sliver of the body above
    `top` is not, as readers leave it out. InputError for unknown switches.
    """
    if contrast not in CONTRASTS:
        raise InputError(f"MR phantom contrast '{contrast}' is unknown; choose one of {', '.join(CONTRASTS)}.")
    if top is not None and top not in spine.level_names(None):
        raise InputError(f"MR phantom level '{top}' does not exist; choose one such as {', '.join(TOPS)}.")
    rng, generator = np.random.default_rng([seed, 601]), torch.Generator().manual_seed(int(seed))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            look = draw_look(seed, contrast, CONTRASTS) if varied else None
            return _sample(int(seed), rng, generator, contrast, top, (plane_mm, slice_mm), (bias, noise), look)
    finally:
        torch.set_num_threads(threads)


def _sample(seed: int, rng: np.random.Generator, generator: torch.Generator, contrast: str, top: str | None,
            steps: tuple[float, float | None], disturbed: tuple[float | None, float | None], look: Look | None) -> MRCase:
    (plane, thick), (bias, noise) = steps, disturbed
    top = top or str(rng.choice(TOPS, p=TOP_CHANCE))
    lumbar = [n for n in spine.level_names(None) if n[0] == "L" or n in TOPS]
    fractures = spine.draw_fractures(rng, lumbar, 1 if rng.random() < 0.15 else 0)
    subject = spine.draw_subject(rng, None, float(rng.uniform(0, 12)), fractures, float(rng.uniform(0, 1) ** 2))
    thick = thick or (float(rng.uniform(4.0, 4.8)) if look is None else look.slice_mm)
    canvas = _grid(rng, generator, subject, top, (plane, thick), look)
    tissue = {name: value * float(rng.uniform(0.88, 1.12)) for name, value in (look.tissue if look else CONTRASTS[contrast]).items()}
    tissue["marrow"] *= 1 + MARROW_AGES[contrast] * (subject.age - 55) / 40
    canvas.hu.zero_()
    labels = torch.zeros(canvas.shape, dtype=torch.uint8)
    _paint_soft(canvas, subject, tissue, rng)
    _paint_discs(canvas, subject, tissue, rng, labels)
    _paint_sacrum(canvas, subject, tissue, labels)
    _paint_vertebrae(canvas, subject, tissue, rng, generator, labels)
    for name in spine.level_names(None)[:spine.level_names(None).index(top)]:
        labels[labels == VALUE[name]] = 0
    signal = average(canvas.hu, (1, 1, SUBSLICES))
    strength = (float(rng.uniform(0.1, 0.3)) if look is None else look.bias) if bias is None else bias
    sigma = (float(rng.uniform(0.015, 0.05)) if look is None else look.noise) if noise is None else noise
    if look is not None:
        signal = disturb(signal, look, canvas, subject, thick)
    signal = signal * _coil(tuple(signal.shape), rng, generator, strength)
    real, imaginary = (torch.randn(signal.shape, generator=generator) * sigma for _ in range(2))
    image = ((signal + real).square() + imaginary.square()).sqrt() * FULL_SCALE * float(rng.uniform(0.5, 1.5))
    middle = labels[:, :, SUBSLICES // 2::SUBSLICES]
    meta = {"seed": seed, "contrast": contrast, "top": top, "age": subject.age, "bias": strength, "noise": sigma,
            "fractures": {name: grade for name, (grade, _) in fractures.items()}}
    return MRCase(image.round().clamp(0, 32767).to(torch.int16).numpy(), middle.contiguous().numpy(), (plane, plane, thick), meta)


def _grid(rng: np.random.Generator, generator: torch.Generator, subject: Subject, top: str, steps: tuple[float, float],
          look: Look | None) -> Canvas:
    """Field of view round the lumbar spine, subject moved so that voxel 0 is the origin, slices split into sub-slices."""
    plane, thick = steps
    shown = [v for v in subject.placed if v.name in spine.level_names(None)[spine.level_names(None).index(top):]]
    centres = np.array([v.centre for v in shown] + [subject.sacrum[0]])
    first = shown[0]
    high_z = first.centre[2] + first.params["ha"] / 2 * first.scale + rng.uniform(2, 10)
    low_z = subject.sacrum[0][2] - rng.uniform(30, 60)
    front, back = centres[:, 1].min() - rng.uniform(35, 60), centres[:, 1].max() + rng.uniform(55, 75)
    count = int(rng.integers(12, 16))
    if look is not None:
        front, back, low_z, count = front - look.front_mm, back + look.behind_mm, low_z - look.below_mm, look.slices
    middle = centres[:, 0].mean() + rng.normal(0, 2)
    low = np.array([middle - (count - 1) / 2 * thick, front, low_z])
    shape = (int(np.ceil((high_z - low_z) / plane)), int(np.ceil((back - front) / plane)), count)
    for v in subject.placed:
        v.centre = v.centre - low
    subject.sacrum = subject.sacrum[0] - low, subject.sacrum[1]
    fine = thick / SUBSLICES
    canvas = Canvas((shape[0], shape[1], count * SUBSLICES), (plane, plane, fine), (0.0, 0.0, 0.5 * (fine - thick)), 0.6, generator)
    return canvas


def _paint_soft(canvas: Canvas, subject: Subject, tissue: dict[str, float], rng: np.random.Generator) -> None:
    """Muscle, organs and bowel in front, fat behind and between, great vessels, canal with fluid, cord and roots."""
    whole = canvas.whole
    frame, q = Frame(canvas, subject, 1.0), canvas.points(whole)
    cx, cy = frame.line()
    x, y = q.x - cx, q.y - cy
    cells = tuple(int(n * s / 14) + 2 for n, s in zip(canvas.shape, canvas.spacing, strict=True))
    blobs = smooth_field(canvas.shape, cells, canvas.generator, 2)
    canvas.hu += tissue["muscle"] * (1 + 0.15 * blobs[0])
    septa = torch.exp(-(blobs[1] / 0.12).square()) * float(rng.uniform(0.2, 0.8))
    canvas.hu += septa * (tissue["fat"] - tissue["muscle"])
    belly = torch.where(blobs[0] + 0.5 * blobs[1] > float(rng.uniform(-0.3, 0.3)), tissue["organ"], tissue["fat"])
    canvas.fill(whole, (y + 24).expand(canvas.shape), belly * (1 + 0.12 * blobs[1]), 2.0)
    canvas.fill(whole, (float(rng.uniform(52, 62)) - y).expand(canvas.shape), tissue["fat"], 2.0)
    for shift, radius in ((8.0, 9.0), (-14.0, 9.5)):
        tube = torch.hypot(x - shift, y + 30 + float(rng.normal(0, 2))) - radius * float(rng.uniform(0.85, 1.15))
        canvas.fill(whole, tube, tissue["blood"])
    rings = [v for v in subject.placed if v.name != "C1"]
    centre = np.array([v.world((0, v.params["dm"] / 2 + 0.4 + v.params["cd"] / 2, 0)) for v in rings]
                      + [subject.sacrum[0] + subject.sacrum[1] @ np.array([0, 24 * subject.scale, 0])])
    width = np.array([v.params["cw"] * v.scale for v in rings] + [24.0]) / 2
    depth = np.array([v.params["cd"] * v.scale for v in rings] + [13.0]) / 2
    order, z = np.argsort(centre[:, 2]), canvas.axes[0].numpy()
    tx, ty, a, b = (torch.from_numpy(np.interp(z, centre[order, 2], t[order])).float().view(-1, 1, 1)
                    for t in (centre[:, 0], centre[:, 1], width, depth))
    rho = superellipse_radius(q.x - tx, q.y - ty, a, b, 2.2)
    canvas.fill(whole, (rho - 1.25) * b, tissue["fat"])
    canvas.fill(whole, (rho - 0.92) * b, tissue["csf"])
    level = torch.from_numpy(frame.level).float().view(-1, 1, 1)
    cord = (((q.x - tx) / 5.6).square() + ((q.y - ty) / 3.6).square()).sqrt() - 1
    canvas.fill(whole, cord * 4 + (level - 19.0).clamp_min(0) * 4, tissue["cord"])
    roots = torch.maximum(torch.hypot((q.x - tx) / 1.4, q.y - ty - 2.5) - 2.2, (19.0 - level) * 4)
    canvas.fill(whole, roots, 0.5 * (tissue["cord"] + tissue["csf"]))


def _paint_discs(canvas: Canvas, subject: Subject, tissue: dict[str, float], rng: np.random.Generator, labels: Tensor) -> None:
    """Annulus and nucleus; degenerated discs are dark and narrow at the waist. Labels run where no bone lies yet."""
    pairs = [*zip(subject.placed[1:-1], subject.placed[2:], strict=True), (subject.placed[-1], None)]
    for (upper, lower), (window, wide, deep, half) in zip(pairs, discs(canvas, subject), strict=True):
        degenerated = float(rng.beta(1.2 + (subject.age - 20) / 30, 2.2))
        if window is None:
            continue
        box, q = window
        rho = superellipse_radius(q.x, q.y, wide, deep, 2.5)
        d = torch.maximum((rho - 1) * deep, q.z.abs() - half)
        bright = tissue["annulus"] + (tissue["nucleus"] - tissue["annulus"]) * (1 - degenerated)
        core = torch.exp(-(rho / 0.72).pow(6)) * torch.exp(-(q.z / (0.55 * half)).pow(4))
        canvas.fill(box, d, tissue["annulus"] + (bright - tissue["annulus"]) * core)
        name = f"{upper.name}/{lower.name if lower else SACRUM}"
        part = labels[box]
        part[(d < 0) & (part == 0)] = VALUE[name]


def _paint_sacrum(canvas: Canvas, subject: Subject, tissue: dict[str, float], labels: Tensor) -> None:
    """The sacral bodies, tilted segments fused into one; the label runs over the first three."""
    (centre, frame), s = subject.sacrum, subject.scale
    window = canvas.local_box(centre, frame, (-40 * s, -30 * s, -95 * s), (40 * s, 45 * s, 25 * s))
    if window is None:
        return
    box, q = window
    q = Points(q.x / s, q.y / s, q.z / s)
    segments = []
    for (y0, z0), wide, deep, high, tilt in (((0, 0), 25, 15.5, 14.2, 0.0), ((5, -27), 19, 11, 13, 0.25), ((13, -51), 15, 8.5, 11.7, 0.3),
                                             ((18, -71), 12, 7, 10.5, 0.1)):
        y, z = q.y - y0, q.z - z0
        y, z = y * np.cos(tilt) + z * np.sin(tilt), z * np.cos(tilt) - y * np.sin(tilt)
        segments.append(smooth_max((superellipse_radius(q.x, y, float(wide), float(deep), 2.6) - 1) * deep, z.abs() - high, 3.0))
    whole = reduce(lambda a, b: smooth_min(a, b, 2.5), segments) * s
    canvas.bone(box, whole, tissue["marrow"], 0.9, tissue["cortex"])
    labels[box][(whole < 0) & (q.z > -64)] = VALUE[SACRUM]


def _paint_vertebrae(canvas: Canvas, subject: Subject, tissue: dict[str, float], rng: np.random.Generator,
                     generator: torch.Generator, labels: Tensor) -> None:
    """Marrow with fatty islands, dark cortex and end plates, the basivertebral vein; bodies are labelled, arches are not."""
    for v, box, d in distance_fields(canvas, subject, generator):
        q = canvas.local(box, v.centre, v.rotation)
        cells = tuple(max(2, int(n * s / 7)) for n, s in zip(d.shape, canvas.spacing, strict=True))
        islands = smooth_field(d.shape, cells, generator)[0]
        inner = tissue["marrow"] * float(rng.uniform(0.92, 1.08)) * (1 + 0.12 * islands)
        vein = (q.x / 6).square() + (q.z / 2.2).square() + ((q.y - v.params["dm"] * 0.38 * v.scale) / 6).square()
        inner = inner + 0.5 * (tissue["csf"] - tissue["marrow"]) * torch.exp(-vein)
        canvas.bone(box, d, inner, float(rng.uniform(0.9, 1.4)), tissue["cortex"])
        body = (d < 0) & (q.y < (v.params["dm"] / 2 + 0.5) * v.scale)
        body &= q.x.abs() < (max(v.params.get("ws", 0), v.params.get("wi", 0)) / 2 + 1.5) * v.scale
        labels[box][body] = VALUE[v.name]


def _coil(shape: tuple[int, ...], rng: np.random.Generator, generator: torch.Generator, strength: float) -> Tensor:
    """Sensitivity of the spine coil (z, y, x): falls off towards the front, varies slowly; mean about 1."""
    field = torch.exp(strength * smooth_field(shape, (4, 3, 2), generator)[0])
    depth = torch.linspace(1, 0, shape[1]).view(1, -1, 1)      # 1 in front, 0 at the coil
    return field * torch.exp(-float(rng.uniform(0.5, 2.0)) * strength * depth) * (1 + 0.5 * strength)
