"""A random subject: which vertebrae it has, how they are shaped, and where each one lies (millimetres, LPS)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ..anatomy import ANATOMICAL_ORDER, LEVELS
from ..errors import InputError
from . import shapes
from .tables import BIFID, FOV, GAP_SD, SCALE_SD, SPACING, TILT, VARIATION

VARIANTS = ("T13", "L6", "no_T12")


@dataclass
class Placed:
    """One vertebra in the subject: local frame -> LPS mm is centre + rotation @ local."""

    name: str
    params: dict[str, float]
    centre: np.ndarray  # (3,) x, y, z of the body centroid (C1: centre of the ring)
    rotation: np.ndarray  # (3, 3), columns = local x, y, z axes
    scale: float
    bifid: bool
    grade: int = 0
    body_offset: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def world(self, local: np.ndarray | tuple[float, float, float]) -> np.ndarray:
        """LPS mm of a local point given in template millimetres (before the subject's scale)."""
        return self.centre + self.rotation @ (np.asarray(local, float) * self.scale)


@dataclass
class Subject:
    """All that is drawn before any voxel: vertebrae in cranio-caudal order plus tissue properties."""

    placed: list[Placed]
    scale: float
    age: float
    trabecular: float  # HU of L1 cancellous bone
    variant: str | None
    cobb: float
    sacrum: tuple[np.ndarray, np.ndarray]  # centre and rotation of S1

    def find(self, name: str) -> Placed:
        return next(v for v in self.placed if v.name == name)


def draw_fov(rng: np.random.Generator) -> tuple[str, str]:
    """First and last level after the frequencies of the public VerSe training scans (tables.FOV)."""
    weights = np.array([row[2] for row in FOV], float)
    row = FOV[rng.choice(len(FOV), p=weights / weights.sum())]
    return row[0], row[1]


def level_names(variant: str | None) -> list[str]:
    """Names of a whole spine with a variant: one of VARIANTS or None."""
    if variant not in (None, *VARIANTS):
        raise InputError(f"Phantom variant '{variant}' is unknown; choose one of {', '.join(VARIANTS)}.")
    if variant == "no_T12":
        return [n for n in LEVELS if n != "T12"]
    return [n for n in ANATOMICAL_ORDER if n in LEVELS or n == variant]


def _template(name: str, variant: str | None) -> dict[str, float]:
    """Level template; next to a variant the neighbours move half a level towards it."""
    mixed = {("T12", "T13"): ("T11", "T12"), ("L5", "L6"): ("L4", "L5"), ("T11", "no_T12"): ("T11", "T12")}.get(
        (name, variant or "")
    )
    if mixed is None:
        return shapes.template(name)
    a, b = (shapes.template(m) for m in mixed)
    return {k: (a[k] + b[k]) / 2 for k in a}


def draw_subject(
    rng: np.random.Generator, variant: str | None, cobb: float | None, fractures: dict[str, tuple[int, str]], osteophytes: float
) -> Subject:
    """Draw shapes, curve and spacing of a whole spine. `fractures`: name -> (Genant grade, type); `osteophytes` 0..1."""
    names = level_names(variant)
    scale = math.exp(rng.normal(0, SCALE_SD))
    age = rng.triangular(20, 68, 95)  # scanned spines are mostly old ones
    trabecular = float(np.clip(226 - 2.5 * (age - 25) + rng.normal(0, 42), 25, 330))
    subject = {group: rng.normal(0, sd) for group, (sd, _, _) in VARIATION.items()}
    # part of each width and depth factor is shared (correlation .55 with the height in the measurements)
    for group in ("width", "depth", "transverse", "spinous"):
        subject[group] += 0.5 * subject["height"]
    subject["spinous_angle"] = rng.normal(0, 5)
    angle_sag, angle_cor, turn, cobb = _curve(rng, names, cobb)
    params = [shapes.vary(rng, subject, _template(n, variant), VARIATION) for n in names]
    gaps = [SPACING[n] * scale * math.exp(0.6 * subject["height"] + rng.normal(0, GAP_SD.get(n, 0.018))) for n in names]
    grades = {}
    for i, name in enumerate(names):
        _osteophytes(rng, name, params[i], osteophytes)
        if name in fractures:
            loss, wedge = fracture(rng, params[i], *fractures[name])
            grades[name] = fractures[name][0]
            gaps[i] -= loss * scale * 0.5
            if i:
                gaps[i - 1] -= loss * scale * 0.5
            angle_sag[i:] += 0.5 * wedge
            angle_sag[:i] -= 0.5 * wedge
    bifid = {n: bool(rng.random() < BIFID.get(n, 0)) for n in names}
    placed = _place(rng, names, params, gaps, (angle_sag, angle_cor, turn), scale, bifid, grades)
    last = placed[-1]
    down = math.radians(angle_sag[-1])
    centre = last.centre + gaps[-1] * 0.97 * np.array([0, math.sin(down), -math.cos(down)])
    sacrum = centre, rotation(math.radians(angle_sag[-1] + rng.normal(9, 5)), 0, 0)
    return Subject(placed, scale, age, trabecular, variant, cobb, sacrum)


def _curve(rng: np.random.Generator, names: list[str], cobb: float | None
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Sagittal and coronal angles (deg) of the n links downwards, and axial turns of the n vertebrae."""
    n = len(names)
    index = np.linspace(0, 23, n)
    mean = np.array([TILT[m] for m in names], float)

    def smooth(sd: float, rho: float = 0.8) -> np.ndarray:
        steps = rng.normal(0, sd * math.sqrt(1 - rho**2), n)
        steps[0] = rng.normal(0, sd)
        for i in range(1, n):
            steps[i] += rho * steps[i - 1]
        return steps

    kyphosis = rng.normal(0, 11) * (np.clip((14.5 - index) / 8, -0.5, 0.5))
    lordosis = rng.normal(0, 9) * np.clip((index - 19) / 4, -0.5, 1)
    cervical = rng.normal(0, 13) * np.clip((6 - index) / 6, 0, 1)
    sagittal = mean + kyphosis + lordosis + cervical + smooth(4) + rng.normal(0, 4)
    if cobb is None:
        low, high = [(0, 8), (8, 18), (18, 35), (35, 60)][rng.choice(4, p=[0.66, 0.19, 0.11, 0.04])]
        cobb = rng.uniform(low, high)
    # a main curve and a compensating one above or below it
    apex, width = (rng.normal(13, 2), rng.uniform(4, 5.5)) if rng.random() < 0.5 else (rng.normal(19, 1.2), rng.uniform(3, 4))
    side = rng.choice([-1.0, 1.0])
    wave = np.exp(-(((index - apex) / width) ** 2)) * (index - apex) / width
    coronal = cobb * side * wave / max(np.ptp(wave), 1e-6) + smooth(2.2, 0.6) + rng.normal(0, 2.5)
    lateral = np.exp(-(((index - apex) / width) ** 2))
    turn = 0.35 * cobb * side * lateral + smooth(1.5)
    return sagittal, coronal, turn, float(cobb)


def rotation(pitch: float, roll: float, yaw: float) -> np.ndarray:
    """Columns = local axes: pitch > 0 leans the top forward (radians), roll about y, yaw about z."""
    cp, sp, cr, sr, cy, sy = (f(a) for a in (pitch, roll, yaw) for f in (math.cos, math.sin))
    x_rot = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    y_rot = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    z_rot = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return y_rot @ x_rot @ z_rot


def _place(rng: np.random.Generator, names: list[str], params: list[dict[str, float]], gaps: list[float],
           angles: tuple[np.ndarray, np.ndarray, np.ndarray], scale: float, bifid: dict[str, bool], grades: dict[str, int]) -> list[Placed]:
    sagittal, coronal, turn = angles  # degrees, of each vertebra
    placed, point = [], np.zeros(3)
    for i, name in enumerate(names):
        above, below = max(i - 1, 0), min(i, len(names) - 1)
        pitch = math.radians((sagittal[above] + sagittal[below]) / 2 + rng.normal(0, 1.5))
        roll = math.radians((coronal[above] + coronal[below]) / 2 + rng.normal(0, 0.8))
        frame = rotation(pitch, roll, math.radians(turn[i]))
        placed.append(Placed(name, params[i], point.copy(), frame, scale, bifid[name], grades.get(name, 0)))
        a, c = math.radians(sagittal[i]), math.radians(coronal[i])
        point = point + gaps[i] * np.array([-math.sin(c), math.sin(a) * math.cos(c), -math.cos(a) * math.cos(c)])
    # the atlas rides on the dens of C2: its ring's centre lies half a canal behind the dens
    axis, atlas = placed[1], placed[0]
    behind = atlas.params["cd"] / 2 - 6.5
    tilt = rotation(math.radians(rng.normal(-4, 5)), math.radians(rng.normal(0, 2)), math.radians(rng.normal(0, 5)))
    atlas.rotation = axis.rotation @ tilt
    height = axis.params["ha"] / 2 + 9.0 + rng.normal(0, 1.7)
    atlas.centre = axis.world((0, 1.5, height)) + atlas.rotation @ np.array([0, behind * scale, 0])
    atlas.body_offset = np.array([0, -behind, 0.0])
    return placed


def fracture(rng: np.random.Generator, p: dict[str, float], grade: int, kind: str) -> tuple[float, float]:
    """Crush the body in place (Genant grade 1..3; wedge, biconcave, crush). Returns lost mean height (mm) and wedging (deg).

    The grade is the loss at the worst of front, middle and back against this vertebra's own heights: 20-25, 25-40, > 40 %.
    """
    if grade not in (1, 2, 3) or kind not in ("wedge", "biconcave", "crush"):
        raise InputError(f"Fracture grade {grade} '{kind}' is unknown; grades are 1..3, types wedge, biconcave, crush.")
    worst = rng.uniform(*{1: (0.205, 0.25), 2: (0.26, 0.40), 3: (0.41, 0.60)}[grade])
    share = {
        "wedge": (1, rng.uniform(0.5, 0.85), rng.uniform(0, 0.25)),
        "biconcave": (rng.uniform(0.2, 0.6), 1, rng.uniform(0, 0.3)),
        "crush": (rng.uniform(0.75, 1), 1, rng.uniform(0.6, 0.9)),
    }[kind]
    front, middle, back = (worst * s for s in share)
    ha, hp = p["ha"], p["hp"]
    p["ha"], p["hp"] = ha * (1 - front), hp * (1 - back)
    p["hm_loss"] = 1 - (ha + hp) / 2 * (1 - middle) / ((p["ha"] + p["hp"]) / 2)
    mean = (front + middle + back) / 3
    for key in ("ws", "wm", "wi", "dm"):
        p[key] *= 1 + 0.3 * mean
    p["sclerosis"] = rng.uniform(0, 250)
    return mean * (ha + hp) / 2, math.degrees(math.atan2(ha * front - hp * back, p["dm"])) * 0.6


def _osteophytes(rng: np.random.Generator, name: str, p: dict[str, float], strength: float) -> None:
    if name != "C1" and strength > 0:
        p["osteophyte"] = float(strength * rng.uniform(0, 0.12))


def draw_fractures(rng: np.random.Generator, names: list[str], count: int) -> dict[str, tuple[int, str]]:
    """`count` random thoracolumbar fractures with peaks at T7-T8 and T12-L1; grades 50/30/20 %, types 60/28/12 %."""
    weight = (
        {n: 1.0 for n in names if n[0] in "TL"}
        | {n: 3.0 for n in ("T7", "T8", "T12", "L1") if n in names}
        | {n: 2.0 for n in ("T6", "T9", "T11", "L2") if n in names}
    )
    for n in ("T1", "T2", "T3", "T13", "L6"):
        weight.pop(n, None)
    if not weight:
        return {}
    chosen = rng.choice(
        list(weight), size=min(count, len(weight)), replace=False, p=np.array(list(weight.values())) / sum(weight.values())
    )
    return {
        str(n): (
            int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2])),
            str(rng.choice(["wedge", "biconcave", "crush"], p=[0.6, 0.28, 0.12])),
        )
        for n in chosen
    }
