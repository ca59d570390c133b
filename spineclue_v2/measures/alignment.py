"""Sagittal alignment: kyphosis, lordosis and the sagittal vertical axis, as a lateral radiograph defines them.

Cobb's method in the sagittal plane: the angle between two end plates (Cobb 1948; levels as in the textbooks of spinal deformity: thoracic
kyphosis T4-T12 from the upper end plate of T4 to the lower one of T12, lumbar lordosis L1-S1 from the upper end plate of L1 to that of S1,
cervical lordosis C2-C7 between the lower end plates of C2 and C7). Kyphosis is positive in the thoracic, lordosis in the other angles.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .bodies import Body, EndPlate
from .planes import PatientPlanes
from .records import Line, Record, not_given, record

UPPER, LOWER = "upper", "lower"

ANGLES: tuple[tuple[str, str, str, str, str, int], ...] = (
    ("cervical lordosis C2-C7", "C2", LOWER, "C7", LOWER, 1),
    ("thoracic kyphosis T1-T12", "T1", UPPER, "T12", LOWER, -1),
    ("thoracic kyphosis T4-T12", "T4", UPPER, "T12", LOWER, -1),
    ("lumbar lordosis L1-L5", "L1", UPPER, "L5", LOWER, 1),
    ("lumbar lordosis L1-S1", "L1", UPPER, "S1", UPPER, 1),
)
"""Name, cranial level and which of its end plates, caudal level and end plate, and the sign: 1 lordosis, -1 kyphosis is positive."""

PELVIS = ("pelvic incidence", "pelvic tilt")


def lordosis(planes: PatientPlanes, above: EndPlate, below: EndPlate) -> float:
    """Degrees from the end plate `above` to the one `below` in the sagittal plane; positive where they open to the front."""
    return planes.sagittal_tilt(below) - planes.sagittal_tilt(above)


def drawn(plate: EndPlate) -> Line:
    """The line that a reader draws on a lateral view."""
    return plate.front, plate.back


def sagittal_angles(bodies: Mapping[str, Body], planes: PatientPlanes, missing: Mapping[str, str]) -> list[Record]:
    """All of `ANGLES`, with a value where both end plates are there. `missing`: why a level has none."""
    found = []
    for name, first, of_first, last, of_last, sign in ANGLES:
        above, below = _plate(bodies, first, of_first), _plate(bodies, last, of_last)
        if above is None or below is None:
            lacking = [level for level, plate in ((first, above), (last, below)) if plate is None]
            found.append(not_given(name, "deg", [first, last], why_not(lacking, missing)))
            continue
        note = "L6 lies between" if last == "S1" and "L6" in bodies else ""
        value, lines = sign * lordosis(planes, above, below), [drawn(above), drawn(below)]
        found.append(record(name, value, "deg", (bodies[first], bodies[last]), note, lines, "sagittal"))
    return found


def _plate(bodies: Mapping[str, Body], level: str, which: str) -> EndPlate | None:
    body = bodies.get(level)
    return None if body is None else body.upper if which == UPPER else body.lower


def why_not(levels: Sequence[str], missing: Mapping[str, str]) -> str:
    """In words, why these levels have no end plate."""
    return ", ".join(f"{level} is {missing.get(level, 'without the end plate that is needed')}" for level in levels)


def vertical_axis(bodies: Mapping[str, Body], planes: PatientPlanes, missing: Mapping[str, str]) -> list[Record]:
    """Sagittal vertical axis: how far the plumb line from the middle of C7 runs in front of (positive) the back upper corner of S1.

    Lying, the plumb line is the scanner's long axis. With the slope of S1 against the square to that axis (sacral slope).
    """
    sacrum, name = bodies.get("S1"), "sagittal vertical axis C7-S1"
    if sacrum is None or sacrum.upper is None:
        why = why_not(["S1"], missing)
        return [not_given(name, "mm", ["C7", "S1"], why), not_given("sacral slope", "deg", ["S1"], why)]
    plumb = np.array([0.0, 0.0, 1.0])
    ahead = np.cross(planes.left, plumb)
    ahead = ahead / np.linalg.norm(ahead)
    slope = float(np.degrees(np.arctan2(sacrum.upper.normal @ ahead, sacrum.upper.normal @ plumb)))
    rows = [record("sacral slope", slope, "deg", [sacrum], "against the square to the scanner's long axis", [drawn(sacrum.upper)],
                   "sagittal")]
    if "C7" not in bodies or bodies["C7"].why_not:
        return [not_given(name, "mm", ["C7", "S1"], why_not(["C7"], missing)), *rows]
    seventh, corner = bodies["C7"], sacrum.upper.back
    value = float((seventh.centre - corner) @ ahead)
    foot = seventh.centre + (corner - seventh.centre)[2] * plumb
    return [record(name, value, "mm", [seventh, sacrum], "plumb line along the scanner's long axis",
                   [(seventh.centre, foot), (foot, corner)], "sagittal"), *rows]


def pelvic() -> list[Record]:
    """Pelvic incidence and tilt need the hip axis, and nothing in this package finds femoral heads."""
    return [not_given(name, "deg", ["S1"], "femoral heads are not located") for name in PELVIS]
