"""Parametric vertebrae as signed distance functions: one half (x >= 0) on a local grid, mirrored when it is placed."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .primitives import Points, capsule, ellipsoid, polyline, smooth_max, smooth_min, superellipse_radius
from .tables import BIFID, EGG, OUTSET, SHAPE

STEP = 1.0  # mm of the local grids

ATLAS = {"cw": 29.0, "cd": 30.5, "tx": 37.5, "ha": 10.5, "hp": 8.7, "dm": 12.0, "wm": 29.0}


def template(name: str) -> dict[str, float]:
    """Mean parameters (tables.KEYS) of a level; T13 is a smaller-ribbed T12, L6 an L5."""
    if name == "C1":
        return dict(ATLAS)
    return dict(SHAPE[{"T13": "T12", "L6": "L5"}.get(name, name)])


def local_box(name: str, p: dict[str, float]) -> tuple[tuple[float, float], tuple[float, float], float]:
    """((z0, z1), (y0, y1), x1) mm of the local grid around a vertebra with parameters p."""
    if name == "C1":
        return (-17.0, 17.0), (-29.0, 34.0), p["tx"] + 8
    tip_y = p["dm"] / 2 + p["cd"] + p["sl"] * math.cos(math.radians(p["sa"])) + 7
    tip_z = p["lz"] - p["sl"] * math.sin(math.radians(p["sa"])) - p["sh0"] / 2 - 9
    top = max(p["uz"], p["ha"] / 2) + 6 if name != "C2" else 33.0
    y1 = max(tip_y, p["iy"] + 9, p["ty"] + 8)
    return (min(tip_z, p["iz"] - 5, -p["ha"] / 2 - 6), top), (-p["dm"] / 2 - 9, y1), max(p["tx"], p["ws"] / 2, p["wi"] / 2) + 8


def local_points(name: str, p: dict[str, float], device: torch.device | str = "cpu") -> tuple[Points, tuple[int, int, int]]:
    """Half grid (x >= 0) at STEP mm for `half_distance`, and its shape (z, y, x)."""
    (z0, z1), (y0, y1), x1 = local_box(name, p)
    z, y = (torch.arange(a, b + STEP, STEP, device=device) for a, b in ((z0, z1), (y0, y1)))
    x = torch.arange(0, x1 + STEP, STEP, device=device)
    return Points(x.view(1, 1, -1), y.view(1, -1, 1), z.view(-1, 1, 1)), (len(z), len(y), len(x))


def half_distance(name: str, p: dict[str, float], q: Points, bifid: bool | None = None) -> Tensor:
    """Signed distance (mm) of the vertebra, without its random warp, at x >= 0."""
    if name == "C1":
        return _atlas(p, q)
    level = {"T13": "T12", "L6": "L5"}.get(name, name)
    bifid = BIFID.get(level, 0) > 0.5 if bifid is None else bifid
    body = _body(level, p, q)
    arch = _arch(level, p, q, bifid)
    d = smooth_min(body, _pedicle(level, p, q), 2.5)
    if level == "C2":
        d = smooth_min(d, _axis_parts(p, q), 2.5)
    d = smooth_min(d, arch, 2.0)
    back = p["dm"] / 2 + 0.4
    # the canal opens by some 8 % towards both ends of the arch
    flare = 1 + 0.08 * (q.z / max(p["ha"], 12.0)).square().clamp(0, 1)
    # between straight laminae the canal narrows backwards, most in the cervical spine
    deep = ((q.y - back) / p["cd"]).clamp(0, 1) * 2 - 1
    taper = 1 - {"C": 0.2, "T": 0.05, "L": 0.12}[level[0]] * deep
    canal = (
        (superellipse_radius(q.x, q.y - back - p["cd"] / 2, p["cw"] / 2 * flare * taper, p["cd"] / 2 * flare, 2.3) - 1)
        * min(p["cw"], p["cd"])
        / 2
    )
    if level == "C2":  # the canal lies behind the dens and body only
        canal = torch.maximum(canal, back + 0.5 - q.y)
    d = smooth_max(d, -canal, 0.8)
    if level[0] == "C":
        centre = p["wm"] / 2 + (5.8 if level != "C2" else 8.5), p["dm"] * 0.175 + 1.2
        d = torch.maximum(d, (2.9 if level != "C7" else 2.0) - torch.hypot(q.x - centre[0], q.y - centre[1]))
    return d - OUTSET[level]


def _body(level: str, p: dict[str, float], q: Points) -> Tensor:
    cervical, lumbar = level[0] == "C", level[0] == "L"
    b = p["dm"] / 2
    s = (q.y / b).clamp(-1.2, 1.2)
    middle = (p["ha"] + p["hp"]) / 2 * (1 - p.get("hm_loss", 0.0))
    height = ((p["ha"] + p["hp"]) / 2 + (p["hp"] - p["ha"]) / 2 * s) + (middle - (p["ha"] + p["hp"]) / 2) * (
        1 - s.square()
    ).clamp_min(0)
    u = (2 * q.z / height.clamp_min(4)).clamp(-1.2, 1.2)
    egg = EGG.get(level, 0.0)
    rim = u.abs() ** 3
    end = torch.where(u > 0, p["ws"], p["wi"])
    half = (
        0.5 * (p["wm"] + (end - p["wm"]) * rim) * (1 + egg * (s.clamp(-1, 1) - 0.35)) * (1 + p.get("osteophyte", 0.0) * rim * rim)
    )
    depth = b * (1 + (0.06 + p.get("osteophyte", 0.0)) * rim)
    rho = superellipse_radius(q.x, q.y, half, depth, 2.5)
    concave = 1.2 if lumbar else 0.8 if not cervical else 0.4
    ends = q.z.abs() - height / 2 + (concave + p.get("concave", 0.0)) * (1 - rho.square()).clamp_min(0)
    d = smooth_max((rho - 1) * torch.minimum(half, depth), ends, 1.5)
    if cervical and level != "C2":
        x, z = p["ws"] / 2 - 0.5, p["ha"] / 2
        d = smooth_min(d, capsule(q, (x, b * 0.55, z), (x, -b * 0.3, z - 0.5), 2.2), 2.0)
    return d


def _pedicle(level: str, p: dict[str, float], q: Points) -> Tensor:
    px, b = _pedicle_x(p), p["dm"] / 2
    s = p["pw"] / p["ph"]
    return capsule(
        q, (px - (level[0] == "L"), b - 4, p["pz"]), (px + 0.5, b + 0.4 + p["cd"] * 0.45, p["pz"]), p["ph"] / 2, stretch=(s, 1, 1)
    )


def _pedicle_x(p: dict[str, float]) -> float:
    return p["cw"] / 2 + p["pw"] / 2 - 0.5


def _arch(level: str, p: dict[str, float], q: Points, bifid: bool) -> Tensor:
    cervical, lumbar = level[0] == "C", level[0] == "L"
    px, back = _pedicle_x(p), p["dm"] / 2 + 0.4
    wall = back + p["cd"]
    r = 4.0 if cervical else 5.0 if lumbar else 3.2 + 0.25 * ((p["ha"] + p["hp"]) / 2 - 14) / 3
    sup = capsule(q, (px, back + p["cd"] * 0.45, p["pz"] - 2), (p["ux"], p["uy"], p["uz"] - r + 1), r + 1, r, (1, 0.85, 1))
    inf = capsule(q, (max(px - 2, p["ix"]), wall - 3, p["lz"]), (p["ix"], p["iy"], p["iz"] + r - 1), r + 0.5, r, (1, 0.85, 1))
    if cervical:
        pillar = capsule(q, (p["ux"], p["uy"], p["uz"] - 2), (p["ix"], p["iy"], p["iz"] + 2), 4.4 if level != "C7" else 3.7)
        sup = smooth_min(smooth_min(sup, inf, 1.5), pillar, 2.0)
        # both facets of the pillar lie in planes that rise forwards by 45 degrees (C7: 55)
        slope = math.radians(45 if level != "C7" else 35)
        up = (q.y - (p["uy"] + p["iy"]) / 2) * math.sin(slope) + (q.z - (p["uz"] + p["iz"]) / 2) * math.cos(slope)
        sup = inf = smooth_max(sup, up.abs() - (p["uz"] - p["iz"]) / 2 * math.cos(slope) + 1.8, 1.0)
    thick = (5.0 if cervical else 6.5 if not lumbar else 7.0) / 2
    start = (px + (2 if cervical else 0), wall - p["cd"] * (0.55 if cervical else 0.4), p["lz"] + (0 if cervical else 1))
    lamina = capsule(
        q, start, (0, wall + thick * 0.75, p["lz"] - (0 if cervical else 2)), thick, stretch=(1, 1, p["lh"] / 2 / thick)
    )
    d = smooth_min(smooth_min(lamina, _spinous(level, p, q, wall, bifid), 2.5), smooth_min(sup, inf, 1.5), 2.0)
    return smooth_min(d, _transverse(level, p, q, px, back), 2.0)


def _spinous(level: str, p: dict[str, float], q: Points, wall: float, bifid: bool) -> Tensor:
    angle, length = math.radians(p["sa"]), p["sl"]
    cos, sin = math.cos(angle), math.sin(angle)
    y0, z0 = wall - 0.5, p["lz"] - (4.5 if level[0] == "L" else 3.0 if level in ("T11", "T12") else 0.0)
    along = (q.y - y0) * cos - (q.z - z0) * sin
    up = (q.y - y0) * sin + (q.z - z0) * cos
    t = (along / length).clamp(0, 1)
    half = 0.5 * math.sqrt(cos) * (p["sh0"] + (p["sh1"] - p["sh0"]) * t)
    round_tip = 1 - 0.35 * ((t - 0.75) / 0.25).clamp_min(0).square()
    dv = torch.maximum(up - half * (0.55 + 0.35 * t) * round_tip, -up - half * round_tip) + 2.0
    dx = q.x - 0.5 * p["st"] * (0.8 + 0.4 * t**3) + 1.0
    ds = torch.maximum(-along, along - length + 2.0)
    outside = (dv.clamp_min(0).square() + dx.clamp_min(0).square() + ds.clamp_min(0).square()).sqrt()
    d = outside + torch.maximum(torch.maximum(dv, dx), ds).clamp_max(0) - 1.5
    if bifid:
        y, z = y0 + length * cos, z0 - length * sin
        d = smooth_min(d, capsule(q, (1.0, y - 5, z + 1), (5.5, y - 1, z - 2), 3.0 if level != "C2" else 4.2, 2.4), 2.0)
    return d


def _transverse(level: str, p: dict[str, float], q: Points, px: float, back: float) -> Tensor:
    tip = p["tx"], p["ty"], p["tz"]
    if level[0] == "C":
        front = p["dm"] * 0.175
        a = capsule(q, (p["wm"] / 2 - 2, front - 3.5, p["pz"] - 3), (tip[0] - 5.5, front - 2.5, tip[2] - 3), 2.4, 2.0)
        b = capsule(q, (px + 1, p["uy"] - 1, p["pz"] - 2), (tip[0] - 1.8, tip[1], tip[2]), 3.0, 2.2)
        c = capsule(q, (tip[0] - 5.5, front - 2.5, tip[2] - 3), (tip[0] - 2.5, tip[1], tip[2]), 2.2)
        return smooth_min(smooth_min(a, b, 1.5), c, 1.5)
    if level[0] == "L":
        r = (5.5, 3.2) if level == "L5" else (4.0, 2.6)
        return capsule(
            q, (px + 3, back + p["cd"] * 0.55, p["pz"] - 2), (tip[0] - 2.4, tip[1], tip[2]), *r, stretch=(1, 0.75, 1.35)
        )
    if level == "T12":
        a = capsule(q, (px + 1, back + p["cd"] * 0.6, p["pz"] - 2), (tip[0] - 3, tip[1], tip[2]), 4.5, 3.0)
        return smooth_min(
            a, capsule(q, (px + 3, back + p["cd"], p["pz"]), (px + 4.5, back + p["cd"] + 6, p["pz"] + 5), 4, 3), 2.0
        )
    return capsule(q, (px + 1, back + p["cd"] * 0.7, p["pz"] - 3), (tip[0] - 4.0, tip[1] - 1, tip[2]), 4.8, 4.2, (1, 1, 1.15))


def _axis_parts(p: dict[str, float], q: Points) -> Tensor:
    """Dens and superior facets of C2 (dens tip 15-17 mm above the shoulders, tilted back)."""
    top = p["ha"] / 2
    dens = capsule(q, (0, 0, top - 3), (0, 2.5, top + 11.5), 5.6, 4.7, (1, 1.05, 1))
    facet = ellipsoid(q, (14.5, 3.0, top - 3.0), (8.5, 9.0, 5.0))
    return smooth_min(dens, facet, 3.0)


def _atlas(p: dict[str, float], q: Points) -> Tensor:
    """C1: anterior and posterior arch, lateral masses, transverse processes; origin = centre of the ring."""
    side, half = p["cw"] / 2, p["cd"] / 2
    s = p["ha"] / 2 / 3.0
    front = polyline(q, [(side + 3, -half * 0.62, 0), (side * 0.62, -half - 0.5, 0), (0, -half - 2.6, 0)], 3.2, 3.2, (1, 1, s))
    back = polyline(
        q,
        [(side + 4, half * 0.35, 1.5), (side * 0.85, half * 0.85, 1), (side * 0.45, half + 2, 0.5), (0, half + 3.5, 0)],
        2.9,
        3.0,
        (1, 1, p["hp"] / 2 / 2.9),
    )
    mass = ellipsoid(q, (side + 7.2, -3.5, 0), (7.8, 11.0, 9.0))
    # concave facets for the condyles, flat ones below
    mass = smooth_max(mass, -ellipsoid(q, (side + 4, -4, 17), (13, 14, 12)), 1.0)
    process = capsule(q, (side + 10, -1, -1), (p["tx"] - 3.2, 2.5, -1.5), 4.8, 3.4, (1, 1, 1.1))
    d = smooth_min(smooth_min(front, back, 2.0), smooth_min(mass, process, 2.0), 2.0)
    hole = 3.1 - torch.hypot(q.x - (side + 12.5), q.y - 1.0)
    return torch.maximum(d, hole) - OUTSET["C1"]


def vary(rng: np.random.Generator, subject: dict[str, float], p: dict[str, float], variation: dict) -> dict[str, float]:
    """Parameters p times the subject's and this vertebra's own log-normal factors."""
    out = dict(p)
    for group, (_, sd, keys) in variation.items():
        factor = math.exp(subject[group] + rng.normal(0, sd))
        for key in keys:
            if key in out:
                out[key] *= factor
    if "ty" in out:  # the arch keeps its place behind a deeper body or canal
        shift = (out["dm"] - p["dm"]) / 2 + 0.6 * (out["cd"] - p["cd"])
        for key in ("ty", "uy", "iy"):
            out[key] += shift
    if "sa" in out:
        out["sa"] = float(np.clip(out["sa"] + subject["spinous_angle"] + rng.normal(0, 3), 2, 65))
    return out
