"""What the geometry classifier sees: padded batches of detections, their features, and random views for training.

Shapes: S scans, N detections per scan (padded), in cranio-caudal order. Positions are LPS millimetres (x left, y posterior, z up).
Everything optional is NaN where it is unknown. `landmarks.row_features` has the same features of body centres alone.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .landmarks import NOT_A_VERTEBRA, POINTS, UNIT_MM, UNKNOWN, Landmarks


@dataclass(frozen=True)
class Batch:
    """Padded `Landmarks`: (S, N, 3) or (S, N) each; `present` (S, N) bool; `targets` (S, N), `UNKNOWN` for padding."""

    centres: Tensor
    left: Tensor
    right: Tensor
    ctl: Tensor
    extents: Tensor
    rank: Tensor
    present: Tensor
    targets: Tensor

    @classmethod
    def of(cls, scans: Sequence[Landmarks], spare: int = 0) -> Batch:
        """Pad; `spare` empty places at the end leave room for inserted detections."""
        longest = max((len(scan.centres) for scan in scans), default=0) + spare
        arrays = {name: np.full((len(scans), longest, 3), np.nan, dtype=np.float32) for name in POINTS}
        arrays["rank"] = np.full((len(scans), longest), np.nan, dtype=np.float32)
        present, targets = np.zeros((len(scans), longest), dtype=bool), np.full((len(scans), longest), UNKNOWN)
        arrays["centres"][:] = 0.0
        for i, scan in enumerate(scans):
            n = len(scan.centres)
            present[i, :n] = True
            for name, array in arrays.items():
                if getattr(scan, name) is not None:
                    array[i, :n] = getattr(scan, name)
            if scan.targets is not None:
                targets[i, :n] = scan.targets
        return cls(**{name: torch.from_numpy(array) for name, array in arrays.items()},
                   present=torch.from_numpy(present), targets=torch.from_numpy(targets))

    def each(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def take(self, rows: Tensor, spare: int = 0) -> Batch:
        """The scans `rows`, padded no longer than they need and `spare`."""
        longest = max(1, int(self.present[rows].sum(dim=1).max()) + spare)
        return Batch(**{name: value[rows, :longest] for name, value in self.each().items()})

    def order_cranio_caudal(self) -> Batch:
        """Present detections first, by height."""
        order = self.centres[..., 2].masked_fill(~self.present, -math.inf).argsort(dim=1, descending=True, stable=True)
        moved = {}
        for name, value in self.each().items():
            index = order if value.ndim == 2 else order[..., None].expand_as(value)
            moved[name] = value.gather(1, index)
        return Batch(**moved)


def along(batch: Batch) -> Tensor:
    """(S, N) arc length from the first detection in units of 30 mm; padding stays at the end."""
    step = (batch.centres[:, 1:] - batch.centres[:, :-1]).norm(dim=-1)
    step = step * (batch.present[:, 1:] & batch.present[:, :-1])
    return F.pad(step.cumsum(dim=1), (1, 0)) / UNIT_MM


def _shifted(value: Tensor, places: int) -> Tensor:
    """(S, M, C) -> row i holds row i - places, NaN where there is none."""
    out = torch.full_like(value, math.nan)
    if places > 0:
        out[:, places:] = value[:, :-places]
    elif places < 0:
        out[:, :places] = value[:, -places:]
    else:
        out = value
    return out


def features(batch: Batch) -> Tensor:
    """(S, N, FEATURES): gaps and their ratios, directions, bends, place in the row, pedicles, regions, extents; 0 where unknown.

    Ratios carry no size; the few absolute distances are blurred by the scale augmentation. Directions tell up from down and
    front from back; the rotation augmentation makes the network indifferent to how a patient lies within the normal range.
    """
    x, present = batch.centres, batch.present
    count = present.sum(dim=1, keepdim=True)
    following = F.pad(present[:, 1:] & present[:, :-1], (0, 1))
    down = torch.where(following[..., None], F.pad(x[:, 1:], (0, 0, 0, 1)) - x, torch.nan)         # to the next detection
    gap = down.norm(dim=-1, keepdim=True)
    down = down / gap
    up = _shifted(down, 1)
    gaps = torch.cat([_shifted(gap, places) for places in (2, 1, 0, -1)], dim=-1)
    typical = gap.nanmedian(dim=1, keepdim=True).values
    local = gaps[..., 1:3].nanmean(dim=-1, keepdim=True)
    index = torch.arange(x.shape[1]).expand_as(present)
    place = torch.stack([index, count - 1 - index, count.expand_as(index)], dim=-1) / 10.0
    ends = torch.stack([index == 0, index == count - 1], dim=-1).float()
    left, right = (batch.left - x) / UNIT_MM, (batch.right - x) / UNIT_MM
    width = (batch.left - batch.right).norm(dim=-1, keepdim=True)
    unknown = torch.cat([value.isnan().any(dim=-1, keepdim=True) for value in (batch.left, batch.ctl, batch.extents)], dim=-1)
    logit = batch.ctl.logit(eps=0.001)
    fine = [(logit + 3.7).clamp(-2.0, 2.0), (logit - 4.6).clamp(-2.0, 2.0)]           # small and large values apart, magnified
    parts = [gaps / UNIT_MM, (gaps / typical).log(), (gaps[..., 2:3] / gaps[..., 1:2]).log(), up, down,
             3.0 * torch.linalg.cross(up, down), place, ends, left, right, width / UNIT_MM, (width / local).log(),
             logit / 4.0, *fine, batch.rank[..., None], batch.rank.isnan()[..., None].float(),
             (batch.extents / 50.0).log(), (batch.extents / local).log(), unknown.float()]
    return torch.nan_to_num(torch.cat(parts, dim=-1), nan=0.0, posinf=0.0, neginf=0.0).clamp(-5.0, 5.0)


@dataclass(frozen=True)
class Augmentation:
    """What training does to a scan. Angles in degrees, distances in mm, shares in [0, 1]."""

    tilt: float = 8.0                 # sigma of the rotation about x (nodding)
    turn: float = 5.0                 # sigma of the rotations about y and z
    scale: float = 0.08               # sigma of log body size
    noise: float = 2.0                # largest sigma of a centre's place
    window: float = 0.5               # share of scans cut to a random run of neighbours
    shortest: int = 2                 # shortest run
    drop: float = 0.3                 # share of scans that lose detections
    drop_rate: float = 0.2            # largest rate of detections lost there
    insert: float = 0.2               # share of scans that gain one false detection
    hide_pedicles: float = 0.5
    hide_ctl: float = 0.5
    hide_extents: float = 0.5
    hide_rank: float = 0.5
    exchange: float = 0.0             # share of scans whose region probabilities come from the same levels of other scans


def augment(batch: Batch, how: Augmentation, generator: torch.Generator) -> Batch:
    """A new random view of every scan; up-down is never exchanged, left-right is (a mirrored spine has the same levels).

    `batch` needs one empty place per scan for an inserted detection (`Batch.take(..., spare=1)`).
    """
    scans = len(batch.present)

    def happens(share: float) -> Tensor:
        return (torch.rand(scans, generator=generator) < share)[:, None, None]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    batch = _exchange_ctl(batch, happens(how.exchange)[..., 0], generator)
    batch = _insert(_lose(batch, how, generator), happens(how.insert)[:, 0, 0], generator)
    mirrored = happens(0.5)
    flip = torch.where(mirrored, torch.tensor([-1.0, 1.0, 1.0]), torch.ones(3))
    left = torch.where(mirrored, batch.right, batch.left)
    right = torch.where(mirrored, batch.left, batch.right)
    angles = normal(scans, 3) * torch.tensor([how.tilt, how.turn, how.turn]) * (math.pi / 180.0)
    size = (how.scale * normal(scans, 1, 1)).exp()
    sigma = how.noise * torch.rand(scans, 1, 1, generator=generator) ** 2
    centres, left, right = (flip * points @ _rotations(angles) * size + sigma * normal(*points.shape)
                            for points in (batch.centres, left, right))
    bare = happens(how.hide_pedicles)
    return replace(batch, centres=centres, left=torch.where(bare, torch.nan, left), right=torch.where(bare, torch.nan, right),
                   ctl=torch.where(happens(how.hide_ctl), torch.nan, batch.ctl),
                   rank=torch.where(happens(how.hide_rank)[..., 0], torch.nan, batch.rank),
                   extents=torch.where(happens(how.hide_extents), torch.nan, batch.extents * size)).order_cranio_caudal()


def _rotations(angles: Tensor) -> Tensor:
    """(S, 3) radians about x, y, z -> (S, 3, 3)."""
    out = torch.eye(3).expand(len(angles), 3, 3)
    for axis, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        one = torch.eye(3).repeat(len(angles), 1, 1)
        one[:, first, first], one[:, second, second] = cosine, cosine
        one[:, first, second], one[:, second, first] = -sine, sine
        out = out @ one
    return out


def _lose(batch: Batch, how: Augmentation, generator: torch.Generator) -> Batch:
    """Short fields of view and missed detections; at least one detection stays."""
    scans, longest = batch.present.shape
    count = batch.present.sum(dim=1)
    share = torch.rand(scans, 4, generator=generator)
    shortest = count.clamp(max=how.shortest)
    length = (shortest + share[:, 0] * (count - shortest + 1)).long().clamp(max=count)
    length = torch.where(share[:, 1] < how.window, length, count)
    first = (share[:, 2] * (count - length + 1)).long().clamp(max=count - length)
    index = torch.arange(longest)
    kept = (index >= first[:, None]) & (index < (first + length)[:, None])
    rate = torch.where(share[:, 3] < how.drop, how.drop_rate * torch.rand(scans, generator=generator), 0.0)
    survives = torch.rand(scans, longest, generator=generator) >= rate[:, None]
    present = kept & (survives | ~(kept & survives).any(dim=1, keepdim=True))
    return replace(batch, present=present, targets=batch.targets.masked_fill(~present, UNKNOWN)).order_cranio_caudal()


def _exchange_ctl(batch: Batch, chosen: Tensor, generator: torch.Generator) -> Batch:
    """Region probabilities of other detections of the same class, drawn within the batch.

    A detector that calls T12 lumbar does so in few scans; seen with the geometry of many, the mistake cannot be memorised.
    """
    known = (batch.targets != UNKNOWN) & ~batch.ctl.isnan().any(dim=-1) & chosen
    places = torch.nonzero(known.flatten())[:, 0]
    classes = batch.targets.flatten()[places]
    sorted_in_file = classes.argsort(stable=True)
    shuffled = torch.randperm(len(places), generator=generator)
    sorted_at_random = shuffled[classes[shuffled].argsort(stable=True)]
    ctl = batch.ctl.flatten(0, 1).clone()
    ctl[places[sorted_in_file]] = batch.ctl.flatten(0, 1)[places[sorted_at_random]]
    return replace(batch, ctl=ctl.view_as(batch.ctl))


def _insert(batch: Batch, chosen: Tensor, generator: torch.Generator) -> Batch:
    """One false detection in each chosen scan, between two detections and off the line, or beyond an end."""
    scans, longest = batch.present.shape
    count = batch.present.sum(dim=1)
    rows = torch.nonzero(chosen & (count > 1) & (count < longest))[:, 0]
    if len(rows) == 0:
        return batch
    count = count[rows]
    draw = torch.rand(len(rows), 2, generator=generator)
    upper = (draw[:, 0] * (count - 1)).long().clamp(max=count - 2)
    share = draw[:, 1] * 2.0 - 0.5                        # -0.5 .. 1.5 of the gap
    a, b = batch.centres[rows, upper], batch.centres[rows, upper + 1]
    centres, present, targets = batch.centres.clone(), batch.present.clone(), batch.targets.clone()
    off_line = torch.tensor([10.0, 10.0, 4.0]) * torch.randn(len(rows), 3, generator=generator)
    centres[rows, count] = a + share[:, None] * (b - a) + off_line
    present[rows, count], targets[rows, count] = True, NOT_A_VERTEBRA
    others = {}
    for name in (*POINTS[1:], "rank"):
        others[name] = getattr(batch, name).clone()
        # to the detector a false one looks like its neighbours; pedicles it has none
        others[name][rows, count] = others[name][rows, upper] if name in ("ctl", "extents") else torch.nan
    others["rank"][rows, count] = (0.7 + 0.3 * draw[:, 1]).where(~batch.rank[rows, upper].isnan(), torch.nan)
    return replace(batch, centres=centres, present=present, targets=targets, **others).order_cranio_caudal()
