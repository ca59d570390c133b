"""Names that follow one another: every connected body is one level, neighbours are neighbours in the names too, discs lie between.

Not in the paper. A network that outlines a body well may still split it between two names, or count one level twice, where few labelled
spines were seen. The evidence of the whole spine decides here: one path through the levels for all bodies together (Viterbi), each
body's share of every level's probability being its vote.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from ...anatomy.structures import SACRUM, in_order, kind
from ...plans.data import MRData
from .path_marginals import level_marginals
from .positional_prior import vote_by_position
from .threshold import BACKGROUND_COUNTS

CORE_MM = 5.0          # depth of a body's core: bridges thinner than twice this, such as a disc missed in one slice, join no bodies
DEEPER_MM = (6.0, 7.0, 8.0)   # where a core falls apart further inside, it was two bodies
DISC_COUNTS = 2.0      # where a disc is half as likely as a body the cores end: a faint disc still parts two bodies
SAME_LEVEL_MM = 12.5   # parts of bodies whose centres lie closer along the rows are one body; levels are 15 mm apart at least
TALL = 1.6             # times the usual height: two bodies whose disc was missed
LONGER, SPEAKS = 3.2, 0.1   # times the usual height, and share of its voxels with another name: a sacrum that L5 is part of
NO_DISC_MM = 1.0       # of disc between two bodies: less is none; the thinnest that networks saw above a sacrum had 1.7
ON_THE_WAY = 40        # points looked at between two bodies
SMALLEST = 0.1         # of the median body: less is no body
FLOOR = 0.05           # smallest share that counts: no single vote may outweigh all others
SKIPPED = 30.0         # cost of a level without a body, between neighbours at the usual distance
FAR, SKIPPED_FAR = 1.5, 0.3   # neighbours this many times the usual distance apart have room for one that was missed or merged
FAR_SACRUM = 2.2       # the same above the sacrum, whose centre lies lower: it is several levels long
SACRUM_COUNTS = 6.0    # votes of what looks like the sacrum: its shape tells it, the others are told by where they stand and err together
DROPPED = 10.0         # cost of a body without a level; less for a small one, which may be a part cut off by the border
BEYOND = 0.3           # of that cost, for one that lies where no level of the plan lay in training: T12 over L1, say
WHOLE = 0.5            # of the median body: from here on dropping one costs all of it
ABOVE_ALL = 0.5        # of that cost, for the uppermost body: readers leave it out where the border cuts it, or it has no class
VARIANTS = ("T13", "L6")   # levels that most people do not have: jumping them costs nothing


@dataclass(frozen=True)
class LevelAssignment:
    """Named levels of a scan.

    Attributes:
        probability: class probabilities (C, slices, rows, columns), whose masses follow the names.
        confidence: {level: probability of it among all paths through the levels}, of the bodies that have a name.
        anchored: whether a sacrum is among them, from which the others are counted.
        unnamed: bodies of usual size that were given no name, but for an uppermost one.
    """

    probability: np.ndarray
    confidence: Mapping[str, float]
    anchored: bool
    unnamed: int = 0


def name_levels(probability: np.ndarray, data: MRData, prior: Mapping[str, Any] | None = None) -> np.ndarray:
    """The probabilities of `assign_levels` alone."""
    return assign_levels(probability, data, prior).probability


def assign_levels(probability: np.ndarray, data: MRData, prior: Mapping[str, Any] | None = None) -> LevelAssignment:
    """`probability` (C, slices, rows, columns) on the grid of `data` with the mass of all bodies given to the level that their body is,
    that of discs to the disc between their neighbours; what is no level or has no class goes to the background. Rows run caudally.
    `prior`: where levels lay in the fields of the training cases (`fit_positional_prior`), a classifier where no sacrum is found.

    Comes back as it is where no body is found, or where the plan knows fewer than two levels.
    """
    chain = [name for name in in_order(data.classes) if kind(name) == "body"]
    number = {name: i for i, name in enumerate(data.classes, 1)}
    if len(chain) < 2 or data.orientation[1] != "I":
        return LevelAssignment(probability, {}, False)
    body, disc = (probability[[number[name] for name in data.classes if kind(name) == k]].sum(0) for k in ("body", "disc"))
    bodies = _bodies(body > np.maximum(DISC_COUNTS * disc, 1 - body - disc), data)
    if not bodies:
        return LevelAssignment(probability, {}, False)
    if SACRUM in chain:
        if any(kind(name) == "disc" for name in data.classes):
            bodies = _one_sacrum(bodies, probability[number[SACRUM]] > body / 2, disc, data)
        bodies = _off_the_sacrum(bodies, probability[number[SACRUM]] < body / 2, data)
    # The first sacral body looks much like L5; what lies below it looks like nothing else.
    speaking = [_lower_half(bodies[0]), *bodies[1:]] if SACRUM in chain else bodies
    votes = np.array([[probability[number[name]][at].mean() for name in chain] for at in speaking]) + 1e-6
    shares = votes / votes.sum(1, keepdims=True)
    sacral = shares[:, [name == SACRUM for name in chain]].sum(1)
    counts = 1 + (SACRUM_COUNTS - 1) * sacral[:, None]
    # Levels are counted from below: further up, a vote more and more repeats a wrong size that was taken for granted.
    counts /= np.arange(1, len(bodies) + 1)[:, None]
    # A sacrum in view counts for more than where a few other fields happened to end.
    placed, beyond = vote_by_position(bodies, body.shape[1], chain, {} if (sacral > 0.5).any() else prior or {}, data)
    jumps, drops = _penalties(bodies, sacral, data)
    weighed, dropped = counts * np.log(np.maximum(shares, FLOOR)) + placed, np.where(beyond, BEYOND, 1.0) * drops
    path = best_path(weighed, chain, jumps, dropped)
    marginals = level_marginals(weighed, [name in VARIANTS for name in chain], jumps, dropped)
    names = [chain[level] if level >= 0 else "" for level in path]
    owner = _nearest(bodies, body.shape, data)
    body = np.where(_scraps(body > BACKGROUND_COUNTS * probability[0], bodies), 0, body)
    result = np.zeros_like(probability)
    given = np.array([number.get(name, 0) for name in names])[owner]
    beside = _discs_beside(names, chain, number)
    between = np.where(_above(bodies, owner, data), beside[owner, 0], beside[owner, 1])
    for name, i in number.items():
        if kind(name) == "other":
            result[i] = probability[i]
        else:
            mass, owner = (body, given) if kind(name) == "body" else (disc, between)
            np.copyto(result[i], mass, where=owner == i)
    result[0] = 1 - result[1:].sum(0)
    confidence = {name: float(marginals[i, chain.index(name)]) for i, name in enumerate(names) if name}
    whole = np.array([len(at[0]) for at in bodies]) >= WHOLE * np.median([len(at[0]) for at in bodies])
    unnamed = sum(1 for name, is_whole in zip(names[:-1], whole, strict=False) if is_whole and not name)
    return LevelAssignment(result, confidence, SACRUM in names and bool(sacral[names.index(SACRUM)] > 0.5), unnamed)


def best_path(votes: np.ndarray, chain: Sequence[str], jumps: Sequence[float], drops: Sequence[float]) -> list[int]:
    """Level of each body from below, index into `chain` or -1 for none: strictly upwards, with the largest sum of log votes (bodies,
    levels) less the costs of jumped levels and dropped bodies. `jumps[k]` is that of one level jumped below body k, `drops[k]` that of
    dropping body k; levels below the first body are free."""
    jumped = np.cumsum([0] + [name not in VARIANTS for name in chain])
    best: dict[int, tuple[float, list[int]]] = {-1: (0.0, [])}        # highest level so far: (score, path)
    for row, jump, drop in zip(votes, jumps, drops, strict=True):
        following: dict[int, tuple[float, list[int]]] = {}
        for top, (score, path) in best.items():
            steps = [(top, -1, score - drop)]
            for j in range(top + 1, len(chain)):
                steps.append((j, j, score + row[j] - (jump * (jumped[j] - jumped[top + 1]) if top >= 0 else 0.0)))
            for state, level, value in steps:
                if state not in following or value > following[state][0]:
                    following[state] = value, [*path, level]
        best = following
    return max(best.values(), key=lambda found: found[0])[1]


def _penalties(bodies: list[tuple[np.ndarray, ...]], sacral: np.ndarray, data: MRData) -> tuple[list[float], np.ndarray]:
    """Costs for each body: of a level jumped below it, by its distance (sagittal plane) from the body there; of dropping it, by size.
    `sacral` (bodies,): each one's share of the sacrum."""
    sizes = np.array([len(at[0]) for at in bodies])
    drops = DROPPED * np.minimum(1.0, sizes / np.median(sizes) / WHOLE)
    drops[-1] *= ABOVE_ALL
    centres = np.array([[at[1].mean(), at[2].mean()] for at in bodies]) * np.array(data.spacing_mm[1:])
    apart = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    usual = np.percentile(apart, 25) if len(apart) else 0.0
    far = np.where(sacral[:-1] > 0.5, FAR_SACRUM, FAR) * usual
    return [SKIPPED, *np.where(apart > far, SKIPPED_FAR, SKIPPED).tolist()], drops


