"""From heat maps to a row: peaks, their best chain, and what that says of the vertebrae that localize found."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from ...anatomy.vertebra import Vertebra
from ...imageio.grid import ImageGrid
from ...utilities.triples import float_triple

BODY = 0                       # channel of the heat maps; 1 is the upper end of the sacrum
PEAK_MM = (3.0, 7.5, 7.5)      # half the box in which a peak is the highest (z, y, x)
LEAST_STEP_MM = 10.0           # of two centres
DOWN = 0.3                     # of a step's length goes down at least
ASIDE, ASIDE_MM = 0.6, 8.0     # a step may go sideways by so much of its length, and by the error
LONG_STEP_MM, PRICE_MM = 45.0, 50.0   # beyond the first a step passes over vertebrae: each of the second costs 1
FAINT, FAINT_MM, FAINT_OF = 0.65, 45.0, 3  # of the median of the highest peaks so near: lower ones are no bodies
SHORTEST = 0.33                # of the boxes' height around: two bodies are not closer
NEAREST = 7
SURE_PAIR, OWN_PART = 0.55, 0.3        # mean score of two neighbours that have none between them; so near one of them (of the gap) is it
SUPPORT, SUPPORT_MM = 0.15, 6.0        # a located body adds this to a peak at its place
CROWDED = 0.55                 # of the usual step: closer, two peaks are one body
NEAR = 0.6                     # of the usual step: a peak so near a located vertebra is that one's
AGREE = 0.5                    # of the located vertebrae have a peak, else the heat map has not understood this scan
FILL, FILLED = 1.35, 0.85      # of the usual step, and of the heights at its ends: room for a body, and one is seen
ROOM = 1.7                     # of the usual step: between nearer peaks there is no other body
OFF_MM, OFFSETS_OF = 4.0, 5    # farther from its peak a box is moved; so many others tell how boxes lie about bodies
FAINT_END = 0.45               # of the heights around: so bright, the map sees something where no peak is
EMPTY, SURE = 0.15, 0.8        # as before: nothing; of the usual score: the detector is sure of what the map hardly sees


@dataclass(frozen=True)
class Peak:
    """`place` (3,) index (z, y, x) with fractions; `height` 0..1; `support` by a located vertebra there."""

    place: np.ndarray
    height: float
    support: float = 0.0

    @property
    def gain(self) -> float:
        """What it is worth in a chain."""
        return self.height + self.support


@dataclass(frozen=True)
class Located:
    """What localize found: `bodies` (n, 3) indices (z, y, x), how high their boxes are (n,) mm, and their scores (n,)."""

    bodies: np.ndarray
    heights_mm: np.ndarray
    scores: np.ndarray

    def support(self, place: np.ndarray, spacing: float) -> float:
        """Up to `SUPPORT` where a located body lies at `place`."""
        distance = float(np.linalg.norm(self.bodies - place, axis=1).min()) * spacing
        return SUPPORT * float(np.exp(-0.5 * (distance / SUPPORT_MM) ** 2))

    def leaves_room(self, place: np.ndarray) -> bool:
        """Whether a body may lie at `place`: not between two neighbours that the detector is sure of, unless it is one of them."""
        order = np.argsort(self.bodies[:, 0])
        below = int((self.bodies[order, 0] < place[0]).sum())
        if not 0 < below < len(order):
            return True
        pair = order[below - 1:below + 1]
        way = self.bodies[pair[1]] - self.bodies[pair[0]]
        gap = max(float(np.linalg.norm(way)), 1e-6)
        near = float(np.abs((self.bodies[pair] - place) @ way).min()) / gap      # along the row: boxes tell less of front and back
        return near < OWN_PART * gap or float(self.scores[pair].mean()) < SURE_PAIR

    def height_mm(self, place: np.ndarray) -> float:
        """Median box height of the nearest `NEAREST`: some of them may hold two bodies, or half of one."""
        nearest = np.argsort(np.linalg.norm(self.bodies - place, axis=1))[:NEAREST]
        return float(np.median(self.heights_mm[nearest]))


def find_peaks(heat: np.ndarray, least: float, spacing: float) -> list[Peak]:
    """Local maxima of a heat map (z, y, x) that are at least so high; places to a fraction of a voxel."""
    box = [2 * round(half / spacing) + 1 for half in PEAK_MM]
    highest = (heat == ndimage.maximum_filter(heat, size=box)) & (heat >= max(least, 1e-6))
    return [Peak(_summit(heat, index), float(heat[tuple(index)])) for index in np.argwhere(highest)]


def _summit(heat: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Where the peak at `index` is highest, to a fraction of a voxel: a Gaussian's logarithm is a parabola along each axis."""
    place = index.astype(float)
    for axis in range(3):
        if 0 < index[axis] < heat.shape[axis] - 1:
            step = np.eye(3, dtype=int)[axis]
            low, here, high = np.log(np.maximum([heat[tuple(index - step)], heat[tuple(index)], heat[tuple(index + step)]], 1e-6))
            bend = low - 2 * here + high
            if bend < 0:
                place[axis] += float(np.clip(0.5 * (low - high) / bend, -0.5, 0.5))
    return place


