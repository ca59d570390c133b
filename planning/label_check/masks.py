"""What the masks alone say: flips, order, merged, cut, mixed and missing vertebrae, islands, the sacrum with a lumbar label.

Every limit is a value that clean maps do not reach; `sure` is 0.5 at the limit and rises to 1 at `far`.
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spineclue_v2.anatomy import ANATOMICAL_ORDER, ORDER_INDEX
from spineclue_v2.anatomy.vertebral_gaps import GAP_RANGE_MM

from ..integrity import BEHIND_MM, are_neighbours, distance_mm
from .row import ISLAND_MM, SECOND_BODY, UNLIKE, Row
from .suspicion import Suspicion

NOTED = 0.35               # less is not said at all

# (limit, far)
SMALL, LARGE = (0.62, 0.36), (1.55, 2.0)             # volume over what the neighbours let expect
SHORT, TALL = (0.72, 0.5), (1.45, 2.0)              # extent along one axis, likewise
TOUCHING = (0.6, 1.0)                               # area between two levels over the larger volume to the power 2/3
NARROW = (0.58, 0.4)                                # width likewise: T12 has short transverse processes
ISLAND_ML = (0.2, 1.0)                              # volume of all loose pieces
TIMES_USUAL = (3.0, 5.0)                            # that share over the median of the other pairs
ABOVE = (0.08, 0.25)                                # share of a level's voxels that reaches above the body of the one before
WIDE_GAP = (1.55, 1.9)                              # distance of two levels over that of the neighbours, per level between them
NARROW_GAP = (0.72, 0.5)
SACRUM_SIZE = (1.55, 2.5)                           # volume of the lowest lumbar vertebra over that of the one above


def grade(value: float, limits: tuple[float, float]) -> float:
    """`sure` of a value: 0.5 at the first of `limits`, 1 at the second and beyond, below 0.5 on the near side."""
    limit, far = limits
    return float(np.clip(0.5 + 0.5 * (value - limit) / (far - limit), 0.0, 1.0))


def check_masks(row: Row) -> list[Suspicion]:
    """All that the masks of one map say. A flip hides what depends on order, so nothing but islands is looked for beside it."""
    if not row.vertebrae:
        return [Suspicion(row.case, "empty", (), 1.0, "No vertebra is labelled.")]
    found = list(_flips(row))
    found += _islands(row)
    if any(entry.kind == "flip" for entry in found):
        return found
    found += [*_order(row), *_sizes(row), *_touching(row), *_gaps(row), *_sacrum(row)]
    return _without_echoes(found)


def _flips(row: Row) -> Iterator[Suspicion]:
    heights = [row.vertebrae[name]["centroid_mm"][0] for name in row.names]
    steps = np.diff(heights)
    if len(steps) > 1 and float(np.mean(steps > 0)) > 0.6:
        yield Suspicion(row.case, "flip", (row.names[0], row.names[-1]), 1.0,
                        f"Head and feet are exchanged: {row.names[0]} lies below {row.names[-1]}.", "flip z")
    whole = [v for v in row.vertebrae.values() if not v["touches_border"]]
    if len(whole) > 1:
        ahead = float(np.median([v["thick_in_front_mm"] for v in whole]))
        if ahead < BEHIND_MM:
            yield Suspicion(row.case, "flip", tuple(row.names), grade(-ahead, (-BEHIND_MM, 6.0)),
                            "Front and back are exchanged: the bodies lie behind the arches.", "flip y")


def _order(row: Row) -> Iterator[Suspicion]:
    """Neighbours by name of which the lower level lies above the other."""
    names = row.names
    for upper, lower in zip(names, names[1:], strict=False):
        step = np.subtract(row.vertebrae[lower]["body_centre_mm"], row.vertebrae[upper]["body_centre_mm"])
        if step[0] > 0 and np.linalg.norm(step) > GAP_RANGE_MM[0] / 2:
            yield Suspicion(row.case, "swapped", (upper, lower), 1.0, f"{upper} lies {step[0]:.0f} mm below {lower}.",
                            f"rename {upper}={lower} {lower}={upper}")


def _islands(row: Row) -> Iterator[Suspicion]:
    for name, pieces in row.loose.items():
        sure = grade(sum(pieces), ISLAND_ML)
        if sure >= NOTED:
            yield Suspicion(row.case, "island", (name,), sure, f"{name} has {len(pieces)} loose piece(s) of {sum(pieces):.2f} ml, "
                            f"{ISLAND_MM:g} mm and more from the rest.", f"drop islands {name}")


def _sizes(row: Row) -> Iterator[Suspicion]:
    """Two bodies under one name, and masks that are far larger or smaller than those beside them."""
    for name in row.names:
        vertebra = row.vertebrae[name]
        if name in row.doubled:
            parts = row.doubled[name]
            yield Suspicion(row.case, "merged", (name,), max(0.6, grade(parts[1] / parts[0], (SECOND_BODY, 0.6))),
                            f"{name} names two bodies of {parts[0]:.1f} and {parts[1]:.1f} ml.")
            continue
        if name in UNLIKE:
            continue
        volume = row.ratio(name, "volume_ml")
        if volume is None:
            continue
        long, deep, wide = (row.ratio(name, "extent_mm", axis) or 1.0 for axis in range(3))
        if volume > 1.2 and long > 1.2:
            sure = min(grade(volume, LARGE), grade(long, (1.3, 1.8)))
            yield Suspicion(row.case, "merged", (name,), sure, f"{name} is {long:.1f} times as high and has {volume:.1f} times the "
                                                              "volume that its neighbours let expect.")
        if vertebra["touches_border"]:
            continue
        sure = max(grade(volume, SMALL), grade(deep, SHORT), grade(wide, NARROW), grade(long, (0.55, 0.4)))
        if sure >= NOTED:
            yield Suspicion(row.case, "cut", (name,), sure, f"{name} has {volume:.2f} times the volume and {long:.2f}, {deep:.2f} and "
                            f"{wide:.2f} times the height, depth and width that its neighbours let expect.")
        sure = grade(deep, TALL)     # not the width: L1 has transverse processes, T12 next to none
        if sure >= 0.5:
            yield Suspicion(row.case, "mixed", (name,), sure, f"{name} is {deep:.1f} times as deep as its neighbours let expect.")


def _touching(row: Row) -> Iterator[Suspicion]:
    """Healthy vertebrae touch at their facets at most, and none reaches above the body before it; a part with another's label does."""
    names = row.names
    for upper, lower in zip(names, names[1:], strict=False):
        sure = grade(row.above[lower], ABOVE)
        if sure >= NOTED:
            yield Suspicion(row.case, "mixed", (upper, lower), sure, f"{100 * row.above[lower]:.0f} % of {lower} lie above the middle of "
                                                                     f"{upper}: a part of {upper} may have the level {lower}.")
    shares = {pair: area / (100 * max(row.vertebrae[name]["volume_ml"] for name in pair) ** (2 / 3)) for pair, area in row.contacts.items()}
    for (first, second), area in row.contacts.items():
        if first == "C1":
            continue           # the dens lies within its ring
        share = shares[first, second]
        usual = float(np.median([s for pair, s in shares.items() if pair != (first, second)] or [0.0]))
        # Some tools' masks touch everywhere: then a face in common is nothing unusual.
        sure = min(grade(share, TOUCHING), grade(share / max(usual, 1e-3), TIMES_USUAL))
        if sure >= NOTED:
            yield Suspicion(row.case, "mixed", (first, second), sure, f"{first} and {second} have a face of {area:.0f} mm2 in common: a "
                                                                     "part of one may have the other's level.")


