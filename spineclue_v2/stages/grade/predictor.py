"""Inference of stage `grade`: heights of every vertebra's body, its trabecular HU, and the network's grade where the model has one."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ...anatomy.vertebra import BodyHeights, Vertebra
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...training.device import autocast
from ...training.stage_model import StageModel
from ..base import Context, Findings
from .comparison import GRADED
from .ordinal_fusion import OrdinalFusion, grade_of_probabilities

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
    `combined_grade_probabilities`. `image`: HU on the masks' grid; `vertebrae` with their heights."""
    from .data import grade_crop

    chosen = [i for i, v in enumerate(vertebrae)
              if v.mask is not None and v.level in GRADED and (v.heights is not None or not v.touches_border)]
    losses = [max(loss) if (h := vertebrae[i].heights) is not None and (loss := h.loss) is not None else None for i in chosen]
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
    result = list(vertebrae)
    for number, i in enumerate(chosen):
        result[i] = replace(vertebrae[i], grade_probabilities=_four(np.mean([row[number] for row in rows], axis=0)),
                            combined_grade_probabilities=None if combined is None else _four(combined[number]))
    return tuple(result)


def _four(row: np.ndarray) -> tuple[float, float, float, float]:
    zero, one, two, three = (float(p) for p in row)
    return zero, one, two, three


def grade_given(vertebra: Vertebra) -> int | None:
    """The grade of network and heights together; of the network alone where they were not weighed; None without a network."""
    if vertebra.combined_grade_probabilities is not None:
        return grade_of_probabilities(vertebra.combined_grade_probabilities)
    return None if vertebra.grade_probabilities is None else int(np.argmax(vertebra.grade_probabilities))


def disagree(vertebra: Vertebra) -> bool | None:
    """True when network and heights differ on whether there is a deformity, or by two grades; None when one of them is silent."""
    heights: BodyHeights | None = vertebra.heights
    if heights is None or heights.grade is None or vertebra.grade_probabilities is None:
        return None
    grade = int(np.argmax(vertebra.grade_probabilities))
    return (grade > 0) != (heights.grade > 0) or abs(grade - heights.grade) > 1
