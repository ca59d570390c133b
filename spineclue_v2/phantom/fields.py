"""Distance fields of the placed vertebrae on a canvas, and the label volume made from them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..anatomy import LABEL_OF_NAME
from ..utilities.triples import Box, Floats3, Ints3
from . import shapes
from .canvas import Canvas, average, smooth_field
from .pathology import shift_slices
from .primitives import Points, superellipse_radius
from .spine import Placed, Subject

Field = tuple[Placed, Box, Tensor]


def world_extent(v: Placed) -> np.ndarray:
    """World points (n, 3) of the vertebra's local mask, both halves (no warp)."""
    q, shape = shapes.local_points(v.name, v.params)
    d = shapes.half_distance(v.name, v.params, q, v.bifid)
    z, y, x = (t.numpy() for t in torch.nonzero(d[::2, ::2, ::2] < 0, as_tuple=True))
    (z0, _), (y0, _), _ = shapes.local_box(v.name, v.params)
    local = np.stack([x * 2.0, y0 + y * 2.0, z0 + z * 2.0], 1) * shapes.STEP
    both = np.concatenate([local, local * [-1, 1, 1]])
    return v.centre + (both * v.scale) @ v.rotation.T


def corners(v: Placed) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest (x, y, z) mm of a vertebra's box in its own frame."""
    (z0, z1), (y0, y1), x1 = shapes.local_box(v.name, v.params)
    return np.array([-x1, y0, z0]) * v.scale, np.array([x1, y1, z1]) * v.scale


