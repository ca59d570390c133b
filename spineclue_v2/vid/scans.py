"""The VID benchmark (Buergin et al. 2023, arXiv 2308.02509): levels for the body keypoints of a real detector.

A file is a JSON list (.json or .json.gz) of scans {"scan": name, "detections": [...], "truth": [...], "collection": optional}.
A detection is {"xyz": LPS mm, "type": "body" | "left" | "right" (pedicle), "p_ctl": [C, T, L], bodies only, not normalised}; a
truth is {"xyz", "type", "level"}. `truth` may be absent or empty where only a prediction is wanted.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..stages.geometry.vid_landmarks import VidScan

FOLDS = 5


@dataclass(frozen=True)
class Answer:
    """The answer for one scan of n detections, cranio-caudal.

    `names`: level or None (false detection). `confidence` (n,): posterior of what is said of each. `shifted`: posterior of all
    numberings that give a named detection another level.
    """

    names: tuple[str | None, ...]
    confidence: np.ndarray
    shifted: float


def predictions(scans: Sequence[VidScan], answers: Sequence[Answer]) -> dict[str, list[dict[str, Any]]]:
    """The benchmark's output: {scan: [{"index", "level" or None, "confidence"}, ...]}, by index in the scan's `detections`."""
    out = {}
    for scan, answer in zip(scans, answers, strict=True):
        rows: list[dict[str, Any]] = [{"index": int(i), "level": name, "confidence": round(float(confidence), 4)}
                for i, name, confidence in zip(scan.index, answer.names, answer.confidence, strict=True)]
        out[scan.name] = sorted(rows, key=lambda row: row["index"])
    return out


def folds(scans: Sequence[VidScan], count: int = FOLDS, seed: int = 0, keep_look_alikes: bool = False) -> np.ndarray:
    """(len(scans),) fold of each scan; scans whose truth is the same (to 1 mm) stay together, look-alikes too when asked."""
    keys = [(scan.names, tuple(np.rint(scan.truth).ravel())) for scan in scans]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    group = np.array([first[key] for key in keys])
    if keep_look_alikes:
        for one, other in look_alikes(scans):
            group[group == group[one]] = group[other]
    order = {key: number for number, key in enumerate(dict.fromkeys(group.tolist()))}
    drawn = np.random.default_rng(seed).permutation(len(order)) % count
    return np.array([drawn[order[key]] for key in group.tolist()])


def look_alikes(scans: Sequence[VidScan]) -> list[tuple[int, int]]:
    """Pairs of scans that are each other's nearest in the size of their vertebrae, probably two scans of one patient.

    CT colonography scans a patient twice, lying on the back and on the front. Compared are gaps, pedicle distances and the
    pedicles' distance from the body over the eight lowest true vertebrae, which do not depend on how the patient lies.
    """
    table = np.stack([_size(scan) for scan in scans])
    pairs, nearest = [], np.full(len(scans), -1)
    for i, row in enumerate(table):
        apart = (table - row) ** 2
        shared = np.isfinite(apart).sum(axis=1)
        distance = np.where(shared >= 12, np.nansum(apart, axis=1) / np.maximum(shared, 1), np.inf)
        distance[i] = np.inf
        if np.isfinite(distance.min()):
            nearest[i] = int(distance.argmin())
    for i, j in enumerate(nearest):
        if j > i and nearest[j] == i:
            pairs.append((i, int(j)))
    return pairs


def _size(scan: VidScan, levels: int = 8) -> np.ndarray:
    """(3 * levels,) from the lowest true vertebra up, NaN where unknown."""
    out = np.full((levels, 3), np.nan)
    truth = scan.truth[::-1][:levels]
    if len(truth) > 1:
        out[:len(truth) - 1, 0] = np.linalg.norm(np.diff(truth, axis=0), axis=1)
    for k, near in enumerate(scan.nearest[::-1][:levels]):
        if near >= 0:
            left, right, body = (getattr(scan.landmarks, name)[near] for name in ("left", "right", "centres"))
            out[k, 1:] = np.linalg.norm(left - right), np.linalg.norm((left + right) / 2 - body)
    return out.ravel()
