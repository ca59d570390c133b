"""Inference of stage `grade`: heights of every vertebra's body, its trabecular HU, and the network's grade where the model has one."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...anatomy.vertebra import BodyHeights, Vertebra
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...training.stage_model import StageModel
from ..base import Context, Findings
from .comparison import GRADED
from .ordinal_fusion import OrdinalFusion, grade_of_probabilities

if TYPE_CHECKING:
    import torch

INFERENCE_BATCH = 4


def predict(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings whose vertebrae have grades, by the network and, where weighed, by network and heights together."""
    if findings.crop is None:
        return findings
    graded = add_grades(findings.vertebrae, findings.crop, model, context.plans.stage("grade"), context.device)
    return replace(findings, vertebrae=graded)


def add_grades(vertebrae: tuple[Vertebra, ...], image: Volume, model: StageModel, plan: StagePlan, device: torch.device
               ) -> tuple[Vertebra, ...]:
    """Thoracic and lumbar vertebrae with `grade_probabilities`, the mean over the folds, and, where the folds were weighed against heights,
    `combined_grade_probabilities`; or with a `grade_doubt`. `image`: HU on the masks' grid; `vertebrae` with their heights."""
    import torch

    from ...training.device import autocast
    from .data import grade_crop

    doubts = [doubt_of_grade(v) for v in vertebrae]
    chosen = [i for i, v in enumerate(vertebrae) if v.mask is not None and v.level in GRADED and doubts[i] is None]
    losses = [largest_loss(vertebrae[i]) for i in chosen]
    rows = [np.zeros((0, 4))] * len(model.networks)
    for begin in range(0, len(chosen), INFERENCE_BATCH):
        part = [vertebrae[i] for i in chosen[begin:begin + INFERENCE_BATCH]]
        crops = torch.from_numpy(np.stack([grade_crop(image.array, v.known_mask, v.known_mask_start, plan.network.crop_size,
                                           plan.network.windows_hu)
                                           for v in part])).to(device)
        with torch.inference_mode(), autocast(device):
            rows = [np.concatenate([known, network.probabilities(crops).float().cpu().numpy()])
                    for known, network in zip(rows, model.networks, strict=True)]
    weighed = [(row, OrdinalFusion.from_json(fitted["combination"])) for row, fitted in zip(rows, model.fitted, strict=True)
               if "combination" in fitted]
    combined = np.mean([both.probabilities(row, losses) for row, both in weighed], axis=0) if weighed else None
    result = [replace(v, grade_doubt=doubt) for v, doubt in zip(vertebrae, doubts, strict=True)]
    for number, i in enumerate(chosen):
        result[i] = replace(result[i], grade_probabilities=_four(np.mean([row[number] for row in rows], axis=0)),
                            combined_grade_probabilities=None if combined is None else _four(combined[number]))
    return tuple(result)


def doubt_of_grade(vertebra: Vertebra) -> str | None:
    """Why a thoracic or lumbar vertebra with a mask gets no grade; None where it gets one, and for the others. A body whose heights are not
    trusted (cut, metal, a doubtful mask, coarse voxels) looks deformed to a network, too."""
    if vertebra.mask is None or vertebra.level not in GRADED:
        return None
    return (vertebra.height_doubt or "there are no heights of its body") if largest_loss(vertebra) is None else None


def largest_loss(vertebra: Vertebra) -> float | None:
    """Largest missing share of the expected height; None without heights or anything to compare them with."""
    loss = None if vertebra.heights is None else vertebra.heights.loss
    return None if loss is None else max(loss)


def _four(row: np.ndarray) -> tuple[float, float, float, float]:
    zero, one, two, three = (float(p) for p in row)
    return zero, one, two, three


def grade_given(vertebra: Vertebra) -> int | None:
    """The grade of network and heights together; of the network alone where they were not weighed; None without a network."""
    if vertebra.combined_grade_probabilities is not None:
        return grade_of_probabilities(vertebra.combined_grade_probabilities)
    return None if vertebra.grade_probabilities is None else int(np.argmax(vertebra.grade_probabilities))


def patient_grade(vertebrae: Sequence[Vertebra]) -> dict[str, Any] | None:
    """What the combined probabilities say of the patient: {"graded": number of vertebrae, "worst": the level, grade and probability of
    grade >= 1 of the vertebra for which that is highest (None without any), "not_graded": {level: why}}. None without the stage."""
    graded = [(v, 1 - p[0]) for v in vertebrae if (p := v.combined_grade_probabilities) is not None]
    doubts = {v.known_level: v.grade_doubt for v in vertebrae if v.level is not None and v.grade_doubt is not None}
    if not graded and not doubts:
        return None
    worst, suspicion = max(graded, key=lambda row: row[1], default=(None, 0.0))
    return {"graded": len(graded), "not_graded": doubts,
            "worst": None if worst is None else {"level": worst.level, "grade": grade_given(worst), "probability": round(suspicion, 4)}}


def disagree(vertebra: Vertebra) -> bool | None:
    """True when network and heights differ on whether there is a deformity, or by two grades; None when one of them is silent."""
    heights: BodyHeights | None = vertebra.heights
    if heights is None or heights.grade is None or vertebra.grade_probabilities is None:
        return None
    grade = int(np.argmax(vertebra.grade_probabilities))
    return (grade > 0) != (heights.grade > 0) or abs(grade - heights.grade) > 1
