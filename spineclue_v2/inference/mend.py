"""Mending vertebra instances: stray pieces, processes with a neighbour's value, bodies that share a value or are torn in two.

A map is cut into segments: connected parts of one value, cut again where they hang together by a thin neck only. The largest segment of a
value is its core. Every other segment belongs to the vertebra that it touches most (the labelling with the smallest area between
different labels, Potts 1952), where the neck to its own value counts `NECK` times: facet joints touch as well, and stay what they are.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..anatomy.label_boxes import label_boxes
from ..anatomy.vertebral_gaps import GAP_RANGE_MM
from ..imageio.orientation import oriented_view
from ..utilities.triples import Box, box_slices, int_triple
from .bodies import Body, find_bodies
from .label_source import LabelSource

NECK = 2.0                  # a segment leaves its own value where it touches another this many times more
NECK_MM = 2.0               # parts are cut apart where the mask is thinner than twice this
SMALLEST_PART_ML = 0.2      # a part that is cut off at a neck has at least this
LOOSE_MM = 4.0              # a piece that touches nothing belongs to its value within this distance of it; beyond it is a stray
ROUNDS = 8
AT_END_MM = 5.0             # tools leave the scan's last slices empty
LITTLE = 0.1                # of the usual volume: what the border leaves of a vertebra is too little for a classifier
SLIVER_ML = 0.05            # less of a vertebra at the border is nothing


@dataclass
class Mending:
    """What was done: voxel counts in ml by kind, values that were parted or joined."""

    moved_ml: float = 0.0
    dropped_ml: float = 0.0
    filled_ml: float = 0.0
    parted: list[int] = field(default_factory=list)
    joined: list[tuple[int, int]] = field(default_factory=list)


def mend_values(array: np.ndarray, spacing: tuple[float, float, float], values: Collection[int]) -> tuple[np.ndarray, Mending]:
    """A copy of the label map with pieces given to the vertebra they belong to, strays gone and cavities filled.

    Args:
        array: label map (z, y, x).
        spacing: (z, y, x) mm.
        values: those of vertebrae, each of one vertebra; all others are left as they are.
    """
    voxel_ml = float(np.prod(spacing)) / 1000
    done = Mending()
    boxes = {v: b for v, b in label_boxes(array).items() if v in values}
    out = array.copy()
    if not boxes:
        return out, done
    low = np.min([[s.start for s in b] for b in boxes.values()], axis=0)
    high = np.max([[s.stop for s in b] for b in boxes.values()], axis=0)
    region = out[box_slices(low, high - low)]
    segments, owner = _segments(region, {v: _moved(b, low) for v, b in boxes.items()}, spacing, voxel_ml)
    sizes = np.bincount(segments.ravel(), minlength=len(owner)) * voxel_ml
    sizes[0] = 0
    label = _settle(owner, sizes, _contacts(segments, spacing), segments, spacing)
    changed = label != owner
    done.moved_ml = float(sizes[changed & (label > 0)].sum())
    done.dropped_ml = float(sizes[changed & (label == 0)].sum())
    inside = segments > 0
    region[inside] = label[segments[inside]]
    done.filled_ml = _fill(region, values) * voxel_ml
    return out, done


def _moved(box: Box, low: np.ndarray) -> Box:
    z, y, x = (slice(int(s.start - a), int(s.stop - a)) for s, a in zip(box, low, strict=True))
    return z, y, x


def _segments(region: np.ndarray, boxes: Mapping[int, Box], spacing: tuple[float, float, float],
              voxel_ml: float) -> tuple[np.ndarray, np.ndarray]:
    """Segment numbers (int32, 0 = none) and the value of each, `owner[0]` = 0."""
    import cc3d

    segments = np.zeros(region.shape, np.int32)
    owner = [0]
    for value, box in boxes.items():
        mask = region[box] == value
        pieces, count = cc3d.connected_components(np.ascontiguousarray(mask, dtype=np.uint8), connectivity=6, return_N=True)
        largest = int(np.argmax(np.bincount(pieces.ravel(), minlength=count + 1)[1:])) + 1
        parts, more = cut_at_necks(pieces == largest, spacing, SMALLEST_PART_ML / voxel_ml)
        numbers = np.where(parts > 0, parts + count, pieces)
        used, compact = np.unique(numbers[mask], return_inverse=True)
        segments[box][mask] = compact + len(owner)
        owner += [value] * len(used)
    return segments, np.array(owner)


def cut_at_necks(mask: np.ndarray, spacing: tuple[float, float, float], least: float) -> tuple[np.ndarray, int]:
    """Parts (int32, from 1) of a connected mask (z, y, x) that hang together by necks thinner than 2 `NECK_MM` only, and their number.

    A part has at least `least` voxels; every voxel goes to the part that is nearest.
    """
    import cc3d
    from scipy.ndimage import distance_transform_edt

    padded = np.pad(mask, 1)
    thick = distance_transform_edt(padded, sampling=spacing) > NECK_MM
    cores, count = cc3d.connected_components(thick.astype(np.uint8), connectivity=26, return_N=True)
    sizes = np.bincount(cores.ravel(), minlength=count + 1)
    keep = np.flatnonzero(sizes[1:] >= 0.3 * least) + 1
    if len(keep) < 2:
        return np.where(mask, 1, 0).astype(np.int32), 1
    table = np.zeros(count + 1, np.int32)
    table[keep] = np.arange(1, len(keep) + 1)
    seeds = table[cores]
    nearest = distance_transform_edt(seeds == 0, sampling=spacing, return_distances=False, return_indices=True)
    parts = np.where(padded, seeds[tuple(nearest)], 0)[1:-1, 1:-1, 1:-1]
    return parts.astype(np.int32), len(keep)


def _contacts(segments: np.ndarray, spacing: tuple[float, float, float]) -> dict[tuple[int, int], float]:
    """Area (mm2) between touching segments, both orders of each pair."""
    areas: dict[tuple[int, int], float] = {}
    count = int(segments.max()) + 1
    for axis in range(3):
        face = float(np.prod(spacing)) / spacing[axis]
        a, b = (np.moveaxis(segments, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        both = (a != b) & (a > 0) & (b > 0)
        keys, counts = np.unique(a[both].astype(np.int64) * count + b[both], return_counts=True)
        for key, number in zip(keys, counts, strict=True):
            i, j = int(key // count), int(key % count)
            areas[i, j] = areas.get((i, j), 0.0) + number * face
            areas[j, i] = areas.get((j, i), 0.0) + number * face
    return areas


def _settle(owner: np.ndarray, sizes: np.ndarray, areas: Mapping[tuple[int, int], float], segments: np.ndarray,
            spacing: tuple[float, float, float]) -> np.ndarray:
    """The value of each segment, 0 = stray."""
    label = owner.copy()
    cores = {int(value): int(max(np.flatnonzero(owner == value), key=lambda i: sizes[i])) for value in np.unique(owner) if value}
    touching: dict[int, list[tuple[int, float]]] = {}
    for (i, j), area in areas.items():
        touching.setdefault(i, []).append((j, area))
    loose = [int(i) for i in np.argsort(sizes) if i and i not in cores.values()]
    for _ in range(ROUNDS):
        before = label.copy()
        for i in loose:
            votes: dict[int, float] = {}
            for j, area in touching.get(i, ()):
                if label[j]:
                    votes[int(label[j])] = votes.get(int(label[j]), 0.0) + area * (NECK if label[j] == owner[i] else 1.0)
            if votes:
                label[i] = max(votes, key=lambda value: votes[value])
        if np.array_equal(before, label):
            break
    reached, edge = set(cores.values()), list(cores.values())
    while edge:
        edge = list({j for i in edge for j, _ in touching.get(i, ())} - reached)
        reached.update(edge)
    _place_lonely(label, [i for i in loose if i not in reached], cores, segments, spacing)
    return label


def _place_lonely(label: np.ndarray, lonely: list[int], cores: Mapping[int, int], segments: np.ndarray,
                  spacing: tuple[float, float, float]) -> None:
    """Pieces that hang together with no core: they stay near their own core, or near a piece that does, or level with it (a broken arch),
    else they are strays. Strays near each other do not keep each other."""
    if not lonely:
        return
    boxes = label_boxes(segments)
    left, staying = list(lonely), [k for k in range(1, len(label)) if k not in lonely]
    while kept := [i for i in left if _stays(i, label, staying, boxes, cores, segments, spacing)]:
        staying += kept
        left = [i for i in left if i not in kept]
    label[left] = 0


def _stays(i: int, label: np.ndarray, staying: Collection[int], boxes: Mapping[int, Box], cores: Mapping[int, int], segments: np.ndarray,
           spacing: tuple[float, float, float]) -> bool:
    """Whether segment `i` lies near one of its value among `staying`, or beside its core."""
    from scipy.ndimage import distance_transform_edt

    core, piece = boxes[cores[int(label[i])]], boxes[i]
    if _beside(piece, core, spacing):
        return True
    margin = [int(np.ceil(LOOSE_MM / s)) + 1 for s in spacing]
    low = np.maximum([s.start - m for s, m in zip(piece, margin, strict=True)], 0)
    high = np.minimum([s.stop + m for s, m in zip(piece, margin, strict=True)], segments.shape)
    around = segments[box_slices(low, high - low)]
    others = np.isin(around, [k for k in staying if label[k] == label[i]])
    return bool(others.any()) and float(distance_transform_edt(~others, sampling=spacing)[around == i].min()) <= LOOSE_MM


def _beside(piece: Box, core: Box, spacing: tuple[float, float, float]) -> bool:
    """Whether the piece's middle is level with the core and no farther behind or beside it than an arch reaches."""
    middle = [(s.start + s.stop) / 2 for s in piece]
    reach = [0.0 if axis == 0 else 15.0 / spacing[axis] for axis in range(3)]
    return all(s.start - r <= m <= s.stop + r for m, s, r in zip(middle, core, reach, strict=True))


