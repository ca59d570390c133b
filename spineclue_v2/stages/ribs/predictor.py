"""Inference of the ribs classifier: log-probabilities of the levels from the bone beside each body."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...anatomy import NUM_LEVELS
from ...imageio.orientation import oriented_view
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...preprocessing.resampling import to_network_space
from ...training.stage_model import StageModel
from ..base import Context, Evidence, Findings
from ..engine import engine_of
from .features import ABOVE_MM, BACK_MM, BELOW_MM, FRONT_MM, LAST_MM, inputs_of, reaches
from .groups import RIB_GROUPS, spread

if TYPE_CHECKING:
    import torch

UNSURE = 0.1            # of each row: contrast agent and metal beside the spine look like bone
NO_VERTEBRA = 0.02      # it knows no such class; as for the shape classifier, a small constant keeps false detections possible
LANDMARKS = 4           # columns of `Evidence.landmarks`; the last two are the last and the first rib


def predict(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings with the evidence of the ribs, where the classifier is enabled and there are vertebrae."""
    if not findings.vertebrae or not context.enabled("ribs"):
        return findings
    centres = np.array([v.known_body_centre for v in findings.vertebrae])
    plan = context.plans.stage("ribs")
    groups = group_probabilities(around(findings.volume, centres, plan), centres, model, plan, context.device)
    return replace(findings, evidence={**findings.evidence, "ribs": evidence_of(groups, model.fitted[0].get("weight"))})


def around(scan: Volume, centres_xyz: np.ndarray, plan: StagePlan) -> Volume:
    """The part of the scan that the readings of bodies (n, 3), LPS mm, can touch, in network space."""
    view = oriented_view(scan, plan.data.orientation)
    spacing = np.array(view.geometry.spacing)
    before, after = (np.array(mm) / spacing + 2 for mm in ((BELOW_MM, FRONT_MM, LAST_MM), (ABOVE_MM, BACK_MM, LAST_MM)))
    places, shape = view.geometry.world_to_index(centres_xyz), np.array(view.array.shape)
    low = np.clip(np.floor(places.min(0) - before), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(places.max(0) + after + 1), low + 1, shape).astype(int)
    return to_network_space(view.cropped(low, high), plan.data)


def group_probabilities(volume: Volume, centres_xyz: np.ndarray, model: StageModel, plan: StagePlan, device: torch.device) -> np.ndarray:
    """(n, groups) probabilities of `network.GROUPS`, mean over the folds.

    Args:
        volume: int16 HU in the stage's network space.
        centres_xyz: (n, 3) body centres, LPS mm, cranio-caudal.
        model: networks with their temperatures in `fitted`.
        plan: of stage ribs.
        device: where the networks are.
    """
    inputs = inputs_of(reaches(volume, centres_xyz, plan.network.thresholds_hu))
    engines = [engine_of(network, f"{__package__}.network:group_logits", device, bfloat16=False) for network in model.networks]
    logits = [engine(inputs).astype(np.float64) / fitted.get("temperature", 1.0)
              for engine, fitted in zip(engines, model.fitted, strict=True)]
    mean: np.ndarray = np.mean([np.exp(rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)) for rows in logits], axis=0)
    return mean


def evidence_of(groups: np.ndarray, weight: float | None = None) -> Evidence:
    """What the decoder takes of (n, groups) probabilities."""
    levels = (1 - UNSURE) * groups @ spread() + UNSURE / NUM_LEVELS
    rows = np.concatenate([(1 - NO_VERTEBRA) * levels, np.full((len(groups), 1), NO_VERTEBRA)], axis=1)
    return Evidence(np.log(rows), weight=weight, landmarks=rib_ends(groups[:, RIB_GROUPS].sum(1)))


def rib_ends(ribs: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n, 4) landmarks: probability that a vertebra carries the last and the first rib, from that of carrying any; NaN where the next one
    is not in the row."""
    p = np.asarray(ribs, dtype=float)
    out = np.full((len(p), LANDMARKS), np.nan)
    out[:-1, 2], out[1:, 3] = p[:-1] * (1 - p[1:]), p[1:] * (1 - p[:-1])
    return out
