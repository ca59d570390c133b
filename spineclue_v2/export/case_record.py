"""`CASE.json`: what is known of each vertebra, as plain JSON."""
from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from .. import anatomy
from ..anatomy.vertebra import BodyHeights, Vertebra
from ..flags import Flag, quality_status, review_required
from .labelled_spine import LabelledSpine
from .structures import NO_STRUCTURE

NO_VERTEBRA = "no vertebra found"
OUTPUT = "output"           # stage of the flags that say that a file of the output is missing

REMARKS = ("heights: [anterior, middle, posterior] of the body in the mask, mm; loss: missing share of what the reference lets expect; "
           "implied_grade: Genant's limits (20, 25, 40 %) on the largest loss, arithmetic that says nothing of the cause.",
           "trabecular_hu: median CT number in the middle of the body; intravenous contrast raises it, tube voltage and scanner shift it.")
GRADING_REMARK = ("grading.combined: probabilities of Genant grades 0 to 3 by a network and the heights together, fitted on synthetic "
                  "spines; a body whose heights cannot be trusted has none. Neither a diagnosis nor a reader's grade.")


def case_record(result: LabelledSpine, plans: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Content of `CASE.json`. Points are LPS mm (x, y, z), `extent_mm` is (z, y, x); numbers unknown to a stage are null. `extra`: what
    stages say besides, by stage."""
    return {
        "status": "ok" if result.vertebrae else NO_VERTEBRA,
        **_states(result.flags),
        "vertebrae": [vertebra_entry(vertebra) for vertebra in result.vertebrae],
        "numbering_anchored": bool(result.numbering_anchored),
        "anchored_by": result.anchored_by,
        "known": None if result.known is None else dict(result.known),
        "margin": _number(result.margin, 4),
        "incomplete": list(result.incomplete),
        **_patient_record(result.vertebrae),
        "notes": _notes(result.notes, result.flags),
        "remarks": _remarks(result.vertebrae),
        "extra": dict(result.extra),
        **({"measures": result.measures} if result.measures else {}),
        "plans": dict(plans or {}),
        "versions": versions(),
        "seconds": rounded_seconds(result.seconds),
    }


def _remarks(vertebrae: Sequence[Vertebra]) -> list[str]:
    measured = any(v.heights or v.trabecular_hu is not None for v in vertebrae)
    graded = any(v.combined_grade_probabilities is not None for v in vertebrae)
    return [*(REMARKS if measured else ()), *((GRADING_REMARK,) if graded else ())]


def mr_case_record(result: LabelledSpine, structures: Sequence[Mapping[str, Any]], stage: str, plans: Mapping[str, Any]) -> dict[str, Any]:
    """Content of `CASE.json` of an MR scan: `structures` as `structure_records` gives them, bodies with the confidence of their level and
    discs with height and signal; `stage` that made the label map."""
    return {"status": "ok" if structures else NO_STRUCTURE, **_states(result.flags), "stage": stage,
            "structures": [dict(row) for row in structures],
            "numbering_anchored": bool(result.numbering_anchored), "notes": _notes(result.notes, result.flags),
            "plans": dict(plans), "versions": versions(), "seconds": rounded_seconds(result.seconds)}


def _notes(notes: Sequence[str], flags: Sequence[Flag]) -> list[str]:
    """Sentences to keep in mind: the notes, and what the flags say but for what is merely good to know of a result."""
    said = [flag.message for flag in flags if flag.severity != "info" or flag.stage != "result"]
    return list(dict.fromkeys((*notes, *said)))


def _states(flags: Sequence[Flag]) -> dict[str, Any]:
    """Whether everything was made, and apart from that what it is worth."""
    partial = any(flag.stage == OUTPUT for flag in flags)
    return {"execution_status": "partial" if partial else "complete", "quality_status": quality_status(flags),
            "review_required": review_required(flags), "flags": [flag.to_dict() for flag in flags]}


def rounded_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds are enough."""
    return {stage: round(float(value), 3) for stage, value in seconds.items()}


def vertebra_entry(vertebra: Vertebra) -> dict[str, Any]:
    """What `CASE.json` says of one vertebra."""
    probabilities = None
    if vertebra.probabilities is not None:
        probabilities = {name: round(float(p), 6) for name, p in zip(anatomy.LEVELS, vertebra.probabilities, strict=True)}
    return {
        "level": vertebra.level,
        "label": anatomy.LABEL_OF_NAME.get(vertebra.level or ""),
        "confidence": _number(vertebra.confidence, 6),
        "uncertainty": _number(vertebra.uncertainty, 6),
        "body_centre_mm": None if vertebra.body_centre is None else [round(float(c), 3) for c in vertebra.body_centre],
        "extent_mm": [round(float(e), 2) for e in vertebra.extent],
        "volume_ml": _number(vertebra.volume_ml, 3),
        "probabilities": probabilities,
        "touches_border": bool(vertebra.touches_border),
        "heights": _heights_record(vertebra.heights),
        "height_doubt": vertebra.height_doubt,
        "trabecular_hu": _number(vertebra.trabecular_hu, 0),
        "grading": _grading_record(vertebra),
        "grade_doubt": vertebra.grade_doubt,
    }


def _heights_record(heights: BodyHeights | None) -> dict[str, Any] | None:
    """Millimetres and shares in the order anterior, middle, posterior."""
    if heights is None:
        return None

    def rounded(values: tuple[float, ...] | None, decimals: int) -> list[float] | None:
        return None if values is None else [round(value, decimals) for value in values]

    return {"measured_mm": rounded(heights.measured, 2), "expected_mm": rounded(heights.expected, 2), "reference": heights.reference,
            "loss": rounded(heights.loss, 3), "to_posterior": rounded(tuple(h / heights.posterior for h in heights.measured), 3),
            "implied_grade": heights.grade, "shape": heights.shape}


def _grading_record(vertebra: Vertebra) -> dict[str, Any] | None:
    """The network's Genant grade, beside whether the heights contradict it, and what both say together."""
    if vertebra.grade_probabilities is None:
        return None
    from ..stages.grade.predictor import disagree, grade_given

    both = vertebra.combined_grade_probabilities
    return {"grade": int(np.argmax(vertebra.grade_probabilities)), "probabilities": [round(p, 4) for p in vertebra.grade_probabilities],
            "disagrees_with_heights": disagree(vertebra),
            "combined": None if both is None else {"grade": grade_given(vertebra), "probabilities": [round(p, 4) for p in both]}}


def _patient_record(vertebrae: Sequence[Vertebra]) -> dict[str, Any]:
    """`grading` of the patient, where the model has the stage `grade`."""
    if all(v.combined_grade_probabilities is None and v.grade_doubt is None for v in vertebrae):
        return {}
    from ..stages.grade.predictor import patient_grade

    return {"grading": patient_grade(vertebrae)}


def _number(value: float | None, decimals: int) -> float | None:
    """Rounded; None (null) also for what is not finite, which JSON has no word for."""
    return None if value is None or not math.isfinite(value) else round(float(value), decimals)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on, where installed."""
    found = {"python": platform.python_version()}
    for package in ("spineclue_v2", "torch", "numpy", "SimpleITK", "ultralytics"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
