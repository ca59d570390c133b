"""All that a spine CT shows besides vertebrae: body outline, lungs, vessels, abdomen, ribs, sacrum, pelvis, skull base.

Everything here is unlabelled. Outlines follow the spine: tables run over the level index (C1 = 0 .. L5 = 23, sacrum 25).
"""

from __future__ import annotations

import math
from copy import copy
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from ..anatomy import EMITTING_LEVEL, LEVEL_INDEX
from .canvas import Canvas, smooth_field
from .primitives import Points, capsule, ellipsoid, polyline, smooth_max, smooth_min, superellipse_radius
from .spine import Placed, Subject

_AT = (-3, 0, 3, 6, 7.5, 9, 12, 15, 18, 20, 23, 26)
_WIDTH = (75, 72, 62, 98, 150, 172, 165, 160, 155, 155, 168, 175)  # half width of the trunk
_FRONT = (75, 62, 62, 62, 78, 95, 130, 145, 140, 125, 110, 115)  # skin in front of the body centre
_BACK = (85, 72, 62, 66, 72, 70, 66, 64, 64, 68, 76, 82)  # skin behind it
_CHEST = (0, 0, 0, 0, 60, 98, 126, 136, 132, 120, 0, 0)  # half width inside the ribs


class Frame:
    """Spine-following coordinates of a canvas: level index and the body centres' line, per slice (z, 1, 1)."""

    def __init__(self, canvas: Canvas, subject: Subject, size: float):
        centres = np.array([v.centre for v in subject.placed] + [subject.sacrum[0], subject.sacrum[0] + [0, 25, -75]])
        index = np.array([LEVEL_INDEX[EMITTING_LEVEL[v.name]] for v in subject.placed] + [24.0, 26.5])
        order = np.argsort(centres[:, 2])
        z = canvas.axes[0].numpy()
        self.level = np.interp(z, centres[order, 2], index[order])
        above = z - centres[0, 2]
        self.level = np.where(above > 0, -above / 20.0, self.level)
        kernel = np.exp(-(np.linspace(-2, 2, 41) ** 2))
        dense = np.linspace(centres[order, 2][0], centres[order, 2][-1], 400)

        def line(k: int) -> np.ndarray:
            v = np.interp(dense, centres[order, 2], centres[order, k])
            v = np.convolve(np.pad(v, 20, mode="edge"), kernel / kernel.sum(), mode="valid")
            return np.interp(z, dense, v)

        self.x, self.y, self.size = line(0), line(1), size

    def rows(self, rows: slice) -> Frame:
        """The frame of a slab of the canvas."""
        part = copy(self)
        part.level, part.x, part.y = self.level[rows], self.x[rows], self.y[rows]
        return part

    def at(self, values: tuple[float, ...], knots: tuple[float, ...] = _AT, scaled: bool = True) -> Tensor:
        """Table over the level index -> (z, 1, 1), times the body size."""
        return torch.from_numpy(np.interp(self.level, knots, values) * (self.size if scaled else 1)).float().view(-1, 1, 1)

    def line(self) -> tuple[Tensor, Tensor]:
        """x and y of the body centres' line, (z, 1, 1) each."""
        x, y = (torch.from_numpy(v).float().view(-1, 1, 1) for v in (self.x, self.y))
        return x, y


def _ellipse(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float, n: float = 2.0) -> Tensor:
    size = (
        torch.minimum(torch.as_tensor(a), torch.as_tensor(b))
        if not (isinstance(a, float) and isinstance(b, float))
        else min(a, b)
    )
    return (superellipse_radius(x, y, a, b, n) - 1) * size


def _blob(x: Tensor, y: Tensor, z: Tensor, a: float, b: float, c: float) -> Tensor:
    return (((x / a).square() + (y / b).square() + (z / c).square()).sqrt() - 1) * min(a, b, c)


