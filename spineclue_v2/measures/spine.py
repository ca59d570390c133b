"""Everything that is measured on one labelled spine."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..anatomy import ANATOMICAL_ORDER
from ..anatomy.vertebra import Vertebra
from ..flags import Flag
from ..imageio.grid import ImageGrid
from ..imageio.volume import Volume
from ..stages.grade.body_heights import add_heights
from .alignment import pelvic, sagittal_angles, vertical_axis
from .bodies import CUT, Body, fit_bodies
from .bone import bone_records, find_contrast
from .coronal import coronal_curves
from .height_records import height_records
from .planes import patient_planes
from .records import Record
from .sacrum import sacral_plate
from .segments import disc_records, vertebra_records


@dataclass(frozen=True)
class SpineMeasures:
    """`records`: "alignment", "vertebrae", "heights", "discs" and "bone", each a list of flat records (`records.record`); `bodies`: what
    they rest on; `flags`: what was noticed; `vertebrae`: those that were measured, with the heights of their bodies."""

    records: dict[str, list[Record]]
    bodies: tuple[Body, ...] = field(default=(), repr=False, compare=False)
    flags: tuple[Flag, ...] = ()
    vertebrae: tuple[Vertebra, ...] = field(default=(), repr=False, compare=False)


def measure_spine(vertebrae: Sequence[Vertebra], grid: ImageGrid, field: ImageGrid | None = None, scan: Volume | None = None,
                  sacrum: Volume | None = None, own_sacrum: Volume | None = None) -> SpineMeasures:
    """Measures of named vertebrae in cranio-caudal order.

    Args:
        vertebrae: with masks on `grid` (LPS order) and levels.
        field: the scan's grid, beyond whose border nothing is known; `grid` by default.
        scan: the CT (HU, any orientation), for the end plate of S1 and for the density of bone; None leaves these out.
        sacrum: a mask of the sacrum (any grid, not 0 is sacrum), which serves for S1 before `scan` does.
        own_sacrum: our mask of the first sacral segment, which serves where `scan` shows no end plate.
    """
    field = field or grid
    bodies = fit_bodies(vertebrae, grid, field)
    vertebrae = _with_heights(vertebrae, grid, field, scan)
    named = {body.level: body for body in bodies}
    missing = _missing(vertebrae, bodies)
    first = sacral_plate(bodies, scan, sacrum, own_sacrum)
    if isinstance(first, Body):
        bodies, named = (*bodies, first), named | {"S1": first}
    else:
        missing["S1"] = first
    planes = patient_planes(bodies)
    records: dict[str, list[Record]] = {"alignment": [], "vertebrae": [], "heights": [], "discs": [], "bone": []}
    records["heights"] = height_records(vertebrae, bodies, grid, field)
    if planes is not None:
        records["alignment"] = [*sagittal_angles(named, planes, missing), *coronal_curves(bodies, planes),
                                *vertical_axis(named, planes, missing), *pelvic()]
        records["vertebrae"] = vertebra_records(bodies, planes)
        records["discs"] = disc_records(bodies, planes)
    flags: tuple[Flag, ...] = ()
    if scan is not None:
        contrast = find_contrast(bodies, scan)
        flags = (contrast,) if contrast is not None else ()
        records["bone"] = bone_records(vertebrae, grid, scan, bodies, contrast)
    return SpineMeasures(records, bodies, flags, vertebrae)


def _with_heights(vertebrae: Sequence[Vertebra], grid: ImageGrid, field: ImageGrid, scan: Volume | None) -> tuple[Vertebra, ...]:
    """The vertebrae with heights; where the stage heights has not run, it runs now."""
    vertebrae = tuple(vertebrae)
    if any(v.heights is not None or v.height_doubt is not None for v in vertebrae):
        return vertebrae
    return tuple(replace(v, heights=h.heights, height_doubt=h.height_doubt, frame=h.frame)
                 for v, h in zip(vertebrae, add_heights(vertebrae, grid, scan, field), strict=True))


def _missing(vertebrae: Sequence[Vertebra], bodies: Sequence[Body]) -> dict[str, str]:
    """Level -> "not in view", "not found" (its neighbours on both sides are there) or why its body has no end plates."""
    seen = [ANATOMICAL_ORDER.index(v.level) for v in vertebrae if v.level is not None]
    found = {}
    for place, level in enumerate(ANATOMICAL_ORDER):
        if place not in seen:
            found[level] = "not found" if seen and min(seen) < place < max(seen) else "not in view"
    reasons = {body.level: body.why_not for body in bodies if body.why_not}
    return found | {level: why if why == CUT else f"not measurable ({why})" for level, why in reasons.items()}
