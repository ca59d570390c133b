"""The VID benchmark (Buergin et al. 2023, arXiv 2308.02509): levels for the body keypoints of a real detector.

A file is a JSON list (.json or .json.gz) of scans {"scan": name, "detections": [...], "truth": [...], "collection": optional}.
A detection is {"xyz": LPS mm, "type": "body" | "left" | "right" (pedicle), "p_ctl": [C, T, L], bodies only, not normalised}; a
truth is {"xyz", "type", "level"}. `truth` may be absent or empty where only a prediction is wanted.
"""
from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...anatomy import LEVEL_INDEX
from ...errors import InputError
from .geometry_features import L6, NOT_A_VERTEBRA, Landmarks

HIT_MM = 20.0
PEDICLE_MM = 45.0
FOLDS = 5

CLASS_OF_NAME = LEVEL_INDEX | {"L6": L6}


@dataclass(frozen=True)
class VidScan:
    """One scan: `landmarks` of its n body detections from head to foot, `index` (n,) their places in the file's `detections`,
    `pedicles` (k, 3) all detected pedicles, `truth` (m, 3) and `names` (m,) the true bodies, `nearest` (m,) the body detection
    nearest to each, -1 beyond 20 mm."""

    name: str
    collection: str
    landmarks: Landmarks
    index: np.ndarray
    pedicles: np.ndarray
    truth: np.ndarray
    names: tuple[str, ...]
    nearest: np.ndarray

    @property
    def fully_detected(self) -> bool:
        """Every true body has a detection of its own."""
        return bool((self.nearest >= 0).all()) and len(set(self.nearest)) == len(self.nearest)

    def has(self, anomaly: str) -> bool:
        """'L6', or 'T11-L1' (T12 missing)."""
        return "L6" in self.names if anomaly == "L6" else ("T11", "L1") in zip(self.names, self.names[1:], strict=False)


def read_scans(path: str | Path) -> list[VidScan]:
    """Read a VID file; a broken one is an InputError that names the scan."""
    path = Path(path)
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except FileNotFoundError:
        raise InputError(f"VID file {path} does not exist.") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"VID file {path} is not readable JSON, plain or gzipped ({error}).") from error
    if not isinstance(content, list) or not content:
        raise InputError(f"VID file {path} must hold a list of scans with at least one scan.")
    scans = []
    for number, entry in enumerate(content):
        try:
            scans.append(_parse(entry))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"VID file {path}, scan {number}: expected 'scan' and 'detections' with 'xyz', 'type' and, for "
                             f"bodies, 'p_ctl' of three numbers ({what}).") from error
    if len({scan.name for scan in scans}) < len(scans):
        raise InputError(f"VID file {path} holds two scans of one name; every 'scan' must be different.")
    return scans


def _parse(entry: Mapping[str, Any]) -> VidScan:
    detections = entry["detections"]
    index = np.array([i for i, d in enumerate(detections) if d["type"] == "body"], dtype=int)
    centres = _points([detections[i]["xyz"] for i in index])
    order = np.argsort(-centres[:, 2], kind="stable")
    index, centres = index[order], centres[order]
    ctl = _points([detections[i]["p_ctl"] for i in index])
    sides = [_points([d["xyz"] for d in detections if d["type"] == side]) for side in ("left", "right")]
    left, right = (_pedicles(centres, side) for side in sides)
    bodies = sorted((t for t in entry.get("truth") or [] if t["type"] == "body"), key=lambda t: -t["xyz"][2])
    truth, names = _points([t["xyz"] for t in bodies]), tuple(str(t["level"]) for t in bodies)
    if unknown := sorted(set(names) - set(CLASS_OF_NAME)):
        raise ValueError(f"unknown level '{unknown[0]}'")
    targets = np.full(len(centres), NOT_A_VERTEBRA)
    nearest = np.full(len(truth), -1)
    if len(truth) and len(centres):
        distance = np.linalg.norm(truth[:, None] - centres[None], axis=2)
        nearest = np.where(distance.min(axis=1) <= HIT_MM, distance.argmin(axis=1), -1)
        for k in np.argsort(-distance.min(axis=1)):       # the closest truth has the last word
            if nearest[k] >= 0:
                targets[nearest[k]] = CLASS_OF_NAME[names[k]]
    landmarks = Landmarks(centres, targets if len(truth) else None, left, right, ctl, rank=_rank(index))
    return VidScan(str(entry["scan"]), str(entry.get("collection", "")), landmarks, index, np.concatenate(sides), truth, names, nearest)


def _points(values: Sequence[Sequence[float]]) -> np.ndarray:
    points = np.array(values, dtype=float).reshape(len(values), -1) if len(values) else np.zeros((0, 3))
    if points.shape[1:] != (3,) or not np.isfinite(points).all():
        raise ValueError("expected three finite numbers")
    return points


def _pedicles(centres: np.ndarray, pedicles: np.ndarray) -> np.ndarray:
    """(n, 3) the pedicle of each body, NaN where none: the two must be each other's nearest and near."""
    out = np.full((len(centres), 3), np.nan)
    if len(centres) and len(pedicles):
        distance = np.linalg.norm(centres[:, None] - pedicles[None], axis=2)
        nearest = distance.argmin(axis=1)
        mutual = (distance.argmin(axis=0)[nearest] == np.arange(len(centres))) & (distance.min(axis=1) < PEDICLE_MM)
        out[mutual] = pedicles[nearest[mutual]]
    return out


def _rank(index: np.ndarray) -> np.ndarray:
    """(n,) place 0..1 in the detector's own list, which goes by its certainty; NaN when the list was sorted by height instead."""
    n = len(index)
    if n < 2 or (n > 3 and (np.diff(index) > 0).all()) or (n > 3 and (np.diff(index) < 0).all()):
        return np.full(n, np.nan)
    return index.argsort().argsort() / (n - 1.0)


@dataclass(frozen=True)
class Named:
    """The answer for one scan of n detections, head to foot.

    `names`: level or None (false detection). `confidence` (n,): posterior of what is said of each. `shifted`: posterior of all
    numberings that give a named detection another level.
    """

    names: tuple[str | None, ...]
    confidence: np.ndarray
    shifted: float


def predictions(scans: Sequence[VidScan], answers: Sequence[Named]) -> dict[str, list[dict[str, Any]]]:
    """The benchmark's output: {scan: [{"index", "level" or None, "confidence"}, ...]}, by place in the scan's `detections`."""
    out = {}
    for scan, answer in zip(scans, answers, strict=True):
        rows = [{"index": int(i), "level": name, "confidence": round(float(confidence), 4)}
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
