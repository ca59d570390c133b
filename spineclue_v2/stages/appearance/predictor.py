"""Inference of the appearance classifier: log-probabilities of the levels from the CT around each body centre."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from ...anatomy import LEVELS, NUM_LEVELS, region
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...training.stage_model import StageModel
from ..base import Context, Evidence, Findings
from .data import cut_crops, to_coarse_grid

REGIONS = (*map(region, LEVELS), "none")   # of the 25 columns, for weights per region


def predict(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings with the evidence of the surroundings, where the classifier is enabled and there are vertebrae."""
    if not findings.vertebrae or not context.enabled("appearance"):
        return findings
    centres = np.array([v.body_centre for v in findings.vertebrae])
    logs = log_probabilities(findings.volume, centres, model, context.plans.stage("appearance"), context.device)
    weight = model.fitted[0].get("weight")
    evidence = Evidence(logs) if weight is None else Evidence(weight_by_region(logs, weight), weight=1.0)
    return replace(findings, evidence={**findings.evidence, "appearance": evidence})


@torch.inference_mode()
def log_probabilities(scan: Volume, centres_xyz: np.ndarray, model: StageModel, plan: StagePlan, device: torch.device) -> np.ndarray:
    """(n, 25) log-probabilities over the 24 levels and "not a vertebra", mean over the folds.

    Args:
        scan: the CT (HU), any grid and orientation.
        centres_xyz: (n, 3) body centres, LPS mm.
        model: networks with their temperatures in `fitted`.
        plan: of stage appearance.
        device: where the networks are.
    """
    centres = np.asarray(centres_xyz, dtype=float).reshape(-1, 3)
    if not len(centres):
        return np.zeros((0, NUM_LEVELS + 1))
    images = torch.from_numpy(cut_crops(to_coarse_grid(scan, plan, centres), centres, plan)).to(device)
    shares = [(network(images).double() / fitted.get("temperature", 1.0)).softmax(1)
              for network, fitted in zip(model.networks, model.fitted, strict=True)]
    return torch.stack(shares).mean(0).clamp(min=1e-12).log().cpu().numpy()


def weight_by_region(rows: np.ndarray, weight: float | Mapping[str, float]) -> np.ndarray:
    """(n, 25) log-probabilities times their weight; with weights per region each row's is the mean over what it says it may be."""
    if not isinstance(weight, Mapping):
        return rows * weight
    shares = np.exp(rows - np.logaddexp.reduce(rows, axis=1, keepdims=True))
    return rows * (shares @ np.array([weight[name] for name in REGIONS]))[:, None]