def best_chain(peaks: Sequence[Peak], spacing: float, located: Located | None = None) -> list[Peak]:
    """The chain of peaks, downwards, whose heights less the penalties of its steps add up to most; empty when there is no peak.

    Exact, by dynamic programming over pairs; then, of two peaks that lie closer than bodies do there, the less convincing one goes.

    Args:
        peaks: in any order.
        spacing: mm per voxel.
        located: what localize found there; bodies are about as far from each other as they are high.
    """
    ordered = sorted(peaks, key=lambda peak: -peak.place[0])
    if located is not None:
        ordered = [replace(peak, support=located.support(peak.place, spacing)) for peak in ordered if located.leaves_room(peak.place)]
    ordered = _without_faint(ordered, spacing)
    best = [peak.gain for peak in ordered]
    before = [-1] * len(ordered)
    for j, lower in enumerate(ordered):
        for i in range(j):
            price = step_price((ordered[i].place - lower.place) * spacing)
            if price is not None and best[i] + lower.gain - price > best[j]:
                best[j], before[j] = best[i] + lower.gain - price, i
    chain: list[Peak] = []
    at = int(np.argmax(best)) if ordered else -1
    while at >= 0:
        chain.append(ordered[at])
        at = before[at]
    return _without_crowding(chain[::-1], spacing, located)


def _without_faint(peaks: list[Peak], spacing: float) -> list[Peak]:
    """Without peaks that are far lower than the bodies around: end plates and discs beside bright bodies."""
    kept = []
    for peak in peaks:
        around = sorted((other.height for other in peaks if abs(other.place[0] - peak.place[0]) * spacing <= FAINT_MM), reverse=True)
        if peak.height >= FAINT * float(np.median(around[:FAINT_OF])):
            kept.append(peak)
    return kept


def fill_gaps(chain: Sequence[Peak], heat: np.ndarray, spacing: float) -> list[Peak]:
    """The chain with a body more where a step has room for it and the map (z, y, x) is as high on the way as at its ends: the two peaks of
    bodies without a disc between them have become one. The first step is left alone: between C1 and C2 lies the dens."""
    filled = list(chain[:2])
    steps = np.linalg.norm(np.diff([peak.place for peak in chain], axis=0), axis=1) * spacing if len(chain) > 1 else np.zeros(0)
    for i in range(1, len(steps)):
        upper, lower = chain[i], chain[i + 1]
        if steps[i] >= FILL * _usual(steps, i):
            on_the_way = [upper.place + (lower.place - upper.place) * part for part in np.linspace(0.4, 0.6, 5)]
            heights = [_height(heat, place) for place in on_the_way]
            best = int(np.argmax(heights))
            if heights[best] >= FILLED * min(upper.height, lower.height):
                filled.append(Peak(on_the_way[best], heights[best]))
        filled.append(lower)
    return filled


def _height(heat: np.ndarray, place: np.ndarray) -> float:
    """The heat map within a voxel of `place`, in the plane across the row."""
    z, y, x = np.clip(np.rint(place).astype(int), 0, np.array(heat.shape) - 1)
    return float(heat[z, max(0, y - 1):y + 2, max(0, x - 1):x + 2].max())


def step_price(step: np.ndarray) -> float | None:
    """Penalty of a step (z, y, x) mm, downwards positive; None where no two bodies can lie so."""
    length = float(np.linalg.norm(step))
    if length < LEAST_STEP_MM or step[0] < DOWN * length or abs(step[2]) > ASIDE * length + ASIDE_MM:
        return None
    return max(0.0, length - LONG_STEP_MM) / PRICE_MM


def _without_crowding(chain: list[Peak], spacing: float, located: Located | None) -> list[Peak]:
    while len(chain) > 2:
        steps = np.linalg.norm(np.diff([peak.place for peak in chain], axis=0), axis=1) * spacing
        least = np.array([CROWDED * _usual(steps, i) for i in range(len(steps))]) if len(chain) > 3 else np.zeros(len(steps))
        if located is not None:
            middles = [(upper.place + lower.place) / 2 for upper, lower in zip(chain[:-1], chain[1:], strict=True)]
            least = np.maximum(least, [SHORTEST * located.height_mm(middle) for middle in middles])
        i = int(np.argmin(steps / np.maximum(least, 1e-6)))
        if steps[i] >= least[i]:
            break
        weaker = i if chain[i].gain < chain[i + 1].gain else i + 1
        chain = [peak for k, peak in enumerate(chain) if k != weaker]
    return chain


def _usual(steps: np.ndarray, i: int) -> float:
    """Median of the up to three steps to each side, without the one in question."""
    around = np.concatenate([steps[max(0, i - 3):i], steps[i + 1:i + 4]])
    return float(np.median(around)) if len(around) else float(steps[i])


