"""Metrics of identification and detection, exactly as published. Pure functions on names, points and counts.

In all functions `true` lists the names of the reference vertebrae and `predicted` the name each of them was given,
None where it was missed. A ratio over nothing is NaN.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import anatomy

VERSE_MAX_MM = 20.0
HIT_DICE = 0.5
# Distances computed in floating point must not turn "exactly 20 mm" into a miss.
TOLERANCE_MM = 1e-6
NAN = float("nan")


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else NAN


def identification_rate(true: Sequence[str], predicted: Sequence[str | None]) -> float:
    """ID-rate of SpineCLUE (arXiv 2401.07271): correctly identified / all reference vertebrae; a missed one is wrong."""
    return ratio(sum(t == p for t, p in zip(true, predicted, strict=True)), len(true))


def level_error(true: str, predicted: str) -> int:
    """Levels the prediction lies too low (+) or too high (-) in the regular numbering.

    T13 and L6 count as one below T12 and L5, so T13 and L1 share a position: the confusion of these two counts as 1.
    """
    steps = anatomy.level_distance(true, predicted)
    if steps == 0 and true != predicted:
        return 1 if anatomy.ORDER_INDEX[predicted] > anatomy.ORDER_INDEX[true] else -1
    return steps


def level_mse(true: Sequence[str], predicted: Sequence[str | None]) -> float:
    """MSE of SpineCLUE: squared level-index difference over the matched vertebrae."""
    errors = [level_error(t, p) ** 2 for t, p in zip(true, predicted, strict=True) if p is not None]
    return ratio(float(sum(errors)), len(errors))


def confusion_matrix(true: Sequence[str], predicted: Sequence[str | None]) -> np.ndarray:
    """(24, 24) counts over anatomy.LEVELS, rows true, columns predicted; missed vertebrae, T13 and L6 are not in it."""
    counts = np.zeros((anatomy.NUM_LEVELS, anatomy.NUM_LEVELS), dtype=int)
    for t, p in zip(true, predicted, strict=True):
        if t in anatomy.LEVEL_INDEX and p in anatomy.LEVEL_INDEX:
            counts[anatomy.LEVEL_INDEX[t], anatomy.LEVEL_INDEX[p]] += 1
    return counts


def verse_hits(reference: Mapping[int, Any], prediction: Mapping[int, Any],
               max_mm: float = VERSE_MAX_MM) -> dict[int, float | None]:
    """Hits of the VerSe 2020 evaluation (Sekuboyina et al. 2021): {reference label: distance in mm of a hit, None for a miss}.

    `reference` and `prediction` map labels to points in mm. Label i is a hit when, among the labels present in both, the true
    point nearest to the predicted i is i's own, and it lies within `max_mm`. Surplus predictions cost nothing.
    """
    hits: dict[int, float | None] = dict.fromkeys(sorted(reference))
    shared = [label for label in sorted(reference) if label in prediction]
    if not shared:
        return hits
    true_points = np.array([reference[label] for label in shared], dtype=float)
    for own, label in enumerate(shared):
        distance = np.linalg.norm(true_points - np.asarray(prediction[label], dtype=float), axis=1)
        if int(np.argmin(distance)) == own and distance[own] <= max_mm + TOLERANCE_MM:
            hits[label] = float(distance[own])
    return hits


def verse_id_rate(reference: Mapping[int, Any], prediction: Mapping[int, Any], max_mm: float = VERSE_MAX_MM) -> float:
    """VerSe's id.rate of one scan: hits / reference vertebrae. The challenge pools hits and vertebrae over all scans."""
    hits = verse_hits(reference, prediction, max_mm)
    return ratio(sum(d is not None for d in hits.values()), len(hits))


def detection(hits: int, false_positives: int, missed: int) -> dict[str, float]:
    """Precision, recall and F1 from counts."""
    return {"precision": ratio(hits, hits + false_positives), "recall": ratio(hits, hits + missed),
            "f1": ratio(2 * hits, 2 * hits + false_positives + missed)}


def all_right(true: Sequence[str], predicted: Sequence[str | None]) -> bool:
    """VERIDAH's all-right: every reference vertebra of the scan was found and carries its right name."""
    return len(true) > 0 and all(t == p for t, p in zip(true, predicted, strict=True))


def anomalies(true: Sequence[str], predicted: Sequence[str | None], false_positives: Sequence[str] = ()) -> dict[str, str]:
    """Numerical variants of one scan: {'T13' | 'L6' | 'T11->L1': 'hit' | 'missed' | 'false alarm' | 'wrong place' | 'absent'}.

    T13, L6: a hit when the true one carries that name. T11->L1 (no T12): a hit when the true T11 and L1 carry their names and
    the prediction has no T12 either.
    """
    given = dict(zip(true, predicted, strict=True))
    names = {p for p in predicted if p is not None} | set(false_positives)
    found = {}
    for name in ("T13", "L6"):
        found[name] = _verdict(name in given, given.get(name) == name, name in names)
    skipped = {"T11", "L1"} <= set(true) and not {"T12", "T13"} & set(true)
    claimed = {"T11", "L1"} <= names and not {"T12", "T13"} & names
    # A T12 the detector missed is no claim about the anatomy: its true neighbours are then right and one is left out.
    claimed = claimed and not ("T12" in given and given["T12"] is None and given.get("T11") == "T11" and given.get("L1") == "L1")
    found["T11->L1"] = _verdict(skipped, claimed and given.get("T11") == "T11" and given.get("L1") == "L1", claimed)
    return found


def _verdict(present: bool, right: bool, claimed: bool) -> str:
    if present:
        return "hit" if right else ("wrong place" if claimed else "missed")
    return "false alarm" if claimed else "absent"
