"""No case is judged by a temperature or a fusion that was fitted on it."""
from __future__ import annotations

from dataclasses import replace

import torch

from spineclue_v2.anatomy import NUM_LEVELS
from spineclue_v2.planning.sources import method_choices
from spineclue_v2.stages.identify.fitting import HALVES, ScanRows, fit_halves, fit_rows, fitted_without
from spineclue_v2.stages.identify.network import ShapeNetwork
from spineclue_v2.stages.identify.plan import IdentifyRun

CPU = torch.device("cpu")
METHOD = {name: choice.value for name, choice in method_choices().items()}
RUN = IdentifyRun(batch_size=4, contrastive_epochs=1, classifier_epochs=1, iterations_per_epoch=1, contrastive_lr=1e-3, classifier_lr=1e-3,
                  weight_decay=1e-4, contrastive_loss="out", freeze_backbone=False, **(METHOD | {"mc_samples": 2}))


def network() -> ShapeNetwork:
    torch.manual_seed(0)
    return ShapeNetwork(18, 4, 2, hidden=8, projection_dim=4, dropout=0.3, pool_grid=(1, 1, 1)).eval()


def scans(shape: ShapeNetwork, count: int = 4) -> list[ScanRows]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(count):
        with torch.no_grad():
            features = shape.features(torch.rand(5, 1, 16, 16, 16, generator=generator)).float()
            logits = shape.classify(features).float()
        rows.append(ScanRows(f"case_{number}", features, logits, torch.arange(3 * number, 3 * number + 5), torch.arange(5)))
    return rows


def judged_by(rows: list[ScanRows], shape: ShapeNetwork, case: str) -> tuple[float, torch.Tensor]:
    entries, tensors = fit_halves(shape, rows, RUN, CPU)
    whole = fit_rows(shape, rows, RUN, CPU)
    fitted, extra = fitted_without(case, {"temperature": whole.temperature, HALVES: entries}, {"phi": whole.phi, **tensors})
    return fitted["temperature"], extra["phi"]


def test_the_truth_of_a_case_does_not_reach_what_it_is_judged_by():
    shape = network()
    rows = scans(shape)
    temperature, phi = judged_by(rows, shape, "case_1")
    turned = [replace(row, targets=(row.targets + 7) % NUM_LEVELS) if row.case == "case_1" else row for row in rows]
    again, phi_again = judged_by(turned, shape, "case_1")
    assert temperature == again and torch.equal(phi, phi_again)
    of_another, phi_of_another = judged_by(turned, shape, "case_0")      # of the other half: it does learn from case_1
    before, phi_before = judged_by(rows, shape, "case_0")
    assert before != of_another and not torch.equal(phi_before, phi_of_another)


def test_a_case_that_nothing_was_fitted_on_gets_what_prediction_uses():
    shape = network()
    rows = scans(shape)
    whole = fit_rows(shape, rows, RUN, CPU)
    entries, tensors = fit_halves(shape, rows, RUN, CPU)
    fitted, extra = fitted_without("another", {"temperature": whole.temperature, HALVES: entries}, {"phi": whole.phi, **tensors})
    assert fitted["temperature"] == whole.temperature and torch.equal(extra["phi"], whole.phi)
    assert sorted(case for half in entries for case in half["cases"]) == [row.case for row in rows]


def test_a_single_case_is_judged_by_unlearned_fusion():
    shape = network()
    rows = scans(shape, 1)
    temperature, phi = judged_by(rows, shape, "case_0")
    whole = fit_rows(shape, rows, RUN, CPU)
    assert temperature == 1.0 and not torch.equal(phi, whole.phi)
