"""Losses of the shape classifier: supervised contrastive (two forms), level distance, sequence order, and their sum.

Shapes: V views, B vertebrae, S spines; level indices count C1..L5 from 0. Paper: SpineCLUE, Eq. 2, 3 and 4.
"""
from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LOSS_WEIGHTS = (0.1, 0.5, 1.0)
"""(alpha, beta, gamma) of L = alpha L_se + beta L_mse + gamma L_ce."""


def expected_level(logits: Tensor) -> Tensor:
    """(..., levels) -> (...): softmax expectation of the level index, the predicted index that has a gradient."""
    return logits.softmax(dim=-1) @ torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)


def level_mse(logits: Tensor, targets: Tensor) -> Tensor:
    """L_mse: mean squared distance in levels between the expected and the true index; logits (B, levels), targets (B,)."""
    return F.mse_loss(expected_level(logits), targets.to(logits.dtype))


def sequence_loss_exact(levels: Sequence[int]) -> int:
    """L_se (Eq. 3) of one spine's predicted indices, cranio-caudal: n minus the longest strictly increasing subsequence."""
    smallest_end: list[int] = []                          # smallest_end[k]: least end of an increasing run of length k + 1
    for level in levels:
        index = bisect_left(smallest_end, level)
        smallest_end[index:index + 1] = [level]
    return len(levels) - len(smallest_end)


def sequence_loss_soft(logits: Tensor, lengths: Sequence[int], sharpness: float = 20.0) -> Tensor:
    """Soft relaxation of L_se, the mean over spines; differentiable in the logits.

    The exact loss follows best[i][k] = max(best[i-1][k], best[i-1][k-1] + [a_i = k]) made monotone in k, where best[i][k]
    is the longest increasing subsequence of the first i predictions that ends at or below level k. Two things are relaxed:
    the indicator [a_i = k] becomes the probability p_i(k), and each max becomes the softmax-weighted mean with `sharpness`
    (never above the max, equal to it on ties). For certain predictions and growing sharpness it is the exact loss.

    Args:
        logits: (B, levels), spines one after another, each in cranio-caudal order.
        lengths: vertebrae per spine, adding up to B.
    """
    if sum(lengths) != len(logits):
        raise ValueError(f"lengths add up to {sum(lengths)}, but there are {len(logits)} rows")
    present = [length for length in lengths if length > 0]
    if not present:
        return logits.sum() * 0.0
    spines = torch.nn.utils.rnn.pad_sequence(list(logits.softmax(dim=-1).split(present)), batch_first=True)
    count = torch.tensor(present, device=logits.device)
    above = torch.ones(logits.shape[-1], logits.shape[-1], dtype=torch.bool, device=logits.device).triu(1)
    best = logits.new_zeros(len(present), logits.shape[-1])
    for i in range(spines.shape[1]):
        taken = F.pad(best, (1, 0))[:, :-1] + spines[:, i]
        either = _soft_max(torch.stack([best, taken], dim=-1), sharpness)
        reached = either[:, None, :].expand(-1, above.shape[0], -1)   # [spine, k, j]: best ending at j; for k only j <= k counts
        longer = _soft_max(reached, sharpness, above)
        best = torch.where((i < count)[:, None], longer, best)
    return (count - best[:, -1]).mean()


def _soft_max(values: Tensor, sharpness: float, excluded: Tensor | None = None) -> Tensor:
    scores = values * sharpness
    if excluded is not None:
        scores = scores.masked_fill(excluded, -math.inf)
    return (scores.softmax(dim=-1) * values).sum(dim=-1)


def identification_loss(logits: Tensor, targets: Tensor, lengths: Sequence[int],
                        weights: Sequence[float] = LOSS_WEIGHTS) -> tuple[Tensor, dict[str, float]]:
    """L = alpha L_se + beta L_mse + gamma L_ce (Eq. 4) with the soft L_se, and its parts as plain numbers for the log.

    Args:
        logits: (B, levels); a batch holds whole spines in order, each in cranio-caudal order.
        targets: (B,) level indices.
        lengths: vertebrae per spine, adding up to B.
        weights: (alpha, beta, gamma).

    Returns:
        The loss, and {"sequence", "level_mse", "cross_entropy", "sequence_exact"}; the last is the exact L_se per spine.
    """
    sequence, mse = sequence_loss_soft(logits, lengths), level_mse(logits, targets)
    cross_entropy = F.cross_entropy(logits, targets)
    alpha, beta, gamma = weights
    predicted = logits.argmax(dim=-1).split(list(lengths))
    exact = [sequence_loss_exact(spine.tolist()) for spine in predicted if len(spine)]
    parts = {"sequence": float(sequence.detach()), "level_mse": float(mse.detach()),
             "cross_entropy": float(cross_entropy.detach()), "sequence_exact": sum(exact) / max(len(exact), 1)}
    return alpha * sequence + beta * mse + gamma * cross_entropy, parts
