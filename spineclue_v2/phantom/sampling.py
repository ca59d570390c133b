"""`sample(seed, **what)`: one synthetic CT with labels, from the random subject to the scanner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..anatomy import LABEL_OF_NAME
from ..errors import InputError
from . import paint, scanner, spine
from .canvas import Canvas
from .fields import distance_fields, label_volume, world_extent
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
    "spine": True,
}


@dataclass(frozen=True)
class PhantomCase:
    """A synthetic scan. Arrays (z, y, x) in `orientation`; world = index * spacing, LPS mm, origin at voxel 0."""

    ct: np.ndarray  # int16 HU
    labels: np.ndarray  # uint8, VerSe values; cut vertebrae, sacrum, ribs ... are 0
    spacing: tuple[float, float, float]  # (z, y, x) mm
    orientation: str
    centroids: dict[str, dict[str, tuple[float, float, float]]]  # name -> {"mask", "body"}: LPS (x, y, z) mm
    grades: dict[str, int]  # name -> Genant grade of each labelled vertebra
    partial: tuple[str, ...]  # vertebrae cut by the border: visible in part, not labelled
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
    visible = names[names.index(first) : names.index(last) + 1]
    fractures = o["fractures"]
    if not isinstance(fractures, dict):
        count = (int(rng.integers(1, 4)) if rng.random() < 0.22 else 0) if fractures is None else int(fractures)
        fractures = spine.draw_fractures(rng, visible, count)
    osteophytes = o["osteophytes"] if o["osteophytes"] is not None else float(rng.uniform(0, 1) ** 2)
    subject = spine.draw_subject(rng, variant, o["cobb"], fractures, osteophytes)
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
    implants = paint.paint_implants(canvas, subject, visible, rng, o)
    labels, partial = label_volume(canvas, subject, fields, shape, factor)
    ct = scanner.scan(canvas, subject, rng, scan, factor)
    return _case(
        seed,
        ct,
        labels,
        partial,
        spacing,
        subject,
        shape,
        implants | {"scan": scan, "first": first, "last": last, "contrast": contrast, "wide": scan["wide"]},
    )


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


def _grid(rng, generator, subject: Subject, visible: list[str], o: dict[str, Any], scan: dict[str, Any]):
    """Choose the field of view, move the subject so that voxel 0 is the origin, and make the canvas (supersampled where coarse)."""
    shown = [v for v in subject.placed if v.name in visible]
    top, bottom = world_extent(shown[0])[:, 2].max(), world_extent(shown[-1])[:, 2].min()
    up = rng.uniform(4, 55) if shown[0].name == "C1" else rng.uniform(1, 22)
    end = shown[-1].name in ("L5", "L6")
    down = rng.uniform(3, 110) if end and rng.random() < 0.75 else rng.uniform(1, 22)
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
    low = np.array([centres[:, 0].min() - right, centres[:, 1].min() - front, bottom - down])
    high = np.array([centres[:, 0].max() + left, back + behind, top + up])
    size = (high - low)[::-1]
    spacing = scanner.draw_spacing(rng, size, o, scan)
    shape = tuple(int(max(np.ceil(s / d), 8)) for s, d in zip(size, spacing, strict=True))
    factor = tuple(int(np.ceil(d / scanner.FINEST)) for d in spacing)
    for v in subject.placed:
        v.centre = v.centre - low
    subject.sacrum = subject.sacrum[0] - low, subject.sacrum[1]
    fine = tuple(d / f for d, f in zip(spacing, factor, strict=True))
    origin = tuple(0.5 * (a - b) for a, b in zip(fine, spacing, strict=True))
    canvas = Canvas(tuple(n * f for n, f in zip(shape, factor, strict=True)), fine, origin, scan["psf"], generator)
    return canvas, shape, factor, spacing


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
    meta = {
        "seed": int(seed),
        "variant": subject.variant,
        "cobb": subject.cobb,
        "age": subject.age,
        "scale": subject.scale,
        "trabecular_hu": subject.trabecular,
    } | meta
    return PhantomCase(ct, labels, spacing, "LPS", centroids, grades, tuple(partial), meta)
