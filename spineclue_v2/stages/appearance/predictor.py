"""Inference of the appearance classifier: log-probabilities of the levels from the CT around each body centre."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...anatomy import LEVELS, NUM_LEVELS, region
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...training.stage_model import StageModel
from ..base import Context, Evidence, Findings
from ..engine import engine_of
from .crops import SACRUM, SKULL, cut_crops, to_coarse_grid

if TYPE_CHECKING:
    import torch

INSIDE_MM = 6.0              # from the scan's border: nearer, the place shows too little
REGIONS = (*map(region, LEVELS), "none")   # of the 25 columns, for weights per region


def predict(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings with the evidence of the surroundings, where the classifier is enabled and there are vertebrae."""
    if not findings.vertebrae or not context.enabled("appearance"):
        return findings
    centres = np.array([v.body_centre for v in findings.vertebrae])
    plan, weight, landmarks = context.plans.stage("appearance"), model.fitted[0].get("weight"), None
    if plan.network.landmarks:
        ends = beyond(centres, findings.volume)
        rows = class_logs(findings.volume, np.vstack([centres, *(place[None] for place in ends.values())]), model, plan, context.device)
        landmarks = follow(np.exp(rows[:len(centres)]), dict(zip(ends, np.exp(rows[len(centres):]), strict=True)))
        logs = merge_landmarks(rows[:len(centres)])
    else:
        logs = log_probabilities(findings.volume, centres, model, plan, context.device)
    evidence = (Evidence(logs, landmarks=landmarks) if weight is None
                else Evidence(weight_by_region(logs, weight), weight=1.0, landmarks=landmarks))
    return replace(findings, evidence={**findings.evidence, "appearance": evidence})


def beyond(centres_xyz: np.ndarray, scan: Volume) -> dict[str, np.ndarray]:
    """"above" and "below": where one more vertebra would lie (LPS mm), where that is well inside the scan. `centres_xyz` (n, 3)."""
    if len(centres_xyz) < 2:
        return {}
    places = {"above": 2 * centres_xyz[0] - centres_xyz[1], "below": 2 * centres_xyz[-1] - centres_xyz[-2]}
    slack = INSIDE_MM / np.array(scan.geometry.spacing)
    last = np.array(scan.array.shape) - 1

    def inside(place: np.ndarray) -> bool:
        index = scan.geometry.world_to_index(place)
        return bool((index >= slack).all() and (index <= last - slack).all())

    return {end: place for end, place in places.items() if inside(place)}


def follow(rows: np.ndarray, ends: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, 2) probability that the sacrum lies below each detection and the skull base above it; NaN where the scan ends.

    Args:
        rows: (n, 27) probabilities of the detections: the next one may itself be the sacrum.
        ends: (27,) probabilities at the places `beyond` the ends.
    """
    out = np.full((len(rows), 2), np.nan)
    out[:-1, 0], out[1:, 1] = rows[1:, SACRUM], rows[:-1, SKULL]
    if "below" in ends:
        out[-1, 0] = ends["below"][SACRUM]
    if "above" in ends:
        out[0, 1] = ends["above"][SKULL]
    return out


def log_probabilities(scan: Volume, centres_xyz: np.ndarray, model: StageModel, plan: StagePlan, device: torch.device) -> np.ndarray:
    """(n, 25) log-probabilities over the 24 levels and "not a vertebra", mean over the folds; arguments as of `class_logs`."""
    return merge_landmarks(class_logs(scan, centres_xyz, model, plan, device))


def merge_landmarks(rows: np.ndarray) -> np.ndarray:
    """(n, 25 or 27) logs -> (n, 25): sacrum and skull base are no vertebrae."""
    return np.concatenate([rows[:, :NUM_LEVELS], np.logaddexp.reduce(rows[:, NUM_LEVELS:], axis=1, keepdims=True)], axis=1)


def class_logs(scan: Volume, centres_xyz: np.ndarray, model: StageModel, plan: StagePlan, device: torch.device) -> np.ndarray:
    """(n, 25) log-probabilities over the 24 levels and "not a vertebra", or (n, 27) with sacrum and skull base, mean over the folds.

    Args:
        scan: the CT (HU), any grid and orientation.
        centres_xyz: (n, 3) body centres, LPS mm.
        model: networks with their temperatures in `fitted`.
        plan: of stage appearance.
        device: where the networks are.
    """
    centres = np.asarray(centres_xyz, dtype=float).reshape(-1, 3)
    if not len(centres):
        return np.zeros((0, NUM_LEVELS + (3 if plan.network.landmarks else 1)))
    images = cut_crops(to_coarse_grid(scan, plan, centres), centres, plan)
    engines = [engine_of(network, f"{__package__}.network:class_logits", device, bfloat16=False) for network in model.networks]
    logits = [engine(images).astype(np.float64) / fitted.get("temperature", 1.0)
              for engine, fitted in zip(engines, model.fitted, strict=True)]
    fractions = np.mean([np.exp(rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)) for rows in logits], axis=0)
    rows: np.ndarray = np.log(np.maximum(fractions, 1e-12))
    return rows


def weight_by_region(rows: np.ndarray, weight: float | Mapping[str, float]) -> np.ndarray:
    """(n, 25) log-probabilities times their weight; with weights per region each row's is the mean over what it says it may be."""
    if not isinstance(weight, Mapping):
        return rows * weight
    shares = np.exp(rows - np.logaddexp.reduce(rows, axis=1, keepdims=True))
    return rows * (shares @ np.array([weight[name] for name in REGIONS]))[:, None]
