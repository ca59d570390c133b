"""From 2D boxes to vertebrae: dual-factor density clustering (SpineCLUE, stage 1).

Every box is a 3D point (slice position and a position in the slice, mm) with a height and a width. Factor 1: density clustering on
the positions; the number of clusters is not assumed. Factor 2: inside a cluster, density clustering on (height, width) finds the
usual size, and boxes that cover several vertebrae or only a part of one are dropped.

Decisions of ours: a box stands for the vertebral *body*, not for its own middle. A vertebra's sections differ (body with spinous
process, body with facets, process alone), so their middles scatter by more than half the distance to the next vertebra, while the
body's upper end plate is the upper edge of every section through the body. Coronal boxes behind the bodies are left out. Distances
are divided by a scale per axis, because neighbours are separated along the spine while one vertebra's boxes spread across it; l,
the number of boxes a vertebra should have, is the number of slices expected to cross its body; merged and split clusters are
fixed from the spacing along the spine.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .density import density_labels
from .plan import LocalizeRun

BODY_MM = {"sagittal": 30.0, "coronal": 22.0}  # how far a body reaches across the slices of that plane
LINK = 1.25                   # the next slice lies within eps, with a quarter to spare
BODY_DEPTH_FRACTION = 0.42       # of a section's depth from the front of the body to the spinous process
NEAR_MM = 20.0                # boxes this near along the spine tell where the front of the bodies is
FEW = 4                       # sagittal boxes needed to tell it at all
LEAST_BOXES = 3
ONE_PLANE = 0.6               # what hits in a single plane are worth
SIZE_RANGE = (0.5, 1.6)       # heights that belong to one vertebra, relative to the densest size
WIDTH_RANGE = (0.4, 2.5)
SPACING_PER_HEIGHT = 1.15     # distance of neighbours from the height of a body: body and disc
MODE_WIDTH, MODE_STEP = 0.14, 0.5   # of the spacing: blur of the bodies' heights, and the least distance of two vertebrae in a cluster
MODE_LEAST, VALLEY = 0.25, 0.75     # of the highest mode; of the lower of two neighbouring modes
MERGE_SPACING_RATIO = 0.55    # closer than this times the spacing: one vertebra in two clusters
NEIGHBOURS = 3                # steps to each side that tell the spacing
MERGE_ACROSS_MM = 50.0        # the two halves of one vertebra lie no farther apart from left to right


@dataclass(frozen=True)
class Boxes:
    """Boxes of one scan in network space millimetres (index times spacing): `plane` 0 sagittal, 1 coronal; all arrays (N,)."""

    plane: np.ndarray
    across: np.ndarray                 # slice position: x of sagittal, y of coronal slices
    z0: np.ndarray
    z1: np.ndarray
    low: np.ndarray                    # in-plane edges: y of sagittal, x of coronal slices
    high: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def take(self, index: np.ndarray) -> Boxes:
        return Boxes(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @property
    def points(self) -> np.ndarray:
        """Box centres (N, 3) as (z, y, x) mm."""
        inside = (self.low + self.high) / 2
        sagittal = self.plane == 0
        return np.stack([(self.z0 + self.z1) / 2, np.where(sagittal, inside, self.across), np.where(sagittal, self.across, inside)], 1)

    @property
    def sizes(self) -> np.ndarray:
        """Heights and widths (N, 2) mm."""
        return np.stack([self.z1 - self.z0, self.high - self.low], axis=1)

    @staticmethod
    def concatenate(parts: list[Boxes]) -> Boxes:
        names = list(Boxes.__dataclass_fields__)
        return Boxes(*(np.concatenate([getattr(p, n) for p in parts]) if parts else np.zeros(0) for n in names))


@dataclass(frozen=True)
class Bodies:
    """What each box says about the vertebral body it cuts: `centre` (N, 3) (z, y, x) mm, local body `height` (N,) mm, and whether it
    cuts a body at all (`usable`, (N,))."""

    centre: np.ndarray
    height: np.ndarray
    usable: np.ndarray


@dataclass(frozen=True)
class Cluster:
    """A located vertebra: `start` and `stop` corners (z, y, x) mm in network space, score 0..1, the centre and height of its body, and
    the indices of its hits."""

    start: np.ndarray
    stop: np.ndarray
    score: float
    body: np.ndarray
    body_height: float
    members: np.ndarray = field(repr=False)

    @property
    def centre(self) -> np.ndarray:
        return (self.start + self.stop) / 2

    @property
    def extent(self) -> np.ndarray:
        return self.stop - self.start


def cluster_boxes(boxes: Boxes, run: LocalizeRun, slice_gap_mm: Mapping[str, float], folds: int = 1) -> list[Cluster]:
    """Vertebrae in cranio-caudal order (z descending). `folds`: detectors whose boxes were pooled.

    Evidence (`score`) is the mean over the folds. How many boxes a vertebra needs grows with the square root of the folds only: their true
    boxes lie together and false ones seldom do, so that one which part of the folds miss is kept.
    """
    if not len(boxes):
        return []
    # A fixed order of the boxes: the density clustering gives a box between two clusters to the first that reaches it.
    order = np.lexsort((boxes.score, boxes.high, boxes.low, boxes.z1, boxes.z0, boxes.across, boxes.plane))
    boxes = boxes.take(order)
    expected, needed = expected_boxes(slice_gap_mm) * folds, run.min_samples_fraction / np.sqrt(folds)
    bodies = body_places(boxes)
    index = np.flatnonzero(bodies.usable)
    scale = linked_scale(run, slice_gap_mm)
    labels = position_clusters(bodies.centre[index], scale, run.eps_mm, max(2, round(needed * expected)))
    groups = []
    for label in range(labels.max(initial=-1) + 1):
        members = index[labels == label]
        members = members[size_inliers(boxes.sizes[members], boxes.plane[members], run.size_eps)]
        groups += _split(members, bodies, run)
    clusters = [_summarise(boxes, bodies, group, expected) for group in groups if len(group) >= 2]
    clusters.sort(key=lambda c: -c.body[0])
    clusters = [c for c in _merge(clusters, boxes, bodies, run, expected)
                if len(c.members) >= LEAST_BOXES and hits(boxes.plane[c.members], slice_gap_mm, folds) >= needed]
    return [Cluster(c.start, c.stop, c.score, c.body, c.body_height, np.sort(order[c.members])) for c in clusters]


def expected_boxes(slice_gap_mm: Mapping[str, float]) -> float:
    """l: slices of both planes together that should cross a vertebral body, from the gaps between the slices."""
    return sum(BODY_MM[plane] / max(gap, 1e-6) for plane, gap in slice_gap_mm.items())


def hits(planes: np.ndarray, slice_gap_mm: Mapping[str, float], folds: int = 1) -> float:
    """Share of the expected boxes that a cluster has, from the planes (n,) of its boxes.

    A vertebra cut by the field's side shows in one plane alone: that plane by itself counts by `ONE_PLANE`.
    """
    found = np.bincount(planes.astype(int), minlength=2)
    wanted = np.array([BODY_MM[plane] / max(slice_gap_mm[plane], 1e-6) if plane in slice_gap_mm else np.inf
                       for plane in ("sagittal", "coronal")]) * folds
    return max(float(found.sum() / wanted[np.isfinite(wanted)].sum()), ONE_PLANE * float((found / wanted).max()))


def linked_scale(run: LocalizeRun, slice_gap_mm: Mapping[str, float]) -> np.ndarray:
    """The plan's axis scale (z, y, x), in y and x made larger where this scan's slices lie so far apart that the next one would be
    out of reach (coronal slices follow each other along y, sagittal ones along x)."""
    needed = [0.0] + [LINK * slice_gap_mm.get(plane, 0.0) / run.eps_mm for plane in ("coronal", "sagittal")]
    return np.maximum(np.asarray(run.axis_scale, dtype=float), needed)


def body_places(boxes: Boxes) -> Bodies:
    """Where each box has the vertebral body.

    The sagittal boxes near a box tell where the bodies' front is and how deep the bodies are; coronal boxes between front and back
    of the bodies are body sections as they are, and tell the bodies' height. A sagittal box has its body at its upper front corner.
    """
    centre, height, usable = boxes.points, boxes.z1 - boxes.z0, np.ones(len(boxes), dtype=bool)
    sagittal = boxes.plane == 0
    if sagittal.sum() < FEW:
        return Bodies(centre, height, usable)
    tops = boxes.z1[sagittal]
    front = _local_quantile(boxes.z1, tops, boxes.low[sagittal], 0.3, NEAR_MM)
    depth = BODY_DEPTH_FRACTION * _local_quantile(boxes.z1, tops, (boxes.high - boxes.low)[sagittal], 0.7, NEAR_MM)
    usable = np.where(sagittal, boxes.low <= front + 0.7 * depth, (boxes.across >= front - 3) & (boxes.across <= front + depth))
    sections = usable & ~sagittal
    if sections.sum() >= FEW:
        body_height = _local_quantile(boxes.z1, boxes.z1[sections], height[sections], 0.5, NEAR_MM)
    else:  # sagittal boxes alone: the lowest of them hold no process
        body_height = _local_quantile(boxes.z1, tops, height[sagittal], 0.25, NEAR_MM)
    centre[sagittal, 0] = boxes.z1[sagittal] - np.minimum(height, body_height)[sagittal] / 2
    centre[sagittal, 1] = boxes.low[sagittal] + depth[sagittal] / 2
    return Bodies(centre, body_height, usable)


def _local_quantile(at: np.ndarray, positions: np.ndarray, values: np.ndarray, share: float, reach: float) -> np.ndarray:
    """Quantile `share` of those `values` whose `positions` lie within `reach` of each point of `at`, of at least the FEW nearest."""
    order = np.argsort(positions, kind="stable")
    positions, values = positions[order], values[order]
    middle = np.searchsorted(positions, at)
    first = np.minimum(np.searchsorted(positions, at - reach), np.maximum(0, middle - FEW))
    stop = np.maximum(np.searchsorted(positions, at + reach), np.minimum(len(positions), middle + FEW))
    known: dict[tuple[int, int], float] = {}
    for window in zip(first.tolist(), stop.tolist(), strict=True):
        if window not in known:
            known[window] = float(np.quantile(values[slice(*window)], share))
    return np.array([known[window] for window in zip(first.tolist(), stop.tolist(), strict=True)])


def position_clusters(points: np.ndarray, axis_scale: np.ndarray, eps: float, min_samples: int) -> np.ndarray:
    """Factor 1: DBSCAN labels (N,) of points (N, 3) mm after division by `axis_scale`; -1 is noise."""
    return density_labels(points / np.asarray(axis_scale), eps, min_samples)


def size_inliers(sizes: np.ndarray, planes: np.ndarray, eps: float) -> np.ndarray:
    """Factor 2, per plane: the densest group of (height, width) gives the usual size; bool (N,) of the boxes that agree with it.

    Sections of one vertebra have several sizes (with and without processes), so boxes need not be in that group themselves.
    """
    kept = np.zeros(len(sizes), dtype=bool)
    for plane in (0, 1):
        index = np.flatnonzero(planes == plane)
        if not len(index):
            continue
        logs = np.log(np.maximum(sizes[index], 1e-6))
        labels = density_labels(logs, eps, 2)
        if labels.max() >= 0:
            usual = np.median(logs[labels == np.bincount(labels[labels >= 0]).argmax()], axis=0)
        else:
            usual = np.median(logs, axis=0)
        ratio = np.exp(logs - usual)
        kept[index] = ((ratio[:, 0] > SIZE_RANGE[0]) & (ratio[:, 0] < SIZE_RANGE[1])
                       & (ratio[:, 1] > WIDTH_RANGE[0]) & (ratio[:, 1] < WIDTH_RANGE[1]))
    return kept


def _split(members: np.ndarray, bodies: Bodies, run: LocalizeRun) -> list[np.ndarray]:
    """Cut a cluster where the box that tied it together is gone, and wherever its bodies gather at several heights.

    Small vertebrae lie closer than the longest chain of boxes that DBSCAN follows: a cluster may hold any number of them.
    """
    members = members[np.argsort(bodies.centre[members, 0], kind="stable")]
    parts = np.split(members, np.flatnonzero(np.diff(bodies.centre[members, 0]) > run.eps_mm) + 1)
    result = []
    for part in parts:
        sides = _density_modes(bodies.centre[part, 0], _spacing(np.median(bodies.height[part]), run)) if len(part) else []
        if len(sides) < 2:
            result.append(part)
        else:
            result += [_without_bridge(part[side], bodies, run.eps_mm) for side in sides]
    return result


def _spacing(height: float, run: LocalizeRun) -> float:
    """Distance of neighbours whose bodies are `height` mm high."""
    return float(np.clip(SPACING_PER_HEIGHT * height, *run.spacing_between_mm))


def _density_modes(heights: np.ndarray, spacing: float) -> list[np.ndarray]:
    """Indices of sorted `heights` (n,) per mode of a Gaussian density, cut in the valleys between.

    Modes count when they lie `MODE_STEP` of the spacing apart and the valley between is clearly lower than both.
    """
    width = MODE_WIDTH * spacing
    grid = np.arange(heights[0] - width, heights[-1] + width, 0.5)
    level = np.exp(-0.5 * ((grid[:, None] - heights[None]) / width) ** 2).sum(1)
    modes: list[int] = []
    for peak in sorted(range(1, len(grid) - 1), key=lambda i: -level[i]):
        if not level[peak - 1] < level[peak] >= level[peak + 1] or level[peak] < MODE_LEAST * level.max():
            continue
        if all(abs(grid[peak] - grid[m]) >= MODE_STEP * spacing
               and level[min(peak, m):max(peak, m) + 1].min() < VALLEY * min(level[peak], level[m]) for m in modes):
            modes.append(peak)
    modes.sort()
    cuts = [grid[a + int(level[a:b + 1].argmin())] for a, b in zip(modes[:-1], modes[1:], strict=True)]
    return np.split(np.arange(len(heights)), np.searchsorted(heights, cuts))


def _without_bridge(members: np.ndarray, bodies: Bodies, eps: float) -> np.ndarray:
    """One side of a split cluster without the boxes on the way to the other: those within `eps` of the height where most are."""
    heights = bodies.centre[members, 0]
    near = np.abs(heights[:, None] - heights[None]) <= eps
    return members[near[int(near.sum(1).argmax())]]


def _summarise(boxes: Boxes, bodies: Bodies, members: np.ndarray, expected: float) -> Cluster:
    """Corners from the outer parts of the boxes' edges: single stray boxes do not move them."""
    own = boxes.take(members)
    sagittal, coronal = own.plane == 0, own.plane == 1
    start, stop = np.zeros(3), np.zeros(3)
    whole = sagittal if sagittal.any() else coronal  # only sagittal sections show body and spinous process at once
    start[0], stop[0] = np.quantile(own.z0[whole], 0.2), np.quantile(own.z1[whole], 0.95)
    # Few slices reach the tip of the spinous process, many the front of the body.
    for axis, inside, share in ((1, sagittal, 0.95), (2, coronal, 0.85)):
        if inside.any():
            start[axis], stop[axis] = np.quantile(own.low[inside], 0.15), np.quantile(own.high[inside], share)
        else:  # only the other plane saw it: the range of its slices
            start[axis], stop[axis] = own.across.min(), own.across.max()
    score = float(own.score.mean() * min(1.0, len(members) / (0.5 * expected)))
    return Cluster(start, stop, score, np.median(bodies.centre[members], axis=0), float(np.median(bodies.height[members])), members)