def reconcile(located: Sequence[Vertebra], chain: Sequence[Peak], heat: np.ndarray, geometry: ImageGrid) -> list[Vertebra]:
    """Located vertebrae with those that only the chain has, without those that lie between its peaks and on none.

    Args:
        located: cranio-caudal, with `body_centre` and `box_centre`.
        chain: peaks, cranio-caudal.
        heat: (z, y, x) of the bodies.
        geometry: of `heat`.

    A vertebra that is added has the height of its peak as `score`; where its mask's middle will be is taken from the nearest others.
    Where the map does not agree with half of what was located, it has not understood the scan, and everything stays as it was.
    """
    if len(chain) < 2 or not located:
        return list(located)
    peaks = geometry.index_to_world(np.array([peak.place for peak in chain]))
    bodies = np.array([v.known_body_centre for v in located])
    steps = np.linalg.norm(np.diff(peaks, axis=0), axis=1)
    owner = _match(bodies, peaks, NEAR * float(np.median(steps)))
    matched = [i for i, k in enumerate(owner) if k is not None]
    if len(matched) < max(1.0, AGREE * len(located)):
        return list(located)
    offsets = np.array([np.array(located[i].box_centre) - bodies[i] for i in matched])
    usual_score = float(np.median([located[i].score for i in matched]))

    def on_peak(vertebra: Vertebra | None, k: int) -> Vertebra:
        """A vertebra on a peak; where localize was far off it, or passed over it, its box lies about it as the nearest boxes lie."""
        place = float_triple(peaks[k])
        if vertebra is not None and np.linalg.norm(peaks[k] - vertebra.known_body_centre) <= OFF_MM:
            return replace(vertebra, body_centre=place, centre_score=chain[k].height)
        near = np.argsort(np.linalg.norm(bodies[matched] - peaks[k], axis=1))[:OFFSETS_OF]
        box = float_triple(peaks[k] + np.median(offsets[near], axis=0))
        if vertebra is not None:
            return replace(vertebra, box_centre=box, body_centre=place, centre_score=chain[k].height)
        return Vertebra(box, located[matched[near[0]]].extent, chain[k].height, body_centre=place, centre_score=chain[k].height)

    kept = [located[i] if k is None else on_peak(located[i], k) for i, k in enumerate(owner)
            if k is not None or _has_room(located[i], usual_score, chain, peaks, heat, geometry)]
    kept += [on_peak(None, k) for k in sorted(set(range(len(peaks))) - {k for k in owner if k is not None})]
    return sorted(kept, key=lambda v: -v.known_body_centre[2])


def _match(bodies: np.ndarray, peaks: np.ndarray, reach: float) -> list[int | None]:
    """For each body (n, 3) the peak (m, 3) that is its own, None where there is none within `reach`; both keep their order, and as many
    as possible find each other, as near as possible."""
    distance = np.linalg.norm(bodies[:, None] - peaks[None], axis=-1)
    gain = np.where(distance < reach, 2.0 - distance / reach, -np.inf)
    n, m = gain.shape
    best = np.zeros((n + 1, m + 1))
    for i in range(n - 1, -1, -1):
        for j in range(m - 1, -1, -1):
            best[i, j] = max(best[i + 1, j], best[i, j + 1], gain[i, j] + best[i + 1, j + 1])
    owner: list[int | None] = [None] * n
    i = j = 0
    while i < n and j < m:
        if np.isfinite(gain[i, j]) and best[i, j] == gain[i, j] + best[i + 1, j + 1]:
            owner[i] = j
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return owner


def _has_room(vertebra: Vertebra, usual_score: float, chain: Sequence[Peak], peaks: np.ndarray, heat: np.ndarray,
              geometry: ImageGrid) -> bool:
    """Whether a located vertebra without a peak may be one: no two peaks that are neighbours leave it no room, and either the map sees
    something there or the detector was as sure of it as of the others (`usual_score`)."""
    place = np.array(vertebra.known_body_centre)
    steps = np.linalg.norm(np.diff(peaks, axis=0), axis=1)
    above = int((peaks[:, 2] > place[2]).sum()) - 1
    if 0 <= above < len(steps) and steps[above] <= ROOM * _usual(steps, above):
        return False
    if np.abs(peaks[:, 2] - place[2]).min() < CROWDED * np.median(steps):     # boxes tell less of front and back
        return False
    index = np.clip(np.rint(geometry.world_to_index(place)).astype(int), 0, np.array(heat.shape) - 1)
    nearest = np.argsort(np.linalg.norm(peaks - place, axis=1))[:FAINT_OF]
    seen = float(heat[tuple(index)]) / float(np.median([chain[k].height for k in nearest]))
    return seen >= FAINT_END or (seen >= EMPTY and vertebra.score >= SURE * usual_score)
