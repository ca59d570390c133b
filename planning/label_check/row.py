"""The measured vertebrae of one label map, and what their neighbours let expect of each."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spineclue_v2.anatomy import LABEL_OF_NAME, NAME_OF_LABEL, ORDER_INDEX, VERTEBRA_LABELS
from spineclue_v2.anatomy.label_boxes import label_boxes
from spineclue_v2.imageio.orientation import oriented_view
from spineclue_v2.imageio.volume import ImageGrid, Volume
from spineclue_v2.utilities.triples import Box, float_triple, int_triple

from ..fingerprint import measure_vertebra

GRID_MM = 1.4              # voxels finer than half of this are thinned out: masks are judged on about this grid
SACRUM = LABEL_OF_NAME["sacrum"]
MARGIN = 2
ISLAND_MM = 8.0            # a loose piece lies this far from the largest one of its level
LEVEL_MM = 18.0            # a piece at the height of the largest one counts as a loose one from this distance only: an arch, broken off
UNLIKE = ("C1", "C2")      # no neighbour tells their size, and they tell no neighbour's
SECOND_BODY = 0.3          # a piece of this share of the largest is a body of its own


@dataclass(frozen=True)
class Row:
    """One label map.

    Attributes:
        case: its name.
        labels: VerSe's values of vertebrae and sacrum, LPS, thinned to about `GRID_MM` and cut out round the labels.
        vertebrae: `fingerprint.measure_vertebra` of each level, cranio-caudal by name.
        contacts: area (mm2) between two levels, by pair of names in the order of `vertebrae`.
        doubled: levels with a second body: a piece of `SECOND_BODY` of the largest one, above or below it; [ml of both].
        loose: pieces (ml) of each level that lie `ISLAND_MM` and more from the rest; nothing else here counts them.
        above: share of each level's voxels that lies above the body centre of the level before it, along the line between both bodies.
    """

    case: str
    labels: Volume
    vertebrae: Mapping[str, Mapping[str, Any]]
    contacts: Mapping[tuple[str, str], float] = field(default_factory=dict)
    loose: Mapping[str, list[float]] = field(default_factory=dict)
    doubled: Mapping[str, list[float]] = field(default_factory=dict)
    above: Mapping[str, float] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return list(self.vertebrae)

    def expected(self, name: str, key: str, axis: int | None = None) -> float | None:
        """What a value (`volume_ml`, or `extent_mm` along `axis`) of `name` should be by its neighbours.

        The weighted mean, in logarithms, of up to two whole ones on each side within three levels; None with fewer than two.
        """
        place = ORDER_INDEX[name]
        weights, values = [], []
        for side in (-1, 1):
            near = sorted((abs(ORDER_INDEX[n] - place), n) for n in self.names
                          if n not in UNLIKE and 0 < side * (ORDER_INDEX[n] - place) <= 3 and not self.vertebrae[n]["touches_border"])
            for distance, other in near[:2]:
                measured = self.vertebrae[other][key]
                weights.append(1.0 / distance)
                values.append(np.log(max(float(measured if axis is None else measured[axis]), 1e-3)))
        return float(np.exp(np.average(values, weights=weights))) if len(values) > 1 else None

    def ratio(self, name: str, key: str, axis: int | None = None) -> float | None:
        """The value over what is expected."""
        expected, value = self.expected(name, key, axis), self.vertebrae[name][key]
        return None if expected is None else float(value if axis is None else value[axis]) / expected


def measure_row(case: str, labels: Volume) -> Row:
    """Measure a label map of VerSe's values, any orientation; other values are left out."""
    view = thinned(oriented_view(labels))
    found, loose, doubled = {}, {}, {}
    for value, box in label_boxes(view.array).items():
        if value in VERTEBRA_LABELS:
            pieces, bodies = _take_out_islands(view, value, box)
            if pieces:
                loose[NAME_OF_LABEL[value]] = pieces
            if bodies:
                doubled[NAME_OF_LABEL[value]] = bodies
    for value, box in label_boxes(view.array).items():
        if value in VERTEBRA_LABELS:
            found[NAME_OF_LABEL[value]] = measure_vertebra(view, value, box)
    vertebrae = {name: found[name] for name in sorted(found, key=ORDER_INDEX.__getitem__)}
    return Row(case, view, vertebrae, contacts(view), loose, doubled, above_the_one_before(view, vertebrae))


