"""Rare numberings for training: real scans that have one count more often, and regular spines changed into one.

Of 1,944 real scans 46 have an L6 and 8 go from T11 to L1. A network that saw only those would know them by heart.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ...anatomy import LEVEL_INDEX
from .landmarks import L6, NOT_A_VERTEBRA, POINTS, Landmarks

T7, T11, T12, L1, L4, L5 = (LEVEL_INDEX[name] for name in ("T7", "T11", "T12", "L1", "L4", "L5"))

MADE_L6, MADE_NO_T12 = 0.04, 0.02
"""Share of regular scans from which a scan with L6, or without T12, is made."""

POSITIONS = ("centres", "left", "right")


def with_rare_numberings(scans: Sequence[Landmarks], seed: int) -> list[Landmarks]:
    """The scans; those with an L6, without T12, or with levels above T8 (a seventh of the data) twice more; and made ones."""
    generator = np.random.default_rng(seed)
    out = list(scans)
    for scan in scans:
        targets = np.asarray(scan.targets)
        if L6 in targets or _follows(targets, T11, L1):
            out += [scan, scan]
        else:
            draw = generator.random()
            made = None
            if draw < MADE_L6:
                made = with_sixth_lumbar(scan, generator)
            elif draw < MADE_L6 + MADE_NO_T12:
                made = without_twelfth_thoracic(scan)
            out += [] if made is None else [made]
        if targets.min() <= T7:
            out += [scan, scan]
    return out


def with_sixth_lumbar(scan: Landmarks, generator: np.random.Generator) -> Landmarks | None:
    """One more lumbar vertebra between two of L1..L5, everything below moved down by its gap; None unless all five are there."""
    targets = np.asarray(scan.targets)
    places = [np.flatnonzero(targets == level) for level in range(L1, L5 + 1)]
    if any(len(place) != 1 for place in places):
        return None
    k = int(generator.integers(1, 4))                     # after L2, L3 or L4: the ends keep their looks
    upper, lower = places[k][0], places[k + 1][0]
    gap = scan.centres[lower] - scan.centres[upper]
    later = targets[upper + 1:].copy()
    lumbar = (later >= L1) & (later <= L4)
    later[later == L5] = L6
    later[lumbar] += 1
    numbers = np.concatenate([targets[:upper + 1], [targets[upper] + 1], later])

    def extend(name: str, values: np.ndarray) -> np.ndarray:
        below = values[upper + 1:] + gap if name in POSITIONS else values[upper + 1:]
        new = values[upper] + gap if name in POSITIONS else values[upper]
        return np.concatenate([values[:upper + 1], new[None], below])
    return _changed(scan, extend, numbers)


def without_twelfth_thoracic(scan: Landmarks) -> Landmarks | None:
    """T12 taken out and everything above it moved down to close the gap; None unless T11, T12 and L1 are there."""
    targets = np.asarray(scan.targets)
    places = [np.flatnonzero(targets == level) for level in (T11, T12, L1)]
    if any(len(place) != 1 for place in places):
        return None
    above, out, below = (int(place[0]) for place in places)
    centres = scan.centres
    span = centres[below] - centres[above]
    around = np.linalg.norm(centres[out] - centres[above]) + np.linalg.norm(centres[below] - centres[out])
    shift = span * (1.0 - 0.5 * around / np.linalg.norm(span))

    def close(name: str, values: np.ndarray) -> np.ndarray:
        values = values.astype(float)
        if name in POSITIONS:
            values[:out] += shift
        return np.delete(values, out, axis=0)
    return _changed(scan, close, np.delete(targets, out))


def _changed(scan: Landmarks, change: Callable[[str, np.ndarray], np.ndarray], targets: np.ndarray) -> Landmarks:
    given = {name: np.asarray(getattr(scan, name)) for name in (*POINTS, "rank") if getattr(scan, name) is not None}
    return replace(scan, targets=targets, **{name: change(name, values) for name, values in given.items()})


def _follows(targets: np.ndarray, upper: int, lower: int) -> bool:
    named = targets[targets != NOT_A_VERTEBRA]
    return bool(((named[:-1] == upper) & (named[1:] == lower)).any())
