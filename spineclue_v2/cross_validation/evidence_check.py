"""Whether the evidence model of a plan holds for the networks that were trained with it.

`identify.run.evidence_model` was fitted with the package's weights. A plan for fine-tuning keeps it, and the training changes two of the
classifiers that it weighs. So each left-out case is numbered with it and without it (the plain weighted sum), from the same evidence.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..anatomy.known import Known
from ..results import SpineResult
from ..stages.identify.numbering import number

WITH, WITHOUT = "with", "without"


def judge_evidence(result: SpineResult, true: Sequence[str | None]) -> dict[str, dict[str, Any]] | None:
    """{"with", "without": vertebrae named right, whether it says anchored, whether it is anchored and wrong}; None without evidence model.

    Args:
        result: of one case, named by `identify_masks`.
        true: level of each detection of `result.basis`, None where it is no true vertebra.
    """
    basis = result.basis
    if basis is None or not basis.model:
        return None
    judged = {}
    for which, own in ((WITH, basis), (WITHOUT, replace(basis, model={}))):
        numbered = number(own, Known(), None, None).numbering
        pairs = [(t, name) for t, name in zip(true, numbered.names, strict=True) if t is not None and name is not None]
        anchored = bool(numbered.numbering_anchored)
        judged[which] = {"right": sum(t == name for t, name in pairs), "anchored": anchored,
                         "anchored_wrong": anchored and any(t != name for t, name in pairs)}
    return judged


def evidence_warning(cases: Sequence[Mapping[str, Any]], place: str) -> str | None:
    """What to do where the evidence model does not hold on the left-out cases (those of a validation summary); None where it does.

    It does not hold where a case is anchored and wrong, or fewer vertebrae are named right with it than without it. Taking it out is said
    only where that is no worse in both.

    Args:
        cases: `summary["spineclue"]["cases"]` of identify.
        place: file of the plan that predicts.
    """
    judged = [case["evidence_model"] for case in cases if case.get("evidence_model")]
    if not judged:
        return None
    wrong, right = ({which: sum(row[which][key] for row in judged) for which in (WITH, WITHOUT)} for key in ("anchored_wrong", "right"))
    if not wrong[WITH] and right[WITH] >= right[WITHOUT]:
        return None
    seen = (f"The evidence model of this plan was fitted with other weights. With it {right[WITH]} vertebrae of the {len(judged)} cases "
            f"left out are named right and {wrong[WITH]} case(s) are anchored and wrong; without it {right[WITHOUT]} and {wrong[WITHOUT]}.")
    if wrong[WITHOUT] <= wrong[WITH] and right[WITHOUT] >= right[WITH]:
        return f"{seen} Set identify.run.evidence_model to {{}} in {place}."
    return f"{seen} Look at the levels of every result; numbering_anchored is no promise of this model."
