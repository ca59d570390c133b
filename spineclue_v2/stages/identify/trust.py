"""How much each classifier is worth, and the decoder's answer when any of them may be wrong about the whole scan.

Rows of one scan share their mistakes: a network that has seen all vertebrae repeats one opinion n times. So a classifier counts with
`scale * n ** -power` of its log-probabilities, not with their sum. And a classifier may be off for a whole scan, by one level say.
Therefore the numberings are weighed for every set of classifiers that may be right (the others know nothing then), and the sets are
mixed by their prior (`trust`) times the weight that they give to all numberings together. Where classifiers agree nothing changes;
where they contradict each other the mixture spreads over their answers, and the numbering is not anchored.

That reading hears a whole scan as one opinion, so it hardly hears what happens between two rows: a T13, a vertebra that was passed over.
The plain weighted sum of the rows hears it and is too sure of the rest. `sum_weight` of the posterior is the sum's. The better answer
of the two is named, and what the other one says instead counts against the anchor.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from typing import Any

import numpy as np

from ...anatomy import LEVELS, NUM_LEVELS, ORDER_INDEX, region
from ..base import Evidence
from .constraints import NAMES, NEVER, Constraints
from .decoder import EMITTING, VARIANTS, Decoder, Lattice, Numbering, impossible, names_of
from .evidence import combine_evidence
from .plan import Penalties
from .shifts import shift_probabilities

REGIONS = ("cervical", "thoracic", "lumbar")
REGION_OF_LEVEL = np.array([[region(level) == name for name in REGIONS] for level in LEVELS], float)
SHIFTS = (-2, -1, 0, 1, 2)
LANDMARKS = {"sacrum": [ORDER_INDEX["L5"], ORDER_INDEX["L6"]], "skull": [ORDER_INDEX["C1"]]}
RIBS = {"last rib": [ORDER_INDEX["T12"], ORDER_INDEX["T13"]], "first rib": [ORDER_INDEX["T1"]]}
"""Names by landmark: the columns of `Evidence.landmarks`, these after those."""
FLOOR = 1e-4                 # of a row's probability: one zero forbids nothing
EVEN, EVEN_ROW = (0.75, 1.3), -6.0   # steps on both sides of a detection that has its place in the row; log of how much rarer a false one
ENDS = 2                     # detections at either end of which nothing is said
LEAST_SET = 1e-4             # sets of classifiers with less posterior than this are left out


@dataclass(frozen=True)
class EvidenceModel:
    """Fitted on windows of scans that no classifier was trained on.

    `scale`: classifier -> region -> factor of its logs (the region that the row itself points to). `power`: classifier -> how the
    factor falls with the number of detections. `trust`: classifier -> probability that it is not off for a whole scan. `landmark`:
    "sacrum", "skull" -> the same for these. `bias`: classifier -> region -> fractions (5,) of vertebrae that it places -2 .. 2 levels
    lower than they are. `none_weight`: classifier -> weight of its "not a vertebra", which is held within `least_none` and
    1 - `least_none`. `doubt`: a named detection between two others that a classifier takes for no vertebra with this probability is
    no anchor. `sum_weight`: part of the posterior that the plain weighted sum of all classifiers has (see above);
    `sum_false_detection`: its penalty of a false detection, beside "not a vertebra".
    """

    scale: Mapping[str, Mapping[str, float]]
    power: Mapping[str, float]
    trust: Mapping[str, float]
    landmark: Mapping[str, float] = field(default_factory=dict)
    bias: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    none_weight: Mapping[str, float] = field(default_factory=dict)
    least_none: float = 1e-4
    doubt: float = 1.0
    sum_weight: float = 0.0
    sum_false_detection: float = -2.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvidenceModel:
        """From a plan; an unknown name is an error that lists the known ones."""
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown entry '{unknown[0]}' of the evidence model; known: {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Opinion:
    """One classifier's scaled logs (n, 26) of the names given that there is a vertebra, 0 = no opinion; (n,) logs of none and vertebra."""

    names: np.ndarray
    none: np.ndarray
    vertebra: np.ndarray


