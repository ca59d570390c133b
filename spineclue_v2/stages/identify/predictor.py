"""Inference of stage 3: every witness's confidence per vertebra and level, message fusion, and the decoder's verdict."""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...anatomy import NUM_LEVELS
from ...plans import StagePlan
from ...training.device import autocast
from ...vertebra import SpineResult, Vertebra
from .data import mask_crop
from .decoder import Decoder, Prices
from .fusion import MessageFusion
from .steps import steps_along_spine, whole_positions
from .uncertainty import monte_carlo

if TYPE_CHECKING:
    from ...inference.model import StageModel
    from ...inference.pipeline import Options

NOT_A_VERTEBRA_SHAPE = 0.02  # the shape witness has no such class: a small constant keeps the decoder's false detections possible
FLOOR = 1e-6
INFERENCE_BATCH = 8


def head_to_foot(vertebrae: list[Vertebra]) -> list[Vertebra]:
    """Vertebrae in the order of the spine: from the most cranial one, each time the nearest of those below or beside it.

    Sorting by height alone would fail where a strong kyphosis or an oblique scan brings neighbours to the same height.
    """
    left = sorted(vertebrae, key=lambda v: -v.body_centre[2])  # type: ignore[index]
    ordered = left[:1]
    left = left[1:]
    while left:
        here = np.array(ordered[-1].body_centre)
        # Height counts double: the next vertebra is below, a skipped one would otherwise be appended at the very end.
        cost = [np.linalg.norm(np.array(v.body_centre) - here) + 2 * (left[0].body_centre[2] - v.body_centre[2]) for v in left]
        ordered.append(left.pop(int(np.argmin(cost))))
    return ordered


def identify(vertebrae: list[Vertebra], model: StageModel, geometry: Any, plan: StagePlan, device: torch.device,
             options: Options) -> SpineResult:
    """Names for segmented vertebrae. `geometry`: the geometry witness or None."""
    if not vertebrae:
        return SpineResult((), True)
    vertebrae = head_to_foot(vertebrae)
    centres = np.array([v.body_centre for v in vertebrae])
    steps = steps_along_spine(centres)
    probabilities, uncertainty = shape_probabilities(vertebrae, model, plan, device, whole_positions(steps))
    log_probabilities = np.zeros((len(vertebrae), NUM_LEVELS + 1))
    weights = {"shape": 1.0, "geometry": 1.0} | plan.run.witness_weights
    if "shape" in options.witnesses or geometry is None:
        whole = np.concatenate([probabilities * (1 - NOT_A_VERTEBRA_SHAPE), np.full((len(vertebrae), 1), NOT_A_VERTEBRA_SHAPE)], axis=1)
        log_probabilities += weights["shape"] * np.log(np.maximum(whole, FLOOR))
    if "geometry" in options.witnesses and geometry is not None:
        log_probabilities += weights["geometry"] * geometry.log_probabilities(centres)
    log_probabilities -= np.logaddexp.reduce(log_probabilities, axis=1, keepdims=True)
    decoder = Decoder(Prices.from_dict(plan.run.decoder_prices), options.forbid_anomalies)
    numbering = decoder.decode(log_probabilities, steps)
    named = tuple(replace(v, probabilities=p, uncertainty=float(u), level=name, confidence=float(c))
                  for v, p, u, name, c in zip(vertebrae, probabilities, uncertainty, numbering.names, numbering.confidence, strict=True)
                  if name is not None)
    return SpineResult(named, numbering.numbering_anchored, numbering.margin, extra={"rejected": len(vertebrae) - len(named)})


def shape_probabilities(vertebrae: list[Vertebra], model: StageModel, plan: StagePlan, device: torch.device,
                        positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fused probabilities (n, 24) and entropies (n,) of the Monte-Carlo means, averaged over the folds.

    The backbone runs once per vertebra and fold; all Monte-Carlo samples of the head are one batched product.
    """
    crops = torch.from_numpy(np.stack([mask_crop(v.mask, plan.network.crop_size) for v in vertebrae]))[:, None]
    fused_sum, entropy_sum = np.zeros((len(vertebrae), NUM_LEVELS)), np.zeros(len(vertebrae))
    run = plan.run
    for network, fitted, extra in zip(model.networks, model.fitted, model.extra, strict=True):
        with torch.inference_mode(), autocast(device):
            features = torch.cat([network.features(crops[i:i + INFERENCE_BATCH].to(device)).float()
                                  for i in range(0, len(crops), INFERENCE_BATCH)])
        mean, entropy, _ = monte_carlo(network, features, run.mc_samples, fitted.get("temperature", 1.0))
        fusion = MessageFusion(run.theta, run.hops, run.neighbours)
        if "phi" in extra:
            fusion.load_state_dict({"phi": extra["phi"].cpu()})
        with torch.no_grad():
            fused = fusion(mean.cpu().clone(), entropy.cpu().clone(), torch.from_numpy(positions))
        fused_sum += fused.numpy()
        entropy_sum += entropy.cpu().numpy()
    return fused_sum / len(model.networks), entropy_sum / len(model.networks)
