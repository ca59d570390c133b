"""Inference of stage 3: every classifier's confidence per vertebra and level, message fusion, and the decoder's verdict."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...anatomy import NUM_LEVELS
from ...anatomy.vertebra import Vertebra
from ...anatomy.vertebral_gaps import round_positions, vertebral_gaps
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...preprocessing.crops import mask_crop
from ...results import SpineResult
from ...training.device import autocast
from .appearance import weight_by_region
from .calibration import weighted
from .decoder import Decoder
from .fusion import fusion_with
from .plan import Penalties
from .uncertainty import monte_carlo

if TYPE_CHECKING:
    from ...inference.pipeline import Options
    from ...training.stage_model import StageModel

NOT_A_VERTEBRA_SHAPE = 0.02  # the shape classifier has no such class: a small constant keeps the decoder's false detections possible
CLASSIFIERS = ("shape", "geometry", "appearance")
FLOOR = 1e-6
INFERENCE_BATCH = 8


def order_cranio_caudal(vertebrae: list[Vertebra]) -> list[Vertebra]:
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
             options: Options, appearance: Any = None, scan: Volume | None = None) -> SpineResult:
    """Names for segmented vertebrae. `geometry`, `appearance`: these classifiers or None; the latter needs the CT, `scan`."""
    if not vertebrae:
        return SpineResult((), True)
    vertebrae = order_cranio_caudal(vertebrae)
    centres = np.array([v.body_centre for v in vertebrae])
    steps = vertebral_gaps(centres)
    probabilities, uncertainty = shape_probabilities(vertebrae, model, plan, device, round_positions(steps))
    weights = dict(plan.run.classifier_weights)
    enabled = [name for name in options.classifiers if weights.get(name, 1.0) > 0]
    by_geometry = geometry.log_probabilities(centres) if geometry is not None and "geometry" in enabled else None
    by_appearance = None
    if appearance is not None and scan is not None and "appearance" in enabled:
        by_appearance = appearance.log_probabilities(scan, centres)
        if appearance.weight is not None:  # fitted: it knows better than the plan, unless the plan does not want to hear it
            by_appearance, weights["appearance"] = weight_by_region(by_appearance, appearance.weight), 1.0
    log_probabilities = combine_evidence(probabilities, by_geometry, weights, options.classifiers, by_appearance)
    decoder = Decoder(Penalties.from_dict(plan.run.decoder_penalties), options.forbid_anomalies)
    numbering = decoder.decode(log_probabilities, steps)
    named = tuple(replace(v, probabilities=p, uncertainty=float(u), log_probabilities=row, level=name, confidence=float(c))
                  for v, p, u, row, name, c in zip(vertebrae, probabilities, uncertainty, log_probabilities, numbering.names,
                                                   numbering.confidence, strict=True) if name is not None)
    return SpineResult(named, numbering.numbering_anchored, numbering.margin, extra={"rejected": len(vertebrae) - len(named)})


def combine_evidence(probabilities: np.ndarray, geometry: np.ndarray | None, classifier_weights: Mapping[str, float],
                      classifiers: Sequence[str] = CLASSIFIERS, appearance: np.ndarray | None = None) -> np.ndarray:
    """Log-probabilities (n, 25) for the decoder from the shape classifier's (n, 24) and the others' log rows (n, 25) or None."""
    weights = {"shape": 1.0, "geometry": 1.0, "appearance": 1.0} | dict(classifier_weights)
    others = {name: rows for name, rows in (("geometry", geometry), ("appearance", appearance)) if rows is not None and name in classifiers}
    shape = {"shape": shape_logs(probabilities)} if "shape" in classifiers or not others else {}
    return weighted(shape | others, weights)


def shape_logs(probabilities: np.ndarray) -> np.ndarray:
    """(n, 24) probabilities of the shape classifier -> (n, 25) logs with "not a vertebra"."""
    whole = np.concatenate([probabilities * (1 - NOT_A_VERTEBRA_SHAPE), np.full((len(probabilities), 1), NOT_A_VERTEBRA_SHAPE)], axis=1)
    return np.log(np.maximum(whole, FLOOR))


def shape_rows(vertebrae: list[Vertebra], network: Any, fitted: Mapping[str, Any], plan: StagePlan, device: torch.device,
               crops: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """One network's Monte-Carlo means (n, 24) and their entropies (n,), before fusion. `crops`: mask crops that exist already."""
    if crops is None:
        crops = mask_crops(vertebrae, plan)
    with torch.inference_mode(), autocast(device):
        features = torch.cat([network.features(crops[i:i + INFERENCE_BATCH].to(device)).float()
                              for i in range(0, len(crops), INFERENCE_BATCH)])
    mean, entropy, _ = monte_carlo(network, features, plan.run.mc_samples, fitted.get("temperature", 1.0))
    return mean.cpu().clone(), entropy.cpu().clone()


def mask_crops(vertebrae: list[Vertebra], plan: StagePlan) -> torch.Tensor:
    """The network's input (n, 1, z, y, x)."""
    return torch.from_numpy(np.stack([mask_crop(v.mask, plan.network.crop_size) for v in vertebrae]))[:, None]


def shape_probabilities(vertebrae: list[Vertebra], model: StageModel, plan: StagePlan, device: torch.device,
                        positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fused probabilities (n, 24) and entropies (n,) of the Monte-Carlo means, averaged over the folds.

    The backbone runs once per vertebra and fold; all Monte-Carlo samples of the head are one batched product.
    """
    crops = mask_crops(vertebrae, plan)
    fused_sum, entropy_sum = np.zeros((len(vertebrae), NUM_LEVELS)), np.zeros(len(vertebrae))
    run = plan.run
    for network, fitted, extra in zip(model.networks, model.fitted, model.extra, strict=True):
        mean, entropy = shape_rows(vertebrae, network, fitted, plan, device, crops)
        with torch.no_grad():
            fused = fusion_with(run.theta, run.hops, run.neighbours, extra.get("phi"))(mean, entropy, torch.from_numpy(positions))
        fused_sum += fused.numpy()
        entropy_sum += entropy.numpy()
    return fused_sum / len(model.networks), entropy_sum / len(model.networks)