def decode_with_trust(evidence: Mapping[str, Evidence], gaps: np.ndarray, model: EvidenceModel, penalties: Penalties,
                      weights: Mapping[str, float] | None = None, forbid_anomalies: bool = False,
                      constraints: Constraints | None = None) -> Numbering:
    """The numbering under `model`.

    Args:
        evidence: by classifier, detections in cranio-caudal order; only the sum hears those that `model` does not know.
        gaps: (n - 1,) measured steps between detections.
        model: fitted weights.
        penalties: of the decoder; `evidence` is of the weighted sum only.
        weights: of the classifiers in the weighted sum, 1 where none is given.
        forbid_anomalies: no T13, no L6, no T11 -> L1.
        constraints: what is known of the levels besides.
    """
    known = {name: found for name, found in evidence.items() if name in model.trust}
    if not known or not len(next(iter(known.values())).logs):
        return Decoder(penalties, forbid_anomalies).decode(np.zeros((0, NUM_LEVELS + 1)))
    free = Decoder(penalties, forbid_anomalies)
    lattices, priors = _readings(evidence, known, gaps, model, weights or {}, free)
    weight = priors + _totals(lattices)
    # One reading by sums and one by sets of classifiers, each with its own total: the first has `sum_weight`, whatever the second's is.
    shares = np.array([model.sum_weight, 1.0 - model.sum_weight])
    with np.errstate(divide="ignore"):
        weight = np.concatenate([np.log(shares[:1]), np.log(shares[1]) + weight[1:] - np.logaddexp.reduce(weight[1:])])
    if constraints is not None:
        before = _totals(lattices)
        lattices, _ = _readings(evidence, known, gaps, model, weights or {}, Decoder(penalties, forbid_anomalies, constraints))
        weight = weight + _totals(lattices) - before
    numbering = _mix(lattices, weight, penalties.shifted_limit)
    possible = np.isfinite(weight)
    priors = np.where(possible, weight - np.where(possible, _totals(lattices), 0.0), NEVER)
    numbering = replace(numbering, shifts=shift_probabilities(numbering.names, lattices, priors))
    return replace(numbering, numbering_anchored=numbering.numbering_anchored and doubt(known, numbering.names) < model.doubt)


def _readings(evidence: Mapping[str, Evidence], known: Mapping[str, Evidence], gaps: np.ndarray, model: EvidenceModel,
              weights: Mapping[str, float], decoder: Decoder) -> tuple[list[Lattice], np.ndarray]:
    """Lattices and their log priors: the weighted sum of all evidence, then one per set of `known` classifiers that may be right."""
    logs, variants = combine_evidence(evidence, weights, tuple(evidence))
    opinions = {name: opinion(name, found, model) for name, found in known.items()}
    even = EVEN_ROW * in_its_place(gaps)
    none = np.sum([o.none for o in opinions.values()], axis=0) + decoder.penalties.false_detection + even
    base = np.repeat(np.sum([o.vertebra for o in opinions.values()], axis=0)[:, None], NAMES, axis=1)
    base[:, VARIANTS] += (decoder.penalties.t13_offset, decoder.penalties.l6_offset)
    landmarks = LANDMARKS if decoder.known is None else LANDMARKS | decoder.known.landmarks
    ends = landmark_weights(known, model, landmarks | RIBS)
    base += sum(ends[name] for name in RIBS)
    lattice = decoder.lattice(logs, gaps, variants)
    dearer = model.sum_false_detection - decoder.penalties.false_detection
    lattices, priors = [replace(lattice, none=lattice.none + dearer + even)], [0.0]
    for trusted in product((True, False), repeat=len(opinions)):
        heard = [o.names for o, right in zip(opinions.values(), trusted, strict=True) if right]
        emission = base + sum(heard) if heard else base
        first = ends["skull"] + decoder.beginning
        lattices.append(decoder.constrained(Lattice(emission, none, lattices[0].moves, first, ends["sacrum"])))
        priors.append(sum(np.log(model.trust[name] if right else 1.0 - model.trust[name])
                          for name, right in zip(opinions, trusted, strict=True)))
    return lattices, np.array(priors)


