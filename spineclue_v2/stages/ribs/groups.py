"""Levels that look alike beside the body."""
from __future__ import annotations

import numpy as np

from ...anatomy import LEVELS

GROUPS = (("C1",), ("C2", "C3", "C4", "C5"), ("C6",), ("C7",), ("T1",), tuple(f"T{k}" for k in range(2, 11)), ("T11",), ("T12", "T13"),
          ("L1",), ("L2", "L3", "L4"), ("L5", "L6"))
"""The classes."""
GROUP_OF = {level: k for k, group in enumerate(GROUPS) for level in group}
RIB_GROUPS = tuple(k for k, group in enumerate(GROUPS) if group[0][0] == "T")


def spread() -> np.ndarray:
    """(groups, 24): a group's probability falls on its regular levels alike."""
    table = np.array([[float(level in group) for level in LEVELS] for group in GROUPS])
    return table / table.sum(1, keepdims=True)
