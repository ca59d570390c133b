"""The VID benchmark (Buergin et al. 2023, arXiv 2308.02509): levels for the body keypoints of a real detector.

A file is a JSON list (.json or .json.gz) of scans {"scan": name, "detections": [...], "truth": [...], "collection": optional}.
A detection is {"xyz": LPS mm, "type": "body" | "left" | "right" (pedicle), "p_ctl": [C, T, L], bodies only, not normalised}; a
truth is {"xyz", "type", "level"}. `truth` may be absent or empty where only a prediction is wanted.
"""
from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...anatomy import LEVEL_INDEX, LEVELS
from ...errors import InputError
from .decoder import Decoder, Numbering, Prices
from .decoder_fit import Case, fit_prices
from .geometry import GeometryWitness, evidence_of, load_weights, save_weights
from .geometry_features import L6, NOT_A_VERTEBRA, Augmentation, Landmarks
from .geometry_network import Schedule, Shape
from .steps import steps_along_spine

logger = logging.getLogger(__name__)

HIT_MM = 20.0
PEDICLE_MM = 45.0
KIND = "spineclue_v2 VID model"
FOLDS = 5
MEMBERS = 2
FIT_PLAIN, FIT_RARE = 120, 120
"""Held-out scans that fit the decoder's prices: regular ones, and ones with an anomaly, a false or a missed detection."""

CLASS_OF_NAME = LEVEL_INDEX | {"L6": L6}
NAME_OF_CLASS = dict(enumerate(LEVELS)) | {L6: "L6", NOT_A_VERTEBRA: None}

SHAPE = Shape(width=64, layers=3, heads=4, dropout=0.2)
SCHEDULE = Schedule(epochs=25, augmentation=Augmentation(
    tilt=4.0, turn=3.0, scale=0.04, noise=0.5, window=0.25, drop=0.05, insert=0.02, hide_pedicles=0.03, hide_ctl=0.03,
    hide_rank=0.1, exchange=0.5))
START = Prices(t13=-np.inf, t13_offset=-np.inf, l6=-1.0, missing_t12=-2.0, false_detection=-1.0, evidence=0.6)
"""VID labels no T13."""


@dataclass(frozen=True)
class VidScan:
    """One scan: `landmarks` of its n body detections from head to foot, `index` (n,) their places in the file's `detections`,
    `truth` (m, 3) and `names` (m,) the true bodies, `nearest` (m,) the body detection nearest to each, -1 beyond 20 mm."""

    name: str
    collection: str
    landmarks: Landmarks
    index: np.ndarray
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
    left, right = (_pedicles(centres, _points([d["xyz"] for d in detections if d["type"] == side])) for side in ("left", "right"))
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
    return VidScan(str(entry["scan"]), str(entry.get("collection", "")), landmarks, index, truth, names, nearest)


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
class VidModel:
    """The witness with the prices under which its evidence is decoded."""

    witness: GeometryWitness
    prices: Prices

    def number(self, scans: Sequence[VidScan]) -> list[Numbering]:
        decoder = Decoder(self.prices)
        rows = self.witness.probabilities([scan.landmarks for scan in scans])
        return [_decode(decoder, scan, probabilities) for scan, probabilities in zip(scans, rows, strict=True)]

    def save(self, path: str | Path) -> None:
        tensors, description = self.witness.state()
        prices = {name: value for name, value in self.prices.to_dict().items() if np.isfinite(value)}
        save_weights(path, tensors, description | {"kind": KIND, "prices": prices})

    @classmethod
    def load(cls, path: str | Path) -> VidModel:
        tensors, description = load_weights(path, KIND)
        return cls(GeometryWitness.from_state(tensors, description), replace(START, **description["prices"]))


def _decode(decoder: Decoder, scan: VidScan, probabilities: np.ndarray) -> Numbering:
    logs, variants = evidence_of(probabilities)
    return decoder.decode(logs, steps_along_spine(scan.landmarks.centres) if len(logs) else None, variants)


def predictions(scans: Sequence[VidScan], numberings: Sequence[Numbering]) -> dict[str, list[dict[str, Any]]]:
    """The benchmark's output: {scan: [{"index", "level" or None, "confidence"}, ...]}, by place in the scan's `detections`."""
    out = {}
    for scan, numbering in zip(scans, numberings, strict=True):
        rows = [{"index": int(i), "level": name, "confidence": round(float(confidence), 4)}
                for i, name, confidence in zip(scan.index, numbering.names, numbering.confidence, strict=True)]
        out[scan.name] = sorted(rows, key=lambda row: row["index"])
    return out


