"""Priors on the windows that `known_levels predict` stored: pairs of windows of one scan, moved rigidly, and pairs of other patients."""
from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .known_levels_pins import Window, windows

TURN_DEGREES, SHIFT_MM = 25.0, 300.0


def pairs_of(folder: Path, count: int) -> tuple[list[tuple[Window, Window]], list[tuple[Window, Window]]]:
    """Pairs of windows of one scan (mirrored with mirrored only) that both show two points or more, and as many of two patients."""
    there = list(windows(folder))
    truth = {w.name: json.loads((folder / f"{w.name}_truth.txt").read_text(encoding="utf-8")) for w in there}
    same, other = [], []
    for i, first in enumerate(there):
        for second in there[i + 1:]:
            a, b = truth[first.name], truth[second.name]
            shared = {level for _, level, _ in first.found} & {level for _, level, _ in second.found}
            alike = ("mirrored" in a["kind"]) == ("mirrored" in b["kind"])
            if a["patient"] == b["patient"] and len(shared) >= 2 and alike:
                same.append((first, second))
            elif a["patient"] != b["patient"] and len(shared) >= 2:
                other.append((first, second))
    return [sorted(rows, key=lambda p: zlib.crc32(f"{p[0].name} {p[1].name}".encode()))[:count] for rows in (same, other)]  # type: ignore


def moved(result: Any, name: str) -> Any:
    """The result as if the patient had lain otherwise: rotated by up to `TURN_DEGREES` about any axis and shifted."""
    from scipy.spatial.transform import Rotation

    random = np.random.default_rng(zlib.crc32(name.encode()))
    turn = Rotation.from_rotvec(random.normal(size=3) * np.deg2rad(TURN_DEGREES) / np.sqrt(3)).as_matrix()
    shift = random.uniform(-SHIFT_MM, SHIFT_MM, 3)

    def place(point: Sequence[float]) -> tuple[float, ...]:
        return tuple(float(v) for v in turn @ np.array(point) + shift)

    def grid(own: Any) -> Any:
        return replace(own, origin=place(own.origin), direction=turn @ own.direction)

    vertebrae = tuple(replace(v, body_centre=place(v.body_centre), box_centre=place(v.box_centre)) for v in result.vertebrae)
    basis = replace(result.basis, detections=tuple(replace(v, body_centre=place(v.body_centre), box_centre=place(v.box_centre))
                                                   for v in result.basis.detections))
    return replace(result, vertebrae=vertebrae, basis=basis, grid=grid(result.grid), mask_grid=grid(result.mask_grid))


def prior_of(window: Window) -> Any:
    """The window's result with its true levels, as an earlier examination that a person has read; without masks that hold two vertebrae."""
    from spineclue_v2.inference.prior import Prior, row_of

    count = Counter(i for i, _, _ in window.found)
    true = {i: level for i, level, _ in window.found if count[i] == 1}
    named = [i for i, name in enumerate(window.result.basis.names) if name is not None]
    found = [(true[i], v) for i, v in zip(named, window.result.vertebrae, strict=True) if i in true]
    return Prior(replace(row_of(window.result), vertebrae=tuple(replace(v, level=level) for level, v in found)), True, window.name)


def measure_pairs(folder: Path, count: int) -> str:
    """What priors did to `count` pairs of one patient and of two."""
    from spineclue_v2.errors import InputError
    from spineclue_v2.inference.prior import match_to_prior, row_of

    lines = []
    for kind, pairs in zip(("one scan, as it lies", "one scan, moved", "two patients"),
                           (lambda rows: (rows[0], rows[0], rows[1]))(pairs_of(folder, count)), strict=True):
        totals = Counter[str]()
        for first, second in pairs:
            result = first.result if kind.endswith("lies") else moved(first.result, first.name)
            named = [i for i, name in enumerate(first.result.basis.names) if name is not None]
            true, prior = {i: level for i, level, _ in first.found}, prior_of(second)
            totals["pairs"] += 1
            try:
                match = match_to_prior(row_of(result), prior)
            except InputError as error:
                totals["refused: " + ("too few" if "too few" in str(error) else "does not fit")] += 1
                continue
            carried = [(true.get(named[i]), prior.row.vertebrae[j].level) for i, j in match.pairs]
            known = [(a, b) for a, b in carried if a is not None]
            totals["same place" if match.same_place else "registered"] += 1
            totals["levels carried"] += len(known)
            totals["carried rightly"] += sum(a == b for a, b in known)
            totals["pairs with a wrong level"] += any(a != b for a, b in known)
            if any(a != b for a, b in known):
                lines.append(f"  wrong: {first.name} by {second.name} (confidence {match.confidence:.3f}): {known}")
        lines.append(f"{kind}: " + ", ".join(f"{key} {value}" for key, value in totals.items()))
    return "\n".join(lines)