def _merge(clusters: list[Cluster], boxes: Boxes, bodies: Bodies, run: LocalizeRun, expected: float) -> list[Cluster]:
    """Join neighbours whose bodies lie much closer than a body and a disc are high, closest first.

    Distances are taken in the sagittal plane: the two sides of one vertebra lie apart from left to right, two vertebrae do not.
    """
    clusters = list(clusters)
    while len(clusters) > 1:
        ratios = []
        steps = np.linalg.norm(np.diff([c.body[:2] for c in clusters], axis=0), axis=1)
        for i, (upper, lower) in enumerate(zip(clusters[:-1], clusters[1:], strict=True)):
            step = np.abs(upper.body - lower.body)
            wanted = _spacing(max(upper.body_height, lower.body_height), run)
            around = np.concatenate([steps[max(0, i - NEIGHBOURS):i], steps[i + 1:i + 1 + NEIGHBOURS]])
            if len(around) >= NEIGHBOURS:  # sections with pedicles are higher than bodies: the neighbours' spacing knows better
                wanted = min(wanted, max(float(np.median(around)), run.spacing_between_mm[0]))
            ratios.append(np.hypot(step[0], step[1]) / wanted if step[2] < MERGE_ACROSS_MM else np.inf)
        i = int(np.argmin(ratios))
        if ratios[i] >= MERGE_SPACING_RATIO:
            break
        members = np.concatenate([clusters[i].members, clusters[i + 1].members])
        clusters[i:i + 2] = [_summarise(boxes, bodies, members, expected)]
    return clusters