def paint_trunk(canvas: Canvas, frame: Frame, rng: np.random.Generator, contrast: float) -> None:
    """Skin, fat, muscle, lungs, airway, abdomen, great vessels. `contrast`: added HU of blood."""
    aside = 0.25 * float(frame.x.mean()) + float(rng.normal(0, 6))
    fat = float(rng.uniform(3, 28))
    muscle_hu, fat_hu = float(rng.uniform(40, 65)), float(rng.uniform(-112, -92))
    cells = tuple(int(n * s / 16) + 2 for n, s in zip(canvas.shape, canvas.spacing, strict=True))
    blobs = smooth_field(canvas.shape, cells, canvas.generator, 2)
    streaks, septa = float(rng.uniform(0.0, 1.0)) ** 2, float(rng.uniform(40, 120))  # fatty muscle in the old; fat between muscles
    abdomen = rng.uniform((10, -0.5), (18, 0.5)) if (frame.level > 17.0).any() else None
    neck = (rng.uniform(0.8, 1.15), rng.random() < 0.3) if ((frame.level > -2) & (frame.level < 11)).any() else None
    vessels = rng.uniform(0.85, 1.25), rng.random() < 0.4
    for rows, slab in canvas.slabs():
        part, blob = frame.rows(rows), blobs[:, rows]
        box, q = slab.whole, slab.points(slab.whole)
        cx, cy = part.line()
        x, y = q.x - (0.75 * cx + aside), q.y - cy
        width, front, back = part.at(_WIDTH), part.at(_FRONT), part.at(_BACK)
        skin = _ellipse(x, y - (back - front) / 2, width + fat, (front + back) / 2 + fat * 0.7, 2.6)
        slab.fill(box, skin, fat_hu)
        slab.fill(box, (skin + 1.2).abs() - 0.8, 20.0)
        flesh = skin + fat * 0.85 + 2
        between = torch.exp(-(blob[1] / 0.07).square()) * septa
        slab.fill(box, flesh + 2 * blob[0], muscle_hu - 130 * streaks * (blob[1] - 0.3).clamp(0, 1.15) - between)
        _midline_fat(slab, q.x - cx, y, skin, fat_hu)
        if abdomen is not None and (part.level > 17.0).any():
            _abdomen(slab, part, (x, y), flesh, blob, abdomen, fat_hu, contrast)
        if ((part.level > 6.5) & (part.level < 18.5)).any():
            _chest(slab, part, x, y, blob)
        if neck is not None:
            _neck(slab, part, x, y, *neck)
        _vessels(slab, part, x, y, *vessels, 42 + contrast)


def _midline_fat(canvas: Canvas, x: Tensor, y: Tensor, skin: Tensor, fat_hu: float) -> None:
    """Fat between the back muscles, behind the spinous tips."""
    d = torch.maximum(x.abs() - 2.0 - 0.12 * (y - 40).clamp_min(0), 50 - y).maximum(skin + 3)
    canvas.fill(canvas.whole, d, fat_hu, 2.0)


def _rows(mask: np.ndarray) -> slice:
    rows = np.nonzero(mask)[0]
    return slice(int(rows[0]), int(rows[-1]) + 1)


def _abdomen(canvas: Canvas, frame: Frame, place: tuple[Tensor, Tensor], flesh: Tensor, blobs: Tensor, draws: np.ndarray,
             fat_hu: float, contrast: float) -> None:
    rows, (x, y) = _rows(frame.level > 17.0), place
    box = (rows, slice(None), slice(None))
    xs, ys, inner = x[rows], y[rows], flesh[rows]
    wall, share_of_fat = (float(v) for v in draws)
    level = torch.from_numpy(frame.level[rows]).float().view(-1, 1, 1)
    cavity = smooth_max(inner + wall, ys - 12 + 0.012 * (xs.abs() - 70).clamp_max(0).square() * 0.3, 6.0)
    cavity = cavity.maximum((17.6 - level) * 12)
    share = torch.sigmoid((blobs[0][rows] + 0.4 * blobs[1][rows] - share_of_fat) * 14)
    mixed = fat_hu + share * (38.0 - fat_hu + 8 * blobs[1][rows])
    canvas.fill(box, cavity, mixed, 1.5)
    gas = torch.maximum(cavity + 22, torch.maximum(1.5 - blobs[1][rows], ys + 40) * 8)
    canvas.fill(box, gas, -950.0)
    liver = _blob(xs + 80 * frame.size, ys + 35, (level - 17.6) * 28, 72.0, 85.0, 85.0).maximum(cavity + 3)
    canvas.fill(box, liver, 55 + 0.4 * contrast)
    spleen = _blob(xs - 105 * frame.size, ys + 8, (level - 17.6) * 28, 32.0, 45.0, 52.0).maximum(cavity + 3)
    canvas.fill(box, spleen, 48 + 0.5 * contrast)
    for side in (-1, 1):
        kidney = _blob(xs - side * 64 * frame.size, ys + 2, (level - 19.6 - 0.15 * side) * 31, 26.0, 29.0, 54.0)
        canvas.fill(box, kidney, 32 + 0.9 * contrast)
        grow = (level - 18.4).clamp(0, 4.5)
        psoas = _ellipse(xs - side * (27 + 4.5 * grow), ys + 1 + 0.8 * grow, 4.0 + 4.2 * grow, 7 + 4.2 * grow)
        canvas.fill(box, psoas - (grow <= 0) * -50.0, 54.0)


