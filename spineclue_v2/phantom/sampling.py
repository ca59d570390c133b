"""`sample(seed, **what)`: one synthetic CT with labels, from the random subject to the scanner."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..anatomy import EMITTING_LEVEL, LABEL_OF_NAME, LEVEL_INDEX
from ..errors import InputError
from . import metal as metal_module
from . import shapes, spine
from . import surroundings as around
from .canvas import Canvas, noise, smooth, smooth_field
from .primitives import Points, superellipse_radius
from .spine import Placed, Subject

MAX_VOXELS = 4.5e6
"""Default spacings grow until the rendered grid stays below this (given spacings are kept)."""
FINEST = 2.05
"""Grid steps above this (mm) are rendered as several samples per voxel and averaged."""

DEFAULTS: dict[str, Any] = {
    "first": None, "last": None, "spacing": None, "margin": None, "variant": "random", "cobb": None, "fractures": None,
    "osteophytes": None, "screws": None, "cement": None, "contrast": None, "kernel": None, "noise": None, "wide": None, "spine": True,
}


@dataclass(frozen=True)
class PhantomCase:
    """A synthetic scan. Arrays (z, y, x) in `orientation`; world = index * spacing, LPS mm, origin at voxel 0."""

    ct: np.ndarray                                   # int16 HU
    labels: np.ndarray                               # uint8, VerSe values; cut vertebrae, sacrum, ribs ... are 0
    spacing: tuple[float, float, float]              # (z, y, x) mm
    orientation: str
    centroids: dict[str, dict[str, tuple[float, float, float]]]   # name -> {"mask", "body"}: LPS (x, y, z) mm
    grades: dict[str, int]                           # name -> Genant grade of each labelled vertebra
    partial: tuple[str, ...]                         # vertebrae cut by the border: visible in part, not labelled
    meta: dict[str, Any] = field(default_factory=dict)


def sample(seed: int, **what: Any) -> PhantomCase:
    """Draw one case; the same seed and switches give the same voxels on every machine of the same torch version.

    what: first, last (level names); spacing (z, y, x) mm or one number; margin mm above first and below last; variant "T13", "L6",
    "no_T12" or None; cobb degrees; fractures {name: (grade, "wedge"|"biconcave"|"crush")}, a number, or {}; osteophytes 0..1;
    screws, cement (numbers of vertebrae); contrast (HU added to blood); kernel "soft", "medium", "bone"; noise (HU sd);
    wide (bool: whole trunk or a crop round the spine); spine=False (a limb without vertebrae).
    """
    unknown = set(what) - set(DEFAULTS)
    if unknown:
        raise InputError(f"Phantom switch '{sorted(unknown)[0]}' is unknown; known: {', '.join(DEFAULTS)}.")
    o = DEFAULTS | what
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(int(seed))
    with torch.no_grad():
        if not o["spine"]:
            from .limb import sample_limb
            return sample_limb(seed, rng, generator, o)
        return _sample_spine(seed, rng, generator, o)


def _sample_spine(seed: int, rng: np.random.Generator, generator: torch.Generator, o: dict[str, Any]) -> PhantomCase:
    first, last, variant = _levels(rng, o)
    names = spine.level_names(variant)
    if first not in names or last not in names or names.index(first) > names.index(last):
        raise InputError(f"Phantom range {first}..{last} does not exist in a spine with variant {variant}.")
    visible = names[names.index(first):names.index(last) + 1]
    fractures = o["fractures"]
    if not isinstance(fractures, dict):
        count = (int(rng.integers(1, 4)) if rng.random() < .22 else 0) if fractures is None else int(fractures)
        fractures = spine.draw_fractures(rng, visible, count)
    osteophytes = o["osteophytes"] if o["osteophytes"] is not None else float(rng.uniform(0, 1) ** 2)
    subject = spine.draw_subject(rng, variant, o["cobb"], fractures, osteophytes)
    scan = _scanner(rng, o)
    canvas, shape, factor, spacing = _grid(rng, generator, subject, visible, o, scan)
    fields = _distance_fields(canvas, subject, generator)
    size = subject.scale * rng.uniform(.88, 1.15)
    contrast = o["contrast"] if o["contrast"] is not None else float(rng.uniform(60, 250) if rng.random() < .45 else 0)
    _paint_soft(canvas, subject, rng, size, contrast)
    keep = torch.full(canvas.shape, 20.0)
    for _, box, d in fields:
        keep[box] = torch.minimum(keep[box], d)
    _paint_other_bone(canvas, subject, rng, size, keep)
    _paint_vertebrae(canvas, subject, fields, rng)
    implants = _paint_implants(canvas, subject, visible, rng, o)
    labels, partial = _labels(canvas, subject, fields, shape, factor)
    ct = _scan(canvas, subject, rng, scan, factor)
    return _case(seed, ct, labels, partial, spacing, subject, shape, implants | {
        "scan": scan, "first": first, "last": last, "contrast": contrast, "wide": scan["wide"]})


def _levels(rng: np.random.Generator, o: dict[str, Any]) -> tuple[str, str, str | None]:
    first, last = spine.draw_fov(rng)
    variant = o["variant"]
    if variant == "random":
        roll = rng.random()
        variant = "L6" if last == "L6" else "T13" if roll < .012 else "no_T12" if roll < .03 else "L6" if roll < .07 else None
        wanted = {o["first"], o["last"]}
        if variant != "L6" and "L6" in wanted:
            variant = "L6"
        if variant == "no_T12" and ("T12" in wanted or "T12" in (first, last)):
            variant = None
    first, last = o["first"] or first, o["last"] or last
    if last == "L6" and variant != "L6":
        last = "L5"
    if variant == "L6" and last == "L5" and o["last"] is None and rng.random() < .8:
        last = "L6"
    if variant == "no_T12":
        first, last = ("T11" if n == "T12" else n for n in (first, last))
    names = spine.level_names(variant)
    if first in names and last in names and names.index(first) > names.index(last):
        # only one end was given and the drawn other end lies beyond it
        if o["last"] is None:
            last = names[min(names.index(first) + int(rng.integers(4, 10)), len(names) - 1)]
        elif o["first"] is None:
            first = names[max(names.index(last) - int(rng.integers(4, 10)), 0)]
    return first, last, variant


def _scanner(rng: np.random.Generator, o: dict[str, Any]) -> dict[str, Any]:
    """Kernel, point spread, noise, padding; and the kind of grid."""
    kernel = o["kernel"] or str(rng.choice(["soft", "medium", "bone"], p=[.35, .35, .3]))
    if kernel not in ("soft", "medium", "bone"):
        raise InputError(f"Phantom kernel '{kernel}' is unknown; choose soft, medium or bone.")
    psf, sd, grain, edge = {"soft": ((.55, .75), (8, 25), (.7, 1.), (0, .1)), "medium": ((.45, .6), (12, 40), (.5, .8), (.1, .5)),
                            "bone": ((.35, .5), (25, 85), (.25, .55), (.4, 1.1))}[kernel]
    sd = rng.uniform(*sd)
    return {"kernel": kernel, "psf": rng.uniform(*psf), "noise": float(o["noise"] if o["noise"] is not None else sd),
            "grain": rng.uniform(*grain), "edge": rng.uniform(*edge), "wide": bool(o["wide"] if o["wide"] is not None else rng.random() < .25),
            "air": float(rng.choice([-1024., -1000., -2048., -3024.], p=[.5, .3, .1, .1])), "grid": float(rng.random())}


def _extent(v: Placed) -> np.ndarray:
    """World points (n, 3) of the vertebra's local mask, both halves (no warp)."""
    q, shape = shapes.local_points(v.name, v.params)
    d = shapes.half_distance(v.name, v.params, q, v.bifid)
    z, y, x = (t.numpy() for t in torch.nonzero(d[::2, ::2, ::2] < 0, as_tuple=True))
    (z0, _), (y0, _), _ = shapes.local_box(v.name, v.params)
    local = np.stack([x * 2.0, y0 + y * 2.0, z0 + z * 2.0], 1) * shapes.STEP
    both = np.concatenate([local, local * [-1, 1, 1]])
    return v.centre + (both * v.scale) @ v.rotation.T