def _gaps(row: Row) -> Iterator[Suspicion]:
    """Levels that are missing between two others, by name or by the room between them."""
    names = row.names
    pairs = list(zip(names, names[1:], strict=False))
    distances = [distance_mm(row.vertebrae[a], row.vertebrae[b]) for a, b in pairs]
    for i, (upper, lower) in enumerate(pairs):
        near = [d for j, d in enumerate(distances) if 0 < abs(j - i) <= 2 and are_neighbours(*pairs[j])]
        between = [n for n in ANATOMICAL_ORDER[ORDER_INDEX[upper] + 1:ORDER_INDEX[lower]] if n not in ("T13", "L6")]
        usual = float(np.clip(np.median(near), *GAP_RANGE_MM)) if near else None
        if between and between != ["T12"]:
            room = "" if usual is None or distances[i] > 1.4 * usual else ", and no room for it: the numbers below may be too high"
            yield Suspicion(row.case, "missing", (upper, lower), 1.0, f"{', '.join(between)} is missing between {upper} and {lower}{room}.")
        elif usual is not None and len(near) > 1:
            ratio = distances[i] / usual
            if ratio > 1.3:
                yield Suspicion(row.case, "missing", (upper, lower), grade(ratio, WIDE_GAP),
                                f"{upper} and {lower} lie {distances[i]:.0f} mm apart, their neighbours {usual:.0f} mm: a vertebra between "
                                "them may have no mask.")
            elif ratio < NARROW_GAP[0] + 0.05 and ORDER_INDEX[upper] > ORDER_INDEX["C2"]:
                yield Suspicion(row.case, "mixed", (upper, lower), grade(ratio, NARROW_GAP),
                                f"{upper} and {lower} lie {distances[i]:.0f} mm apart, their neighbours {usual:.0f} mm: one vertebra may "
                                "have two levels.")


def _sacrum(row: Row) -> Iterator[Suspicion]:
    """The lowest vertebra, if it is L5 or L6 and no vertebra by its size."""
    names = row.names
    if len(names) < 2 or names[-1] not in ("L5", "L6"):
        return
    last, above = (row.vertebrae[name] for name in (names[-1], names[-2]))
    volume = last["volume_ml"] / max(above["volume_ml"], 0.1)
    high = last["extent_mm"][0] / max(above["extent_mm"][0], 1.0)
    sure = max(grade(volume, SACRUM_SIZE), grade(high, (1.5, 2.2)) if volume > 1.1 else 0.0)
    if sure >= NOTED and not above["touches_border"]:
        yield Suspicion(row.case, "sacrum", (names[-1],), sure, f"{names[-1]} has {volume:.1f} times the volume of {names[-2]} and is "
                        f"{high:.1f} times as high: it may be the sacrum.", f"rename {names[-1]}=sacrum")


def _without_echoes(found: list[Suspicion]) -> list[Suspicion]:
    """What follows from another suspicion is left out: the sacrum is also large, swapped neighbours are also far from where they belong."""
    swapped = {level for entry in found if entry.kind == "swapped" for level in entry.levels}
    large = {level for entry in found if entry.kind == "sacrum" and entry.alarm for level in entry.levels}
    return [entry for entry in found
            if not (entry.kind in ("merged", "mixed", "cut") and large & set(entry.levels))
            and not (entry.kind in ("cut", "missing", "mixed", "merged") and swapped & set(entry.levels))]