def _chest(canvas: Canvas, frame: Frame, x: Tensor, y: Tensor, blobs: Tensor) -> None:
    rows = _rows((frame.level > 6.5) & (frame.level < 18.8))
    box = (rows, slice(None), slice(None))
    xs, ys = x[rows], y[rows]
    half, front, level = (
        frame.at(_CHEST)[rows],
        frame.at(_FRONT)[rows],
        torch.from_numpy(frame.level[rows]).float().view(-1, 1, 1),
    )
    depth = (front + 34) / 2
    chest = _ellipse(xs, ys - 34 + depth + 8, half - 9, depth - 12, 2.3)
    # the diaphragm: a dome each side, low behind
    dome = (level - 15.4 - ((ys + 60).clamp_min(0) / 30).clamp_max(2.6) - ((xs.abs() - 70) / 55).square().clamp_max(2)) * 16
    grow = (level - 8).clamp(0, 9)
    column = _ellipse(xs, ys - 8, 24 + 0.9 * grow, 24 + 0.5 * grow, 2.4)
    mediastinum = smooth_min(_ellipse(xs - 12, ys + 75, 48.0, 52.0), column, 14.0)
    lung = torch.maximum(torch.maximum(chest, dome), torch.maximum(-mediastinum + 2, (8.2 - level) * 20))
    texture = -830 + 60 * blobs[0][rows] + 300 * ((blobs[1][rows].abs() < 0.05) & (blobs[0][rows] > 0.2))
    canvas.fill(box, lung, texture)
    heart = _blob(xs - 20, ys + 85, (level - 14) * 22, 48.0, 42.0, 52.0)
    canvas.fill(box, heart, 45.0)


def _neck(canvas: Canvas, frame: Frame, x: Tensor, y: Tensor, calibre: float, gullet_air: bool) -> None:
    """Air in pharynx and trachea down to the carina (T4-T5), gullet beside it."""
    if not ((frame.level > -2) & (frame.level < 11)).any():
        return
    rows = _rows((frame.level > -2) & (frame.level < 11))
    box = (rows, slice(None), slice(None))
    knots = (-2, 0, 3, 5, 7, 9, 11)
    shift = frame.at((-24, -22, -22, -30, -33, -38, -40), knots, False)[rows]
    a = frame.at((15, 13, 10, 7.5, 9, 9, 0.5), knots, False)[rows] * calibre
    b = frame.at((7, 6, 5, 8, 8.5, 8.5, 0.5), knots, False)[rows]
    canvas.fill(box, _ellipse(x[rows], y[rows] - shift, a, b), -1000.0)
    canvas.fill(box, _ellipse(x[rows] - 6, y[rows] - shift * 0.68, 5.0, 3.0), -300.0 if gullet_air else 35.0)


