"""Coronal curves by Cobb's method: between the most tilted end plates, with their end vertebrae and side of convexity.

The Cobb angle lies between the upper end plate of the upper and the lower end plate of the lower end vertebra, which are the ones most
tilted towards each other (Cobb 1948). Ten degrees make a curve (Scoliosis Research Society); the largest angle is given in any case.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bodies import Body
from .planes import PatientPlanes
from .records import Record, not_given, record

CURVE_DEG = 10.0
MOST_CURVES = 3
NAME = "Cobb angle"


def coronal_curves(bodies: Sequence[Body], planes: PatientPlanes) -> list[Record]:
    """The largest curve of the thoracic and lumbar bodies (cranio-caudal), and up to two more of at least CURVE_DEG above and below it.

    Every record says `convexity` and `apex`. A curve is looked for over all bodies with end plates; a missing one between them is noted.
    """
    row = [body for body in bodies if body.level[0] in "TL" and body.upper is not None and body.lower is not None]
    if len(row) < 3:
        return [not_given(NAME, "deg", [], "fewer than three thoracic and lumbar bodies with end plates")]
    tilts = np.array([[planes.coronal_tilt(plate) for plate in (body.upper, body.lower) if plate is not None] for body in row])
    curves = sorted(_curves(tilts, 0, len(row) - 1), key=lambda c: -abs(c[2]))
    rows = []
    for number, (first, last, angle) in enumerate(curves[:MOST_CURVES]):
        if number and abs(angle) < CURVE_DEG:
            break
        rows.append(_record(row, list(bodies), planes, first, last, angle, number))
    return rows


def _curves(tilts: np.ndarray, low: int, high: int) -> list[tuple[int, int, float]]:
    """(upper end vertebra, lower end vertebra, signed angle) of the largest curve within low..high, then of those above and below it."""
    if high - low < 1:
        return []
    angle = tilts[None, low:high + 1, 1] - tilts[low:high + 1, None, 0]
    angle[np.tril_indices(len(angle), 0)] = 0.0
    i, j = np.unravel_index(int(np.argmax(np.abs(angle))), angle.shape)
    first, last = low + int(i), low + int(j)
    found = [(first, last, float(angle[i, j]))]
    # An end vertebra belongs to both of its curves.
    return found + _curves_beside(tilts, low, first) + _curves_beside(tilts, last, high)


def _curves_beside(tilts: np.ndarray, low: int, high: int) -> list[tuple[int, int, float]]:
    return _curves(tilts, low, high) if high - low >= 2 else []


def _record(row: list[Body], everything: list[Body], planes: PatientPlanes, first: int, last: int, angle: float, number: int) -> Record:
    curve = row[first:last + 1]
    ends = row[first], row[last]
    assert ends[0].upper is not None and ends[1].lower is not None
    between = everything[everything.index(ends[0]):everything.index(ends[1]) + 1]
    lacking = [body.level for body in between if body.why_not]
    # The apex lies furthest from the straight line between the end vertebrae.
    places = np.array([[body.centre @ planes.left, body.centre @ planes.up] for body in curve])
    line = np.interp(-places[:, 1], -places[[0, -1], 1], places[[0, -1], 0])
    apex = curve[int(np.argmax((places[:, 0] - line) * np.sign(angle)))].level
    note = f"no end plates at {', '.join(lacking)}" if lacking else ""
    return record(NAME if not number else f"{NAME} {number + 1}", abs(angle), "deg", ends, note,
                  [(ends[0].upper.right, ends[0].upper.left), (ends[1].lower.right, ends[1].lower.left)], "coronal",
                  convexity="left" if angle > 0 else "right", apex=apex)
