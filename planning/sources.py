"""Planned numbers that a paper gives, with the paper as their reason."""
from __future__ import annotations

from typing import Any

from .rules import PlannedValue


def paper(value: Any, what: str = "") -> PlannedValue:
    """A number of the paper's."""
    return PlannedValue(value, "SpineCLUE, arXiv 2401.07271" + (f": {what}" if what else ""), {})


def unnamed() -> PlannedValue:
    """The optimiser of a stage for which the paper says none."""
    return adamw()._replace(rule="the paper names none; AdamW as the default planner has it")


def adamw() -> PlannedValue:
    """The optimiser of every stage but where a paper says another."""
    return PlannedValue("AdamW", "its weight decay does not depend on the gradients, so that one value serves any rate", {})


def wei(value: Any, what: str = "") -> PlannedValue:
    """A number of the paper that stage grade follows."""
    return PlannedValue(value, "Wei et al. 2022, arXiv 2208.10698" + (f": {what}" if what else ""), {})


def method_choices() -> dict[str, PlannedValue]:
    """What the paper's parameter study fixed; `spineclue_find_best_configuration` may say better."""
    return {"temperature": PlannedValue(0.1, "not given in the paper; Khosla et al. 2020", {}),
            "loss_weights": PlannedValue((0.1, 0.01, 1.0), "alpha, beta, gamma; the paper's beta of 0.5 on squared level distances "
                                         "outweighs the "
                                   "rest until nearly all levels are right: a short training named 0.35 of the vertebrae right with it, "
                                   "0.48 with 0.01", {}),
            "mc_samples": paper(20, "N, Fig. 7"),
            "theta": paper(0.1, "Fig. 7"), "hops": paper(3, "Fig. 7"), "neighbours": paper(7, "Fig. 7, the target included"),
            "decoder_penalties": PlannedValue({}, "empty: the decoder's own defaults", {}),
            "classifier_weights": PlannedValue({"shape": 1.0, "geometry": 0.45, "appearance": 0.45}, "middle of the best range on the "
                                               "validation "
                                      "phantoms of fold 0 (0.3 to 0.6); the geometry classifier repeats part of what the decoder knows; as "
                                      "much for the appearance classifier where it was trained", {}),
            "evidence_model": PlannedValue({}, "empty: fitted on real scans for the shipped classifiers only; others are weighed by "
                                               "classifier_weights", {})}
