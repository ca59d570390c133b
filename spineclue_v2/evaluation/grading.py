"""Metrics of fracture grading, per vertebra and per patient, with bootstrap intervals over patients.

`true` grades are Genant's 0..3, `predicted` the grades given, `score` a number that grows with how much a vertebra is thought to be
deformed (any scale). Metrics without cases to stand on (no vertebra of that grade) are NaN.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utilities.files import read_json
from .files import CaseFiles, case_key, stem

GRADES = (0, 1, 2, 3)
SENSITIVITY, SPECIFICITY = 0.85, 0.99      # fixed points of the paper's headline (Wei et al., arXiv 2208.10698)
BOOTSTRAPS = 1000
NAN = float("nan")


def macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the grades that occur in `true` or `predicted`; 2 TP / (2 TP + FP + FN) each."""
    scores = []
    for grade in GRADES:
        hits = np.sum((true == grade) & (predicted == grade))
        total = np.sum(true == grade) + np.sum(predicted == grade)
        if total:
            scores.append(2 * hits / total)
    return float(np.mean(scores)) if scores else NAN


def grade_recall(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """{grade: share of its vertebrae that were given this grade}."""
    return {str(g): float(np.mean(predicted[true == g] == g)) if (true == g).any() else NAN for g in GRADES}


def auc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: chance that a positive scores above a negative, ties half (Mann-Whitney)."""
    from scipy.stats import rankdata

    count = int(positive.sum())
    if count in (0, len(positive)):
        return NAN
    ranks = rankdata(score)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def specificity_at(positive: np.ndarray, score: np.ndarray, sensitivity: float = SENSITIVITY) -> float:
    """Largest specificity of a threshold (score >= t is positive) whose sensitivity is at least `sensitivity`."""
    if positive.all() or not positive.any():
        return NAN
    ranked = np.sort(score[positive])[::-1]
    threshold = ranked[int(np.ceil(sensitivity * len(ranked) - 1e-9)) - 1]
    return float(np.mean(score[~positive] < threshold))


def sensitivity_at(positive: np.ndarray, score: np.ndarray, specificity: float = SPECIFICITY) -> float:
    """Largest sensitivity of a threshold (score >= t is positive) whose specificity is at least `specificity`."""
    if positive.all() or not positive.any():
        return NAN
    negatives = np.sort(score[~positive])
    allowed = len(negatives) - int(np.ceil(specificity * len(negatives) - 1e-9))  # false alarms that are allowed
    bar = negatives[len(negatives) - 1 - allowed] if allowed < len(negatives) else -np.inf
    return float(np.mean(score[positive] > bar))


def grading_metrics(true: np.ndarray, predicted: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """All metrics of one set of vertebrae (or patients)."""
    fractured = true >= 1
    found = predicted >= 1
    return {"macro_f1": macro_f1(true, predicted), "recall": grade_recall(true, predicted),
            "auc_1": auc(fractured, score), "auc_2": auc(true >= 2, score),
            "sensitivity": float(np.mean(found[fractured])) if fractured.any() else NAN,
            "specificity": float(np.mean(~found[~fractured])) if (~fractured).any() else NAN,
            f"specificity_at_sensitivity_{SENSITIVITY:g}": specificity_at(fractured, score),
            f"sensitivity_at_specificity_{SPECIFICITY:g}": sensitivity_at(fractured, score)}


def summarise(true: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray, score: Sequence[float] | np.ndarray,
              patients: Sequence[str], bootstraps: int = BOOTSTRAPS, seed: int = 0) -> dict[str, Any]:
    """{"vertebrae", "patients": counts, "per_vertebra", "per_patient": metrics, "interval": 95 % bootstrap intervals of both}.

    A patient has the worst grade and the highest score of the own vertebrae. The bootstrap draws patients, not vertebrae: those of one
    spine are alike.
    """
    true, predicted, score = np.asarray(true), np.asarray(predicted), np.asarray(score, dtype=float)
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    members = [np.flatnonzero(owner == i) for i in range(len(names))]
    worst = [np.array([values[m].max() for m in members]) for values in (true, predicted, score)]
    result: dict[str, Any] = {"vertebrae": len(true), "patients": len(names), "counts": {str(g): int((true == g).sum()) for g in GRADES},
                              "per_vertebra": grading_metrics(true, predicted, score), "per_patient": grading_metrics(*worst)}
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[dict[str, float]]] = {"per_vertebra": [], "per_patient": []}
    for _ in range(bootstraps):
        chosen = rng.integers(0, len(names), len(names))
        rows = np.concatenate([members[i] for i in chosen])
        drawn["per_vertebra"].append(_flat(grading_metrics(true[rows], predicted[rows], score[rows])))
        drawn["per_patient"].append(_flat(grading_metrics(*(values[chosen] for values in worst))))
    result["interval"] = {what: {key: _interval([sample[key] for sample in samples]) for key in samples[0]}
                          for what, samples in drawn.items() if samples}
    return result


def _flat(found: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in found.items() if key != "recall"} | {f"recall_{g}": v for g, v in found["recall"].items()}


def _interval(values: list[float]) -> list[float]:
    kept = [v for v in values if v == v]
    return [float(v) for v in np.percentile(kept, (2.5, 97.5))] if kept else [NAN, NAN]


def grading_of(cases: Sequence[CaseFiles]) -> dict[str, Any] | None:
    """Metrics of the grades in the predictions' `CASE.json` against the reference's `gradesTr/CASE.json` (gradesTs beside labelsTs, or
    `CASE_grades.json` beside the label map); None when no case has reference grades.

    "heights" rates the grade that heights imply, "network" the stage grade's, "both" their combination, where there are any. A graded
    vertebra that the prediction does not have, or could not measure, counts as grade 0 and is counted in "without_grade".
    """
    rows: dict[str, list[tuple[int, int, float, str]]] = {"heights": [], "network": [], "both": []}
    missing = dict.fromkeys(rows, 0)
    used = set()
    for files in cases:
        reference = reference_grades(files.reference)
        if not reference:
            continue
        patient = _patients(files.reference.parent.parent).get(case_key(stem(files.reference)), files.case)
        found = predicted_grades(files.prediction)
        for level, grade in reference.items():
            for source, given in rows.items():
                value = found.get(level, {}).get(source)
                missing[source] += value is None
                used |= {source} if value is not None else set()
                given.append((grade, *(value or (0, 0.0)), patient))
    if not rows["heights"]:
        return None
    return {source: summarise([row[0] for row in given], [row[1] for row in given], [row[2] for row in given], [row[3] for row in given])
            | {"without_grade": missing[source]} for source, given in rows.items() if source in used}


def reference_grades(labels: Path) -> dict[str, int]:
    """{level: Genant grade} that belongs to a reference label map; empty where there is none."""
    from ..dataset.raw import read_grades

    key, folder = case_key(stem(labels)), labels.parent
    choices = [folder / f"{key}_grades.json"]
    if folder.name.startswith("labels"):
        choices.append(folder.parent / folder.name.replace("labels", "grades") / f"{key}.json")
    return next((read_grades(path) for path in choices if path.is_file()), {})


def predicted_grades(labels: Path | None) -> dict[str, dict[str, tuple[int, float]]]:
    """level -> {"heights": (grade, largest loss), "network" and "both": (grade, probability of grade >= 1)} of a prediction's record."""
    path = None if labels is None else labels.parent / f"{stem(labels)}.json"
    record = read_json(path, "record") if path is not None and path.is_file() else {}
    found: dict[str, dict[str, tuple[int, float]]] = {}
    for vertebra in record.get("vertebrae", []) if isinstance(record, dict) else []:
        heights, grading = vertebra.get("heights"), vertebra.get("grading")
        given = found.setdefault(vertebra.get("level"), {})
        if heights and heights.get("implied_grade") is not None:
            given["heights"] = (heights["implied_grade"], max(heights["loss"]))
        if grading:
            given["network"] = (grading["grade"], 1 - grading["probabilities"][0])
            if combined := grading.get("combined"):
                given["both"] = (combined["grade"], 1 - combined["probabilities"][0])
    return found


def _patients(dataset: Path) -> dict[str, str]:
    path = dataset / "dataset.json"
    content = read_json(path, "dataset.json") if path.is_file() else {}
    return content.get("patients") or {} if isinstance(content, dict) else {}