def _discs_beside(names: Sequence[str], chain: Sequence[str], number: Mapping[str, int]) -> np.ndarray:
    """(bodies, 2): class numbers of the discs above and below each body, 0 where there is none."""
    regular = [name for name in chain if name not in VARIANTS or name in names]
    found = np.zeros((len(names), 2), np.int64)
    for i, name in enumerate(names):
        if name:
            at = regular.index(name)
            upper, lower = (regular[k] if 0 <= k < len(regular) else "" for k in (at + 1, at - 1))
            # A neighbour that is no class of the plan (a sacrum without labels, say) may still lend its name to a disc.
            found[i] = [next((n for disc, n in number.items() if kind(disc) == "disc" and disc.split("/")[side] == name
                              and other in ("", disc.split("/")[1 - side])), 0) for side, other in ((1, upper), (0, lower))]
    return found


def _bodies(mask: np.ndarray, data: MRData) -> list[tuple[np.ndarray, ...]]:
    """Voxel indices of the core of each body, from below; parts of one level together, scraps left out."""
    if mask.all():
        return []
    depth = ndimage.distance_transform_edt(mask, data.spacing_mm)
    cores = _connected_components(depth > CORE_MM)
    if not cores:
        return []
    least = SMALLEST * np.median([len(at[0]) for at in cores])
    for deeper in DEEPER_MM:
        cores = [part for at in cores for part in _split_apart(at, depth, deeper, least)]
    least = SMALLEST * np.median([len(at[0]) for at in cores])
    cores = sorted((at for at in cores if len(at[0]) >= least), key=lambda at: -at[1].mean())
    joined = [cores[0]]
    for at in cores[1:]:
        if (joined[-1][1].mean() - at[1].mean()) * data.spacing_mm[1] < SAME_LEVEL_MM:
            joined[-1] = tuple(np.concatenate(pair) for pair in zip(joined[-1], at, strict=True))
        else:
            joined.append(at)
    return [part for k, at in enumerate(joined) for part in _halve(at, joined, k, data)]