def _fill(region: np.ndarray, values: Collection[int]) -> int:
    """Give background that a vertebra encloses on all sides to it; returns the number of voxels."""
    from ..anatomy.morphology import fill_holes

    filled = 0
    for value, box in label_boxes(region).items():
        if value not in values:
            continue
        view = region[box]
        new = fill_holes(view == value) & (view == 0)
        filled += int(new.sum())
        view[new] = value
    return filled


def mended_bodies(source: LabelSource, smallest_ml: float, ignore: Collection[int] = ()) -> tuple[list[Body], list[Body], Mending]:
    """Vertebrae of a map, mended but neither parted nor joined; what the border leaves of one below `smallest_ml`; and what was done.

    In a known scheme every value is one vertebra, or two where a second piece of half its size lies above or below it. In an unknown
    one bodies are what `find_bodies` finds.
    """
    view = oriented_view(source.labels)
    voxel_ml = float(np.prod(view.spacing)) / 1000
    boxes = label_boxes(view.array)
    levels = source.schemes[0].levels if source.schemes else dict.fromkeys(boxes)
    wanted = {value: box for value, box in boxes.items() if value in levels and value not in ignore}
    if not wanted:
        return [], [], Mending()
    found = find_bodies(source.labels, smallest_ml, [value for value in boxes if value not in wanted])[0]
    low, high = (np.array(fold([[getattr(s, end) for s in box] for box in wanted.values()], axis=0))
                 for fold, end in ((np.min, "start"), (np.max, "stop")))
    ids = np.zeros(high - low, np.uint16)
    inner = view.array[box_slices(low, high - low)]
    values = [0]
    for value, box in wanted.items():
        own = sorted((body for body in found if body.value == value), key=lambda body: -int(body.mask.sum()))
        if not own and not source.schemes:
            continue
        values.append(value)
        place = _moved(box, low)
        ids[place][inner[place] == value] = len(values) - 1
        for body in own[1:]:
            if not source.schemes or _second(own[0], body, view.spacing[0]):
                values.append(value)
                ids[_moved(body.box, low)][body.mask] = len(values) - 1
    mended, done = mend_values(ids, view.spacing, range(1, len(values)))
    large, small = [], []
    usual_ml = float(np.median(np.bincount(mended.ravel(), minlength=len(values))[1:])) * voxel_ml
    for number, box in label_boxes(mended).items():
        body = Body(int_triple([s.start for s in box] + low), mended[box] == number, values[number])
        volume = float(body.mask.sum()) * voxel_ml
        near = int(np.ceil(AT_END_MM / view.spacing[0]))
        at_end = body.start[0] < near or body.start[0] + body.mask.shape[0] > view.array.shape[0] - near
        if volume >= max(smallest_ml, LITTLE * usual_ml if at_end and source.schemes else 0.0):
            large.append(body)
        elif at_end and source.schemes and volume >= SLIVER_ML:
            small.append(body)
        else:
            done.dropped_ml += volume
    done.dropped_ml += sum(float((inner[_moved(box, low)] == value).sum()) * voxel_ml for value, box in wanted.items()
                           if value not in values)
    return large, small, done


def _second(largest: Body, other: Body, spacing_z: float) -> bool:
    """Whether another piece of the same value is a vertebra of its own: half as large, and as far above or below as one can be."""
    middle, own = (body.start[0] + body.mask.shape[0] / 2 for body in (other, largest))
    level = largest.start[0] <= middle <= largest.start[0] + largest.mask.shape[0]
    return bool(other.mask.sum() >= 0.5 * largest.mask.sum()) and not level and abs(middle - own) * spacing_z >= GAP_RANGE_MM[0]
