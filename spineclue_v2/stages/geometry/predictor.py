"""Inference of the geometry classifier: log-probabilities of the levels from the body centres of a scan."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...anatomy import NUM_LEVELS
from ...training.stage_model import StageModel
from ..base import Context, Evidence, Findings
from ..converted import ConvertedNetwork
from .landmarks import CLASSES, L6, OPTIONAL, Landmarks, row_features

if TYPE_CHECKING:
    from .network import GeometryNetwork

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
    centres = np.asarray(centres_xyz, dtype=float).reshape(-1, 3)
    rows = np.mean([_of_centres(network, centres, fitted) for network, fitted in zip(model.networks, model.fitted, strict=True)], axis=0)
    logs = np.log(np.maximum(rows, LEAST))
    return Evidence(logs[:, :NUM_LEVELS + 1], np.stack([np.full(len(rows), np.nan), logs[:, L6]], axis=1))


def _of_centres(network: Any, centres: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    """One network's probabilities (n, CLASSES) where nothing but body centres (n, 3) is known."""
    temperature = fitted.get("temperature", 1.0)
    if not isinstance(network, ConvertedNetwork) or not len(centres):
        return level_probabilities(network, [Landmarks(centres)], fitted.get("inputs", ()), temperature)[0]
    rows, arc = row_features(centres)
    logits = network.engine("member_logits")(rows[None], arc[None])[:, 0].astype(float) / temperature
    mean: np.ndarray = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)).mean(0)
    return mean


def level_probabilities(network: GeometryNetwork, scans: Sequence[Landmarks], inputs: Sequence[str] = (),
                        temperature: float = 1.0) -> list[np.ndarray]:
    """(n, CLASSES) per scan: the 24 levels, "not a vertebra", L6; detections in cranio-caudal order.

    `inputs`: which optional inputs training showed; others are ignored, since nothing was learned from them.
    """
    if not scans:
        return []
    import torch

    from .features import Batch

    hidden: dict[str, Any] = dict.fromkeys(name for name in OPTIONAL if name not in inputs)
    known = [replace(scan, targets=None, **hidden) for scan in scans]
    batch = Batch.of(known)
    if batch.present.shape[1] == 0:
        return [np.zeros((0, CLASSES)) for _ in scans]
    with torch.inference_mode():
        mean = network(batch, temperature).numpy()
    return [rows[:len(scan.centres)] for rows, scan in zip(mean, scans, strict=True)]
