"""Old weights against new ones on labelled cases that neither was trained on: the whole pipeline, pair by pair, with an interval."""
from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dataset.raw import RawDataset
from ..evaluation.files import CaseFiles
from ..evaluation.metrics import HIT_DICE
from ..evaluation.summary import evaluate_files
from ..inference.cases import Case
from ..inference.model import Model
from ..inference.pipeline import Options
from ..inference.predict_folder import Wanted, predict_case
from ..stages.identify.fitting import fitted_without
from .settings_trial import MIN_PATIENTS, CaseGain, gain_interval

logger = logging.getLogger(__name__)

SURE_CHANGE = 1e-3      # of a case's mean: what changes by less has not changed
MEASURES = ("found", "named", "score")
"""Rates over all true vertebrae: found (Dice of at least 0.5), with the right name, and the Dice under the right name (0 for any other):
the last one counts finding, naming and drawing together, and decides."""


@dataclass(frozen=True)
class Proof:
    """Rates of the old and the new weights, the 95 % interval of each difference, and whether the new ones are better."""

    old: Mapping[str, float]
    new: Mapping[str, float]
    interval: Mapping[str, tuple[float, float]]
    better: bool
    reason: str
    cases: tuple[CaseGain, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"cases": [case.to_json() for case in self.cases]}


def predict_left_out(raw: RawDataset, cases: Sequence[str], model: Model, output: Path) -> None:
    """Predict labelled cases into `output`; those that are there stay.

    Temperature and fusion of a fold's identify were fitted on its left-out cases: each case is named by what the other half of them gave.
    """
    for case in cases:
        if (output / f"{case}.json").is_file():
            continue
        logger.info("left-out case %s", case)
        predict_case(Case(case, raw.image(case)), output, _model_for(case, model), Options(measures=False), Wanted(report=False))


def _model_for(case: str, model: Model) -> Model:
    identify = model.stages["identify"]
    pairs = [fitted_without(case, fitted, extra) for fitted, extra in zip(identify.fitted, identify.extra, strict=True)]
    own = dataclasses.replace(identify, fitted=[fitted for fitted, _ in pairs], extra=[extra for _, extra in pairs])
    return dataclasses.replace(model, stages=model.stages | {"identify": own})


def compare(raw: RawDataset, folders: Sequence[tuple[Sequence[str], Path, Path]]) -> Proof:
    """The proof from (cases, predictions with the old weights, predictions with the new ones) of every fold."""
    rows: dict[str, list[CaseGain]] = {measure: [] for measure in MEASURES}
    for cases, old, new in folders:
        before, after = (_sums(raw, cases, folder) for folder in (old, new))
        for case in cases:
            for measure in MEASURES:
                rows[measure].append(CaseGain(case, raw.patient_of(case), before[case][measure], after[case][measure],
                                              int(before[case]["true"])))
    return judge(rows)


def _sums(raw: RawDataset, cases: Sequence[str], folder: Path) -> dict[str, dict[str, float]]:
    """{case: sums over its true vertebrae of each measure, and their number}."""
    result = {}
    for case in cases:
        files = CaseFiles(case, raw.label(case), folder / f"{case}.nii.gz")
        vertebrae = evaluate_files(files, values=raw.verse_value)["spineclue"]["vertebrae"]
        result[case] = {"found": sum(v["dice"] >= HIT_DICE for v in vertebrae), "true": len(vertebrae),
                        "named": sum(v["predicted"] == v["level"] and v["dice"] >= HIT_DICE for v in vertebrae),
                        "score": sum(v["dice_same_label"] for v in vertebrae)}
    return result


def judge(rows: Mapping[str, Sequence[CaseGain]]) -> Proof:
    """The new weights are better where the interval of the score's gain lies above 0, enough patients speak, and no name is lost."""
    def rate(measure: str, which: str) -> float:
        return float(sum(getattr(row, which) for row in rows[measure]) / max(1, sum(row.true for row in rows[measure])))

    old, new = ({measure: rate(measure, which) for measure in MEASURES} for which in ("planned", "chosen"))
    interval = {measure: gain_interval(rows[measure]) for measure in MEASURES}
    changed = len({row.patient for row in rows["score"] if abs(row.chosen - row.planned) > SURE_CHANGE * max(1, row.true)})
    if new["score"] <= old["score"]:
        better, reason = False, "the new weights are no better on the cases left out"
    elif new["named"] < old["named"]:
        better, reason = False, "the new weights name fewer vertebrae right on the cases left out"
    elif changed < MIN_PATIENTS:
        better, reason = False, f"{changed} patient(s) of those left out change, and fewer than {MIN_PATIENTS} cannot show a sure gain"
    elif interval["score"][0] <= 0:
        better, reason = False, "the interval of the gain reaches 0"
    else:
        better, reason = True, "the interval of the gain lies above 0"
    return Proof(old, new, interval, better, reason, tuple(rows["score"]))
