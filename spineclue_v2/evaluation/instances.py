"""Which true vertebra a found one is."""
from __future__ import annotations

import numpy as np

from .. import anatomy
from ..anatomy.vertebra import Vertebra
from .matching import count_overlaps, match_by_dice
from .metrics import HIT_DICE


def instance_map(vertebrae: list[Vertebra], shape: tuple[int, ...]) -> np.ndarray:
    """uint8 (z, y, x): number 1..n of the vertebra that owns a voxel, in the order given."""
    result = np.zeros(shape, np.uint8)
    for number, vertebra in enumerate(vertebrae, start=1):
        result[vertebra.mask_box][vertebra.known_mask] = number
    return result


def match_true_names(vertebrae: list[Vertebra], labels: np.ndarray) -> list[str | None]:
    """For each vertebra the level whose true mask it overlaps with a Dice of at least 0.5 (one-to-one), else None.

    `labels`: true VerSe values on the grid of the masks.
    """
    overlaps = count_overlaps(labels, instance_map(vertebrae, labels.shape))
    dice = overlaps.dice
    names: list[str | None] = [None] * len(vertebrae)
    for row, column in match_by_dice(dice):
        if dice[row, column] >= HIT_DICE:
            names[overlaps.prediction_ids[column] - 1] = anatomy.NAME_OF_LABEL[overlaps.reference_ids[row]]
    return names
