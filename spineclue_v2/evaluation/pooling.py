"""From scans to one answer: metrics pooled over all vertebrae of a set of scans."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import anatomy
from . import calibration, metrics
from .metrics import ratio

REGIONS = ("cervical", "thoracic", "lumbar")


def pool(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every metric over the results of `case.evaluate_case`: rates pool vertebrae (as the VerSe pages do), shares count scans."""
    rows = [row for case in cases for row in case["vertebrae"]]
    counts = {name: sum(case["counts"][name] for case in cases) for name in
              ("reference", "matched", "detected", "missed", "false_positives", "weak_pairs", "verse_hits", "verse_vertebrae")}
    true, given = _names(rows)
    rated = [case for case in cases if case["all_right"] is not None]
    distances = [d for case in cases for d in case["verse_distances_mm"]]
    scan_dice = [np.mean([row["dice_same_label"] for row in case["vertebrae"]]) for case in cases if case["vertebrae"]]
    return {
        "scans": len(cases),
        "vertebrae": counts["reference"],
        "detection": metrics.detection(counts["detected"], counts["false_positives"], counts["missed"])
        | {"hits": counts["detected"], "false_positives": counts["false_positives"], "missed": counts["missed"],
           "ignored_at_border": sum(len(case["ignored_at_border"]) for case in cases)},
        "id_rate": metrics.identification_rate(true, given),
        "mse": metrics.level_mse(true, given),
        "matched": counts["matched"],
        "pairs_under_dice_0.5": counts["weak_pairs"],
        "verse_id_rate": ratio(counts["verse_hits"], counts["verse_vertebrae"]),
        "verse_d_mean_mm": ratio(sum(distances), len(distances)),
        "verse_misses": counts["verse_vertebrae"] - counts["verse_hits"],
        "dice_same_label_mean_over_scans": _mean(scan_dice),
        "all_right_rate": ratio(sum(case["all_right"] for case in rated), len(rated)),
        "all_right_rate_without_false_positives":
            ratio(sum(case["all_right_without_false_positives"] for case in rated), len(rated)),
        **_overlap(rows),
        "regions": {region: _part([row for row in rows if anatomy.region(row["level"]) == region]) for region in REGIONS},
        "levels": {name: _part(part) for name in anatomy.ANATOMICAL_ORDER
                   if (part := [row for row in rows if row["level"] == name])},
        "confusion_matrix": {"levels": list(anatomy.LEVELS), "rows": "true", "columns": "predicted",
                             "counts": metrics.confusion_matrix(true, given).tolist()},
        "anomalies": _anomalies(cases),
        "calibration": _calibration(cases),
    }


def _names(rows: Iterable[dict[str, Any]]) -> tuple[list[str], list[str | None]]:
    rows = list(rows)
    return [row["level"] for row in rows], [row["predicted"] for row in rows]


def _mean(values: Iterable[float]) -> float:
    """Mean of the values that are numbers; NaN when there is none."""
    kept = [v for v in values if v is not None and not np.isnan(v)]
    return ratio(float(sum(kept)), len(kept))


def _overlap(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Dice and NSD over all reference vertebrae (a missed one counts 0), distances over the matched ones."""
    return {"dice": _mean(row["dice"] for row in rows), "dice_same_label": _mean(row["dice_same_label"] for row in rows),
            "nsd_1mm": _mean(row["nsd"] for row in rows), "hd_mm": _mean(row["hd_mm"] for row in rows),
            "hd95_mm": _mean(row["hd95_mm"] for row in rows)}


def _part(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    true, given = _names(rows)
    hits = [row["verse_distance_mm"] for row in rows if row["verse_hit"]]
    return {"vertebrae": len(rows), "recall": ratio(sum(row["dice"] >= metrics.HIT_DICE for row in rows), len(rows)),
            "id_rate": metrics.identification_rate(true, given), "mse": metrics.level_mse(true, given),
            "verse_id_rate": ratio(len(hits), len(rows)), "verse_d_mean_mm": _mean(hits), **_overlap(rows)}


def _anomalies(cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Per variant: scans that have it, how it was answered, and scans that were said to have it without having it."""
    found = {}
    for name in ("T13", "L6", "T11->L1"):
        verdicts = [case["anomalies"][name] for case in cases]
        found[name] = {"scans": sum(v in ("hit", "missed", "wrong place") for v in verdicts), "hits": verdicts.count("hit"),
                       "wrong_place": verdicts.count("wrong place"), "missed": verdicts.count("missed"),
                       "false_alarms": verdicts.count("false alarm")}
    return found


def _calibration(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Confidences of the predicted vertebrae: false positives count as wrong, those cut by the border not at all."""
    rated = [(row["confidence"], row["predicted"] == row["level"]) for case in cases for row in case["vertebrae"]
             if row["confidence"] is not None]
    rated += [(row["confidence"], False) for case in cases for row in case["false_positives"] if row["confidence"] is not None]
    confidence, correct = [c for c, _ in rated], [r for _, r in rated]
    flagged = [case for case in cases if case["numbering_anchored"] is not None and case["numbering_right"] is not None]
    return {"vertebrae": len(rated), "ece": calibration.expected_calibration_error(confidence, correct),
            "risk_coverage": calibration.risk_coverage(confidence, correct),
            "numbering_anchored": calibration.anchoring([case["numbering_anchored"] for case in flagged],
                                                        [case["numbering_right"] for case in flagged])}
