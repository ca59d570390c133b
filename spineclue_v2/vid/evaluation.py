"""Figures of the VID benchmark, each with the ceiling that the detector sets."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..anatomy import region
from ..stages.geometry.vid_landmarks import VidScan
from .scans import Answer

COVERAGES = (0.5, 0.8, 0.9, 0.95, 1.0)


def evaluate(scans: Sequence[VidScan], numberings: Sequence[Answer]) -> dict[str, Any]:
    """Pooled metrics over scans with truth.

    "identification_rate": true bodies whose nearest body detection lies within 20 mm and bears their level / all true bodies;
    its ceiling gives every true body with a detection of its own. "all_right": share of scans whose every true body counts;
    "all_right_fully_detected": among scans where that was possible. "risk_coverage": for the most confident share of scans
    (1 - posterior of the shifted paths), the share of their detected true bodies that are named wrongly, and of scans with
    such an error. "anomalies": scans, scans without a wrong name and correctly named L6 or L1.
    """
    pairs = [(scan, numbering) for scan, numbering in zip(scans, numberings, strict=True) if scan.names]
    if not pairs:
        return {"scans": 0}
    hits = [_hits(scan, numbering) for scan, numbering in pairs]
    total = sum(len(scan.names) for scan, _ in pairs)
    full = np.array([scan.fully_detected for scan, _ in pairs])
    right = np.array([bool(hit.all()) for hit in hits])
    ceiling = sum(len(set(scan.nearest[scan.nearest >= 0])) for scan, _ in pairs)
    return {
        "scans": len(pairs), "bodies": total,
        "identification_rate": sum(int(hit.sum()) for hit in hits) / total, "identification_rate_ceiling": ceiling / total,
        "all_right": float(right.mean()), "all_right_ceiling": float(full.mean()),
        "all_right_fully_detected": float(right[full].mean()) if full.any() else None, "fully_detected": int(full.sum()),
        "anomalies": {name: _anomaly(name, pairs, hits) for name in ("L6", "T11-L1")},
        "regions": _group(((region(name), hit) for (scan, _), row in zip(pairs, hits, strict=True)
                             for name, hit in zip(scan.names, row, strict=True))),
        "collections": _group(((scan.collection or "unknown", hit) for (scan, _), row in zip(pairs, hits, strict=True)
                                 for hit in row)),
        "risk_coverage": _risk_coverage(pairs, hits),
    }


def report(metrics: dict[str, Any]) -> str:
    """The metrics as text, ceilings beside them."""
    if not metrics["scans"]:
        return "no scan has truth: nothing to evaluate"
    def percent(value: float | None) -> str:
        return "    -   " if value is None else f"{100 * value:6.2f} %"
    lines = [
        f"{metrics['scans']} scans, {metrics['bodies']} true bodies",
        f"identification rate          {percent(metrics['identification_rate'])}   "
        f"ceiling {percent(metrics['identification_rate_ceiling'])}",
        f"all right, all scans         {percent(metrics['all_right'])}   ceiling {percent(metrics['all_right_ceiling'])}",
        f"all right, fully detected    {percent(metrics['all_right_fully_detected'])}   of {metrics['fully_detected']} scans",
    ]
    for name, row in metrics["anomalies"].items():
        lines.append(f"{name:7s} {row['scans']:4d} scans: {row['all_right']} all right, {row['named']} anomalies named")
    for group in ("regions", "collections"):
        lines += [f"{name:14s}{percent(row['identification_rate'])}   of {row['bodies']}" for name, row in metrics[group].items()]
    lines.append("most confident scans: detected bodies named wrongly, scans with such an error")
    lines += [f"{percent(row['coverage'])}  {percent(row['error'])}  {percent(row['scan_error'])}"
              for row in metrics["risk_coverage"]]
    return "\n".join(lines)


def _hits(scan: VidScan, numbering: Answer) -> np.ndarray:
    """(m,) whether the nearest detection within reach bears the true level."""
    return np.array([k >= 0 and numbering.names[k] == name for k, name in zip(scan.nearest, scan.names, strict=True)], dtype=bool)


def _anomaly(name: str, pairs: Sequence[tuple[VidScan, Answer]], hits: Sequence[np.ndarray]) -> dict[str, int]:
    found = [(scan, hit) for (scan, _), hit in zip(pairs, hits, strict=True) if scan.has(name)]
    mark = {"L6": ("L6",), "T11-L1": ("T11", "L1")}[name]
    named = sum(all(hit[scan.names.index(level)] for level in mark) for scan, hit in found)
    return {"scans": len(found), "all_right": sum(bool(hit.all()) for _, hit in found), "named": named}


def _group(labelled_hits: Any) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[bool]] = {}
    for name, hit in labelled_hits:
        groups.setdefault(name, []).append(bool(hit))
    return {name: {"identification_rate": float(np.mean(values)), "bodies": len(values)}
            for name, values in sorted(groups.items())}


def _risk_coverage(pairs: Sequence[tuple[VidScan, Answer]], hits: Sequence[np.ndarray]) -> list[dict[str, float]]:
    wrong = np.array([int((~hit[scan.nearest >= 0]).sum()) for (scan, _), hit in zip(pairs, hits, strict=True)])
    detected = np.array([int((scan.nearest >= 0).sum()) for scan, _ in pairs])
    order = np.argsort([numbering.shifted for _, numbering in pairs], kind="stable")
    rows = []
    for coverage in COVERAGES:
        chosen = order[:max(1, round(coverage * len(order)))]
        rows.append({"coverage": coverage, "error": float(wrong[chosen].sum() / max(detected[chosen].sum(), 1)),
                     "scan_error": float((wrong[chosen] > 0).mean())})
    return rows
