"""Abnormalities behind switches: what `sample` can add to a subject or a scan, and the text form used on the command line."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .canvas import Canvas, noise, smooth
from .primitives import capsule, ellipsoid
from .spine import VARIANTS, Placed, Subject

SWITCHES: dict[str, tuple[str, float, str]] = {
    "scoliosis": ("cobb", 40, "Cobb angle in degrees, with axial rotation towards the convexity"),
    "screws": ("screws", 4, "vertebrae with pedicle screws, rods and streaks"),
    "cement": ("cement", 1, "vertebrae with cement"),
    "fracture": ("fractures", 1, "fractured vertebrae (random level, grade and type; or LEVEL:GRADE:TYPE)"),
    "osteophytes": ("osteophytes", 1, "0..1, rims of the end plates"),
    "dish": ("dish", 1, "0..1, bridging ossification in front of the lower thoracic bodies"),
    "lesions": ("lesions", 3, "lytic or blastic metastases"),
    "old": ("age", 88, "age in years: thins the cancellous bone"),
    "contrast": ("contrast", 250, "HU added to blood"),
    "thick": ("thick", 5, "slice thickness in mm, axial"),
    "noise": ("noise", 80, "standard deviation in HU"),
    "streaks": ("streaks", 1, "0..2, horizontal photon-starvation streaks through shoulders and hips"),
    "motion": ("motion", 2, "mm, sideways steps between breathing positions"),
    "randomise": ("randomise", 1, "0..1, random monotone remapping of HU (domain randomisation for training)"),
    "short": ("short", 2, "number of whole vertebrae in the field"),
    "padding": ("padding", 25, "mm, constant voxels (-1024, -2048, -3024 or 0) round the scan, at most so many on a side"),
    "oblique": ("oblique", 12, "degrees between the scan's grid and the body"),
}
"""Name on the command line -> (keyword of `sample`, strength when none is given, meaning)."""


def parse_pathology(text: str) -> dict[str, Any]:
    """'scoliosis=50,screws,T13' -> keywords of `sample`. Also: T13, L6, no_T12, wide, negative, fracture=L1:3:crush."""
    what: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = part.partition("=")
        if name in VARIANTS and not value:
            what["variant"] = name
        elif name in ("wide", "tight") and not value:
            what[name] = True
        elif name == "negative" and not value:
            what["spine"] = False
        elif name == "fracture" and ":" in value:
            what.setdefault("fractures", {}).update(_fracture(value))
        elif name in SWITCHES:
            what[SWITCHES[name][0]] = _number(name, value)
        else:
            known = ", ".join([*SWITCHES, *VARIANTS, "wide", "tight", "negative"])
            raise InputError(f"Pathology '{part}' is unknown; known: {known} (NAME or NAME=STRENGTH, separated by commas).")
    return what


def _number(name: str, value: str) -> float | int:
    key, default, _ = SWITCHES[name]
    try:
        number = float(value) if value else float(default)
    except ValueError:
        raise InputError(f"Pathology strength '{name}={value}' is no number; write for example {name}={default:g}.") from None
    if not np.isfinite(number) or number < 0:
        raise InputError(f"Pathology strength '{name}={value}' must be zero or more; write for example {name}={default:g}.")
    return int(number) if key in ("screws", "cement", "fractures", "lesions", "short") else number


def _fracture(value: str) -> dict[str, tuple[int, str]]:
    level, grade, *kind = value.split(":")
    if not grade.isdigit() or len(kind) > 1:
        raise InputError(f"Fracture '{value}' is not understood; write LEVEL:GRADE:TYPE, for example L1:3:crush.")
    return {level: (int(grade), kind[0] if kind else "wedge")}


def shorten(rng: np.random.Generator, names: list[str], first: str, last: str, count: int) -> tuple[str, str]:
    """First and last of `count` neighbouring levels at a random place between first and last."""
    low, high = names.index(first), names.index(last)
    count = min(max(int(count), 1), high - low + 1)
    start = int(rng.integers(low, high - count + 2))
    return names[start], names[start + count - 1]


def paint_dish(canvas: Canvas, subject: Subject, strength: float, rng: np.random.Generator) -> None:
    """Flowing ossification along the right front of T6..T11 (diffuse idiopathic skeletal hyperostosis); stays unlabelled."""
    run = [v for v in subject.placed if v.name in ("T6", "T7", "T8", "T9", "T10", "T11")]
    points = []
    for v in run:
        p = v.params
        side = -rng.uniform(0.15, 0.3) * p["wm"]
        points += [v.world((side, -p["dm"] / 2 - 0.5, h)) for h in (p["ha"] * 0.45, 0.0, -p["ha"] * 0.45)]
    for i, (a, b) in enumerate(zip(points[:-1], points[1:], strict=True)):
        radius = 3.0 * strength * (1.25 if i % 3 == 2 else 0.8)
        box = canvas.box(np.minimum(a, b) - radius - 4, np.maximum(a, b) + radius + 4)
        if radius > 0.2 and box is not None:
            d = capsule(canvas.points(box), a, b, radius, stretch=(1.5, 0.8, 1))
            canvas.bone(box, d, 350.0, 1.0, 1000.0)


def paint_lesions(canvas: Canvas, placed: list[Placed], count: int, rng: np.random.Generator) -> list[str]:
    """Metastases in the bodies of `placed`: lytic (soft tissue, 20-60 HU) or blastic (500-1000 HU). Returns their levels."""
    done = []
    for i in rng.choice(len(placed), size=min(count, len(placed)), replace=False) if placed else ():
        v = placed[int(i)]
        p = v.params
        centre = v.world(rng.uniform(-0.25, 0.25, 3) * [p["wm"], p["dm"], p["ha"]])
        radii = rng.uniform(0.2, 0.38, 3) * p["ha"] * v.scale
        box = canvas.box(centre - 20, centre + 20)
        if box is not None:
            hu = float(rng.uniform(20, 60) if rng.random() < 0.5 else rng.uniform(500, 1000))
            canvas.fill(box, ellipsoid(canvas.points(box), centre, radii), hu)
            done.append(v.name)
    return done


def add_streaks(
    ct: Tensor, level: np.ndarray, spacing: list[float], strength: float, generator: torch.Generator
) -> Tensor:
    """Noise drawn out from left to right where shoulders and hips take the photons (`level` index per slice: C6..T2, L5 and below)."""
    gain = strength * (90 * np.exp(-(((level - 7) / 1.6) ** 2)) + 60 * np.exp(-(((level - 25) / 1.4) ** 2)))
    streaks = noise(tuple(ct.shape), (0.4 / spacing[0], 0.6 / spacing[1], 0), generator)
    streaks = smooth(streaks, 18 / spacing[2], 2)
    streaks /= streaks.std().clamp_min(1e-6)
    return ct + streaks * torch.from_numpy(gain).float().view(-1, 1, 1) * (ct > -800)


def step_motion(slices: int, spacing: tuple[float, float, float], strength: float, rng: np.random.Generator) -> np.ndarray:
    """Whole-voxel shift (y, x) of every slice: constant within a breath (30-60 mm), jumping by about `strength` mm between."""
    shifts, z = np.zeros((slices, 2), int), 0
    while z < slices:
        end = z + max(int(rng.uniform(30, 60) / spacing[0]), 1)
        shifts[z:end] = np.round(rng.normal(0, strength, 2) / spacing[1:])
        z = end
    return shifts


def shift_slices(volume: np.ndarray, shifts: np.ndarray, fill: int | None = None) -> np.ndarray:
    """Move every slice by its (y, x) shift; uncovered voxels get `fill`, or repeat the border when it is None."""
    out = np.empty_like(volume)
    for z, (dy, dx) in enumerate(shifts):
        y, x = np.arange(volume.shape[1]) - dy, np.arange(volume.shape[2]) - dx
        out[z] = volume[z][np.ix_(y.clip(0, len(y) - 1), x.clip(0, len(x) - 1))]
        if fill is not None:
            out[z][(y < 0) | (y >= len(y))] = fill
            out[z][:, (x < 0) | (x >= len(x))] = fill
    return out


def remap(ct: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Random monotone piecewise-linear map of HU: keeps the order of tissues, not their values."""
    knots = np.array([-1024.0, -500, -100, 0, 50, 120, 300, 700, 1500, 3071])
    steps = np.diff(knots) * np.exp(rng.normal(0, 0.6 * strength, len(knots) - 1))
    steps *= (knots[-1] - knots[0]) / steps.sum() * strength + (1 - strength)
    values = knots[0] + np.concatenate([[0], np.cumsum(steps)])
    return torch.from_numpy(np.interp(ct.numpy(), knots, values)).float().clamp_(-1024, 3071)
