"""How well a network's features part neighbouring levels: a picture (t-SNE) and a number (silhouette against the neighbours)."""
from __future__ import annotations

import numpy as np

PERPLEXITY = 30.0


def neighbour_silhouette(features: np.ndarray, levels: np.ndarray) -> float:
    """Mean silhouette (Rousseeuw 1987) of vertebrae, where the other cluster is the nearer one of the two neighbouring levels.

    1: far from both neighbours, 0: as near to a neighbour as to its own level, below 0: nearer to the neighbour. The usual
    silhouette looks for the nearest of all other clusters; here the confusion by one level is what is asked about.

    Args:
        features: (n, d); cosine distance, so that a network's scale does not count.
        levels: (n,) level indices.

    Returns the mean over vertebrae whose level has another member and a neighbouring level with members; NaN without any.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    distance = 1.0 - unit @ unit.T
    np.fill_diagonal(distance, 0.0)
    values = []
    for i, level in enumerate(levels):
        own = (levels == level).sum() - 1
        others = [distance[i, levels == neighbour].mean() for neighbour in (level - 1, level + 1) if (levels == neighbour).any()]
        if own < 1 or not others:
            continue
        inside, outside = distance[i, levels == level].sum() / own, min(others)
        values.append((outside - inside) / max(outside, inside, 1e-12))
    return float(np.mean(values)) if values else float("nan")


def two_dimensions(features: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, 2) by t-SNE with a fixed seed; the perplexity is lowered where there are few rows. Too few rows: zeros."""
    if len(features) < 4:
        return np.zeros((len(features), 2))
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0).fit_transform(np.asarray(features, dtype=np.float32))
