"""Paints a subject's spine on a canvas: canal and cord, discs, the other bones, the vertebrae, implants."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..anatomy import EMITTING_LEVEL, LEVEL_INDEX
from . import metal as metal_module
from . import surroundings as around
from .canvas import Canvas, noise
from .fields import Field, discs
from .primitives import superellipse_radius
from .spine import Subject


def paint_soft(canvas: Canvas, subject: Subject, rng: np.random.Generator, size: float, contrast: float) -> None:
    frame = around.Frame(canvas, subject, size)
    around.paint_trunk(canvas, frame, rng, contrast)
    rings = subject.placed
    centre = np.array(
        [v.world((0, 0, 0)) if v.name == "C1" else v.world((0, v.params["dm"] / 2 + 0.4 + v.params["cd"] / 2, 0)) for v in rings]
    )
    sacral = subject.sacrum[0] + subject.sacrum[1] @ np.array([0, 24 * subject.scale, 0])
    centre = np.vstack([centre, sacral, sacral + [0, 22, -50]])
    width = np.array([v.params["cw"] * v.scale for v in rings] + [24, 14.0]) / 2
    depth = np.array([v.params["cd"] * v.scale for v in rings] + [13, 7.0]) / 2
    order = np.argsort(centre[:, 2])
    z = canvas.axes[0].numpy()
    cx, cy, a, b = (
        torch.from_numpy(np.interp(z, centre[order, 2], t[order])).float().view(-1, 1, 1)
        for t in (centre[:, 0], centre[:, 1], width, depth)
    )
    x0, x1 = float(cx.min()) - 18, float(cx.max()) + 18
    y0, y1 = float(cy.min()) - 18, float(cy.max()) + 18
    box = canvas.box(np.array([x0, y0, -1e4]), np.array([x1, y1, 1e4]))
    if box is not None:
        q = canvas.points(box)
        rho = superellipse_radius(q.x - cx, q.y - cy, a, b, 2.2)
        canvas.fill(box, (rho - 0.98) * b, float(rng.uniform(-60, 10)))
        canvas.fill(box, (rho - 0.85) * b, float(rng.uniform(5, 30)))
        level = torch.from_numpy(frame.level).float().view(-1, 1, 1)
        thick = torch.where(level < 7, 1.0, 0.85) * subject.scale
        cord = ((q.x - cx) / (6.6 * thick)).square() + ((q.y - cy) / (4.0 * thick)).square()
        canvas.fill(box, (cord.sqrt() - 1) * 4 + (level - 19.0).clamp_min(0) * 4, 42.0)
    _paint_discs(canvas, subject, rng)


def _paint_discs(canvas: Canvas, subject: Subject, rng: np.random.Generator) -> None:
    disc_hu = rng.uniform(60, 105)
    for window, wide, deep, half in discs(canvas, subject):
        degenerated, hu = rng.random(), disc_hu + rng.normal(0, 8)
        if window is None:
            continue
        box, q = window
        rho = superellipse_radius(q.x, q.y, wide, deep, 2.5)
        d = torch.maximum((rho - 1) * deep, q.z.abs() - half)
        canvas.fill(box, d, hu - 15 * (1 - rho.square()).clamp_min(0))
        if degenerated < 0.05 * (subject.age > 55):
            canvas.fill(box, torch.maximum((rho - 0.6) * deep, q.z.abs() - 1.2), -350.0)


def paint_other_bone(canvas: Canvas, subject: Subject, rng: np.random.Generator, size: float, keep: Tensor) -> None:
    around.paint_pelvis(canvas, subject, rng, subject.trabecular, keep)
    around.paint_skull(canvas, subject, subject.trabecular, keep)
    thoracic = [v for v in subject.placed if v.name[0] == "T"]
    length = float(rng.uniform(0.85, 1.1))
    for v in thoracic:
        for points, radius in around.rib_lines(v, size, rng, length):
            around.paint_line(canvas, points, radius, subject.trabecular * 0.8 + 40, 1.0, keep)
    around.paint_shoulders(canvas, subject, rng, size)


def paint_vertebrae(canvas: Canvas, subject: Subject, fields: list[Field], rng: np.random.Generator) -> None:
    grain = tuple(1.0 / s for s in canvas.spacing)
    texture = noise(canvas.shape, tuple(0.8 * g for g in grain), canvas.generator)
    strength, cortex = rng.uniform(20, 75), rng.uniform(850, 1600)
    wall, arch_wall, arch_hu = rng.uniform(0.25, 0.6), rng.uniform(0.55, 1.7), rng.uniform(-40, 80)
    plate = rng.uniform(0, 80)
    outset = rng.uniform(0.35, 0.8)  # reference masks run outside the bone's edge (measured on real ones)
    for v, box, d in fields:
        index = LEVEL_INDEX[EMITTING_LEVEL[v.name]]
        trabecular = (
            subject.trabecular
            * float(np.interp(index, (0, 5, 8, 14, 19, 23), (1.8, 1.8, 1.4, 1.15, 1, 1.03)))
            * rng.uniform(0.92, 1.08)
        )
        trabecular += 80 * (index < 7)
        q = canvas.local(box, v.centre, v.rotation)
        behind = torch.sigmoid((q.y - (v.params["dm"] / 2 if v.name != "C1" else -40) * v.scale + 1) / 1.0)
        depth = -d
        inner = trabecular + plate * torch.exp(-depth.clamp_min(0) / 2.2) + strength * texture[box]
        vein = (q.x / 7).square() + (q.z / 3.5).square() + ((q.y - v.params["dm"] * 0.3 * v.scale) / 8).square()
        inner -= (35 + 0.25 * trabecular) * torch.exp(-vein) * (v.name not in ("C1", "C2"))
        inner += behind * (arch_hu + 0.1 * trabecular) + v.params.get("sclerosis", 0.0)
        plates = (
            0.35 * torch.exp(-((q.z.abs() - v.params["ha"] / 2 * v.scale) / 2.5).square()) if v.name not in ("C1", "C2") else 0.0
        )
        canvas.bone(box, d + outset, inner, wall + plates * (1 - behind) + (arch_wall - wall) * behind, cortex)


def paint_implants(
    canvas: Canvas, subject: Subject, visible: list[str], rng: np.random.Generator, o: dict[str, Any]
) -> dict[str, Any]:
    usable = [v for v in subject.placed if v.name in visible and v.name[0] in "TL" and v.name not in ("T1", "T2", "T3")]
    roll, start = rng.random(), rng.random()
    screws = o["screws"] if o["screws"] is not None else (int(rng.integers(2, 6)) if roll < 0.08 else 0)
    cement = o["cement"] if o["cement"] is not None else (1 if 0.08 < roll < 0.11 else 0)
    done: dict[str, Any] = {"screws": [], "cement": []}
    if usable and cement:
        chosen = rng.choice(len(usable), size=min(int(cement), len(usable)), replace=False)
        for i in chosen:
            metal_module.paint_cement(canvas, usable[int(i)], rng)
            done["cement"].append(usable[int(i)].name)
    if usable and screws:
        count = min(int(screws), len(usable))
        low = int(start * (len(usable) - count + 1))
        part = usable[low : low + count]
        mask = metal_module.paint_screws(canvas, part, rng)
        metal_module.add_streaks(canvas, mask, rng, float(rng.uniform(0.4, 1.3)))
        done["screws"] = [v.name for v in part]
    return done
