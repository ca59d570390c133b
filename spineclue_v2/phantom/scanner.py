"""The scanner: grid and kernel drawn before painting; slice averaging, sharpening, noise and padding after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..anatomy import EMITTING_LEVEL, LEVEL_INDEX
from ..errors import InputError
from ..utilities.triples import Floats3, Ints3, float_triple
from .canvas import Canvas, average, noise, smooth
from .pathology import add_streaks, remap
from .spine import Subject

MAX_VOXELS = 4.5e6
"""Default spacings grow until the rendered grid stays below this (given spacings are kept)."""
FINEST = 2.05
"""Grid steps above this (mm) are rendered as several samples per voxel and averaged."""


def draw_scanner(rng: np.random.Generator, o: dict[str, Any]) -> dict[str, Any]:
    """Kernel, point spread, noise, padding; and the kind of grid."""
    kernel = o["kernel"] or str(rng.choice(["soft", "medium", "bone"], p=[0.35, 0.35, 0.3]))
    if kernel not in ("soft", "medium", "bone"):
        raise InputError(f"Phantom kernel '{kernel}' is unknown; choose soft, medium or bone.")
    psf, noise_range, grain, edge = {
        "soft": ((0.55, 0.75), (10, 40), (0.7, 1.0), (0, 0.1)),
        "medium": ((0.45, 0.6), (18, 70), (0.5, 0.8), (0.1, 0.5)),
        "bone": ((0.35, 0.5), (35, 110), (0.25, 0.55), (0.4, 1.1)),
    }[kernel]
    sd = rng.uniform(*noise_range)
    return {
        "kernel": kernel,
        "psf": rng.uniform(*psf),
        "noise": float(o["noise"] if o["noise"] is not None else sd),
        "grain": rng.uniform(*grain),
        "edge": rng.uniform(*edge),
        "wide": bool(o["wide"] if o["wide"] is not None else rng.random() < 0.25) and not o["tight"],
        "air": float(rng.choice([-1024.0, -1000.0, -2048.0, -3024.0], p=[0.5, 0.3, 0.1, 0.1])),
        "grid": float(rng.random()),
        # millimetres above, below, beside, in front and behind of a tight crop
        "snug": (rng.uniform(1, 8, 5) * [1, 1, 1, 1, 0.6] + [0, 0, 0, 18, 0]).tolist(),
    }


def draw_spacing(rng: np.random.Generator, size: np.ndarray, o: dict[str, Any], scan: dict[str, Any]) -> Floats3:
    """Spacing (z, y, x) mm of a scan of `size` (z, y, x) mm; what the switches `o` give is kept."""
    given = o["spacing"]
    plane, thick = rng.uniform(0.8, 1.15), rng.uniform(2, 3.2)
    iso, slices = rng.uniform(0.8, 1.6), rng.uniform(0.9, 3.0)
    if given is not None:
        spacing = np.broadcast_to(np.asarray(given, float), 3)
        if not (np.isfinite(spacing).all() and (spacing > 0.1).all()):
            raise InputError(f"Phantom spacing {given} must be one or three positive numbers (mm).")
        return float_triple(spacing)
    spacing = np.array(
        (plane, plane, thick) if scan["grid"] < 0.4 else (iso,) * 3 if scan["grid"] < 0.8 else (slices, plane, plane)
    )
    if o["tight"]:
        return (float(round(0.9 + 0.375 * (iso - 0.8) / 0.5, 4)),) * 3
    if o["thick"] is not None:
        if not 0.3 <= o["thick"] <= 10:
            raise InputError(f"Phantom slices of {o['thick']:g} mm are not possible; choose 0.3 to 10.")
        return float_triple(np.round((o["thick"], plane, plane), 4))
    for _ in range(40):
        if np.prod(np.ceil(size / spacing) * np.ceil(spacing / FINEST)) <= MAX_VOXELS or spacing.min() > 1.95:
            break
        spacing = np.where(spacing < 2, np.minimum(spacing * 1.04, 2.0), spacing)
    return float_triple(np.round(spacing, 4))


def scan(
    canvas: Canvas,
    subject: Subject,
    rng: np.random.Generator,
    settings: dict[str, Any],
    factor: Ints3,
    extra: np.random.Generator,
) -> np.ndarray:
    """Slice averaging, kernel, noise, clipping and padding of the painted volume -> int16 HU."""
    ct = average(canvas.hu, factor)
    spacing = [s * f for s, f in zip(canvas.spacing, factor, strict=True)]
    if settings["edge"] > 0.05:
        blurred = ct
        for axis in range(3):
            if spacing[axis] < 1.6:
                blurred = smooth(blurred, 0.9 / spacing[axis], axis)
        ct = ct + settings["edge"] * (ct - blurred).clamp(-500, 500)
    grain = tuple(settings["grain"] / s for s in spacing)
    grainy = noise(tuple(ct.shape), grain, canvas.generator)
    # dose is lowest through shoulders and pelvis
    z = np.arange(ct.shape[0]) * spacing[0]
    level = np.interp(z, *_sorted_levels(subject))
    gain = (
        1 + rng.uniform(0, 1.5) * np.exp(-(((level - 7) / 1.8) ** 2)) + rng.uniform(0, 0.8) * np.exp(-(((level - 24) / 1.5) ** 2))
    )
    ct = ct + grainy * torch.from_numpy(gain * settings["noise"]).float().view(-1, 1, 1)
    if settings["streaks"]:
        ct = add_streaks(ct, level, spacing, settings["streaks"], canvas.generator)
    ct = ct.clamp_(-1024, 3071)
    if settings["randomise"]:
        ct = remap(ct, settings["randomise"], extra)
    if settings["wide"] and settings["grid"] % 0.1 < 0.04:  # reconstruction circle with padding outside
        y, x = (torch.linspace(-1, 1, n) for n in ct.shape[1:])
        circle = (y.view(-1, 1).square() + x.view(1, -1).square()) > 1.05
        ct = torch.where(circle[None], settings["air"], ct)
    return ct.round().to(torch.int16).numpy()


def _sorted_levels(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    z = np.array([v.centre[2] for v in subject.placed] + [subject.sacrum[0][2]])
    index = np.array([LEVEL_INDEX[EMITTING_LEVEL[v.name]] for v in subject.placed] + [24.0])
    order = np.argsort(z)
    return z[order], index[order]
