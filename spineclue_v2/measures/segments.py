"""Single vertebrae and neighbouring pairs: wedge, rotation, disc angle and height, segmental angle, listhesis."""
from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..anatomy import ORDER_INDEX
from .alignment import drawn, lordosis
from .bodies import Body
from .planes import PatientPlanes
from .records import Record, record


def vertebra_records(bodies: Sequence[Body], planes: PatientPlanes) -> list[Record]:
    """Of every body with end plates: `wedge angle` (positive: higher in front, as lordosis), `lateral wedge angle` (positive: higher on the
    right) and `axial rotation` (degrees that the front of the body points to the patient's left of the patient's sagittal plane, seen along
    the body's own axis; the sagittal plane is the mean of all bodies, so that a turned patient does not count). Cervical bodies have no
    rotation: their arches do not tell it well enough."""
    rows = []
    for body in bodies:
        if body.upper is None or body.lower is None:
            continue
        rows += [record("wedge angle", lordosis(planes, body.upper, body.lower), "deg", [body]),
                 record("lateral wedge angle", planes.coronal_tilt(body.upper) - planes.coronal_tilt(body.lower), "deg", [body]),
                 *([record("axial rotation", axial_rotation(body, planes), "deg", [body])] if body.level[0] != "C" else [])]
    return rows


def axial_rotation(body: Body, planes: PatientPlanes) -> float:
    """Degrees; the posterior direction of the body against the sagittal plane, about the body's own cranial axis."""
    up = body.axes[0]
    back = planes.back - (planes.back @ up) * up
    left = np.cross(back, up)
    # Where the back of the body points to the right, its front points to the left.
    return float(np.degrees(np.arctan2(-(body.axes[1] @ left), body.axes[1] @ back)))


def pairs(bodies: Sequence[Body]) -> Iterator[tuple[Body, Body]]:
    """Bodies (cranio-caudal) that are neighbours by name and whose facing end plates are there."""
    order = {**ORDER_INDEX, "S1": len(ORDER_INDEX)}
    for above, below in zip(bodies[:-1], bodies[1:], strict=True):
        step = order[below.level] - order[above.level]
        skipped = {"T12": "L1", "L5": "S1", "T11": "L1"}.get(above.level) == below.level
        if (step == 1 or skipped) and above.lower is not None and below.upper is not None:
            yield above, below


def disc_records(bodies: Sequence[Body], planes: PatientPlanes) -> list[Record]:
    """Of every pair of neighbours, named by `disc` such as "L4/L5":

    `disc angle`: between the two end plates that face each other (lordosis positive). `segmental angle`: from the upper end plate of the
    upper to the lower end plate of the lower vertebra. `disc height` in front, in the middle and at the back: distance of the hollow end
    plates along the bisector of their planes. `listhesis`: how far the upper body's lower back corner lies in front of (positive:
    anterolisthesis) the lower body's upper back corner, along the lower body's upper end plate; mm, and % of that end plate's length
    (Taillard's way to put it, on which Meyerding's quarters rest).
    """
    rows = []
    for above, below in pairs(bodies):
        assert above.lower is not None and below.upper is not None
        disc, both = f"{above.level}/{below.level}", (above, below)
        lines = [drawn(above.lower), drawn(below.upper)]
        rows.append(record("disc angle", lordosis(planes, above.lower, below.upper), "deg", both, "", lines, "sagittal", disc=disc))
        if above.upper is not None and below.lower is not None:
            rows.append(record("segmental angle", lordosis(planes, above.upper, below.lower), "deg", both, disc=disc))
        for where, height in zip(("anterior", "middle", "posterior"), disc_heights(above, below), strict=True):
            rows.append(record(f"disc height {where}", height, "mm", both, disc=disc))
        slip = listhesis_mm(above, below)
        ends = (above.lower.back, above.lower.back - slip * along_plate(below)), (below.upper.front, below.upper.back)
        rows.append(record("listhesis", slip, "mm", both, "", ends if abs(slip) >= 3 else (), "sagittal", disc=disc))
        rows.append(record("listhesis share", 100 * slip / below.upper.length_mm, "%", both, disc=disc))
    return rows


def disc_heights(above: Body, below: Body) -> tuple[float, float, float]:
    """Anterior, middle and posterior distance (mm) of two facing end plates along their bisector."""
    assert above.lower is not None and below.upper is not None
    up = above.lower.normal + below.upper.normal
    front, middle, back = (above.lower.surface - below.upper.surface) @ (up / np.linalg.norm(up))
    return float(front), float(middle), float(back)


def along_plate(body: Body) -> np.ndarray:
    """Unit vector along the upper end plate of `body`, from its back to its front."""
    assert body.upper is not None
    forwards = body.upper.front - body.upper.back
    return forwards / np.linalg.norm(forwards)


def listhesis_mm(above: Body, below: Body) -> float:
    """Signed slip of the upper body along the lower one's upper end plate; positive to the front."""
    assert above.lower is not None and below.upper is not None
    return float((above.lower.back - below.upper.back) @ along_plate(below))
