"""Inference of stage 3: the shape classifier with message fusion, all classifiers together, and the sequence decoder."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...anatomy import NUM_LEVELS
from ...anatomy.vertebra import Vertebra
from ...anatomy.vertebral_gaps import round_positions, vertebral_gaps
from ...errors import InputError
from ...plans.plans import StagePlan
from ...preprocessing.crops import mask_crop
from ...training.stage_model import StageModel
from ..base import Context, Evidence, Findings, NumberingBasis, is_enabled
from ..converted import ConvertedNetwork
from .arrays import dropout_masks, entropy, fuse
from .evidence import shape_logs
from .numbering import apply_numbering, combined, explanation, number
from .tool_levels import NAME as TOOL
from .tool_levels import with_tool
from .trust import EvidenceModel

if TYPE_CHECKING:
    import torch

INFERENCE_BATCH = 8


def predict(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Names for vertebrae, by the shape of their masks and by what other classifiers have said of them so far.

    Where a mask is missing (a list of body centres) shape says nothing. What the decoder takes for no vertebra is dropped;
    `extra["identify"]["rejected"]` counts it, beside the `reasons`. Raises InputError where no classifier can say anything.
    """
    if not findings.vertebrae:
        return findings
    plan = context.plans.stage("identify")
    findings = add_shape(findings, model, context)
    vertebrae, evidence = findings.vertebrae, findings.evidence
    basis = _basis(vertebrae, evidence, plan, context)
    scan = None if findings.scan is None else findings.scan.geometry
    numbered = number(basis, context.options.known, scan, None if findings.crop is None else findings.crop.geometry)
    logs, variants = combined(basis)
    own = [None] * len(vertebrae) if variants is None else [(float(t13), float(l6)) for t13, l6 in variants]
    heard = tuple(replace(v, log_probabilities=row, variant_log_probabilities=extra)
                  for v, row, extra in zip(vertebrae, logs, own, strict=True))
    numbered = replace(numbered, basis=replace(numbered.basis, detections=heard))
    named = apply_numbering(numbered, {})
    numbering = numbered.numbering
    return replace(findings, vertebrae=named, evidence=evidence, anchored=numbering.numbering_anchored and bool(named),
                   anchored_by=numbered.anchored_by, known=numbered.known, basis=numbered.basis, margin=numbering.margin,
                   flags=(*findings.flags, *numbered.flags), extra={**findings.extra, "identify": explanation(numbered)})


def add_shape(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings with the evidence of the shape classifier, where all vertebrae have masks and it has not spoken yet."""
    vertebrae, plan = findings.vertebrae, context.plans.stage("identify")
    if "shape" in findings.evidence or not vertebrae or any(v.mask is None for v in vertebrae):
        return findings
    gaps = vertebral_gaps(np.array([v.body_centre for v in vertebrae]))
    probabilities, uncertainty = shape_probabilities(vertebrae, model, plan, context.device, round_positions(gaps))
    seen = tuple(replace(v, probabilities=row, uncertainty=float(nats))
                 for v, row, nats in zip(vertebrae, probabilities, uncertainty, strict=True))
    return replace(findings, vertebrae=seen, evidence={"shape": Evidence(shape_logs(probabilities)), **findings.evidence})


def _basis(vertebrae: Sequence[Vertebra], evidence: Mapping[str, Evidence], plan: StagePlan, context: Context) -> NumberingBasis:
    """The evidence of the enabled classifiers, and the decoder's weights. InputError where no classifier can say anything."""
    run, nothing = plan.run, (None,) * len(vertebrae)
    known = run.evidence_model.get("trust", {}) if run.evidence_model else None
    if "shape" not in evidence and not any(is_enabled(name, context.options.classifiers) and (known is None or name in known)
                                           for name in evidence):
        raise InputError("Vertebrae without masks are named by the classifiers geometry and appearance, and this model has (or was told to "
                         "use) neither; leave -d and -m out for the package's own model, or train stage geometry.")
    model = run.evidence_model
    if TOOL in evidence and model:
        model = with_tool(EvidenceModel.from_dict(model)).to_dict()
    return NumberingBasis(tuple(vertebrae), nothing, nothing, _enabled(evidence, context), run.decoder_penalties,
                          run.classifier_weights, model, context.options.forbid_anomalies)


def _enabled(evidence: Mapping[str, Evidence], context: Context) -> dict[str, Evidence]:
    """What the user lets count; shape where nothing else would be left."""
    chosen = context.options.classifiers
    return {name: found for name, found in evidence.items() if is_enabled(name, chosen)} or {"shape": evidence["shape"]}


def shape_rows(vertebrae: Sequence[Vertebra], network: Any, fitted: Mapping[str, Any], plan: StagePlan, device: torch.device,
               crops: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One network's Monte-Carlo means (n, 24) and their entropies (n,), before fusion. `crops`: mask crops that exist already."""
    if crops is None:
        crops = mask_crops(vertebrae, plan)
    temperature, samples = fitted.get("temperature", 1.0), plan.run.mc_samples
    parts = [crops[i:i + INFERENCE_BATCH] for i in range(0, len(crops), INFERENCE_BATCH)]
    if not isinstance(network, ConvertedNetwork):
        return _rows_of_module(network, parts, samples, temperature, device)
    engine = network.engine("crop_features")
    features = np.concatenate([engine(part) for part in parts])
    masks = dropout_masks((samples, len(features)), (plan.network.hidden, plan.network.projection_dim), plan.network.dropout)
    drawn = network.engine("draw_probabilities")(features, *masks, np.array([temperature], np.float32))
    mean = drawn.mean(0)
    return mean, entropy(mean)


def _rows_of_module(network: Any, parts: Sequence[np.ndarray], samples: int, temperature: float, device: torch.device
                    ) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from ...training.device import autocast
    from .uncertainty import monte_carlo

    with torch.inference_mode(), autocast(device):
        features = torch.cat([network.features(torch.from_numpy(part).to(device)).float() for part in parts])
    mean, nats = monte_carlo(network, features, samples, temperature)
    return mean.cpu().numpy(), nats.cpu().numpy()


def mask_crops(vertebrae: Sequence[Vertebra], plan: StagePlan) -> np.ndarray:
    """The network's input (n, 1, z, y, x), float32."""
    return np.stack([mask_crop(v.known_mask, plan.network.crop_size) for v in vertebrae])[:, None]


def shape_probabilities(vertebrae: Sequence[Vertebra], model: StageModel, plan: StagePlan, device: torch.device,
                        positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fused probabilities (n, 24) and entropies (n,) of the Monte-Carlo means, averaged over the folds.

    The backbone runs once per vertebra and fold; all Monte-Carlo samples of the head are one batched product.
    """
    crops = mask_crops(vertebrae, plan)
    fused_sum, entropy_sum = np.zeros((len(vertebrae), NUM_LEVELS)), np.zeros(len(vertebrae))
    run = plan.run
    for network, fitted, extra in zip(model.networks, model.fitted, model.extra, strict=True):
        mean, nats = shape_rows(vertebrae, network, fitted, plan, device, crops)
        fused_sum += fuse(mean, nats, positions, run.theta, run.hops, run.neighbours, extra.get("phi"))
        entropy_sum += nats
    return fused_sum / len(model.networks), entropy_sum / len(model.networks)