def _vessels(canvas: Canvas, frame: Frame, x: Tensor, y: Tensor, calibre: float, calcified: bool, blood: float) -> None:
    z = slice(None)
    knots = (6, 9, 10.5, 12, 15, 18, 20, 22.2, 23.2)
    aorta_x = frame.at((10, 12, 24, 24, 20, 9, 8, 6, 6), knots, False)
    aorta_y = frame.at((-60, -40, -14, -14, -22, -27, -30, -33, -34), knots, False)
    r = frame.at((0.5, 6, 12.5, 12.5, 11.5, 11, 9.5, 8.5, 0.5), knots, False) * calibre
    low = torch.from_numpy((frame.level < 9) | (frame.level > 22.6)).view(-1, 1, 1) * 30.0
    canvas.fill((z, z, z), _ellipse(x - aorta_x, y - aorta_y, r, r) + low, blood)
    if calcified:
        ring = (_ellipse(x - aorta_x, y - aorta_y, r, r) + 0.5 + low).abs() - 0.8
        canvas.fill((z, z, z), ring.maximum(8 * torch.cos(7.0 * canvas.axes[0].view(-1, 1, 1) / 30 + x / 5) + 4), 600.0)
    cava = _ellipse(x + 18, y + 28, 11.0, 8.5) + torch.from_numpy((frame.level < 17) | (frame.level > 22.8)).view(-1, 1, 1) * 30.0
    canvas.fill((z, z, z), cava, blood * 0.8)


def rib_lines(v: Placed, frame_size: float, rng: np.random.Generator, length: float = 1.0) -> list[tuple[np.ndarray, float]]:
    """Left and right rib of a thoracic vertebra: points (n, 3) in LPS mm and radius."""
    number = int(v.name[1:])
    p = v.params
    level = LEVEL_INDEX[EMITTING_LEVEL[v.name]]
    half = float(np.interp(level, _AT, _CHEST)) * frame_size
    depth = (float(np.interp(level, _AT, _FRONT)) * frame_size + 40) / 2
    head_z = p["ha"] / 2 + 0.5 if 2 <= number <= 9 else p["pz"] - 1
    head = v.world((p["ws"] / 2 * 0.97, p["dm"] / 2 * 0.5, head_z))
    tip = (
        v.world((p["tx"] - 2, p["ty"] - 6, p["tz"] - 0.5)) if number <= 10 else v.world((p["tx"] + 12, p["ty"] + 3, p["tz"] - 8))
    )
    start = math.asin(min(0.9, (p["tx"] + 9) / half))
    end = {1: 2.5, 11: start + 0.9, 12: start + 0.45, 13: start + 0.25}.get(number, 2.55) * length
    drop = {1: 22, 11: 45, 12: 30, 13: 14}.get(number, 75) * rng.uniform(0.85, 1.15)
    out = []
    for side in (1, -1):
        angles = np.linspace(start, max(end, start + 0.1), 3 if number >= 12 else 5 if number == 11 else 11)
        sway = rng.normal(0, 1.5)
        back = depth - 36
        local = [(half * math.sin(a), depth * math.cos(a) - back + sway, 0) for a in angles]
        shaft = [
            v.centre + np.array([side * x, y, (tip - v.centre)[2] - 6 - drop * i / (len(angles) - 1)])
            for i, (x, y, _) in enumerate(local)
        ]

        def mirror(point: np.ndarray, side: int = side) -> np.ndarray:
            return v.centre + v.rotation @ (np.array([side, 1, 1]) * (v.rotation.T @ (point - v.centre)))

        out.append((np.array([mirror(head), mirror(tip), *shaft]), 3.2 * frame_size * rng.uniform(0.9, 1.1)))
    return out


def paint_line(
    canvas: Canvas,
    points: np.ndarray,
    radius: float,
    inner: float,
    shell: float,
    keep: Tensor | None = None,
    stretch: tuple[float, float, float] = (1, 1, 1.6),
) -> None:
    """A bony rod along points (n, 3) LPS mm, kept 1 mm away from the vertebrae when their distance `keep` is given."""
    for i, (a, b) in enumerate(zip(points[:-1], points[1:], strict=True)):
        pad = radius * max(stretch) + 4
        box = canvas.box(np.minimum(a, b) - pad, np.maximum(a, b) + pad)
        if box is None:
            continue
        r0 = radius * (1.45 if i == 0 else 0.9 if i == 1 else 1)
        d = capsule(canvas.points(box), a, b, r0, radius, stretch if i else (1, 1, 1.15))
        if keep is not None:
            d = torch.maximum(d, 0.9 - keep[box])
        canvas.bone(box, d, inner, shell, 1250.0)


