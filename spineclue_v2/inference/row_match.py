"""Which vertebra of one scan is which of another scan of the same patient: by the shapes of the masks and the gaps between bodies.

Two masks of one vertebra differ by the noise of segmentation, those of neighbours by their shape. Every pair of vertebrae is laid upon each
other rigidly (each for itself, since the patient lies otherwise), and what distance is left between the surfaces tells how likely
they are one. All pairs of an offset of the two rows speak together; offsets, and that the rows share nothing, are the hypotheses.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..anatomy.vertebra import Vertebra
from ..anatomy.vertebral_gaps import round_positions, vertebral_gaps
from ..imageio.grid import ImageGrid
from .surface_distance import Shape, shape_of, surface_distances

NOISE_MM, NOISE_OF_VOXEL = 0.05, 0.08  # distance of two masks of one vertebra: so much, and so much of the longest side of a voxel
SAME_SPREAD, OTHER = 0.4, (-0.15, 0.3)  # spread of the log of that; mean and spread of log(distance / mm) of two vertebrae
GAP_MM, GAP_OF_VOXEL, OTHER_GAP_MM = 0.4, 0.3, 3.0     # spread of the difference of two gaps between body centres, likewise
MOST = 4.0               # that one pair or one gap says for or against: a mask or a body centre may be off
WORTH = 0.5              # of what pairs say together: segmentation errs alike in neighbours
SAME_PLACE_MM, MAYBE_PLACE_MM, OVERLAP = 5.0, 15.0, 0.7
FEWEST = 2               # whole vertebrae that both scans show
NOTHING = 0.0            # log prior of rows that share nothing, beside 0 of each offset


@dataclass(frozen=True)
class Row:
    """Vertebrae of a scan, cranio-caudal, on the grid of their masks; `voxel_mm`: longest side of the scan's own voxels."""

    vertebrae: Sequence[Vertebra]
    grid: ImageGrid
    voxel_mm: float

    @property
    def centres(self) -> np.ndarray:
        """(n, 3) body centres, LPS mm."""
        return np.array([v.known_body_centre for v in self.vertebrae]).reshape(-1, 3)


@dataclass(frozen=True)
class Match:
    """How two rows belong together: `pairs` of positions (in the first, in the second), the `confidence` of their offset, and whether
    the pairs lie in the `same_place`."""

    pairs: tuple[tuple[int, int], ...]
    confidence: float
    same_place: bool = False


def match_rows(first: Row, second: Row) -> Match | None:
    """The most likely offset of two rows (cranio-caudal, with masks); None where they show fewer than two whole vertebrae in common."""
    distances = surface_distances(shapes_of(first), shapes_of(second))
    voxel = max(first.voxel_mm, second.voxel_mm)
    centres = [row.centres for row in (first, second)]
    places = [round_positions(vertebral_gaps(row)) if len(row) else np.zeros(0, int) for row in centres]
    scored = []
    for offset in range(-int(places[1].max(initial=0)), int(places[0].max(initial=0)) + 1):
        pairs = [(i, j) for i, a in enumerate(places[0]) for j, b in enumerate(places[1]) if a == b + offset]
        if sum(np.isfinite(distances[pair]) for pair in pairs) >= FEWEST:
            scored.append((WORTH * score(pairs, distances, centres, voxel), pairs))
    if not scored:
        return None
    logs = np.array([value for value, _ in scored])
    best = int(logs.argmax())
    return Match(tuple(scored[best][1]), float(np.exp(logs[best] - np.logaddexp.reduce(np.append(logs, NOTHING)))))


def match_places(first: Row, second: Row) -> Match | None:
    """The pairs of two rows that lie in the same place: one patient in one frame of reference. None where they do not.

    The bodies of all vertebrae in the part that both scans show coincide, and at least half of the smaller mask lies in the other one:
    patients who lie alike by chance differ in this.
    """
    if not first.vertebrae or not second.vertebrae:
        return None
    distance = np.linalg.norm(first.centres[:, None] - second.centres[None], axis=2)
    nearest = distance.argmin(axis=1)
    pairs = [(i, int(j)) for i, j in enumerate(nearest) if distance[i, j] <= SAME_PLACE_MM and distance[:, j].argmin() == i]
    near = sum(row.min() <= MAYBE_PLACE_MM for row in distance)
    if len(pairs) < FEWEST or len(pairs) < near:
        return None
    overlaps = [_overlap(first.vertebrae[i], first.grid, second.vertebrae[j], second.grid) for i, j in pairs]
    known = [value for value in overlaps if value is not None]
    if len(known) < FEWEST or float(np.median(known)) < OVERLAP:
        return None
    return Match(tuple(pairs), float(np.clip(np.median(known), 0, 1)), True)


def shapes_of(row: Row) -> list[Shape | None]:
    """The shape of each vertebra; None without a mask, and where the border cuts the first or the last one, whose body it may cut."""
    found: list[Shape | None] = []
    for i, vertebra in enumerate(row.vertebrae):
        cut = vertebra.touches_border and i in (0, len(row.vertebrae) - 1)
        along = row.centres[max(i - 1, 0)] - row.centres[min(i + 1, len(row.centres) - 1)]
        found.append(None if cut or vertebra.mask is None else shape_of(vertebra, row.grid, along))
    return found


def _overlap(first: Vertebra, first_grid: ImageGrid, second: Vertebra, second_grid: ImageGrid) -> float | None:
    """Part of the first mask's voxels that lie in the second mask; None without masks."""
    if first.mask is None or second.mask is None or first.mask_start is None or second.mask_start is None:
        return None
    places = first_grid.index_to_world(np.argwhere(first.mask) + np.array(first.mask_start))
    index = np.round(second_grid.world_to_index(places)).astype(int) - np.array(second.mask_start)
    inside = (index >= 0).all(1) & (index < np.array(second.mask.shape)).all(1)
    return float(second.mask[tuple(index[inside].T)].sum() / len(places))


def score(pairs: Sequence[tuple[int, int]], distances: np.ndarray, centres: Sequence[np.ndarray], voxel_mm: float) -> float:
    """Log likelihood ratio of "these pairs are the same vertebrae" against "they are others". `voxel_mm`: of the coarser scan."""
    noise, own_gap = float(np.log(NOISE_MM + NOISE_OF_VOXEL * voxel_mm)), GAP_MM + GAP_OF_VOXEL * voxel_mm
    found = np.log([distances[pair] for pair in pairs if np.isfinite(distances[pair])])
    # Nothing is too much alike to be the same, nor too different to be another.
    same, other = _log_normal(np.maximum(found, noise), noise, SAME_SPREAD), _log_normal(np.minimum(found, OTHER[0]), *OTHER)
    change = np.array([np.linalg.norm(centres[0][k] - centres[0][i]) - np.linalg.norm(centres[1][m] - centres[1][j])
                       for (i, j), (k, m) in zip(pairs, pairs[1:], strict=False)])
    gaps = _log_normal(change, 0.0, own_gap) - _log_normal(change, 0.0, OTHER_GAP_MM)
    return float(np.clip(same - other, -MOST, MOST).sum() + np.clip(gaps, -MOST, MOST).sum())


def _log_normal(value: np.ndarray, mean: float, spread: float) -> np.ndarray:
    """Log density of a normal distribution, up to its constant."""
    return np.asarray(-0.5 * ((value - mean) / spread) ** 2 - np.log(spread))
