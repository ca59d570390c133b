"""The sequence decoder: the best path through the anatomically possible numberings of one spine, and how sure it is.

A path gives every detection a vertebra name or None (a false detection), names in cranio-caudal order. Its weight (log) is

    sum over named      evidence * log p(name's level) + offset of a variant (T13 starts from T12, L6 from L5)
  + sum over false      evidence * log p(not a vertebra) + penalty of a false detection
  + sum over pairs of consecutive named ones   log sum over the ways from one to the other
  + the anomaly's penalty where the first named one is a T13 or an L6.

A way goes down the spine one vertebra at a time. Each vertebra on the way that was not detected pays `missed`; a transition
into T13 or L6 or from T11 straight to L1 pays its anomaly's penalty; and the number of steps of the way is compared with the
measured gap. Viterbi gives the best path, forward-backward the exact posterior under these weights.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ...anatomy import ANATOMICAL_ORDER, EMITTING_LEVEL, LEVEL_INDEX, LEVELS, NUM_LEVELS, ORDER_INDEX, level_distance
from .constraints import NAMES, NEVER, Constraints
from .plan import Penalties

NOT_A_VERTEBRA = NUM_LEVELS
"""Column of "not a vertebra" in the (n, 25) log-probabilities."""

FLOOR = -30.0
"""Least log-probability taken seriously: one overconfident zero of a classifier cannot forbid the true path."""


@dataclass(frozen=True)
class Numbering:
    """A decoded spine of n detections.

    `names`: best path, None = false detection. `posterior`: (n, 27) over ANATOMICAL_ORDER and "not a vertebra", rows sum to
    1. `confidence`: (n,) posterior of what the best path says. `margin`: log weight of the best path minus that of the best
    path moved by one level (up or down, all named vertebrae); inf when none exists, None when nothing is named.
    `shifted`: posterior of all paths together that give a vertebra of the best path another level. `unmoored`: posterior of
    those that agree with it nowhere. `log_total`: log weight of all numberings together; -inf where none is possible.
    """

    names: tuple[str | None, ...]
    posterior: np.ndarray
    confidence: np.ndarray
    margin: float | None
    shifted: float
    unmoored: float
    numbering_anchored: bool
    log_total: float = 0.0
    shifts: tuple[float, ...] = ()   # of the numbering moved by `shifts.SHIFTS` levels, where that was asked


class Decoder:
    """Exact decoder; build once, use per scan.

    Args:
        penalties: log weights.
        forbid_anomalies: no T13, no L6, no T11 -> L1 (`--forbid_anomalies`).
        known: what is known of the levels besides: only numberings that obey it have weight.
    """

    def __init__(self, penalties: Penalties | None = None, forbid_anomalies: bool = False, known: Constraints | None = None):
        self.penalties = Penalties() if penalties is None else penalties
        self.known = known
        if forbid_anomalies:
            self.penalties = replace(self.penalties, t13=NEVER, l6=NEVER, missing_t12=NEVER, t13_offset=NEVER, l6_offset=NEVER)
        if known is not None:
            self.penalties = known.penalties(self.penalties)

    def decode(self, log_probabilities: np.ndarray, steps: np.ndarray | None = None,
               variants: np.ndarray | None = None) -> Numbering:
        """Best path and posterior.

        Args:
            log_probabilities: (n, 25) over the 24 levels and "not a vertebra", detections in cranio-caudal order.
            steps: (n - 1,) measured steps between them (`anatomy.vertebral_gaps`); None or NaN = unknown.
            variants: (n, 2) log-probabilities of T13 and L6 from a classifier that knows them; NaN = start from T12 and L5.
        """
        lattice = self.lattice(log_probabilities, steps, variants)
        if lattice.n == 0:
            return Numbering((), np.zeros((0, NAMES + 1)), np.zeros(0), None, 0.0, 0.0, False)
        best, score = lattice.best_path(lattice.emission)
        names = names_of(best)
        posterior, total = lattice.posterior()
        if not np.isfinite(total):
            return impossible(lattice.n)
        confidence = posterior[np.arange(lattice.n), best]
        named = np.flatnonzero(best < NAMES)
        if len(named) == 0:
            return Numbering(names, posterior, confidence, None, 1.0, 1.0, False, total)
        agrees, nowhere = lattice.emission.copy(), lattice.emission.copy()
        agrees[named] = NEVER
        agrees[named, best[named]] = lattice.emission[named, best[named]]
        nowhere[named, best[named]] = NEVER
        shifted = max(0.0, 1.0 - float(np.exp(lattice.log_total(agrees) - total)))
        unmoored = min(1.0, float(np.exp(lattice.log_total(nowhere) - total)))
        moved = max(lattice.best_shift(best, direction) for direction in (-1, 1))
        anchored = shifted <= self.penalties.shifted_limit
        return Numbering(names, posterior, confidence, score - moved, shifted, unmoored, anchored, total)

    def log_posterior(self, names: Sequence[str | None], log_probabilities: np.ndarray, steps: np.ndarray | None = None,
                      variants: np.ndarray | None = None) -> float:
        """Log posterior of one given path (-inf when it is impossible); its mean over true paths is what fitting maximises."""
        lattice = self.lattice(log_probabilities, steps, variants)
        only = np.full_like(lattice.emission, NEVER)
        none = np.full(lattice.n, NEVER)
        for i, name in enumerate(names):
            if name is None:
                none[i] = lattice.none[i]
            else:
                only[i, ORDER_INDEX[name]] = lattice.emission[i, ORDER_INDEX[name]]
        return float(replace(lattice, none=none).log_total(only) - lattice.log_total(lattice.emission))

    def lattice(self, log_probabilities: np.ndarray, steps: np.ndarray | None, variants: np.ndarray | None) -> Lattice:
        given = np.asarray(log_probabilities, dtype=float)
        n = len(given)
        if given.shape != (n, NUM_LEVELS + 1):
            raise ValueError(f"log_probabilities must be (n, {NUM_LEVELS + 1}), got {given.shape}")
        given = np.maximum(np.nan_to_num(given, nan=FLOOR), FLOOR) * self.penalties.evidence
        emission = given[:, EMITTING].copy()
        if variants is not None:
            own = np.asarray(variants, dtype=float).reshape(n, 2)
            emission[:, VARIANTS] = np.where(np.isnan(own), emission[:, VARIANTS], np.maximum(own, FLOOR) * self.penalties.evidence)
        emission[:, VARIANTS] += (self.penalties.t13_offset, self.penalties.l6_offset)
        gaps = np.full(max(n - 1, 0), np.nan) if steps is None else np.asarray(steps, dtype=float)
        if gaps.shape != (max(n - 1, 0),):
            raise ValueError(f"steps must be ({max(n - 1, 0)},) for {n} detections, got {gaps.shape}")
        none = given[:, NOT_A_VERTEBRA] + self.penalties.false_detection
        return self.constrained(Lattice(emission, none, self.transitions(gaps), self.beginning))

    def constrained(self, lattice: Lattice) -> Lattice:
        """`lattice` without the names that contradict what is known."""
        if self.known is None:
            return lattice
        allowed = self.known.allowed
        return replace(lattice, emission=np.where(allowed[:, :NAMES], lattice.emission, NEVER),
                       none=np.where(allowed[:, NAMES], lattice.none, NEVER))

    @property
    def beginning(self) -> np.ndarray:
        """(26,) logs of the name of the first named vertebra: a T13 or L6 is as rare there as it is after the one above it."""
        logs = np.zeros(NAMES)
        logs[VARIANTS] = self.penalties.t13, self.penalties.l6
        return logs

    def transitions(self, gaps: np.ndarray) -> np.ndarray:
        """(n, n, 26, 26) weights of going from name a at detection i to name b at the next named detection j > i."""
        n = len(gaps) + 1
        upper, lower = np.triu_indices(n, 1)
        along = np.concatenate([[0.0], np.cumsum(gaps)])
        apart = along[lower] - along[upper]
        counts = np.arange(1, NAMES + 1)
        spread = (np.log(np.maximum(apart, 1e-3))[:, None] - np.log(counts)[None, :]) / self.penalties.step_sigma
        surprise = np.maximum(-0.5 * spread ** 2, self.penalties.step_floor)
        likelihood = np.exp(np.where(np.isnan(apart)[:, None], 0.0, surprise))
        steps, weight = self._ways
        moves = np.zeros((n, n, NAMES, NAMES))
        moves[upper, lower] = sum(likelihood[:, s - 1] * w for s, w in zip(steps, weight, strict=True))
        return moves

    @cached_property
    def _ways(self) -> tuple[np.ndarray, np.ndarray]:
        """(3, 26, 26) steps and weight of the ways from a name to a lower one: at most three (T12 only, T12 and T13, neither)."""
        one = np.full((NAMES, NAMES), NEVER)
        for upper, lower in zip(LEVELS, LEVELS[1:], strict=False):
            one[ORDER_INDEX[upper], ORDER_INDEX[lower]] = 0.0
        for upper, lower, penalty in (("T12", "T13", self.penalties.t13), ("T13", "L1", 0.0), ("L5", "L6", self.penalties.l6),
                                    ("T11", "L1", self.penalties.missing_t12)):
            one[ORDER_INDEX[upper], ORDER_INDEX[lower]] = penalty
        for upper, lower in () if self.known is None else self.known.closed_ways:
            one[ORDER_INDEX[upper], ORDER_INDEX[lower]] = NEVER
        reached = [one]
        for _ in range(NAMES - 1):
            reached.append((reached[-1][:, :, None] + one[None]).max(axis=1) + self.penalties.missed)
        logs = np.stack(reached)
        ways = np.argsort(~np.isfinite(logs), axis=0, kind="stable")[:3]
        return ways + 1, np.exp(np.take_along_axis(logs, ways, axis=0))


@dataclass(frozen=True)
class Lattice:
    """One scan's weights. emission (n, 26) and none (n,) are logs; moves (n, n, 26, 26) are plain weights, zero for j <= i.

    `first`, `last`: (n, 26) logs of being the first and the last named vertebra (what lies beyond may say so), 0 by default.
    """

    emission: np.ndarray
    none: np.ndarray
    moves: np.ndarray
    first: np.ndarray | float = 0.0
    last: np.ndarray | float = 0.0

    @cached_property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """`first` and `last` as (n, 26) arrays."""
        zeros = np.zeros((self.n, NAMES))
        return zeros + self.first, zeros + self.last

    @property
    def n(self) -> int:
        return len(self.none)

    @cached_property
    def between(self) -> np.ndarray:
        """(n + 2, n + 2): log weight of dropping every detection strictly between two; row 0 = start, column n + 1 = end."""
        n = self.n
        out = np.full((n + 2, n + 2), NEVER)
        for i in range(n + 1):
            out[i, i + 1:] = np.concatenate([[0.0], np.cumsum(self.none[i:])])
        return out

    def forward(self, emission: np.ndarray) -> np.ndarray:
        """(n, 26): log sum of all partial paths that end with that name at that detection."""
        n = self.n
        drop, first = self.between, self.ends[0]
        out = np.empty((n, NAMES))
        for j in range(n):
            arriving = drop[0, j + 1] + first[j]
            if j:
                before = out[:j] + drop[1:j + 1, j + 1, None]
                arriving = np.logaddexp(arriving, _log_product(before.ravel(), self.moves[:j, j].reshape(-1, NAMES)))
            out[j] = arriving + emission[j]
        return out

    def backward(self) -> np.ndarray:
        """(n, 26): log sum of everything after that name at that detection."""
        n = self.n
        drop, last = self.between, self.ends[1]
        out = np.empty((n, NAMES))
        for i in range(n - 1, -1, -1):
            leaving = drop[i + 1, n + 1] + last[i]
            if i < n - 1:
                after = out[i + 1:] + self.emission[i + 1:] + drop[i + 1, i + 2:n + 1, None]
                moves = self.moves[i, i + 1:].transpose(0, 2, 1).reshape(-1, NAMES)
                leaving = np.logaddexp(leaving, _log_product(after.ravel(), moves))
            out[i] = leaving
        return out

    def log_total(self, emission: np.ndarray) -> float:
        """Log sum of all paths, the one that names nothing included."""
        if self.n == 0:
            return 0.0
        ends = self.forward(emission) + self.between[1:-1, -1, None] + self.ends[1]
        return float(np.logaddexp(np.logaddexp.reduce(ends, axis=None), self.between[0, -1]))

    def posterior(self) -> tuple[np.ndarray, float]:
        """(n, 27) posterior of the names and of "not a vertebra", and the log total."""
        total = self.log_total(self.emission)
        named = np.exp(self.forward(self.emission) + self.backward() - total)
        none = np.clip(1.0 - named.sum(axis=1, keepdims=True), 0.0, 1.0)
        return np.concatenate([named, none], axis=1), total

    def best_path(self, emission: np.ndarray) -> tuple[np.ndarray, float]:
        """(n,) ANATOMICAL_ORDER indices (26 = none) of the best path, and its log weight."""
        n = self.n
        drop, (first, last) = self.between, self.ends
        score, origin = np.empty((n, NAMES)), np.full((n, NAMES), -1)
        for j in range(n):
            score[j] = drop[0, j + 1] + first[j]
            if j:
                with np.errstate(divide="ignore"):
                    moves = np.log(self.moves[:j, j])
                through = ((score[:j] + drop[1:j + 1, j + 1, None])[:, :, None] + moves).reshape(-1, NAMES)
                winner = through.argmax(axis=0)
                value = through[winner, np.arange(NAMES)]
                origin[j] = np.where(value > score[j], winner, -1)
                score[j] = np.maximum(score[j], value)
            score[j] += emission[j]
        path = np.full(n, NAMES)
        ends = score + drop[1:-1, -1, None] + last
        cell = int(ends.argmax())
        if ends.flat[cell] <= drop[0, -1]:
            return path, float(drop[0, -1])
        best = float(ends.flat[cell])
        while cell >= 0:
            j, name = divmod(cell, NAMES)
            path[j] = name
            cell = int(origin[j, name])
        return path, best

    def path_weight(self, path: np.ndarray) -> float:
        """Log weight of one path (ANATOMICAL_ORDER indices, 26 = none), -inf when it is impossible."""
        emission, none = np.full_like(self.emission, NEVER), np.where(path == NAMES, self.none, NEVER)
        named = np.flatnonzero(path < NAMES)
        emission[named, path[named]] = self.emission[named, path[named]]
        return replace(self, none=none).best_path(emission)[1]

    def best_shift(self, path: np.ndarray, direction: int) -> float:
        """Log weight of the best path with every named detection moved one level and the rest false (-inf when impossible)."""
        emission = np.full_like(self.emission, NEVER)
        none = np.where(path == NAMES, self.none, NEVER)
        for i in np.flatnonzero(path < NAMES):
            there = MOVED[direction][path[i]]
            emission[i, there] = self.emission[i, there]
        return replace(self, none=none).best_path(emission)[1]


def impossible(count: int) -> Numbering:
    """The numbering of `count` detections that no path obeys."""
    return Numbering((None,) * count, np.zeros((count, NAMES + 1)), np.zeros(count), None, 1.0, 1.0, False, NEVER)


def names_of(path: Sequence[int] | np.ndarray) -> tuple[str | None, ...]:
    """Names of ANATOMICAL_ORDER indices, None for 26."""
    return tuple(None if k == NAMES else ANATOMICAL_ORDER[k] for k in path)


def _log_product(log_vector: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """log(exp(log_vector) @ matrix) without overflow; -inf where nothing arrives."""
    top = log_vector.max()
    if not np.isfinite(top):
        return np.full(matrix.shape[1], NEVER)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(log_vector - top) @ matrix) + top


EMITTING = np.array([LEVEL_INDEX[EMITTING_LEVEL[name]] for name in ANATOMICAL_ORDER])
VARIANTS = np.array([ORDER_INDEX["T13"], ORDER_INDEX["L6"]])
MOVED = {
    direction: [np.array([ORDER_INDEX[other] for other in ANATOMICAL_ORDER if direction in
                          (level_distance(name, other), ORDER_INDEX[other] - ORDER_INDEX[name])], dtype=int)
                for name in ANATOMICAL_ORDER]
    for direction in (-1, 1)}
"""Names one level up (-1) or down (+1) of each name; beside T13 there are two (T13 itself and the regular neighbour)."""
