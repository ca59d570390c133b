"""How a prediction of a real scan is scored against points; nothing here knows the program.

A point is found when a labelled voxel lies within 6 mm of it; its name is the commonest label within 4 mm.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .real_cases import NAME_OF_LABEL, VERTEBRAE, Point

FOUND_MM, NAME_MM = 6.0, 4.0
BEYOND = 1.7              # of the spacing: as far beyond the last point a vertebra that the border cuts may lie, unmarked
SAME_PLACE_MM = 10.0      # two predictions whose centres lie this near speak of the same vertebra
HEIGHT_LOSS = 0.20


@dataclass(frozen=True)
class Predicted:
    """A predicted vertebra: `centre` LPS mm of its body, `loss` the largest missing share of a body height (None: not measured)."""

    name: str
    centre: tuple[float, float, float]
    confidence: float
    loss: float | None = None


def name_at(labels: np.ndarray, image: Any, place: Sequence[float]) -> str | None:
    """Name at a world point of a label map `labels` (z, y, x) on the grid of the SimpleITK `image`; None when it was not found there.

    The commonest label within `NAME_MM` (or, where none lies so near, within `FOUND_MM`); coarse grids count the nearest voxel.
    """
    spacing = np.array(image.GetSpacing()[::-1])
    index = np.array(image.TransformPhysicalPointToContinuousIndex([float(p) for p in place]))[::-1]
    reach = np.ceil(FOUND_MM / spacing).astype(int) + 1
    low = np.maximum(np.round(index).astype(int) - reach, 0)
    high = np.minimum(np.round(index).astype(int) + reach + 1, labels.shape)
    if (high <= low).any():
        return None
    box = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    steps = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1) - index
    distance = np.linalg.norm(steps * spacing, axis=-1)
    distance[np.unravel_index(int(distance.argmin()), distance.shape)] = 0.0
    for radius in (NAME_MM, FOUND_MM):
        inside = box[(distance <= radius) & (box > 0)]
        if inside.size:
            values, counts = np.unique(inside, return_counts=True)
            return NAME_OF_LABEL.get(int(values[counts.argmax()]), str(int(values[counts.argmax()])))
    return None


def false_vertebrae(predicted: Sequence[Predicted], points: Sequence[Point], names: Sequence[str | None]) -> list[str]:
    """Names of predictions that are no vertebra: none of the points is theirs, and they do not continue the row beyond its ends.

    Args:
        points: cranio-caudal; all of the scan, also those outside a window or at its border.
        names: what was predicted at each point (None: nothing).

    Above C1 and below L5 or the sacrum there is nothing to continue; a second vertebra on one point is false, too.
    """
    places = np.array([point.place for point in points]).reshape(-1, 3)
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    spacing = float(np.median(steps)) if len(steps) else 25.0
    wrong = []
    for vertebra in predicted:
        if vertebra.name in names or vertebra.name not in (*VERTEBRAE, "L6", "T13"):
            continue
        if not len(places):
            wrong.append(vertebra.name)
            continue
        distance = np.linalg.norm(places - np.array(vertebra.centre), axis=1)
        nearest = int(distance.argmin())
        above = vertebra.centre[2] > places[0, 2] and points[0].name != "C1" and nearest == 0
        below = vertebra.centre[2] < places[-1, 2] and points[-1].name not in ("L5", "S1", "S2") and nearest == len(places) - 1
        unmarked = (above or below) and 0.5 * spacing < distance[nearest] < BEYOND * spacing
        missed = names[nearest] is None and distance[nearest] < 0.5 * spacing      # it is there, but its mask lies beside the point
        if not unmarked and not missed:
            wrong.append(vertebra.name)
    return wrong


def score(predicted: Sequence[Predicted], anchored: bool, points: Sequence[Point], names: Sequence[str | None],
          inside: Sequence[bool], not_normal: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The figures of one case as plain JSON; `inside` tells which of `points` (and `names` at them) lie in view."""
    asked = [i for i, point in enumerate(points) if inside[i] and point.required]
    levelled = [i for i in asked if points[i].name is not None]
    wrong = [f"{points[i].name}={names[i]}" for i, point in enumerate(points)
             if inside[i] and point.name is not None and names[i] is not None and names[i] != _folded(point.name)]
    false = false_vertebrae(predicted, points, names)
    found = sum(names[i] is not None for i in asked)
    named = sum(names[i] == points[i].name for i in levelled)
    measured = [v for v in predicted if v.loss is not None and v.name not in not_normal]
    return {"points": len(asked), "found": found, "levelled": len(levelled), "named": named, "wrong": wrong, "false": false,
            "all_right": found == len(asked) and named == len(levelled) and not wrong and not false,
            "predicted": len(predicted), "anchored": bool(anchored and predicted),
            "anchored_wrong": bool(anchored and predicted and wrong), "landmark": shows_landmark([points[i].name for i in asked
                                                                                                  if points[i].name]
                                                                                                 + [p.name for i, p in enumerate(points)
                                                                                                    if inside[i] and p.name == "S1"]),
            "heights": len(measured), "heights_lost": [v.name for v in measured if v.loss is not None and v.loss > HEIGHT_LOSS]}


def _folded(name: str) -> str:
    """S2 is part of the sacrum, which has one label."""
    return "S1" if name == "S2" else name


def shows_landmark(names: Sequence[str | None]) -> bool:
    """Whether levels can be told without counting from outside: C1 or C2, the first rib, the last rib, or L5 on the sacrum."""
    there = set(names)
    return bool(there & {"C1", "C2", "S1"}) or {"C7", "T1"} <= there or {"T12", "L1"} <= there


def compare(base: Sequence[Predicted], other: Sequence[Predicted]) -> dict[str, int]:
    """Names of two predictions of one patient at the same places: how many are `shared` and how many `differ`, and how many of
    `other` lie where `base` has none (`new`)."""
    shared = differ = new = 0
    for vertebra in other:
        distance = [np.linalg.norm(np.subtract(vertebra.centre, b.centre)) for b in base]
        if distance and min(distance) <= SAME_PLACE_MM:
            shared += 1
            differ += base[int(np.argmin(distance))].name != vertebra.name
        else:
            new += 1
    return {"shared": shared, "differ": int(differ), "new": new}