def in_its_place(gaps: np.ndarray) -> np.ndarray:
    """(n,) whether a detection lies a usual step from both of its neighbours, given the (n - 1,) steps: a body counted twice, or a place
    between two bodies, does not. Never one of the two at either end: segments of a sacrum follow each other as evenly."""
    usual = (np.asarray(gaps) > EVEN[0]) & (np.asarray(gaps) < EVEN[1])
    inside = np.concatenate([[False], usual]) & np.concatenate([usual, [False]])
    inside[:ENDS], inside[max(0, len(inside) - ENDS):] = False, False
    return inside


def _totals(lattices: Sequence[Lattice]) -> np.ndarray:
    return np.array([lattice.log_total(lattice.emission) for lattice in lattices])


def doubt(evidence: Mapping[str, Evidence], names: Sequence[str | None]) -> float:
    """The largest probability of "not a vertebra" that a classifier gives a named detection between two others."""
    worst = 0.0
    for name, found in evidence.items():
        if name == "shape":
            continue
        rows = np.exp(found.logs)
        total = rows.sum(1) + (0.0 if found.variants is None else np.nan_to_num(np.exp(found.variants)).sum(1))
        inner = [rows[i, NUM_LEVELS] / total[i] for i in range(1, len(names) - 1) if names[i] is not None]
        worst = max([worst, *map(float, inner)])
    return worst


def opinion(name: str, evidence: Evidence, model: EvidenceModel) -> Opinion:
    """What a classifier says, scaled by what it is worth."""
    rows = np.exp(evidence.logs)
    levels, n = rows[:, :NUM_LEVELS], len(rows)
    variants = np.full((n, 2), np.nan) if evidence.variants is None else np.exp(evidence.variants)
    given = levels.sum(1) + np.nan_to_num(variants).sum(1)
    none = vertebra = np.zeros(n)
    if name != "shape":                                      # which knows no "not a vertebra"
        fraction = np.clip(rows[:, NUM_LEVELS] / (rows[:, NUM_LEVELS] + given), model.least_none, 1 - model.least_none)
        weight = model.none_weight.get(name, 1.0)
        none, vertebra = weight * np.log(fraction), weight * np.log(1 - fraction)
    levels, variants = levels / given[:, None], variants / given[:, None]
    names = relative_logs(remove_bias(levels, model.bias.get(name)))[:, EMITTING]
    own = ~np.isnan(variants)
    names[:, VARIANTS] = np.where(own, relative_logs(np.nan_to_num(variants)), names[:, VARIANTS])
    scale = region_fractions(levels) @ np.array([model.scale[name][part] for part in REGIONS])
    return Opinion(names * (scale * float(n) ** -model.power[name])[:, None], none, vertebra)


def region_fractions(levels: np.ndarray) -> np.ndarray:
    """(n, 24) probabilities -> (n, 3): how much of each lies in each region."""
    return levels @ REGION_OF_LEVEL / np.maximum(levels.sum(1, keepdims=True), 1e-12)


def remove_bias(levels: np.ndarray, bias: Mapping[str, Sequence[float]] | None) -> np.ndarray:
    """(n, 24) after taking back what the classifier is known to be off by, region by region of what it says."""
    if bias is None:
        return levels
    kernel = region_fractions(levels) @ np.array([bias[part] for part in REGIONS])
    out = np.zeros_like(levels)
    for k, shift in enumerate(SHIFTS):                       # it says level + shift where level is true
        moved = np.zeros_like(levels)
        first, last = max(0, -shift), NUM_LEVELS - max(0, shift)
        moved[:, first:last] = levels[:, first + shift:last + shift]
        out += kernel[:, k:k + 1] * moved
    return out / np.maximum(out.sum(1, keepdims=True), 1e-9)


def relative_logs(probabilities: np.ndarray) -> np.ndarray:
    """Logs relative to a uniform opinion over the levels."""
    return np.log((probabilities + FLOOR) / (1 + NUM_LEVELS * FLOOR) * NUM_LEVELS)


