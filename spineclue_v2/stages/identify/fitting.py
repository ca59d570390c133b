"""Temperature and fusion matrices from unseen cases, and the same from half of them, so that the other half can be judged by it.

What prediction uses is fitted on all validation cases of the fold. A metric of those same cases would be flattered by it (by 0.6 to 2.8
points of the ID rate on a synthetic classifier); so each half of the cases is judged by what was fitted on the other half.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...training.temperature import fit_temperature
from .fusion import MessageFusion, fit_phi
from .network import LevelNetwork
from .plan import IdentifyRun
from .uncertainty import monte_carlo

HALVES = "halves"  # key of `fitted`: the cases of each half; `extra` holds phi_half_0 and phi_half_1


@dataclass(frozen=True)
class ScanRows:
    """One scan's vertebrae in cranio-caudal order: features (n, F), logits (n, 24), targets (n,) with -1 for no regular vertebra, and
    positions (n,) along the spine in whole vertebrae."""

    case: str
    features: Tensor
    logits: Tensor
    targets: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Fit:
    """A temperature, fusion matrices (neighbours, 24, 24), and the cross entropy before and after these were learned."""

    temperature: float
    phi: Tensor
    cross_entropy: tuple[float, float]


def fit_rows(network: LevelNetwork, scans: Sequence[ScanRows], run: IdentifyRun, device: torch.device) -> Fit:
    """Temperature and fusion matrices under which the targets of `scans` are most likely; without any target both are unlearned."""
    fusion = MessageFusion(run.theta, run.hops, run.neighbours)
    if not any((scan.targets >= 0).any() for scan in scans):
        return Fit(1.0, fusion.phi.detach().clone(), (float("nan"), float("nan")))
    temperature = fit_temperature(torch.cat([scan.logits for scan in scans]), torch.cat([scan.targets for scan in scans]))
    rows = []
    with torch.no_grad():
        for scan in scans:
            mean, uncertainty = monte_carlo(network, scan.features.to(device), run.mc_samples, temperature)
            rows.append((mean.cpu().clone(), uncertainty.cpu().clone(), scan.positions, scan.targets))
    with torch.enable_grad():
        curve = fit_phi(fusion, rows)
    return Fit(temperature, fusion.phi.detach().clone(), (curve[0], curve[-1]))


def fit_halves(network: LevelNetwork, scans: Sequence[ScanRows], run: IdentifyRun,
               device: torch.device) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """For each half of the scans what was fitted on the other half: entries of `fitted[HALVES]`, and tensors for `extra`."""
    parts = (scans[0::2], scans[1::2])
    entries, tensors = [], {}
    for number, (own, other) in enumerate(zip(parts, reversed(parts), strict=True)):
        fit = fit_rows(network, other, run, device)
        entries.append({"cases": [scan.case for scan in own], "temperature": fit.temperature})
        tensors[f"phi_half_{number}"] = fit.phi
    return entries, tensors


def fitted_without(case: str, fitted: Mapping[str, Any], extra: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`fitted` and `extra` of a checkpoint as this case may be judged by them: temperature and phi of the half that it is not in.

    A case that nothing was fitted on gets what prediction uses.
    """
    for number, half in enumerate(fitted.get(HALVES, ())):
        if case in half["cases"]:
            return {**fitted, "temperature": half["temperature"]}, {**extra, "phi": extra[f"phi_half_{number}"]}
    return dict(fitted), dict(extra)
