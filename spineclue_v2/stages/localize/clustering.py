"""From 2D boxes to vertebrae: dual-factor density clustering (SpineCLUE, stage 1).

Every box is a 3D point (slice position and box centre, mm) with a height and a width. Factor 1: density clustering on the
positions; the number of clusters is not assumed. Factor 2: inside a cluster, density clustering on (height, width) drops boxes
that cover several vertebrae or only a part of one. Decisions of ours: distances are divided by a scale per axis, because
neighbours are separated along the spine while one vertebra's boxes spread across it; l, the number of boxes a vertebra should
have, is the number of slices expected to cross it; merged and split clusters are mended from the spacing along the spine.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ...plans import LocalizeRun

TYPICAL_WIDTH_MM = {"sagittal": 40.0, "coronal": 55.0}  # thickness of a vertebra across the slices of that plane
SPLIT_HEIGHT_RATIO = 1.6      # taller than this times its neighbours: two vertebrae in one cluster
BACK_QUANTILE = 0.95
NEXT_SLICE = 1.25              # the next slice must lie within eps, with room for the boxes' own scatter
MERGE_SPACING_RATIO = 0.55    # closer than this times the local spacing: one vertebra in two clusters


@dataclass(frozen=True)
class Boxes:
    """Boxes of one scan in model-space millimetres (index times spacing): `plane` 0 sagittal, 1 coronal; all arrays (N,)."""

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
class Cluster:
    """A located vertebra: `start` and `stop` corners and centre (z, y, x) mm in model space, score 0..1, supporting box indices."""

    start: np.ndarray
    stop: np.ndarray
    score: float
    members: np.ndarray = field(repr=False)

    @property
    def centre(self) -> np.ndarray:
        return (self.start + self.stop) / 2

    @property
    def extent(self) -> np.ndarray:
        return self.stop - self.start


def expected_boxes(slice_gap_mm: dict[str, float]) -> float:
    """l: slices of both planes together that should cross a vertebra, from the gaps between the slices."""
    return sum(TYPICAL_WIDTH_MM[plane] / max(gap, 1e-6) for plane, gap in slice_gap_mm.items())


def density(points: np.ndarray, eps: float, expected: float) -> np.ndarray:
    """rho(b, eps) = N_eps / l for scaled points (N, 3): share of the expected boxes that lie within eps (the point included)."""
    from sklearn.neighbors import NearestNeighbors

    if not len(points):
        return np.zeros(0)
    graph = NearestNeighbors(radius=eps).fit(points).radius_neighbors_graph(points)
    return np.asarray(graph.sum(axis=1)).ravel() / expected


def cluster_boxes(boxes: Boxes, run: LocalizeRun, slice_gap_mm: dict[str, float], folds: int = 1) -> list[Cluster]:
    """Vertebrae from head to foot (z descending). `folds`: detectors whose boxes were pooled."""
    if not len(boxes):
        return []
    expected = expected_boxes(slice_gap_mm) * folds
    run = replace(run, axis_scale=reaching_scale(run, slice_gap_mm))
    labels = position_clusters(boxes.points, run.axis_scale, run.eps_mm, max(2, round(run.min_samples_share * expected)))
    clusters = []
    for label in range(labels.max() + 1):
        clusters += _make_clusters(boxes, np.flatnonzero(labels == label), run, expected)
    clusters.sort(key=lambda c: -c.centre[0])
    clusters = _split_tall(clusters, boxes, run, expected)
    return _merge_close(clusters, boxes, run, expected)


def reaching_scale(run: LocalizeRun, slice_gap_mm: dict[str, float]) -> tuple[float, float, float]:
    """The plan's axis scale, larger across where this scan's slices lie so far apart that the next one would be out of reach."""
    z, y, x = run.axis_scale
    return z, max(y, NEXT_SLICE * slice_gap_mm["coronal"] / run.eps_mm), max(x, NEXT_SLICE * slice_gap_mm["sagittal"] / run.eps_mm)


def position_clusters(points: np.ndarray, axis_scale: tuple[float, float, float], eps: float, min_samples: int) -> np.ndarray:
    """Factor 1: DBSCAN labels (N,) of points (N, 3) mm after division by `axis_scale`; -1 is noise."""
    from sklearn.cluster import DBSCAN

    return DBSCAN(eps=eps, min_samples=min_samples).fit_predict(points / np.asarray(axis_scale))


def size_inliers(sizes: np.ndarray, planes: np.ndarray, eps: float) -> np.ndarray:
    """Factor 2: per plane, the densest group of (height, width) relative to their medians. Bool (N,)."""
    from sklearn.cluster import DBSCAN

    kept = np.zeros(len(sizes), dtype=bool)
    for plane in (0, 1):
        index = np.flatnonzero(planes == plane)
        if len(index) < 3:
            kept[index] = True
            continue
        relative = sizes[index] / np.maximum(np.median(sizes[index], axis=0), 1e-6)
        labels = DBSCAN(eps=eps, min_samples=2).fit_predict(relative)
        if labels.max() < 0:
            kept[index] = True
            continue
        kept[index[labels == np.bincount(labels[labels >= 0]).argmax()]] = True
    return kept


def _make_clusters(boxes: Boxes, members: np.ndarray, run: LocalizeRun, expected: float) -> list[Cluster]:
    members = members[size_inliers(boxes.sizes[members], boxes.plane[members], run.size_eps)]
    if len(members) < max(2, run.min_samples_share * expected):
        return []
    return [_summarise(boxes, members, expected)]


def _summarise(boxes: Boxes, members: np.ndarray, expected: float) -> Cluster:
    """Corners from outer quantiles of the boxes' edges: single stray boxes do not move them.

    The back edge takes a far quantile, since only the few slices through the middle show the spinous process.
    """
    own = boxes.take(members)
    sagittal, coronal = own.plane == 0, own.plane == 1
    start, stop = np.zeros(3), np.zeros(3)
    start[0], stop[0] = np.quantile(own.z0, 0.15), np.quantile(own.z1, 0.85)
    for axis, inside in ((1, sagittal), (2, coronal)):
        across = ~inside
        if inside.any():
            far = BACK_QUANTILE if axis == 1 else 0.85
            start[axis], stop[axis] = np.quantile(own.low[inside], 0.15), np.quantile(own.high[inside], far)
        else:  # only the other plane saw it: the range of its slices
            start[axis], stop[axis] = own.across[across].min(), own.across[across].max()
    score = float(own.score.mean() * min(1.0, len(members) / (0.5 * expected)))
    return Cluster(start, stop, score, members)


def local_spacing(centres: np.ndarray) -> np.ndarray:
    """Expected distance to the next centre at each of the (n - 1) gaps: running median of the neighbouring gaps (mm)."""
    gaps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    return np.array([np.median(gaps[max(0, i - 2):i + 3]) for i in range(len(gaps))])


def _split_tall(clusters: list[Cluster], boxes: Boxes, run: LocalizeRun, expected: float) -> list[Cluster]:
    """A cluster much taller than its neighbours holds two vertebrae: cluster its boxes again with a smaller radius."""
    if len(clusters) < 3:
        return clusters
    result = []
    for i, cluster in enumerate(clusters):
        neighbours = [c.extent[0] for c in clusters[max(0, i - 2):i + 3] if c is not cluster]
        parts = [cluster]
        if cluster.extent[0] > SPLIT_HEIGHT_RATIO * np.median(neighbours):
            labels = position_clusters(boxes.points[cluster.members], run.axis_scale, 0.6 * run.eps_mm, 2)
            finer = [p for label in range(labels.max() + 1) for p in _make_clusters(boxes, cluster.members[labels == label], run, expected)]
            parts = finer if len(finer) > 1 else parts
        result += parts
    return sorted(result, key=lambda c: -c.centre[0])


def _merge_close(clusters: list[Cluster], boxes: Boxes, run: LocalizeRun, expected: float) -> list[Cluster]:
    """Two clusters much closer than the local spacing are one vertebra, unless together they would be too tall."""
    i = 0
    while len(clusters) > 1 and i < len(clusters) - 1:
        centres = np.array([c.centre for c in clusters])
        gap = float(np.linalg.norm(centres[i + 1] - centres[i]))
        wanted = float(np.clip(local_spacing(centres)[i], *run.spacing_between_mm))
        members = np.concatenate([clusters[i].members, clusters[i + 1].members])
        tall = np.median([c.extent[0] for c in clusters])
        merged = _summarise(boxes, members, expected)
        if gap < MERGE_SPACING_RATIO * wanted and merged.extent[0] < SPLIT_HEIGHT_RATIO * tall:
            clusters = [*clusters[:i], merged, *clusters[i + 2:]]
        else:
            i += 1
    return clusters
