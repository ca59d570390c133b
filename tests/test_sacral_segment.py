"""The first sacral segment: asked for below the last lumbar vertebra, no part of the numbering, kept with the case."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from analytic import ThresholdSegmenter, hu_volume
from test_segment import PLAN, located, scan

from spineclue_v2.anatomy.sacral_segment import first_sacral_segment
from spineclue_v2.stages.base import Context, Evidence, Findings, NumberingBasis, Options
from spineclue_v2.stages.segment.predictor import segment
from spineclue_v2.stages.segment.sacrum import predict

CPU = torch.device("cpu")
HIGH, LAST, BELOW = (46, 12, 14), (34, 12, 14), (22, 12, 14)


def looked(names: tuple[str | None, ...] = ("L4", "L5"), blocks: tuple[tuple[int, int, int], ...] = (HIGH, LAST, BELOW),
           sacrum: float | None = None, wanted: bool = True) -> tuple[Findings, ThresholdSegmenter]:
    """What the stage makes of a row of two that has the names, in a scan with these blocks; `sacrum`: probability by its surroundings."""
    volume = hu_volume(scan(*blocks), PLAN)
    row = tuple(segment(volume, [located((50, 18.5, 21.5)), located((38, 18.5, 21.5))], [ThresholdSegmenter()], PLAN, CPU))
    marks = None if sacrum is None else np.array([[0.0, 0.0], [sacrum, 0.0]])
    basis = NumberingBasis(row, names, names, {"appearance": Evidence(np.zeros((2, 25)), landmarks=marks)})
    network, plans = ThresholdSegmenter(), SimpleNamespace(stage=lambda _: PLAN)
    models: dict[str, Any] = {"segment": SimpleNamespace(networks=[network])}
    context = Context(plans, CPU, Options(sacrum=wanted), models)  # type: ignore[arg-type]
    return predict(Findings(volume, row, volume, basis=basis), None, context), network


def sacrum_of(findings: Findings) -> Any:
    basis = findings.basis
    assert basis is not None
    return first_sacral_segment(basis.names, basis.detections, basis.below)


def test_one_crop_below_l5_finds_it_and_names_stay() -> None:
    findings, network = looked()
    found = sacrum_of(findings)
    assert found is not None and found.mask_start == BELOW and found.mask.shape == (8, 14, 16) and network.calls == 1
    assert found.volume_ml == pytest.approx(8 * 14 * 16 * 8 / 1000) and not found.touches_border
    assert findings.basis is not None and findings.basis.names == ("L4", "L5") and len(findings.basis.detections) == 2


@pytest.mark.parametrize(("change", "asked"), [
    ({"names": ("T4", "T5")}, False),                                # a chest
    ({"sacrum": 0.1}, False),                                        # the surroundings show no sacrum
    ({"wanted": False}, False),
    ({"blocks": (HIGH, LAST)}, True),                               # nothing there: the crop shows L5 again
])
def test_elsewhere_there_is_none(change: dict[str, Any], asked: bool) -> None:
    findings, network = looked(**change)
    assert sacrum_of(findings) is None and bool(network.calls) == asked


def test_what_shows_a_sacrum_is_looked_at_whatever_the_names_and_counts_once_they_end_with_l5() -> None:
    findings, _ = looked(names=("L3", "L4"), sacrum=0.9)
    assert sacrum_of(findings) is None and findings.basis is not None
    renamed = replace(findings, basis=replace(findings.basis, names=("L4", "L5")))
    assert sacrum_of(renamed) is findings.basis.below
