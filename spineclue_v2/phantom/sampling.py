"""`sample(seed, **what)`: one synthetic CT with labels, from the random subject to the scanner."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..anatomy import LABEL_OF_NAME
from ..errors import InputError
from ..utilities.triples import Floats3, Ints3, float_triple, int_triple
from . import paint, pathology, scanner, spine
from .canvas import Canvas, one_thread
from .fields import distance_fields, label_volume, region_volume, world_extent
from .limb import limb
from .spine import Subject

DEFAULTS: dict[str, Any] = {
    "first": None,
    "last": None,
    "spacing": None,
    "margin": None,
    "variant": "random",
    "cobb": None,
    "fractures": None,
    "osteophytes": None,
    "screws": None,
    "cement": None,
    "contrast": None,
    "kernel": None,
    "noise": None,
    "wide": None,
    "spine": None,
    "age": None,
    "dish": None,
    "lesions": 0,
    "thick": None,
    "streaks": None,
    "motion": 0,
    "randomise": 0,
    "short": None,
    "tight": None,
    "oblique": None,
    "padding": 0,
    "regions": False,
    "cut_share": None,
}
"""Switches of `sample`; what is None is drawn."""
FRAMING = {"first", "last", "spacing", "margin", "wide", "short", "thick", "tight"}
SHARES = {"limb": 0.04, "tight": 0.08, "thick": 0.08, "streaks": 0.1, "dish": 0.04, "oblique": 0.06}
"""How often the default distribution holds scans without a spine, tight crops, slices of 3-5 mm, streaks, DISH, turned grids."""


@dataclass(frozen=True)
class PhantomCase:
    """A synthetic scan. Arrays (z, y, x) in `orientation`; world (LPS mm) = direction @ (index * spacing)[x, y, z], origin at voxel 0."""

    ct: np.ndarray  # int16 HU
    labels: np.ndarray  # uint8, VerSe values; cut vertebrae, sacrum, ribs ... are 0
    spacing: tuple[float, float, float]  # (z, y, x) mm
    orientation: str
    centroids: dict[str, dict[str, tuple[float, float, float]]]  # name -> {"mask", "body"}: LPS (x, y, z) mm
    grades: dict[str, int]  # name -> Genant grade of each labelled vertebra
    partial: tuple[str, ...]  # vertebrae cut by the border: visible in part, not labelled
    meta: dict[str, Any] = field(default_factory=dict)
    direction: np.ndarray = field(default_factory=lambda: np.eye(3))  # columns: LPS directions of the x, y, z axes
    regions: np.ndarray | None = None  # uint8: 1 body, 2 arch of the labelled vertebrae, 3 disc; only with regions=True


def sample(seed: int, **what: Any) -> PhantomCase:
    """Draw one case; the same seed and switches give the same voxels on every machine of the same torch version.

    what: first, last (level names); spacing (z, y, x) mm or one number; margin mm above first and below last; variant "T13", "L6",
    "no_T12" or None; cobb degrees; fractures {name: (grade, "wedge"|"biconcave"|"crush")}, a number, or {}; osteophytes 0..1;
    screws, cement (numbers of vertebrae); contrast (HU added to blood); kernel "soft", "medium", "bone"; noise (HU sd);
    wide (bool: whole trunk or a crop round the spine); spine=False (a limb without vertebrae), True (never one); age in years; dish
    0..1; lesions (number); thick (mm, axial slices); streaks 0..2 (shoulders and hips); motion mm; randomise 0..1; short (number of
    vertebrae); tight (bool: a crop round 2-4 vertebrae at 1-1.5 mm); oblique (degrees between the grid and the body);
    padding (mm of constant voxels round the scan); regions (bool);
    cut_share 0..1 (also label what the border cuts where this share of it is inside).
    A limb is drawn by default only when nothing is asked of the spine or the field.
    `pathology.parse_pathology` reads these from text. Raises InputError for unknown switches, levels or impossible values.
    """
    unknown = set(what) - set(DEFAULTS)
    if unknown:
        raise InputError(f"Phantom switch '{sorted(unknown)[0]}' is unknown; known: {', '.join(DEFAULTS)}.")
    o = _draw_shares(seed, what)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(int(seed))
    with one_thread():
        if not o["spine"]:
            ct, spacing = limb(rng, generator, o)
            return PhantomCase(ct, np.zeros(ct.shape, np.uint8), spacing, "LPS", {}, {}, (), {"seed": int(seed), "spine": False})
        return _sample_spine(seed, rng, generator, o)


def _draw_shares(seed: int, what: dict[str, Any]) -> dict[str, Any]:
    """The rarer kinds of scan of the default distribution, drawn apart so that they leave the rest of a case as it is."""
    rng = np.random.default_rng([seed, 2])
    rolls = dict(zip(SHARES, rng.random(len(SHARES)), strict=True))
    happens = {name: roll < SHARES[name] for name, roll in rolls.items()}
    o, asked = DEFAULTS | what, {k for k, v in what.items() if v is not None or k == "variant"}
    if o["spine"] is None:
        o["spine"] = not (happens["limb"] and asked <= {"kernel", "noise", "randomise", "regions", "cut_share"})
    free = not asked & FRAMING
    if o["tight"] is None:
        o["tight"] = happens["tight"] and free
    if o["thick"] is None and happens["thick"] and free and not o["tight"]:
        o["thick"] = float(rng.uniform(3, 5))
    for name, low, high in (("streaks", 0.3, 1.2), ("dish", 0.4, 1.0), ("oblique", 4.0, 18.0)):
        strength = float(rng.uniform(low, high))
        if o[name] is None:
            o[name] = strength if happens[name] else 0.0
    return o


def _sample_spine(seed: int, rng: np.random.Generator, generator: torch.Generator, o: dict[str, Any]) -> PhantomCase:
    first, last, variant = _levels(rng, o)
    names = spine.level_names(variant)
    if first not in names or last not in names or names.index(first) > names.index(last):
        raise InputError(f"Phantom range {first}..{last} does not exist in a spine with variant {variant}.")
    extra = np.random.default_rng([seed, 1])  # switches draw here, so that they leave the rest of the case as it is
    if o["short"] is not None:
        first, last = pathology.shorten(extra, names, first, last, o["short"])
    if o["tight"] and o["short"] is None:
        first, last = pathology.shorten(extra, names, first, last, int(extra.integers(2, 5)))
    visible = names[names.index(first) : names.index(last) + 1]
    fractures = o["fractures"]
    if not isinstance(fractures, dict):
        count = (int(rng.integers(1, 4)) if rng.random() < 0.22 else 0) if fractures is None else int(fractures)
        fractures = spine.draw_fractures(rng, visible, count)
    elif missing := set(fractures) - set(names):
        raise InputError(
            f"Phantom fracture level '{sorted(missing)[0]}' does not exist in this spine; use one of {', '.join(names)}."
        )
    osteophytes = o["osteophytes"] if o["osteophytes"] is not None else float(rng.uniform(0, 1) ** 2)
    subject = spine.draw_subject(rng, variant, o["cobb"], fractures, osteophytes)
    if o["age"] is not None:
        subject.age, subject.trabecular = float(o["age"]), float(np.clip(226 - 2.5 * (o["age"] - 25), 15, 330))
    tilt = _tilt(subject, o["oblique"], extra)
    scan = scanner.draw_scanner(rng, o)
    canvas, shape, factor, spacing = _grid(rng, generator, subject, visible, o, scan)
    fields = distance_fields(canvas, subject, generator)
    size = subject.scale * rng.uniform(0.88, 1.15)
    contrast = o["contrast"] if o["contrast"] is not None else float(rng.uniform(60, 250) if rng.random() < 0.45 else 0)
    paint.paint_soft(canvas, subject, rng, size, contrast)
    keep = torch.full(canvas.shape, 20.0)
    for _, box, d in fields:
        keep[box] = torch.minimum(keep[box], d)
    paint.paint_other_bone(canvas, subject, rng, size, keep)
    paint.paint_vertebrae(canvas, subject, fields, rng)
    shown = [v for v in subject.placed if v.name in visible and v.name not in ("C1", "C2")]
    if o["dish"]:
        pathology.paint_dish(canvas, subject, o["dish"], extra)
    lesions = pathology.paint_lesions(canvas, shown, int(o["lesions"]), extra) if o["lesions"] else []
    implants = paint.paint_implants(canvas, subject, visible, rng, o)
    labels, partial = label_volume(canvas, subject, fields, shape, factor, o["cut_share"])
    scan |= {k: o[k] for k in ("streaks", "randomise", "tight", "oblique")}
    ct = scanner.scan(canvas, subject, rng, scan, factor, extra)
    shifts = np.zeros((shape[0], 2), int)
    if o["motion"]:
        shifts = pathology.step_motion(shape[0], spacing, o["motion"], extra)
        ct, labels = pathology.shift_slices(ct, shifts), pathology.shift_slices(labels, shifts, 0)
    regions = None
    if o["regions"]:
        regions = region_volume(labels, spacing, subject, shifts)
    meta = implants | {"scan": scan, "first": first, "last": last, "contrast": contrast, "wide": scan["wide"], "lesions": lesions}
    case = _case(seed, ct, labels, partial, spacing, subject, shifts, meta, tilt, regions)
    return _pad(case, o["padding"], extra) if o["padding"] else case


def _pad(case: PhantomCase, most: float, rng: np.random.Generator) -> PhantomCase:
    """Constant voxels round the scan, up to `most` mm on each side, of one of the values that public datasets hold there."""
    if not 0 <= most <= 200:
        raise InputError(f"Phantom padding can be 0 to 200 mm, found {most:g}.")
    rims = np.ceil(rng.uniform(0, most, (3, 2)) / np.array(case.spacing)[:, None]).astype(int)
    value = int(rng.choice([-1024, -2048, -3024, 0]))
    moved = case.direction @ (rims[:, 0] * case.spacing)[::-1]
    centroids = {n: {k: tuple((np.array(c) + moved).tolist()) for k, c in both.items()} for n, both in case.centroids.items()}
    ct = np.pad(case.ct, rims, constant_values=value)
    regions = None if case.regions is None else np.pad(case.regions, rims)
    meta = case.meta | {"padding": {"voxels": rims.tolist(), "value": value}}
    return replace(case, ct=ct, labels=np.pad(case.labels, rims), centroids=centroids, regions=regions, meta=meta)


def _tilt(subject: Subject, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """Turn the subject against the scan's grid by `degrees` about a random axis; returns the grid's direction in the subject's LPS."""
    axis = rng.normal(size=3)
    if not degrees:
        return np.eye(3)
    if not 0 <= degrees <= 30:
        raise InputError(f"Phantom grids can be turned by 0 to 30 degrees, found {degrees:g}.")
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    middle = subject.placed[len(subject.placed) // 2].centre.copy()
    for v in subject.placed:
        v.centre = middle + turn @ (v.centre - middle)
        v.rotation = turn @ v.rotation
    subject.sacrum = middle + turn @ (subject.sacrum[0] - middle), turn @ subject.sacrum[1]
    return turn.T


def _levels(rng: np.random.Generator, o: dict[str, Any]) -> tuple[str, str, str | None]:
    first, last = spine.draw_fov(rng)
    variant = o["variant"]
    if variant == "random":
        roll = rng.random()
        variant = "L6" if last == "L6" else "T13" if roll < 0.012 else "no_T12" if roll < 0.03 else "L6" if roll < 0.07 else None
        wanted = {o["first"], o["last"]}
        if variant != "L6" and "L6" in wanted:
            variant = "L6"
        if variant == "no_T12" and ("T12" in wanted or "T12" in (first, last)):
            variant = None
    first, last = o["first"] or first, o["last"] or last
    if last == "L6" and variant != "L6":
        last = "L5"
    if variant == "L6" and last == "L5" and o["last"] is None and rng.random() < 0.8:
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


def _grid(rng: np.random.Generator, generator: torch.Generator, subject: Subject, visible: list[str], o: dict[str, Any],
          scan: dict[str, Any]) -> tuple[Canvas, Ints3, Ints3, Floats3]:
    """Choose the field of view, move the subject so that voxel 0 is the origin, and make the canvas (supersampled where coarse)."""
    shown = [v for v in subject.placed if v.name in visible]
    top, bottom = world_extent(shown[0])[:, 2].max(), world_extent(shown[-1])[:, 2].min()
    up = rng.uniform(4, 55) if shown[0].name == "C1" else rng.uniform(1, 22)
    end = shown[-1].name in ("L5", "L6")
    down = rng.uniform(3, 110) if end and rng.random() < 0.75 else rng.uniform(1, 22)
    if o["tight"]:
        up, down = scan["snug"][:2]
    if o["margin"] is not None:
        up = down = float(o["margin"])
    centres = np.array([v.centre for v in shown])
    back = max(v.world((0, v.params["dm"] / 2 + v.params["cd"] + v.params.get("sl", 5), 0))[1] for v in shown)
    if scan["wide"]:
        left, right = rng.uniform(110, 215, 2)
        front, behind = rng.uniform(70, 200), rng.uniform(15, 60)
        if top - bottom > 280:  # a long field keeps to the middle of the trunk: the cost is the volume
            left, right, front, behind = 0.6 * left, 0.6 * right, 0.6 * front, 0.6 * behind
    else:
        half = rng.uniform(50, 95)
        left, right = half * rng.uniform(0.92, 1.15, 2)
        front, behind = rng.uniform(20, 75), rng.uniform(2, 35)
    if o["tight"]:
        left = right = scan["snug"][2] + max(v.params.get("tx", 40) * v.scale for v in shown)
        front, behind = scan["snug"][3:]
    low = np.array([centres[:, 0].min() - right, centres[:, 1].min() - front, bottom - down])
    high = np.array([centres[:, 0].max() + left, back + behind, top + up])
    size = (high - low)[::-1]
    spacing = scanner.draw_spacing(rng, size, o, scan)
    shape = int_triple(max(np.ceil(s / d), 8) for s, d in zip(size, spacing, strict=True))
    factor = int_triple(np.ceil(d / scanner.FINEST) for d in spacing)
    for v in subject.placed:
        v.centre = v.centre - low
    subject.sacrum = subject.sacrum[0] - low, subject.sacrum[1]
    fine = float_triple(d / f for d, f in zip(spacing, factor, strict=True))
    origin = float_triple(0.5 * (a - b) for a, b in zip(fine, spacing, strict=True))
    canvas = Canvas(int_triple(n * f for n, f in zip(shape, factor, strict=True)), fine, origin, scan["psf"], generator)
    return canvas, shape, factor, spacing


def _case(seed: int, ct: np.ndarray, labels: np.ndarray, partial: list[str], spacing: Floats3, subject: Subject, shifts: np.ndarray,
          meta: dict[str, Any], direction: np.ndarray, regions: np.ndarray | None) -> PhantomCase:
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
            x, y, z = (float(c) for c in v.world(v.body_offset))
            dy, dx = shifts[int(np.clip(round(z / spacing[0]), 0, len(shifts) - 1))]
            body = np.array([x + float(dx) * spacing[2], y + float(dy) * spacing[1], z])
            centroids[v.name] = {"mask": tuple((direction @ mask).tolist()), "body": tuple((direction @ body).tolist())}
            grades[v.name] = v.grade
    meta = {
        "seed": int(seed),
        "variant": subject.variant,
        "cobb": subject.cobb,
        "age": subject.age,
        "scale": subject.scale,
        "trabecular_hu": subject.trabecular,
    } | meta
    return PhantomCase(ct, labels, spacing, "LPS", centroids, grades, tuple(partial), meta, direction, regions)
