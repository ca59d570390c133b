"""How sure each level is: the share of all paths through the levels, each weighed by its score, that give a body that level.

The forward-backward algorithm (Baum et al. 1970) on the chain that `level_assignment.best_path` maximises over.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

TEMPERATURE = 2.0     # scores add up votes of networks that err together: divided by this they are probabilities that hold


def level_marginals(votes: np.ndarray, variants: Sequence[bool], jumps: Sequence[float], drops: Sequence[float],
                    temperature: float = TEMPERATURE) -> np.ndarray:
    """(bodies, levels) probability of every level for every body; what a row lacks of 1 is that of no level.

    Args:
        votes: log votes (bodies, levels), both from below.
        variants: (levels,) whether jumping a level is free.
        jumps: cost of one level jumped below each body.
        drops: cost of dropping each body.
        temperature: scores are divided by it.
    """
    count, levels = votes.shape
    jumped = np.cumsum([0] + [not free for free in variants])
    steps = np.full((count, levels + 1, levels + 1), -np.inf)      # from and to the highest level so far; 0: none yet
    for k in range(count):
        for top in range(levels + 1):
            steps[k, top, top] = -drops[k]
            for j in range(top, levels):
                steps[k, top, j + 1] = votes[k, j] - (jumps[k] * (jumped[j] - jumped[top]) if top else 0.0)
    steps /= temperature
    forward, backward = np.full((count + 1, levels + 1), -np.inf), np.zeros((count + 1, levels + 1))
    forward[0, 0] = 0.0
    for k in range(count):
        forward[k + 1] = logsumexp(forward[k][:, None] + steps[k], axis=0)
    for k in reversed(range(count)):
        backward[k] = logsumexp(steps[k] + backward[k + 1][None], axis=1)
    total, found = backward[0, 0], np.zeros((count, levels))
    for k in range(count):
        joint = np.exp(forward[k][:, None] + steps[k] + backward[k + 1][None] - total)
        found[k] = np.triu(joint, 1).sum(0)[1:]
    return found
