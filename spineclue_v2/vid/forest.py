"""Boosted trees that rank the candidate numberings of a VID scan, kept as plain arrays.

Gradient boosting of the same likelihood as the networks': the softmax over a scan's candidates is their posterior, and the right
ones together shall have as much of it as possible. scikit-learn grows each tree; the finished forest needs numpy only.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

UNKNOWN = -1e4                    # stands for NaN: below every feature, so that a split can set the unknown apart
LEAST_CURVATURE, LARGEST_LEAF = 1e-4, 3.0


@dataclass(frozen=True)
class Growth:
    """How a forest is grown. Each tree sees a share of the scans (`scans`) and of the features at every split (`features`); of their
    candidates those with the largest gradients (`steep`) and a share of the others (`flat`), which count for all of these."""

    trees: int = 250
    rate: float = 0.08
    leaves: int = 24
    smallest_leaf: int = 8
    shrinkage: float = 5.0
    scans: float = 0.6
    features: float = 0.15
    steep: float = 0.12
    flat: float = 0.05


@dataclass
class Forest:
    """t trees of up to k nodes, each array (t, k): a row goes `left` where its `feature` is at most `threshold`, else `right`; a leaf
    leads to itself, and its `value` is the tree's share of the score."""

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray

    @classmethod
    def grow(cls, tables: Sequence[np.ndarray], right: Sequence[np.ndarray], weight: np.ndarray, seed: int,
             growth: Growth | None = None) -> Forest:
        """From s scans' tables (m, f) of candidates, which of them are right (m,), one at least, and the scans' weights (s,)."""
        from sklearn.tree import DecisionTreeRegressor

        growth = growth or Growth()
        random = np.random.default_rng(seed)
        x, is_right = _known(np.concatenate(tables)), np.concatenate(right)
        starts = np.cumsum([0] + [len(table) for table in tables[:-1]])
        scan = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        score, trees = np.zeros(len(x)), []
        for _ in range(growth.trees):
            posterior = _softmax(score, starts, scan, np.ones_like(is_right))
            slope = weight[scan] * (_softmax(score, starts, scan, is_right) - posterior)
            curve = weight[scan] * np.maximum(posterior * (1 - posterior), LEAST_CURVATURE)
            rows, counts = _draw_rows(slope, (random.random(len(tables)) < growth.scans)[scan], growth, random)
            if len(rows) == 0:
                continue
            slopes, curves = slope[rows] * counts, curve[rows] * counts
            tree = DecisionTreeRegressor(max_leaf_nodes=growth.leaves, max_features=growth.features,
                                         min_samples_leaf=growth.smallest_leaf, random_state=int(random.integers(1 << 30)))
            tree.fit(x[rows], slopes / curves, sample_weight=curves)
            leaf, nodes = tree.apply(x), tree.tree_.node_count
            newton = (np.bincount(leaf[rows], slopes, nodes) /
                      (np.bincount(leaf[rows], curves, nodes) + growth.shrinkage))
            value = growth.rate * np.clip(newton, -LARGEST_LEAF, LARGEST_LEAF)
            score += value[leaf]
            trees.append((tree.tree_, value))
        return cls._of_trees(trees, 2 * growth.leaves - 1)

    @classmethod
    def _of_trees(cls, trees: Sequence[tuple], nodes: int) -> Forest:
        """From scikit-learn's trees with the value of each node; rounded as they are stored."""
        own = np.tile(np.arange(nodes), (len(trees), 1))
        forest = cls(np.zeros_like(own), np.zeros(own.shape, np.float32), own.copy(), own.copy(), np.zeros(own.shape, np.float32))
        for k, (tree, value) in enumerate(trees):
            inner = np.flatnonzero(tree.children_left >= 0)
            forest.feature[k, inner], forest.threshold[k, inner] = tree.feature[inner], tree.threshold[inner]
            forest.left[k, inner], forest.right[k, inner] = tree.children_left[inner], tree.children_right[inner]
            forest.value[k, :len(value)] = value.astype(np.float16)
        return forest

    def scores(self, table: np.ndarray) -> np.ndarray:
        """(m, f) features, NaN where unknown -> (m,) scores."""
        x, tree = _known(table), np.arange(len(self.feature))[None]
        rows, node = np.arange(len(x))[:, None], np.zeros((len(x), len(self.feature)), dtype=int)
        while True:
            goes_left = x[rows, self.feature[tree, node]] <= self.threshold[tree, node]
            following = np.where(goes_left, self.left[tree, node], self.right[tree, node])
            if (following == node).all():
                return self.value[tree, node].sum(axis=1, dtype=float)
            node = following

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps."""
        kinds = {"feature": torch.int16, "threshold": torch.float32, "left": torch.uint8, "right": torch.uint8, "value": torch.half}
        return {name: torch.from_numpy(getattr(self, name)).to(kind) for name, kind in kinds.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Forest:
        """From what `tensors` gave; KeyError where something is missing."""
        arrays = {name: tensors[name].numpy() for name in ("feature", "threshold", "left", "right", "value")}
        return cls(arrays["feature"].astype(int), arrays["threshold"], arrays["left"].astype(int), arrays["right"].astype(int),
                   arrays["value"].astype(np.float32))


def _known(table: np.ndarray) -> np.ndarray:
    return np.nan_to_num(table.astype(np.float32), nan=UNKNOWN)


def _softmax(score: np.ndarray, starts: np.ndarray, scan: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(rows,) posterior of each candidate among the marked ones of its scan."""
    score = np.where(among, score, -np.inf)
    each = np.exp(score - np.maximum.reduceat(score, starts)[scan])
    return each / np.add.reduceat(each, starts)[scan]


def _draw_rows(slope: np.ndarray, seen: np.ndarray, growth: Growth, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a tree is grown from, and how many rows each stands for."""
    rows = np.flatnonzero(seen)
    if len(rows) == 0:
        return rows, np.zeros(0)
    steepness = np.abs(slope[rows])
    steep = steepness >= np.quantile(steepness, 1 - growth.steep)
    flat = ~steep & (random.random(len(rows)) < growth.flat)
    return np.concatenate([rows[steep], rows[flat]]), np.concatenate([np.ones(steep.sum()), np.full(flat.sum(), 1 / growth.flat)])