def paint_pelvis(canvas: Canvas, subject: Subject, rng: np.random.Generator, trabecular: float, keep: Tensor) -> None:
    """Sacrum with alae, crest and canal; coccyx; wings of the iliac bones."""
    centre, frame = subject.sacrum
    s = subject.scale
    window = canvas.local_box(centre, frame, (-72 * s, -45 * s, -125 * s), (72 * s, 70 * s, 35 * s))
    if window is not None:
        box, q = window
        q = Points(q.x.abs() / s, q.y / s, q.z / s)
        segments = []
        points = [(0, 0, 0), (0, 5, -27), (0, 13, -51), (0, 18, -71), (0, 16, -88), (0, 6, -104)]
        widths, depths, heights = (25, 19, 15, 12, 9, 6), (15.5, 11, 8.5, 7, 6, 4.5), (14.2, 13, 11.7, 10.5, 9, 9)
        for c, w, b, h, tilt in zip(points, widths, depths, heights, (0, 0.25, 0.3, 0.1, -0.25, -0.5), strict=True):
            y, z = q.y - c[1], q.z - c[2]
            yy, zz = y * math.cos(tilt) + z * math.sin(tilt), z * math.cos(tilt) - y * math.sin(tilt)
            segments.append(smooth_max(_ellipse(q.x, yy, float(w), float(b), 2.6), zz.abs() - h, 3.0))
        bodies = reduce(lambda a, b: smooth_min(a, b, 2.5), segments)
        wing = smooth_min(
            capsule(q, (20, 4, -2), (46, 12, -10), 13, 10, (1, 0.9, 1.1)),
            capsule(q, (18, 14, -26), (40, 20, -28), 10, 8, (1, 0.8, 1.6)),
            8.0,
        )
        wing = smooth_min(wing, capsule(q, (12, 24, -48), (24, 26, -55), 7, 6, (1, 0.7, 1.4)), 6.0)
        crest = polyline(q, [(0, 40, 0), (0, 42, -25), (0, 40, -50), (0, 34, -72)], 5.0, 3.5, (0.8, 1.2, 1.6))
        roof = polyline(q, [(22, 24, 4), (10, 34, -6), (0, 38, -10)], 4.0, 4.0, (1, 1, 1.8))
        roof = smooth_min(roof, polyline(q, [(16, 30, -30), (0, 38, -34), (0, 36, -60)], 4.5, 3.5, (1, 1, 2.2)), 3.0)
        facet = capsule(q, (20, 24, 2), (21.5, 27, 17), 6, 5)
        canal = torch.maximum(_ellipse(q.x, q.y - 24 - q.z * -0.27, 14.0, 8.0), q.z - 25)
        holes = torch.minimum(*[torch.hypot(q.x - a, q.z - b) - 5.0 for a, b in ((24, -16), (19, -40))])
        d = smooth_min(smooth_min(bodies, wing, 4.0), smooth_min(smooth_min(crest, roof, 3.0), facet, 2.0), 3.0)
        d = torch.maximum(smooth_max(d, -canal, 1.0), -holes) * s
        d = torch.maximum(d, 0.9 - keep[box])
        canvas.bone(box, d, trabecular * 0.9 + 20, 0.9, 1250.0)
        keep[box] = torch.minimum(keep[box], d)
    _iliac(canvas, centre, frame, s, trabecular, keep)


def _iliac(canvas: Canvas, centre: np.ndarray, frame: np.ndarray, s: float, trabecular: float, keep: Tensor) -> None:
    upright = np.eye(3)
    window = canvas.local_box(centre, upright, (-150 * s, -110 * s, -130 * s), (150 * s, 75 * s, 60 * s))
    if window is None:
        return
    box, q = window
    x, y, z = q.x.abs() / s, q.y / s, q.z / s
    sheet = 64 + 0.55 * (z + 20).clamp_min(-30) - 0.5 * (y - 25)
    edge = (torch.hypot((y - 0.35 * (z + 20) * -1 + 5) / 72, (z + 25) / 62) - 1) * 62
    thick = 4.5 + 4.5 * torch.exp(-((edge + 4) / 7).square()) + 6 * torch.exp(-((torch.hypot(y - 25, z + 15)) / 22).square())
    d = smooth_max((x - sheet).abs() * 0.8 - thick, edge, 3.0) * s
    canvas.bone(box, torch.maximum(d, 1.8 - keep[box]), trabecular + 60.0, 1.1, 1250.0)


