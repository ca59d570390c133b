"""What the anatomy of a label map says about its own correctness: gaps, duplicates, islands, cuts, flips.

Each check looks at the measurements of one case (`fingerprint.measure_case`) and returns findings. Errors stop planning:
a network trained on them learns something false. Warnings are printed once, as a table.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spineclue_v2.anatomy import ANATOMICAL_ORDER, ORDER_INDEX

MAX_LISTED = 30
ISLAND_ML = 0.3
DUPLICATE_FRACTION = 0.3
CLOSE_RATIO, FAR_RATIO = 0.5, 1.7
BEHIND_MM = -2.0               # real vertebrae measure +2 (cervical) to +12 (lumbar)
LUNG_BASES = ("T10", "T11", "T12")
MORE_LUNG = 0.5                # real scans had 0.05 to 0.8 more on the right there; a high liver dome can turn that into 0.35 on the left


@dataclass(frozen=True)
class Finding:
    """One observation about a case. `severity` is 'error', 'warning' or 'note' (expected in real data, counted only)."""

    case: str
    severity: str
    check: str
    detail: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def check_case(case: str, vertebrae: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Findings from the measured vertebrae of one case (names in anatomical order, positions in LPS mm, (z, y, x))."""
    def finding(severity: str, check: str, detail: str) -> None:
        findings.append(Finding(case, severity, check, detail))

    findings: list[Finding] = []
    if not vertebrae:
        finding("warning", "empty", "no vertebra is labelled")
        return findings
    names = sorted(vertebrae, key=ORDER_INDEX.__getitem__)
    missing = missing_levels(names)
    if missing:
        finding("warning", "gap", f"{', '.join(missing)} missing between {names[0]} and {names[-1]}")
    for detail in _components(vertebrae):
        finding("warning", *detail)
    cut = [name for name in names if vertebrae[name]["touches_border"]]
    if cut:
        finding("note", "cut", f"{', '.join(cut)} cut by the border of the scan")
    findings += _orientation(case, names, vertebrae)
    findings += _distances(case, names, vertebrae)
    return findings


def missing_levels(names: Sequence[str]) -> list[str]:
    """Levels between the first and the last that are absent; T13 and L6 need not exist, T12 may be missing (T11 -> L1)."""
    order = [ORDER_INDEX[name] for name in names]
    between = ANATOMICAL_ORDER[min(order):max(order) + 1]
    return [name for name in between if name not in names and name not in ("T13", "L6", "T12")]


def are_neighbours(upper: str, lower: str) -> bool:
    """True when no level lies between the two in a usual spine (T13 may be absent)."""
    return set(ANATOMICAL_ORDER[ORDER_INDEX[upper] + 1:ORDER_INDEX[lower]]) <= {"T13"} and ORDER_INDEX[upper] < ORDER_INDEX[lower]


def table(findings: Sequence[Finding], limit: int = MAX_LISTED) -> str:
    """Findings as aligned text, errors first; notes are counted, not listed."""
    rank = {"error": 0, "warning": 1}
    shown = sorted((f for f in findings if f.severity in rank), key=lambda f: (rank[f.severity], f.check, f.case))
    rows = [(f.severity, f.case, f.check, f.detail) for f in shown[:limit]]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
    if len(shown) > limit:
        lines.append(f"... and {len(shown) - limit} more, see dataset_fingerprint.json")
    cut = sum(f.severity == "note" for f in findings)
    if cut:
        lines.append(f"{cut} case(s) have vertebrae cut by the border of the scan (normal for a limited field of view).")
    return "\n".join(lines)


def _components(vertebrae: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    details = []
    for name, vertebra in vertebrae.items():
        parts = vertebra["component_ml"]
        # A vertebra that the border cuts falls apart naturally: body and arch meet outside.
        if len(parts) < 2 or vertebra["touches_border"]:
            continue
        if parts[1] > DUPLICATE_FRACTION * parts[0]:
            details.append(("duplicate", f"{name} names two bodies of {parts[0]:.1f} and {parts[1]:.1f} ml"))
        else:
            details.append(("island", f"{name} has {len(parts) - 1} island(s) of up to {parts[1]:.1f} ml"))
    return details


def _orientation(case: str, names: Sequence[str], vertebrae: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Head/foot from the order of the levels, front/back from the body, which is thicker than the arch and lies in front.

    Vertebrae are symmetric: an odd number of these flips mirrors left and right too. Where lung lies beside the lower thoracic bodies, it
    tells the sides by itself; the aorta may lie elsewhere in a patient, so that is a warning.
    """
    steps = np.diff([vertebrae[name]["centroid_mm"][0] for name in names])
    upside_down = len(steps) > 0 and float(np.mean(steps > 0)) > 0.5
    whole = [v for v in vertebrae.values() if not v["touches_border"]] or list(vertebrae.values())
    back_to_front = len(whole) > 1 and float(np.median([v["thick_in_front_mm"] for v in whole])) < BEHIND_MM
    mirrored = " (and so are left and right: one flip mirrors the scan)" if upside_down != back_to_front else ""
    findings = []
    if upside_down:
        findings.append(Finding(case, "error", "flip", f"head and feet are swapped: {names[0]} lies below {names[-1]}{mirrored}"))
    elif (steps > 0).any():
        wrong = [f"{upper} below {lower}" for upper, lower, step in zip(names, names[1:], steps, strict=False) if step > 0]
        findings.append(Finding(case, "warning", "order", f"levels out of order along the body axis: {', '.join(wrong)}"))
    if back_to_front:
        findings.append(Finding(case, "error", "flip", f"front and back are swapped: the bodies lie behind the arches{mirrored}"))
    sides = {name: vertebrae[name]["lung_beside"] for name in LUNG_BASES if vertebrae.get(name, {}).get("lung_beside")}
    # One body tells too little: an elevated diaphragm or a bent spine puts lung on either side of it.
    if len(sides) > 1 and all(right - left < -MORE_LUNG for right, left in sides.values()) and not (upside_down or back_to_front):
        findings.append(Finding(case, "warning", "sides", f"left and right may be swapped: more lung lies left of {', '.join(sides)} than "
                                                          "right, where the aorta should be on the left"))
    return findings


def _distances(case: str, names: Sequence[str], vertebrae: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Neighbours much closer or farther than the spine's own rhythm: one vertebra labelled twice, or a level skipped."""
    pairs = [(a, b) for a, b in zip(names, names[1:], strict=False) if are_neighbours(a, b)]
    if len(pairs) < 3:
        return []
    gaps = [distance_mm(vertebrae[a], vertebrae[b]) for a, b in pairs]
    findings = []
    for i, ((a, b), gap) in enumerate(zip(pairs, gaps, strict=True)):
        usual = float(np.median(gaps[max(0, i - 2):i] + gaps[i + 1:i + 3]))
        if not CLOSE_RATIO * usual < gap < FAR_RATIO * usual:
            findings.append(Finding(case, "warning", "distance", f"{a} to {b} {gap:.0f} mm, neighbours around {usual:.0f} mm"))
    return findings


def distance_mm(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Distance of two body centres, mm."""
    return float(np.linalg.norm(np.subtract(first["body_centre_mm"], second["body_centre_mm"])))
