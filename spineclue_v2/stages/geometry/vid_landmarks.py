"""Landmark files of VID (Buergin et al. 2023): true centres beside a detector's outputs."""
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
from .landmarks import L6, NOT_A_VERTEBRA, Landmarks

HIT_MM = 20.0

PEDICLE_MM = 45.0

CLASS_OF_NAME = LEVEL_INDEX | {"L6": L6}


@dataclass(frozen=True)
class VidScan:
    """One scan: `landmarks` of its n body detections in cranio-caudal order, `index` (n,) their places in the file's `detections`,
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