def paint_skull(canvas: Canvas, subject: Subject, trabecular: float, keep: Tensor) -> None:
    """Occipital bone with its hole and condyles, base in front, brain, mandible."""
    atlas = subject.find("C1")
    s, c = subject.scale, atlas.centre
    frame = np.eye(3)
    window = canvas.local_box(c, frame, (-95 * s, -130 * s, -75 * s), (95 * s, 110 * s, 130 * s))
    if window is None:
        return
    box, q = window
    q = Points(q.x.abs() / s, q.y / s, q.z / s)
    outer = ellipsoid(q, (0, -8, 78), (73, 92, 68))
    base = ellipsoid(q, (0, 10, 66), (66, 74, 54))
    skull = smooth_min(outer, base, 10.0)
    canvas.fill(box, skull - 7, 30.0)
    canvas.fill(box, skull + 5, 33.0, 1.5)
    hole = torch.hypot(q.x, (q.y - 2) * 0.85) - 15.5
    shell = (skull + 2.5).abs() - 3.0
    condyle = ellipsoid(q, (19, -7, 14), (7.5, 12, 8))
    clivus = capsule(q, (0, -20, 18), (0, -34, 42), 7, 8, (1.6, 1, 1))
    mastoid = capsule(q, (48, -2, 26), (50, -6, 2), 11, 7)
    d = smooth_min(smooth_max(shell, -torch.maximum(hole, q.z - 40), 2.0), smooth_min(condyle, clivus, 3.0), 4.0)
    d = smooth_min(d, mastoid, 4.0) * s
    jaw = polyline(q, [(46, -28, 10), (44, -38, -22), (26, -78, -38), (0, -95, -40)], 4.5, 6.0, (1, 1, 2.0)) * s
    teeth = (
        torch.maximum(
            polyline(q, [(25, -55, -22), (18, -82, -24), (0, -92, -24)], 4.0, 4.0, (1, 1, 2.0)),
            torch.sin(q.x * 0.8 + q.y * 0.8) * 2,
        )
        * s
    )
    d = torch.maximum(torch.minimum(d, jaw), 1.0 - keep[box])
    canvas.bone(box, d, trabecular * 1.3 + 250, 1.4, 1500.0)
    canvas.bone(box, teeth, 1500.0, 1.0, 2000.0)


def paint_shoulders(canvas: Canvas, subject: Subject, rng: np.random.Generator, size: float) -> None:
    """Clavicles, blades of the scapulae and humeral heads, breastbone (wide fields only reach them)."""
    names = {v.name for v in subject.placed}
    if "T2" not in names:
        return
    c, low = subject.find("T2").centre, subject.find("T7").centre
    lift = rng.uniform(-25, 25)
    for side in (1, -1):
        at = np.array([side * size, size, 1.0])
        paint_line(
            canvas,
            c + at * [[15, -75, -8 + lift * 0.2], [75, -62, 12 + lift], [140, -20, 25 + lift]],
            5.5,
            250.0,
            1.6,
            stretch=(1, 1, 1),
        )
        paint_line(canvas, c + at * [[155, -5, 8 + lift], [158, -5, -10 + lift]], 21.0, 180.0, 1.2, stretch=(1, 1, 1))
        for k in range(5):
            paint_line(
                canvas,
                np.array([c + at * [135 - 8 * k, 22 + 4 * k, 5 + lift - 18 * k], c + at * [78 + 3 * k, 62, 5 + lift - 22 * k]]),
                4.0,
                300.0,
                1.4,
                stretch=(1, 1, 2.6),
            )
    line = np.array([c + [0, -66 * size, -25], low + [0, -122 * size, 0]])
    paint_line(canvas, line, 7.0, 130.0, 1.0, stretch=(2.4, 1, 1))
