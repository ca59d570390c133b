"""Vertebrae that share one value are parted, one that two values tear in two is joined; the row of body centres tells which."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..anatomy.vertebra import Vertebra
from ..anatomy.vertebral_gaps import GAP_RANGE_MM, sort_cranio_caudal
from ..utilities.triples import box_slices, int_triple
from .bodies import Body

Measure = Callable[[Body], Vertebra | None]
"""The vertebra record (body centre LPS mm, volume) of an instance, None where nothing is left of it in network space."""

TWO_PLACES = 1.6            # a vertebra takes one gap above and one below: 2; two in one value take 3. One neighbour: 1 and 1.5
HALF_PLACE = 0.6            # nearer neighbours than this many gaps are one vertebra
LEAST_NEIGHBOURS = 3        # gaps that tell what is usual
PART_OF_USUAL = 0.45        # of the usual volume that each part of a shared value has at least
REMNANT = 0.3               # of the usual volume: less, where no vertebra is missing, is a part of a neighbour
ALIKE = (0.6, 1.5)          # volume of a joined vertebra against the usual one
TOUCHING = 0.2              # contact of the halves of one body, against the square of the cube root of the joined volume


def part_and_join(instances: Sequence[Body], spacing: tuple[float, float, float], measure: Measure
                  ) -> tuple[list[Body], list[int], list[tuple[int, int]]]:
    """Instances of one vertebra each, the values that were parted, and the pairs of values that were joined.

    Args:
        instances: in any order.
        spacing: (z, y, x) mm of their grid.
        measure: of one instance.
    """
    known = [(instance, vertebra) for instance in instances if (vertebra := measure(instance)) is not None]
    rest = [instance for instance in instances if not any(instance is k for k, _ in known)]
    order = sort_cranio_caudal(np.array([v.known_body_centre for _, v in known]).reshape(-1, 3))
    row = [known[i] for i in order]
    if len(row) <= LEAST_NEIGHBOURS:
        return [*rest, *(instance for instance, _ in row)], [], []
    row, joined = _join(row, spacing, measure)
    row, absorbed = _absorb(row, spacing, measure)
    joined += absorbed
    row, parted = _part(row, spacing, measure)
    return [*rest, *(instance for instance, _ in row)], parted, joined


def _usual(row: Sequence[tuple[Body, Vertebra]], at: int) -> tuple[float, float]:
    """Median gap (mm) and volume (ml) of the up to six neighbours of place `at`, itself left out of the volume."""
    centres = np.array([v.known_body_centre for _, v in row])
    gaps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    low, high = max(at - 4, 0), min(at + 4, len(gaps))
    near = [row[i][1].known_volume_ml for i in range(max(at - 3, 0), min(at + 4, len(row))) if i != at and not row[i][1].touches_border]
    return float(np.clip(np.median(gaps[low:high]), *GAP_RANGE_MM)), float(np.median(near)) if near else 0.0


def _join(row: list[tuple[Body, Vertebra]], spacing: tuple[float, float, float], measure: Measure
          ) -> tuple[list[tuple[Body, Vertebra]], list[tuple[int, int]]]:
    joined: list[tuple[int, int]] = []
    i = 0
    while i + 1 < len(row):
        (first, a), (second, b) = row[i], row[i + 1]
        gap, usual = _usual(row, i)
        distance = float(np.linalg.norm(np.subtract(a.known_body_centre, b.known_body_centre)))
        together = a.known_volume_ml + b.known_volume_ml
        if (distance < HALF_PLACE * gap and ALIKE[0] * usual <= together <= ALIKE[1] * usual
                and _contact_mm2(first, second, spacing) >= TOUCHING * (1000 * together) ** (2 / 3)):
            whole = _union(first, second, first.value if a.known_volume_ml >= b.known_volume_ml else second.value)
            vertebra = measure(whole)
            if vertebra is not None:
                row[i:i + 2] = [(whole, vertebra)]
                joined.append((first.value, second.value))
                continue
        i += 1
    return row, joined


def _absorb(row: list[tuple[Body, Vertebra]], spacing: tuple[float, float, float], measure: Measure
            ) -> tuple[list[tuple[Body, Vertebra]], list[tuple[int, int]]]:
    """What is far too small for a vertebra and has no place of its own in the row goes to the neighbour that it touches most."""
    joined: list[tuple[int, int]] = []
    i = 1
    while i + 1 < len(row):
        body, vertebra = row[i]
        gap, usual = _usual(row, i)
        apart = float(np.linalg.norm(np.subtract(row[i - 1][1].known_body_centre, row[i + 1][1].known_body_centre)))
        areas = {k: _contact_mm2(body, row[k][0], spacing) for k in (i - 1, i + 1)}
        k = max(areas, key=lambda place: areas[place])
        if vertebra.known_volume_ml < REMNANT * usual and apart < TWO_PLACES * gap and areas[k] > 0:
            whole = _union(row[k][0], body, row[k][0].value)
            measured = measure(whole)
            if measured is not None:
                row[k] = (whole, measured)
                joined.append((row[k][0].value, body.value))
                del row[i]
                continue
        i += 1
    return row, joined


def _part(row: list[tuple[Body, Vertebra]], spacing: tuple[float, float, float], measure: Measure
          ) -> tuple[list[tuple[Body, Vertebra]], list[int]]:
    parted: list[int] = []
    out: list[tuple[Body, Vertebra]] = []
    for i, (instance, vertebra) in enumerate(row):
        gap, usual = _usual(row, i)
        tall = vertebra.extent[0] > TWO_PLACES * gap and vertebra.known_volume_ml > 1.35 * usual
        parts = two_bodies(instance, spacing, gap) if tall and usual else None
        measured = [] if parts is None else [(part, v) for part in parts if (v := measure(part)) is not None]
        if len(measured) == 2 and all(v.known_volume_ml >= PART_OF_USUAL * usual for _, v in measured) and not _crowded(
                measured, [row[k][1] for k in (i - 1, i + 1) if 0 <= k < len(row)], gap):
            out += sorted(measured, key=lambda pair: -pair[1].known_body_centre[2])
            parted.append(instance.value)
        else:
            out.append((instance, vertebra))
    return out, parted


def _crowded(parts: Sequence[tuple[Body, Vertebra]], neighbours: Sequence[Vertebra], gap: float) -> bool:
    """Whether a part lies nearer to a neighbour, or to the other part, than vertebrae do."""
    places = [np.array(v.known_body_centre) for _, v in parts]
    others = [np.array(v.known_body_centre) for v in neighbours]
    distances = [np.linalg.norm(places[0] - places[1]), *(np.linalg.norm(p - o) for p in places for o in others)]
    return bool(min(distances) < HALF_PLACE * gap)


def two_bodies(instance: Body, spacing: tuple[float, float, float], gap: float) -> list[Body] | None:
    """The instance cut in two at its narrowest place between two thick cores that lie a gap (mm) apart; None where it has one core."""
    import cc3d
    import SimpleITK as sitk
    from scipy.ndimage import distance_transform_edt

    mask = np.pad(instance.mask, 1)
    depth = distance_transform_edt(mask, sampling=spacing)
    for level in np.arange(0.3, 0.95, 0.05):
        cores, count = cc3d.connected_components((depth > level * depth.max()).astype(np.uint8), connectivity=26, return_N=True)
        if count < 2:
            continue
        sizes = np.bincount(cores.ravel())[1:]
        first, second = (int(i) + 1 for i in np.argsort(-sizes)[:2])
        a, b = (np.argwhere(cores == k).mean(0) * spacing for k in (first, second))
        if abs(a[0] - b[0]) < HALF_PLACE * gap or sizes[second - 1] < 0.15 * sizes[first - 1]:
            continue
        markers = np.where(cores == first, 1, np.where(cores == second, 2, 0)).astype(np.uint8)
        inverted = sitk.GetImageFromArray((depth.max() - depth).astype(np.float32))
        basins = sitk.GetArrayFromImage(sitk.MorphologicalWatershedFromMarkers(inverted, sitk.GetImageFromArray(markers),
                                                                               markWatershedLine=False))
        parts = [(basins == k) & mask for k in (1, 2)]
        return [_cropped(part[1:-1, 1:-1, 1:-1], instance) for part in parts]
    return None


def _cropped(mask: np.ndarray, of: Body) -> Body:
    inside = np.argwhere(mask)
    low, high = inside.min(0), inside.max(0) + 1
    return Body(int_triple(np.array(of.start) + low), np.ascontiguousarray(mask[box_slices(low, high - low)]), of.value)


def _union(a: Body, b: Body, value: int) -> Body:
    low = np.minimum(a.start, b.start)
    high = np.maximum(np.array(a.start) + a.mask.shape, np.array(b.start) + b.mask.shape)
    mask = np.zeros(high - low, bool)
    for one in (a, b):
        mask[box_slices(np.array(one.start) - low, one.mask.shape)] |= one.mask
    return Body(int_triple(low), mask, value)


def _contact_mm2(a: Body, b: Body, spacing: tuple[float, float, float]) -> float:
    """Area of the faces that two instances share."""
    low = _union(a, b, 0)
    marks = np.zeros(low.mask.shape, np.int8)
    for one, mark in ((a, 1), (b, 2)):
        marks[box_slices(np.array(one.start) - low.start, one.mask.shape)][one.mask] = mark
    total = 0.0
    for axis in range(3):
        moved = np.moveaxis(marks, axis, 0)
        total += float((moved[:-1] + moved[1:] == 3).sum()) * float(np.prod(spacing)) / spacing[axis]
    return total
