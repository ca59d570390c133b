"""Density clustering (DBSCAN; Ester et al. 1996) of the few hundred boxes of a scan.

scikit-learn has it too, and gives the same labels (a test holds them side by side). Importing that package takes a second of processor
time, pandas and scipy.stats with it, which is a tenth of a whole prediction.
"""
from __future__ import annotations

import numpy as np


def density_labels(points: np.ndarray, eps: float, min_samples: int) -> np.ndarray:
    """Cluster of each point (N,), -1 for noise; clusters are numbered by their first core point.

    A core point has at least `min_samples` points, itself among them, no farther than `eps`. Core points that near to each other share a
    cluster. Any other point belongs to the first cluster that has a core point that near, or to none.

    Args:
        points: (N, D), in any unit, that of `eps`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    n = len(points)
    labels = np.full(n, -1)
    if not n:
        return labels
    pairs = cKDTree(points).query_pairs(eps, output_type="ndarray")
    first, second = np.concatenate([pairs, pairs[:, ::-1]]).T
    core = np.bincount(first, minlength=n) + 1 >= min_samples
    if not core.any():
        return labels
    linked = core[first] & core[second]
    graph = coo_array((np.ones(linked.sum(), dtype=bool), (first[linked], second[linked])), shape=(n, n))
    component = connected_components(graph, directed=False)[1][core]
    _, begins, place = np.unique(component, return_index=True, return_inverse=True)
    labels[core] = np.argsort(np.argsort(begins))[place]
    border = core[first] & ~core[second]
    reached = np.full(n, n)
    np.minimum.at(reached, second[border], labels[first[border]])
    edge = reached < n
    labels[edge] = reached[edge]
    return labels
