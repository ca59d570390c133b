"""Density clustering (DBSCAN; Ester et al. 1996) of the few hundred boxes of a scan.

scikit-learn has it too, and gives the same labels (a test holds them side by side). Importing that package takes a second of processor
time, and half a second what scipy has for neighbours and components, which is a lot beside a whole prediction.
"""
from __future__ import annotations

import numpy as np

ROWS = 256      # points whose distances to all others are looked at together


def density_labels(points: np.ndarray, eps: float, min_samples: int) -> np.ndarray:
    """Cluster of each point (N,), -1 for noise; clusters are numbered by their first core point.

    A core point has at least `min_samples` points, itself among them, no farther than `eps`. Core points that near to each other share a
    cluster. Any other point belongs to the first cluster that has a core point that near, or to none.

    Args:
        points: (N, D), in any unit, that of `eps`.
    """
    n = len(points)
    labels = np.full(n, -1)
    if not n:
        return labels
    first, second = _near_pairs(points, eps)
    core = np.bincount(first, minlength=n) + 1 >= min_samples
    if not core.any():
        return labels
    linked = core[first] & core[second]
    component = _components(n, first[linked], second[linked])[core]
    labels[core] = np.unique(component, return_inverse=True)[1]
    border = core[first] & ~core[second]
    reached = np.full(n, n)
    np.minimum.at(reached, second[border], labels[first[border]])
    edge = reached < n
    labels[edge] = reached[edge]
    return labels


def _near_pairs(points: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (k,) and (k,) of all pairs of different points no farther apart than `eps`, each both ways round."""
    firsts, seconds = [], []
    for begin in range(0, len(points), ROWS):
        part = points[begin:begin + ROWS]
        squares = np.zeros((len(part), len(points)))
        for axis in range(points.shape[1]):
            squares += (part[:, axis, None] - points[None, :, axis]) ** 2
        first, second = np.nonzero(squares <= eps * eps)
        other = first + begin != second
        firsts.append(first[other] + begin)
        seconds.append(second[other])
    return np.concatenate(firsts), np.concatenate(seconds)


def _components(n: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The least index that each of `n` points is linked with, by pairs that stand there both ways round."""
    least = np.arange(n)
    while True:
        before = least.copy()
        np.minimum.at(least, first, least[second])
        least = least[least]        # as far at once as what is known reaches
        if np.array_equal(least, before):
            return least