def _take_out_islands(view: Volume, value: int, box: Box) -> tuple[list[float], list[float]]:
    """Set pieces of a level that lie far from its largest one to background in `view`; returns their volumes (ml), largest first.

    A second piece of `SECOND_BODY` of the largest is no island: above or below it is another vertebra, and both volumes come second.
    """
    import cc3d
    from scipy.ndimage import distance_transform_edt

    region, voxel_ml = view.array[box], float(np.prod(view.spacing)) / 1000
    pieces, count = cc3d.connected_components(np.ascontiguousarray(region == value, dtype=np.uint8), connectivity=26, return_N=True)
    if count < 2:
        return [], []
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    main = int(np.argmax(sizes))
    boxes = label_boxes(pieces)
    away = distance_transform_edt(pieces != main, sampling=view.spacing)

    def level(i: int) -> bool:
        return bool(boxes[main][0].start <= (boxes[i][0].start + boxes[i][0].stop - 1) / 2 < boxes[main][0].stop)

    others = [i for i in range(1, count + 1) if i != main]
    large = [i for i in others if sizes[i] >= SECOND_BODY * sizes[main] and not level(i)]
    far = [i for i in others if sizes[i] < SECOND_BODY * sizes[main]
           and float(away[pieces == i].min()) >= (LEVEL_MM if level(i) else ISLAND_MM)]
    region[np.isin(pieces, far)] = 0
    volumes = [round(float(sizes[i]) * voxel_ml, 3) for i in sorted(far, key=lambda i: -sizes[i])]
    return volumes, [float(sizes[i]) * voxel_ml for i in (main, *large)] if large else []


def above_the_one_before(view: Volume, vertebrae: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Share of each level's voxels above the body centre of the level before it. Facets of clean maps do not reach so far."""
    boxes, names, shares = label_boxes(view.array), list(vertebrae), {}
    for upper, lower in zip(names, names[1:], strict=False):
        first, second = (np.asarray(vertebrae[name]["body_centre_mm"]) for name in (upper, lower))
        box = boxes[LABEL_OF_NAME[lower]]
        points = np.argwhere(view.array[box] == LABEL_OF_NAME[lower]) + [side.start for side in box]
        shares[lower] = round(float(((points * np.asarray(view.spacing) - first) @ (first - second) > 0).mean()), 4)
    return shares


def thinned(view: Volume) -> Volume:
    """Every second (third ...) voxel of a fine LPS label map, round its labels, with vertebrae and sacrum alone.

    The cut-out reaches the border where the labels do, and nowhere else.
    """
    wanted = np.isin(view.array, (*VERTEBRA_LABELS, SACRUM))
    inside = [np.flatnonzero(wanted.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not len(inside[0]):
        return Volume(np.zeros((1, 1, 1), np.uint8), view.geometry.cropped((0, 0, 0), (1, 1, 1)))
    steps = [max(1, int(GRID_MM / s + 0.01)) for s in view.spacing]
    low = [max(int(i[0]) - MARGIN * k, 0) for i, k in zip(inside, steps, strict=True)]
    high = [min(int(i[-1]) + 1 + MARGIN * k, n) for i, k, n in zip(inside, steps, view.array.shape, strict=True)]
    place = tuple(slice(a, b, k) for a, b, k in zip(low, high, steps, strict=True))
    array = np.where(wanted[place], view.array[place], 0).astype(np.uint8)
    cut = view.geometry.cropped(low, [b - a for a, b in zip(low, high, strict=True)])
    spacing = float_triple(s * k for s, k in zip(cut.spacing, steps, strict=True))
    return Volume(array, ImageGrid(int_triple(array.shape), spacing, cut.origin, cut.direction))


def contacts(view: Volume) -> dict[tuple[str, str], float]:
    """Area (mm2) between voxels of two different levels, by pair of names, cranial one first."""
    areas: dict[tuple[str, str], float] = {}
    for axis in range(3):
        face = float(np.prod(view.spacing)) / view.spacing[axis]
        a, b = (np.moveaxis(view.array, axis, 0)[part].astype(np.int32) for part in (slice(None, -1), slice(1, None)))
        both = (a != b) & (a > 0) & (b > 0) & (a != SACRUM) & (b != SACRUM)
        keys, counts = np.unique(a[both] * 256 + b[both], return_counts=True)
        for key, count in zip(keys, counts, strict=True):
            first, second = sorted((NAME_OF_LABEL[int(key) // 256], NAME_OF_LABEL[int(key) % 256]), key=ORDER_INDEX.__getitem__)
            areas[first, second] = areas.get((first, second), 0.0) + float(count) * face
    return areas