def distance(v: Placed, local: Points, seed: int) -> Tensor:
    """Signed distance (mm) of a vertebra at points (mm) of its own frame that fill its box, under the random warp of `seed`."""
    s, (low, high) = v.scale, corners(v)
    q, shape = shapes.local_points(v.name, v.params)
    half = shapes.half_distance(v.name, v.params, q, v.bifid)
    cells = tuple(int((h - a) / (12 * s)) + 2 for a, h in zip(low[::-1], high[::-1], strict=True))
    own = torch.Generator().manual_seed(seed)
    # two scales of warp, less in slender cervical vertebrae; trilinear stretching of a coarse field lowers its deviation to some 2/3
    slender = 0.45 if v.name[0] == "C" else 1.0
    fine = smooth_field(local.x.shape, cells, own, 3) * (0.75 * slender)
    move = fine + smooth_field(local.x.shape, tuple(max(c // 3, 2) for c in cells), own, 3) * (0.55 * slender)
    (z0, _), (y0, _), _ = shapes.local_box(v.name, v.params)
    coordinates = (
        (local.x + move[2]).abs() / s / (shape[2] - 1),
        ((local.y + move[1]) / s - y0) / (shape[1] - 1),
        ((local.z + move[0]) / s - z0) / (shape[0] - 1),
    )
    grid = torch.stack(coordinates, -1).mul_(2).sub_(1)
    return F.grid_sample(half[None, None], grid[None], align_corners=True, padding_mode="border")[0, 0] * s


def distance_fields(canvas: Canvas, subject: Subject, generator: torch.Generator) -> list[Field]:
    """Signed distance (mm) of every vertebra in its own box, warped at random, joint spaces cut between neighbours."""
    fields = []
    for v in subject.placed:
        low, high = corners(v)
        seed = int(torch.randint(0, 2**31, (1,), generator=generator))
        window = canvas.local_box(v.centre, v.rotation, low, high)
        if window is not None:
            box, local = window
            fields.append((v, box, distance(v, local, seed)))
    original = [f[2].clone() for f in fields]
    for i in range(len(fields)):
        for j in (i - 1, i + 1):
            if 0 <= j < len(fields):
                gap = 1.0 if fields[i][0].name[0] == "C" else 1.5
                _separate(fields[i], original[i], fields[j], original[j], gap)
    return fields


def _separate(a: Field, a_original: Tensor, b: Field, b_original: Tensor, gap: float) -> None:
    """Cut a where b is nearer than a, leaving `gap` mm between them."""
    low = [max(s.start, t.start) for s, t in zip(a[1], b[1], strict=True)]
    high = [min(s.stop, t.stop) for s, t in zip(a[1], b[1], strict=True)]
    if any(x >= y for x, y in zip(low, high, strict=True)):
        return
    ia, ib = (tuple(slice(x - s.start, y - s.start) for x, y, s in zip(low, high, f[1], strict=True)) for f in (a, b))
    part = a[2][ia]
    torch.maximum(part, (a_original[ia] - b_original[ib] + gap).mul_(0.5), out=part)


def label_volume(
    canvas: Canvas, subject: Subject, fields: list[Field], shape: Ints3, factor: Ints3, cut_share: float | None = None
) -> tuple[np.ndarray, list[str]]:
    """Label volume on the scan's grid, and the names of vertebrae that the border cuts.

    These stay 0, but those of which at least `cut_share` lies inside are labelled all the same.
    """
    labels = torch.zeros(shape, dtype=torch.uint8)
    nearest = torch.zeros(shape)
    size = np.array([n * s for n, s in zip(canvas.shape, canvas.spacing, strict=True)])[::-1]
    edge = np.array(canvas.origin)[::-1] - 0.5 * np.array(canvas.spacing)[::-1]
    partial = []
    for v, box, d in fields:
        points = world_extent(v)
        outside = (points < edge) | (points > edge + size)
        body = (
            np.abs((points - v.centre) @ v.rotation)
            < np.array([v.params["wm"] / 2, v.params["dm"] / 2, v.params["ha"] / 2]) * v.scale * 0.9
        )
        cut = outside.any(1)
        if cut.all():
            continue
        if outside[:, 2].mean() > 0.02 or cut.mean() > 0.08 or (cut & body.all(1)).any():
            if (d < 0).any():
                partial.append(v.name)
            if cut_share is None or 1 - cut.mean() < cut_share:
                continue
        coarse = tuple(slice(s.start // f, -(-s.stop // f)) for s, f in zip(box, factor, strict=True))
        padded = torch.full([(c.stop - c.start) * f for c, f in zip(coarse, factor, strict=True)], 5.0)
        padded[tuple(slice(s.start - c.start * f, s.stop - c.start * f) for s, c, f in zip(box, coarse, factor, strict=True))] = d
        mean = average(padded.clamp_(-5, 5), factor)
        inside = mean < nearest[coarse]
        labels[coarse][inside] = LABEL_OF_NAME[v.name]
        nearest[coarse] = torch.minimum(nearest[coarse], mean)
    return labels.numpy(), partial


def discs(canvas: Canvas, subject: Subject) -> Iterator[tuple[tuple[Box, Points] | None, float, float, float]]:
    """Of every disc, C2-C3 down to the sacrum: box with local coordinates (None outside), half width, half depth, half height (mm)."""
    for upper, lower in [*zip(subject.placed[1:-1], subject.placed[2:], strict=True), (subject.placed[-1], None)]:
        p, s = upper.params, upper.scale
        a = upper.world((0, 0, -(p["ha"] + p["hp"]) / 4))
        if lower is None:
            b, frame = subject.sacrum[0] + subject.sacrum[1] @ np.array([0, 0, 13 * s]), subject.sacrum[1]
        else:
            b, frame = lower.world((0, 0, (lower.params["ha"] + lower.params["hp"]) / 4)), lower.rotation
        u, _, w = np.linalg.svd(upper.rotation + frame)
        half = float(np.linalg.norm(a - b)) / 2 + 2.0
        wide, deep = p["wi"] / 2 * s, p["dm"] / 2 * 1.05 * s
        window = canvas.local_box((a + b) / 2, u @ w, (-wide - 3, -deep - 3, -half - 3), (wide + 3, deep + 3, half + 3))
        yield window, wide, deep, half


def region_volume(labels: np.ndarray, spacing: Floats3, subject: Subject, shifts: np.ndarray) -> np.ndarray:
    """uint8 (z, y, x): 1 body (with dens), 2 arch of the labelled vertebrae, 3 discs. `shifts`: (y, x) voxels of each slice."""
    regions = np.zeros(labels.shape, np.uint8)
    canvas = Canvas(labels.shape, spacing, (0.0, 0.0, 0.0), 0.5, torch.Generator())
    for window, wide, deep, half in discs(canvas, subject):
        if window is not None:
            box, q = window
            inside = (superellipse_radius(q.x, q.y, wide, deep, 2.5) < 1) & (q.z.abs() < half)
            regions[box][inside.numpy()] = 3
    if shifts.any():
        regions = shift_slices(regions, shifts, 0)
    for v in subject.placed:
        index = np.argwhere(labels == LABEL_OF_NAME[v.name])
        if len(index):
            still = index - np.c_[np.zeros(len(index), int), shifts[index[:, 0]]]
            local = ((still * np.asarray(spacing))[:, ::-1] - v.centre) @ v.rotation
            body = (local[:, 1] < (v.params["dm"] / 2 + 0.5) * v.scale) & (v.name != "C1")
            body &= np.abs(local[:, 0]) < (max(v.params.get("ws", 0), v.params.get("wi", 0)) / 2 + 1.5) * v.scale
            regions[tuple(index.T)] = np.where(body, 1, 2)
    return regions