def _grid(rng, generator, subject: Subject, visible: list[str], o: dict[str, Any], scan: dict[str, Any]):
    """Choose the field of view, move the subject so that voxel 0 is the origin, and make the canvas (supersampled where coarse)."""
    shown = [v for v in subject.placed if v.name in visible]
    top, bottom = _extent(shown[0])[:, 2].max(), _extent(shown[-1])[:, 2].min()
    up = rng.uniform(4, 55) if shown[0].name == "C1" else rng.uniform(1, 22)
    end = shown[-1].name in ("L5", "L6")
    down = rng.uniform(3, 110) if end and rng.random() < .75 else rng.uniform(1, 22)
    if o["margin"] is not None:
        up = down = float(o["margin"])
    centres = np.array([v.centre for v in shown])
    back = max(v.world((0, v.params["dm"] / 2 + v.params["cd"] + v.params.get("sl", 5), 0))[1] for v in shown)
    if scan["wide"]:
        left, right = rng.uniform(110, 215, 2)
        front, behind = rng.uniform(70, 200), rng.uniform(15, 60)
        if top - bottom > 280:  # a long field keeps to the middle of the trunk: the cost is the volume
            left, right, front, behind = .6 * left, .6 * right, .6 * front, .6 * behind
    else:
        half = rng.uniform(50, 95)
        left, right = half * rng.uniform(.92, 1.15, 2)
        front, behind = rng.uniform(20, 75), rng.uniform(2, 35)
    low = np.array([centres[:, 0].min() - right, centres[:, 1].min() - front, bottom - down])
    high = np.array([centres[:, 0].max() + left, back + behind, top + up])
    size = (high - low)[::-1]
    spacing = _spacing(rng, size, o, scan)
    shape = tuple(int(max(np.ceil(s / d), 8)) for s, d in zip(size, spacing, strict=True))
    factor = tuple(int(np.ceil(d / FINEST)) for d in spacing)
    for v in subject.placed:
        v.centre = v.centre - low
    subject.sacrum = subject.sacrum[0] - low, subject.sacrum[1]
    fine = tuple(d / f for d, f in zip(spacing, factor, strict=True))
    origin = tuple(.5 * (a - b) for a, b in zip(fine, spacing, strict=True))
    canvas = Canvas(tuple(n * f for n, f in zip(shape, factor, strict=True)), fine, origin, scan["psf"], generator)
    return canvas, shape, factor, spacing


