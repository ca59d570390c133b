"""Inference of the geometry classifier: log-probabilities of the levels from the body centres of a scan."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...anatomy import NUM_LEVELS
from ...training.stage_model import StageModel
from ..base import Context, Evidence, Findings
from .features import CLASSES, L6, Batch, Landmarks
from .network import GeometryNetwork
from .training import OPTIONAL

LEAST = 1e-12


def predict(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings with the evidence of the geometry, where the classifier is enabled and there are vertebrae."""
    if not findings.vertebrae or not context.enabled("geometry"):
        return findings
    evidence = evidence_of(np.array([v.body_centre for v in findings.vertebrae]), model)
    return replace(findings, evidence={**findings.evidence, "geometry": evidence})


def evidence_of(centres_xyz: np.ndarray, model: StageModel) -> Evidence:
    """What the decoder takes, mean over the folds: (n, 25) logs over the levels and "not a vertebra", and variants (n, 2) with T13
    unknown (NaN) and L6 by its own class.

    Args:
        centres_xyz: (n, 3) body centres, LPS mm, in cranio-caudal order.
        model: of stage geometry.
    """
    scan = Landmarks(np.asarray(centres_xyz, dtype=float).reshape(-1, 3))
    rows = np.mean([level_probabilities(network, [scan], fitted.get("inputs", ()), fitted.get("temperature", 1.0))[0]
                    for network, fitted in zip(model.networks, model.fitted, strict=True)], axis=0)
    logs = np.log(np.maximum(rows, LEAST))
    return Evidence(logs[:, :NUM_LEVELS + 1], np.stack([np.full(len(rows), np.nan), logs[:, L6]], axis=1))


def level_probabilities(network: GeometryNetwork, scans: Sequence[Landmarks], inputs: Sequence[str] = (),
                        temperature: float = 1.0) -> list[np.ndarray]:
    """(n, CLASSES) per scan: the 24 levels, "not a vertebra", L6; detections in cranio-caudal order.

    `inputs`: which optional inputs training showed; others are ignored, since nothing was learned from them.
    """
    if not scans:
        return []
    hidden: dict[str, Any] = dict.fromkeys(name for name in OPTIONAL if name not in inputs)
    known = [replace(scan, targets=None, **hidden) for scan in scans]
    batch = Batch.of(known)
    if batch.present.shape[1] == 0:
        return [np.zeros((0, CLASSES)) for _ in scans]
    with torch.inference_mode():
        mean = network(batch, temperature).numpy()
    return [rows[:len(scan.centres)] for rows, scan in zip(mean, scans, strict=True)]