def _halve(at: tuple[np.ndarray, ...], bodies: list[tuple[np.ndarray, ...]], k: int, data: MRData) -> list[tuple[np.ndarray, ...]]:
    """Body `k` in as many pieces as bodies of the usual height fit, from below; the lowest, which may be a sacrum, stays whole."""
    tall = [np.ptp(rows) * data.spacing_mm[1] + 2 * CORE_MM for _, rows, _ in bodies]
    usual = np.percentile(tall, 40)      # below the median: the sacrum, and every pair that is one core, are long
    count = int(round(tall[k] / usual)) if k and tall[k] > TALL * usual else 1
    lines = np.linspace(at[1].max() + 1, at[1].min(), count + 1)
    pieces = [(at[1] < high) & (at[1] >= low) for high, low in zip(lines, lines[1:], strict=False)]
    return [tuple(axis[piece] for axis in at) for piece in pieces if piece.any()]


def _one_sacrum(bodies: list[tuple[np.ndarray, ...]], sacral: np.ndarray, disc: np.ndarray, data: MRData) -> list[tuple[np.ndarray, ...]]:
    """The lowest bodies as one where the lowest is the sacrum and no disc lies above it: its own bodies, thinly joined, are no levels.

    `sacral` and `disc` (slices, rows, columns): where the sacrum is the likeliest body, and the probability of any disc.
    """
    while len(bodies) > 1 and sacral[bodies[0]].mean() > 0.5 and _disc_between(bodies[0], bodies[1], disc, data) < NO_DISC_MM:
        bodies = [tuple(np.concatenate(pair) for pair in zip(*bodies[:2], strict=True)), *bodies[2:]]
    return bodies


