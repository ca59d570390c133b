"""Monte-Carlo dropout and message fusion of a prediction without PyTorch: the same draws and sums as `uncertainty` and `fusion`."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...anatomy import NUM_LEVELS
from ...errors import InputError

if TYPE_CHECKING:
    import torch

DRAWN_BITS = 24     # of a random number's 32, which make a float between 0 and 1


def dropout_masks(shape: Sequence[int], widths: Sequence[int], dropout: float, seed: int = 0) -> list[np.ndarray]:
    """Masks (*shape, width) for the head's linear layers: 0, or 1 / (1 - dropout) where the input is kept.

    Those of `LevelNetwork.dropout_masks` with a generator of this seed on the CPU: PyTorch and numpy have the same Mersenne twister.
    """
    generator = np.random.RandomState(seed)
    masks = []
    for width in widths:
        drawn = generator.randint(0, 2 ** 32, (*shape, width), dtype=np.uint32) & (2 ** DRAWN_BITS - 1)
        kept = drawn.astype(np.float32) / np.float32(2 ** DRAWN_BITS) >= np.float32(dropout)
        masks.append((kept / (1.0 - dropout)).astype(np.float32))
    return masks


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """(..., levels) -> (...) nats; 0 log 0 = 0."""
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    result: np.ndarray = -(probabilities * logs).sum(-1)
    return result


def fuse(probabilities: np.ndarray, entropies: np.ndarray, positions: np.ndarray, theta: float, hops: int, neighbours: int,
         phi: np.ndarray | torch.Tensor | None = None) -> np.ndarray:
    """Message fusion of one scan (`fusion.MessageFusion`): (n, levels), rows sum to 1.

    Args:
        probabilities: (n, levels), rows sum to 1.
        entropies: (n,) nats.
        positions: (n,) whole steps along the spine.
        theta: strength of the messages.
        hops: rounds.
        neighbours: odd count, the target included.
        phi: (offsets, levels, levels) learned matrices, for fewer or more neighbours (`fusion.fusion_with`).

    Raises:
        InputError: `phi` has another shape.
    """
    reach, levels = neighbours // 2, NUM_LEVELS
    matrices = np.stack([np.eye(levels, k=-offset, dtype=np.float32) for offset in range(-reach, reach + 1)])
    if phi is not None:
        known = np.asarray(phi, dtype=np.float32)
        if known.ndim != 3 or known.shape[1:] != (levels, levels) or known.shape[0] % 2 == 0:
            raise InputError(f"The checkpoint's fusion matrices have shape {known.shape}; expected (odd number of neighbours, {levels}, "
                             f"{levels}). Train stage identify again.")
        shared, half = min(reach, known.shape[0] // 2), known.shape[0] // 2
        matrices[reach - shared:reach + shared + 1] = known[half - shared:half + shared + 1]
    matrices = np.maximum(matrices, 0)
    offset = positions[None, :] - positions[:, None]                                    # [i, j] = steps from i down to j
    weight = np.where(offset == 0, 0.0, 1.0 / np.maximum(np.abs(offset), 1))
    weight = weight * np.maximum(1.0 - entropies / math.log(levels), 0.0)[None, :]
    chosen = np.stack([weight * (offset == k) for k in range(-reach, reach + 1)])
    rows = probabilities.astype(float)
    for _ in range(hops):
        rows = rows + theta * (chosen @ (rows @ matrices)).sum(0)                       # (offsets, n, levels)
        rows = rows / np.maximum(rows.sum(-1, keepdims=True), 1e-12)
    return rows
