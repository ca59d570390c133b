"""Landmark sets for the geometry network: CSI 2014, VerSe and VID's true bodies, millimetres, z up, y to the back (checked: the spines'
curves say so in all three collections; x may be mirrored, which training does anyway)."""
from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spineclue_v2.anatomy import EMITTING_LEVEL, LEVEL_INDEX, ORDER_INDEX
from spineclue_v2.stages.geometry.landmarks import L6, NOT_A_VERTEBRA, Landmarks

SACRAL = ("S1", "S2")
SAME_PATIENT_MM = 0.55       # mean difference of the gaps that two scans of one patient share
SHARED_GAPS = 7
SAME_EXAMINATION = 12        # CSI's scan numbers run with the date: numbers this near are taken for one patient


@dataclass(frozen=True)
class LandmarkScan:
    """`names` (n,) of ANATOMICAL_ORDER, then S1 and S2 where they are known, and `centres` (n, 3), cranio-caudal."""

    scan: str
    collection: str
    names: tuple[str, ...]
    centres: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        return np.array([class_of(name) for name in self.names])

    @property
    def vertebrae(self) -> int:
        return sum(name in ORDER_INDEX for name in self.names)

    def landmarks(self, sacrum: int = 0) -> Landmarks:
        """With at most so many sacral points: a detector may take them for vertebrae, and the network then knows where the spine ends."""
        n = self.vertebrae + sacrum
        return Landmarks(self.centres[:n], self.targets[:n])


def class_of(name: str) -> int:
    """Class of the network: L6 has its own, a T13 counts as T12, the sacrum is no vertebra."""
    return NOT_A_VERTEBRA if name in SACRAL else L6 if name == "L6" else LEVEL_INDEX[EMITTING_LEVEL[name]]


def read(path: Path) -> list[LandmarkScan]:
    content = json.loads(gzip.decompress(path.read_bytes()))
    scans = []
    for entry in content:
        points = [(p["level"], p["xyz"]) for p in entry["truth"] if p.get("type", "body") == "body"]
        rows = sorted((p for p in points if p[0] in ORDER_INDEX), key=lambda p: ORDER_INDEX[p[0]])
        if len(rows) >= 2:
            rows += [p for name in SACRAL for p in points if p[0] == name and rows[-1][0] in ("L5", "L6")]
            scans.append(LandmarkScan(entry["scan"], entry["collection"], tuple(p[0] for p in rows), np.array([p[1] for p in rows], float)))
    return scans


def same_patients(scans: Sequence[LandmarkScan], limit: float = SAME_PATIENT_MM) -> np.ndarray:
    """(n,) group of each scan: those that share five gaps and more which differ by less than `limit` mm in the mean are together."""
    table = np.full((len(scans), len(ORDER_INDEX)), np.nan)
    for row, scan in zip(table, scans, strict=True):
        gaps = np.linalg.norm(np.diff(scan.centres, axis=0), axis=1)
        index = [ORDER_INDEX[name] for name in scan.names[:scan.vertebrae]]
        for a, b, gap in zip(index, index[1:], gaps, strict=False):
            if b == a + 1 or (a, b) == (ORDER_INDEX["T12"], ORDER_INDEX["L1"]):
                row[a] = gap
    group = np.arange(len(scans))
    for i in range(len(scans)):
        apart = np.abs(table[i + 1:] - table[i])
        shared = np.isfinite(apart).sum(1)
        mean = np.nansum(apart, axis=1) / np.maximum(shared, 1)
        for j in np.flatnonzero((shared >= SHARED_GAPS) & (mean < limit)) + i + 1:
            group[group == group[j]] = group[i]
    numbers = np.array([int(scan.scan) if scan.scan.isdigit() else -1 for scan in scans])
    order = np.argsort(numbers)
    for a, b in zip(order, order[1:], strict=False):
        if numbers[a] >= 0 and numbers[b] - numbers[a] <= SAME_EXAMINATION:
            group[group == group[b]] = group[a]
    return group


def folds_by_patient(scans: Sequence[LandmarkScan], count: int = 5, seed: int = 0) -> np.ndarray:
    group = same_patients(scans)
    order = np.random.default_rng(seed).permutation(np.unique(group))
    fold = {int(g): i % count for i, g in enumerate(order)}
    return np.array([fold[int(g)] for g in group])