def _disc_between(lower: tuple[np.ndarray, ...], upper: tuple[np.ndarray, ...], disc: np.ndarray, data: MRData) -> float:
    """mm of disc on the way from the centre of one body to that of the other, mean of the slices that show both; inf without any."""
    thickness = []
    for number in np.intersect1d(lower[0], upper[0]):
        ends = [np.array([axis[at[0] == number].mean() for axis in at[1:]]) for at in (lower, upper)]
        length = float(np.linalg.norm((ends[1] - ends[0]) * np.array(data.spacing_mm[1:])))
        on_the_way = np.linspace(ends[0], ends[1], ON_THE_WAY).round().astype(int)
        thickness.append(disc[number][tuple(on_the_way.T)].mean() * length)
    return float(np.mean(thickness)) if thickness else np.inf


def _off_the_sacrum(bodies: list[tuple[np.ndarray, ...]], other: np.ndarray, data: MRData) -> list[tuple[np.ndarray, ...]]:
    """L5 and the sacrum apart where they are one piece: longer than the part of a sacrum that scans show, and speaking of both.

    `other` (slices, rows, columns): where a body is more likely anything but the sacrum.
    """
    lowest, rest = bodies[0], bodies[1:]
    if len(rest) < 2 or not SPEAKS < other[lowest].mean() < 1 - SPEAKS:
        return bodies
    plane = np.stack(lowest[1:], 1) * np.array(data.spacing_mm[1:])
    axis = np.linalg.svd(plane - plane.mean(0), full_matrices=False)[2][0]      # tilted: rows alone are no measure of its length
    down = plane @ axis * np.sign(axis[0])
    usual = float(np.median([np.ptp(at[1]) for at in rest])) * data.spacing_mm[1] + 2 * CORE_MM
    if np.ptp(down) + 2 * CORE_MM < LONGER * usual:
        return bodies
    upper = down < down.min() + usual - CORE_MM
    return [tuple(axis[~upper] for axis in lowest), tuple(axis[upper] for axis in lowest), *rest]


def _lower_half(at: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The caudal half of a body's voxels."""
    below = at[1] >= np.median(at[1])
    return tuple(axis[below] for axis in at)


def _connected_components(mask: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    parts, count = ndimage.label(mask)
    return [np.nonzero(parts == i) for i in range(1, count + 1)]


def _split_apart(at: tuple[np.ndarray, ...], depth: np.ndarray, deeper: float, least: float) -> list[tuple[np.ndarray, ...]]:
    """The parts of one core that are left where it is `deeper`, if they are several of at least `least` voxels; else the core."""
    inside = np.zeros(depth.shape, bool)
    inside[at] = depth[at] > deeper
    parts = [part for part in _connected_components(inside) if len(part[0]) >= least]
    return parts if len(parts) > 1 else [at]


def _nearest(bodies: list[tuple[np.ndarray, ...]], shape: tuple[int, ...], data: MRData) -> np.ndarray:
    """Number of the nearest body at every voxel."""
    seeds = np.full(shape, -1, np.int16)
    for i, at in enumerate(bodies):
        seeds[at] = i
    where = ndimage.distance_transform_edt(seeds < 0, data.spacing_mm, return_distances=False, return_indices=True)
    return seeds[tuple(where)]


def _scraps(mask: np.ndarray, bodies: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Where `mask` (slices, rows, columns) is connected with the core of no body."""
    parts, _ = ndimage.label(mask)
    return mask & ~np.isin(parts, np.unique(np.concatenate([parts[at] for at in bodies])))


def _above(bodies: list[tuple[np.ndarray, ...]], owner: np.ndarray, data: MRData) -> np.ndarray:
    """Whether a voxel lies above the centre of its nearest body, along the line of that body's neighbours in the sagittal plane."""
    plane = np.array(data.spacing_mm[1:])
    centres = np.array([[at[1].mean(), at[2].mean()] for at in bodies]) * plane
    rows, columns = (np.arange(n) * s for n, s in zip(owner.shape[1:], plane, strict=True))
    above = np.zeros(owner.shape, bool)
    for i, (row, column) in enumerate(centres):
        up = centres[min(i + 1, len(bodies) - 1)] - centres[max(i - 1, 0)] if len(bodies) > 1 else np.array([-1.0, 0.0])
        side = (rows - row)[:, None] * up[0] + (columns - column)[None] * up[1] > 0
        above |= (owner == i) & side
    return above