def folds(scans: Sequence[VidScan], count: int = FOLDS, seed: int = 0) -> np.ndarray:
    """(len(scans),) fold of each scan; scans whose truth is the same (to 1 mm) stay together."""
    keys = [(scan.names, tuple(np.rint(scan.truth).ravel())) for scan in scans]
    groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    drawn = np.random.default_rng(seed).permutation(len(groups)) % count
    return np.array([drawn[groups[key]] for key in keys])


def fit_witness(scans: Sequence[VidScan], schedule: Schedule = SCHEDULE, shape: Shape = SHAPE, members: int = MEMBERS,
                about: Mapping[str, Any] | None = None) -> GeometryWitness:
    """The network ensemble alone, on every scan that has truth."""
    return GeometryWitness.fit([scan.landmarks for scan in scans if scan.names], shape, schedule, members, about)


def train(scans: Sequence[VidScan], schedule: Schedule = SCHEDULE, shape: Shape = SHAPE, members: int = MEMBERS,
          about: Mapping[str, Any] | None = None) -> VidModel:
    """A model from all scans; the decoder's prices come from a fold held out from a first, smaller ensemble."""
    fold = folds(scans)
    seen, held_out = ([scan for scan, k in zip(scans, fold, strict=True) if (k == 0) == out] for out in (False, True))
    first = fit_witness(seen, schedule, shape, members=1)
    prices = fit_decoder(held_out, first.probabilities([scan.landmarks for scan in held_out]))
    return VidModel(fit_witness(scans, schedule, shape, members, about), prices)


def crossval(scans: Sequence[VidScan], schedule: Schedule = SCHEDULE, shape: Shape = SHAPE, members: int = MEMBERS,
             count: int = FOLDS) -> list[Numbering]:
    """Out-of-fold numbering of every scan: networks from the other folds, prices from the other folds' out-of-fold rows."""
    fold = folds(scans, count)
    rows: list[np.ndarray] = [np.zeros((0, 0))] * len(scans)
    for k in range(count):
        places = np.flatnonzero(fold == k)
        witness = fit_witness([scan for scan, f in zip(scans, fold, strict=True) if f != k], schedule, shape, members)
        for i, probabilities in zip(places, witness.probabilities([scans[i].landmarks for i in places]), strict=True):
            rows[i] = probabilities
        logger.info("fold %d of %d: network trained on %d scans", k + 1, count, int((fold != k).sum()))
    numberings: list[Numbering | None] = [None] * len(scans)
    for k in range(count):
        others = np.flatnonzero(fold != k)
        prices = fit_decoder([scans[i] for i in others], [rows[i] for i in others], seed=k)
        logger.info("fold %d of %d: decoder %s", k + 1, count,
                    {name: round(value, 2) for name, value in prices.to_dict().items()})
        decoder = Decoder(prices)
        for i in np.flatnonzero(fold == k):
            numberings[i] = _decode(decoder, scans[i], rows[i])
    return numberings  # type: ignore[return-value]


def fit_decoder(scans: Sequence[VidScan], rows: Sequence[np.ndarray], seed: int = 0) -> Prices:
    """Prices from held-out probabilities `rows`: a stratified sample of scans, both strata at their true share in the loss."""
    plain, rare = [], []
    for k, scan in enumerate(scans):
        if len(rows[k]) and scan.names:
            odd = not scan.fully_detected or len(rows[k]) != len(scan.names) or scan.has("L6") or scan.has("T11-L1")
            (rare if odd else plain).append(k)
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(group)[:size] for group, size in ((plain, FIT_PLAIN), (rare, FIT_RARE))]
    cases, weights = [], []
    for group, chosen in zip((plain, rare), drawn, strict=True):
        for k in chosen:
            logs, variants = evidence_of(rows[k])
            names = tuple(NAME_OF_CLASS[int(target)] for target in scans[k].landmarks.targets)
            cases.append(Case(logs, names, steps_along_spine(scans[k].landmarks.centres), variants))
            weights.append(len(group) / len(chosen))
    return fit_prices(cases, START, weights=weights)