def landmark_weights(evidence: Mapping[str, Evidence], model: EvidenceModel,
                     landmarks: Mapping[str, Sequence[int]] = LANDMARKS) -> dict[str, np.ndarray]:
    """(n, 26) logs by landmark: of being the last (sacrum below) and the first (skull above) named vertebra, and of the vertebra that
    carries the last and the first rib; 0 where nothing is known. The first classifier that knows a place's landmark says it."""
    n = len(next(iter(evidence.values())).logs)
    found = np.full((n, len(LANDMARKS) + len(RIBS)), np.nan)
    for said in (e.landmarks for e in evidence.values() if e.landmarks is not None):
        part = found[:, :said.shape[1]]
        part[:] = np.where(np.isnan(part), said, part)
    weights = {}
    for column, (name, ends) in enumerate(landmarks.items()):
        seen, trust = found[:, column:column + 1], model.landmark.get(name, 0.0)
        p = np.nan_to_num(seen, nan=0.5)
        log = np.log(trust * np.where(np.isin(np.arange(NAMES), ends)[None], p, 1 - p) + (1 - trust) * 0.5)
        weights[name] = np.where(np.isnan(seen) | (trust == 0), 0.0, log)   # without trust it is only told to the reader
    return weights


def _mix(lattices: Sequence[Lattice], weight: np.ndarray, limit: float) -> Numbering:
    """`weight`: logs of how much each lattice counts; their sum is the numbering's `log_total`."""
    totals = _totals(lattices)
    total = float(np.logaddexp.reduce(weight))
    if not np.isfinite(total):
        return impossible(lattices[0].n)
    weight = np.exp(weight - total)
    heard = [int(i) for i in np.argsort(-weight) if weight[i] > LEAST_SET]
    weight = weight / weight[heard].sum()
    posterior = np.sum([weight[i] * lattices[i].posterior()[0] for i in heard], axis=0)
    paths = dict.fromkeys(tuple(lattices[i].best_path(lattices[i].emission)[0].tolist()) for i in heard)
    agreement = {path: _agreement(path, lattices, totals, weight, heard) for path in paths if any(k < NAMES for k in path)}
    if not agreement:
        return Numbering((None,) * lattices[0].n, posterior, posterior[:, -1], None, 1.0, 1.0, False, total)
    best = max(agreement, key=agreement.__getitem__)
    shifted = min(1.0, max(0.0, 1.0 - agreement[best]))
    path = np.array(best)
    nowhere = _nowhere(path, lattices, totals, weight, heard)
    top = lattices[heard[0]]
    margin = top.path_weight(path) - max(top.best_shift(path, direction) for direction in (-1, 1))
    return Numbering(names_of(path), posterior, posterior[np.arange(len(path)), path], margin, shifted, nowhere, shifted <= limit, total)


def _agreement(path: tuple[int, ...], lattices: Sequence[Lattice], totals: np.ndarray, weight: np.ndarray, heard: Sequence[int]) -> float:
    """Posterior of all numberings that agree with every vertebra that `path` names."""
    named = [i for i, name in enumerate(path) if name < NAMES]
    total = 0.0
    for k in heard:
        only = lattices[k].emission.copy()
        only[named] = NEVER
        only[named, [path[i] for i in named]] = lattices[k].emission[named, [path[i] for i in named]]
        total += weight[k] * float(np.exp(lattices[k].log_total(only) - totals[k]))
    return total


def _nowhere(path: np.ndarray, lattices: Sequence[Lattice], totals: np.ndarray, weight: np.ndarray, heard: Sequence[int]) -> float:
    """Posterior of all numberings that agree with no vertebra that `path` names."""
    named = np.flatnonzero(path < NAMES)
    total = 0.0
    for k in heard:
        other = lattices[k].emission.copy()
        other[named, path[named]] = NEVER
        total += weight[k] * float(np.exp(lattices[k].log_total(other) - totals[k]))
    return min(1.0, total)


def combined_rows(evidence: Mapping[str, Evidence], model: EvidenceModel) -> tuple[np.ndarray, np.ndarray]:
    """All classifiers together as other readers want them: logs (n, 25), rows normalised, and variants (n, 2)."""
    opinions = [opinion(name, found, replace(model, power=dict.fromkeys(model.power, 0.0))) for name, found in evidence.items()
                if name in model.trust]
    names = np.sum([o.names for o in opinions], axis=0) + np.sum([o.vertebra for o in opinions], axis=0)[:, None]
    none = np.sum([o.none for o in opinions], axis=0)[:, None]
    regular = np.concatenate([np.delete(names, VARIANTS, axis=1), none], axis=1)
    norm = np.logaddexp.reduce(regular, axis=1, keepdims=True)
    return regular - norm, names[:, VARIANTS] - norm