def _spacing(rng, size: np.ndarray, o: dict[str, Any], scan: dict[str, Any]) -> tuple[float, float, float]:
    given = o["spacing"]
    plane, thick = rng.uniform(.8, 1.15), rng.uniform(2, 3.2)
    iso, slices = rng.uniform(.8, 1.6), rng.uniform(.9, 3.0)
    if given is not None:
        spacing = np.broadcast_to(np.asarray(given, float), 3)
        if not (np.isfinite(spacing).all() and (spacing > .1).all()):
            raise InputError(f"Phantom spacing {given} must be one or three positive numbers (mm).")
        return tuple(float(s) for s in spacing)
    spacing = np.array((plane, plane, thick) if scan["grid"] < .4 else (iso,) * 3 if scan["grid"] < .8 else (slices, plane, plane))
    for _ in range(40):
        if np.prod(np.ceil(size / spacing) * np.ceil(spacing / FINEST)) <= MAX_VOXELS or spacing.min() > 1.95:
            break
        spacing = np.where(spacing < 2, np.minimum(spacing * 1.04, 2.0), spacing)
    return tuple(float(s) for s in np.round(spacing, 4))


def _distance_fields(canvas: Canvas, subject: Subject, generator: torch.Generator) -> list[tuple[Placed, tuple, Tensor]]:
    """Signed distance (mm) of every vertebra in its own box, warped at random, joint spaces cut between neighbours."""
    fields = []
    for v in subject.placed:
        (z0, z1), (y0, y1), x1 = shapes.local_box(v.name, v.params)
        s = v.scale
        low, high = np.array([-x1, y0, z0]) * s, np.array([x1, y1, z1]) * s
        seed = int(torch.randint(0, 2 ** 31, (1,), generator=generator))
        box, local = around._local(canvas, v.centre, v.rotation, tuple(low), tuple(high))
        if box is None:
            continue
        q, shape = shapes.local_points(v.name, v.params)
        half = shapes.half_distance(v.name, v.params, q, v.bifid)
        cells = tuple(int((h - a) / (12 * s)) + 2 for a, h in zip(low[::-1], high[::-1], strict=True))
        own = torch.Generator().manual_seed(seed)
        # two scales of warp; trilinear stretching of a coarse field lowers its deviation to some 2/3
        move = smooth_field(local.x.shape, cells, own, 3) * 1.1 + smooth_field(local.x.shape, tuple(max(c // 3, 2) for c in cells), own, 3) * .7
        coordinates = ((local.x + move[2]).abs() / s / (shape[2] - 1), ((local.y + move[1]) / s - y0) / (shape[1] - 1),
                       ((local.z + move[0]) / s - z0) / (shape[0] - 1))
        grid = torch.stack(coordinates, -1).mul_(2).sub_(1)
        d = F.grid_sample(half[None, None], grid[None], align_corners=True, padding_mode="border")[0, 0] * s
        fields.append((v, box, d))
    original = [f[2].clone() for f in fields]
    for i in range(len(fields)):
        for j in (i - 1, i + 1):
            if 0 <= j < len(fields):
                gap = 1.0 if fields[i][0].name[0] == "C" else 1.5
                _separate(fields[i], original[i], fields[j], original[j], gap)
    return fields


def _separate(a: tuple, a_original: Tensor, b: tuple, b_original: Tensor, gap: float) -> None:
    """Cut a where b is nearer than a, leaving `gap` mm between them."""
    low = [max(s.start, t.start) for s, t in zip(a[1], b[1], strict=True)]
    high = [min(s.stop, t.stop) for s, t in zip(a[1], b[1], strict=True)]
    if any(x >= y for x, y in zip(low, high, strict=True)):
        return
    ia, ib = (tuple(slice(x - s.start, y - s.start) for x, y, s in zip(low, high, f[1], strict=True)) for f in (a, b))
    part = a[2][ia]
    torch.maximum(part, (a_original[ia] - b_original[ib] + gap).mul_(.5), out=part)


def _paint_soft(canvas: Canvas, subject: Subject, rng: np.random.Generator, size: float, contrast: float) -> None:
    frame = around.Frame(canvas, subject, size)
    around.paint_trunk(canvas, frame, rng, contrast)
    rings = [v for v in subject.placed]
    centre = np.array([v.world((0, 0, 0)) if v.name == "C1" else v.world((0, v.params["dm"] / 2 + .4 + v.params["cd"] / 2, 0)) for v in rings])
    sacral = subject.sacrum[0] + subject.sacrum[1] @ np.array([0, 24 * subject.scale, 0])
    centre = np.vstack([centre, sacral, sacral + [0, 22, -50]])
    width = np.array([v.params["cw"] * v.scale for v in rings] + [24, 14.]) / 2
    depth = np.array([v.params["cd"] * v.scale for v in rings] + [13, 7.]) / 2
    order = np.argsort(centre[:, 2])
    z = canvas.axes[0].numpy()
    cx, cy, a, b = (torch.from_numpy(np.interp(z, centre[order, 2], t[order])).float().view(-1, 1, 1)
                    for t in (centre[:, 0], centre[:, 1], width, depth))
    x0, x1 = float(cx.min()) - 18, float(cx.max()) + 18
    y0, y1 = float(cy.min()) - 18, float(cy.max()) + 18
    box = canvas.box(np.array([x0, y0, -1e4]), np.array([x1, y1, 1e4]))
    if box is not None:
        q = canvas.points(box)
        rho = superellipse_radius(q.x - cx, q.y - cy, a, b, 2.2)
        canvas.fill(box, (rho - .98) * b, float(rng.uniform(-60, 10)))
        canvas.fill(box, (rho - .85) * b, float(rng.uniform(5, 30)))
        level = torch.from_numpy(frame.level).float().view(-1, 1, 1)
        thick = torch.where(level < 7, 1.0, .85) * subject.scale
        cord = ((q.x - cx) / (6.6 * thick)).square() + ((q.y - cy) / (4.0 * thick)).square()
        canvas.fill(box, (cord.sqrt() - 1) * 4 + (level - 19.0).clamp_min(0) * 4, 42.0)
    _paint_discs(canvas, subject, rng)


def _paint_discs(canvas: Canvas, subject: Subject, rng: np.random.Generator) -> None:
    disc_hu = rng.uniform(60, 105)
    pairs = list(zip(subject.placed[1:-1], subject.placed[2:], strict=True)) + [(subject.placed[-1], None)]
    for upper, lower in pairs:
        p, s = upper.params, upper.scale
        a = upper.world((0, 0, -(p["ha"] + p["hp"]) / 4))
        if lower is None:
            b, frame = subject.sacrum[0] + subject.sacrum[1] @ np.array([0, 0, 13 * s]), subject.sacrum[1]
        else:
            b, frame = lower.world((0, 0, (lower.params["ha"] + lower.params["hp"]) / 4)), lower.rotation
        u, _, w = np.linalg.svd(upper.rotation + frame)
        half = float(np.linalg.norm(a - b)) / 2 + 2.0
        wide, deep = p["wi"] / 2 * s, p["dm"] / 2 * 1.05 * s
        box, q = around._local(canvas, (a + b) / 2, u @ w, (-wide - 3, -deep - 3, -half - 3), (wide + 3, deep + 3, half + 3))
        degenerated, hu = rng.random(), disc_hu + rng.normal(0, 8)
        if box is None:
            continue
        rho = superellipse_radius(q.x, q.y, wide, deep, 2.5)
        d = torch.maximum((rho - 1) * deep, q.z.abs() - half)
        canvas.fill(box, d, hu - 15 * (1 - rho.square()).clamp_min(0))
        if degenerated < .05 * (subject.age > 55):
            canvas.fill(box, torch.maximum((rho - .6) * deep, q.z.abs() - 1.2), -350.0)


def _paint_other_bone(canvas: Canvas, subject: Subject, rng: np.random.Generator, size: float, keep: Tensor) -> None:
    around.paint_pelvis(canvas, subject, rng, subject.trabecular, keep)
    around.paint_skull(canvas, subject, subject.trabecular, keep)
    thoracic = [v for v in subject.placed if v.name[0] == "T"]
    length = float(rng.uniform(.85, 1.1))
    for v in thoracic:
        for points, radius in around.rib_lines(v, size, rng, length):
            around.paint_line(canvas, points, radius, subject.trabecular * .8 + 40, 1.0, keep)
    around.paint_shoulders(canvas, subject, rng, size)


def _paint_vertebrae(canvas: Canvas, subject: Subject, fields: list, rng: np.random.Generator) -> None:
    grain = tuple(1.0 / s for s in canvas.spacing)
    texture = noise(canvas.shape, tuple(.8 * g for g in grain), canvas.generator)
    strength, cortex = rng.uniform(20, 75), rng.uniform(850, 1600)
    wall, arch_wall, arch_hu = rng.uniform(.25, .6), rng.uniform(.55, 1.9), rng.uniform(-20, 120)
    plate = rng.uniform(0, 110)
    outset = rng.uniform(.35, .8)      # reference masks run outside the bone's edge (measured on real ones)
    for v, box, d in fields:
        index = LEVEL_INDEX[EMITTING_LEVEL[v.name]]
        trabecular = subject.trabecular * float(np.interp(index, (0, 5, 8, 14, 19, 23), (1.8, 1.8, 1.4, 1.15, 1, 1.03))) * rng.uniform(.92, 1.08)
        trabecular += 80 * (index < 7)
        local_box, q = _box_local(canvas, v, box)
        behind = torch.sigmoid((q.y - (v.params["dm"] / 2 if v.name != "C1" else -40) * v.scale + 1) / 1.0)
        depth = -d
        inner = trabecular + plate * torch.exp(-depth.clamp_min(0) / 2.2) + strength * texture[box]
        vein = (q.x / 7).square() + (q.z / 3.5).square() + ((q.y - v.params["dm"] * .3 * v.scale) / 8).square()
        inner -= (35 + .25 * trabecular) * torch.exp(-vein) * (v.name not in ("C1", "C2"))
        inner += behind * (arch_hu + .1 * trabecular) + v.params.get("sclerosis", 0.)
        plates = .35 * torch.exp(-((q.z.abs() - v.params["ha"] / 2 * v.scale) / 2.5).square()) if v.name not in ("C1", "C2") else 0.
        canvas.bone(box, d + outset, inner, wall + plates * (1 - behind) + (arch_wall - wall) * behind, cortex)


def _box_local(canvas: Canvas, v: Placed, box: tuple) -> tuple[tuple, Points]:
    q = canvas.points(box)
    r = [q.x - v.centre[0], q.y - v.centre[1], q.z - v.centre[2]]
    axes = [(r[0] * v.rotation[0, k] + r[1] * v.rotation[1, k] + r[2] * v.rotation[2, k]).float() for k in range(3)]
    return box, Points(*axes)


def _paint_implants(canvas: Canvas, subject: Subject, visible: list[str], rng: np.random.Generator, o: dict[str, Any]) -> dict[str, Any]:
    usable = [v for v in subject.placed if v.name in visible and v.name[0] in "TL" and v.name not in ("T1", "T2", "T3")]
    roll, start = rng.random(), rng.random()
    screws = o["screws"] if o["screws"] is not None else (int(rng.integers(2, 6)) if roll < .05 else 0)
    cement = o["cement"] if o["cement"] is not None else (1 if .05 < roll < .065 else 0)
    done: dict[str, Any] = {"screws": [], "cement": []}
    if usable and cement:
        chosen = rng.choice(len(usable), size=min(int(cement), len(usable)), replace=False)
        for i in chosen:
            metal_module.paint_cement(canvas, usable[int(i)], rng)
            done["cement"].append(usable[int(i)].name)
    if usable and screws:
        count = min(int(screws), len(usable))
        low = int(start * (len(usable) - count + 1))
        part = usable[low:low + count]
        mask = metal_module.paint_screws(canvas, part, rng)
        metal_module.add_streaks(canvas, mask, rng, float(rng.uniform(.4, 1.3)))
        done["screws"] = [v.name for v in part]
    return done


def _average(volume: Tensor, factor: tuple[int, int, int]) -> Tensor:
    if factor == (1, 1, 1):
        return volume
    z, y, x = (n // f for n, f in zip(volume.shape, factor, strict=True))
    return volume.reshape(z, factor[0], y, factor[1], x, factor[2]).mean((1, 3, 5))


def _labels(canvas: Canvas, subject: Subject, fields: list, shape: tuple, factor: tuple) -> tuple[np.ndarray, list[str]]:
    """Label volume on the scan's grid, and the names of vertebrae that the border cuts (these stay 0)."""
    labels = torch.zeros(shape, dtype=torch.uint8)
    nearest = torch.zeros(shape)
    size = np.array([n * s for n, s in zip(canvas.shape, canvas.spacing, strict=True)])[::-1]
    edge = np.array(canvas.origin)[::-1] - .5 * np.array(canvas.spacing)[::-1]
    partial = []
    for v, box, d in fields:
        points = _extent(v)
        outside = (points < edge) | (points > edge + size)
        body = np.abs((points - v.centre) @ v.rotation) < np.array([v.params["wm"] / 2, v.params["dm"] / 2, v.params["ha"] / 2]) * v.scale * .9
        cut = outside.any(1)
        if cut.all():
            continue
        if outside[:, 2].mean() > .02 or cut.mean() > .08 or (cut & body.all(1)).any():
            if (d < 0).any():
                partial.append(v.name)
            continue
        coarse = tuple(slice(s.start // f, -(-s.stop // f)) for s, f in zip(box, factor, strict=True))
        padded = torch.full([(c.stop - c.start) * f for c, f in zip(coarse, factor, strict=True)], 5.0)
        padded[tuple(slice(s.start - c.start * f, s.stop - c.start * f) for s, c, f in zip(box, coarse, factor, strict=True))] = d
        mean = _average(padded.clamp_(-5, 5), factor)
        inside = mean < nearest[coarse]
        labels[coarse][inside] = LABEL_OF_NAME[v.name]
        nearest[coarse] = torch.minimum(nearest[coarse], mean)
    return labels.numpy(), partial


def _scan(canvas: Canvas, subject: Subject, rng: np.random.Generator, scan: dict[str, Any], factor: tuple) -> np.ndarray:
    """Slice averaging, kernel, noise, clipping and padding of the painted volume -> int16 HU."""
    ct = _average(canvas.hu, factor)
    spacing = [s * f for s, f in zip(canvas.spacing, factor, strict=True)]
    if scan["edge"] > .05:
        blurred = ct
        for axis in range(3):
            if spacing[axis] < 1.6:
                blurred = smooth(blurred, .9 / spacing[axis], axis)
        ct = ct + scan["edge"] * (ct - blurred).clamp(-500, 500)
    grain = tuple(scan["grain"] / s for s in spacing)
    grainy = noise(tuple(ct.shape), grain, canvas.generator)
    # dose is lowest through shoulders and pelvis
    z = np.arange(ct.shape[0]) * spacing[0]
    level = np.interp(z, *_sorted_levels(subject))
    gain = 1 + rng.uniform(0, 1.5) * np.exp(-((level - 7) / 1.8) ** 2) + rng.uniform(0, .8) * np.exp(-((level - 24) / 1.5) ** 2)
    ct = ct + grainy * torch.from_numpy(gain * scan["noise"]).float().view(-1, 1, 1)
    ct = ct.clamp_(-1024, 3071)
    if scan["wide"] and scan["grid"] % .1 < .04:  # reconstruction circle with padding outside
        y, x = (torch.linspace(-1, 1, n) for n in ct.shape[1:])
        circle = (y.view(-1, 1).square() + x.view(1, -1).square()) > 1.05
        ct = torch.where(circle[None], scan["air"], ct)
    return ct.round().to(torch.int16).numpy()


def _sorted_levels(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    z = np.array([v.centre[2] for v in subject.placed] + [subject.sacrum[0][2]])
    index = np.array([LEVEL_INDEX[EMITTING_LEVEL[v.name]] for v in subject.placed] + [24.])
    order = np.argsort(z)
    return z[order], index[order]


def _case(seed, ct, labels, partial, spacing, subject, shape, meta) -> PhantomCase:
    centroids, grades = {}, {}
    flat = labels.ravel()
    index = np.flatnonzero(flat)
    values = flat[index]
    counts = np.bincount(values, minlength=29)
    sums = [np.bincount(values, weights=c, minlength=29) for c in np.unravel_index(index, labels.shape)]
    for v in subject.placed:
        label = LABEL_OF_NAME[v.name]
        if counts[label]:
            mask = [float(sums[axis][label] / counts[label] * spacing[axis]) for axis in (2, 1, 0)]
            centroids[v.name] = {"mask": tuple(mask), "body": tuple(float(c) for c in v.world(v.body_offset))}
            grades[v.name] = v.grade
    meta = {"seed": int(seed), "variant": subject.variant, "cobb": subject.cobb, "age": subject.age, "scale": subject.scale,
            "trabecular_hu": subject.trabecular} | meta
    return PhantomCase(ct, labels, spacing, "LPS", centroids, grades, tuple(partial), meta)
