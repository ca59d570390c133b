"""Windows of real scans and what the classifiers say of them."""
from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recipes.evidence_data import Scan
from spineclue_v2.anatomy import EMITTING_LEVEL, LEVEL_INDEX
from spineclue_v2.stages.base import Evidence

LENGTHS = (3, 4, 5, 6, 8, 12)
STARTS = 3                   # windows of each length and scan
SLAB_FRACTION = 0.33
ENDS_MM = (9.0, 30.0)        # what the field holds beyond the outer centres of a window


@dataclass
class Window:
    """`names` (n,) true names, None for a sacrum that was found as one more vertebra; `centres` (n, 3) as found. `whole`: all of the
    scan. `slab`: its sides are cut off. `evidence`: by classifier."""

    scan: str
    patient: str
    names: tuple[str | None, ...]
    centres: np.ndarray
    whole: bool
    slab: bool = False
    evidence: Mapping[str, Evidence] = field(default_factory=dict)

    @property
    def regular(self) -> bool:
        """Every detection is a vertebra and each follows the one before in the regular order."""
        index = [LEVEL_INDEX[EMITTING_LEVEL[name]] for name in self.names if name is not None]
        return len(index) == len(self.names) and list(range(index[0], index[0] + len(index))) == index


def read_windows(path: Path) -> list[Window]:
    """What `evidence_rows` wrote."""
    windows: list[Window] = pickle.loads(path.read_bytes())
    return windows


def cuts(scan: Scan, rng: np.random.Generator) -> list[tuple[slice, bool]]:
    """(vertebrae, whole) of a scan."""
    n = sum(name != "S1" for name in scan.names)
    out = [(slice(0, n), True)] if n >= 3 else []
    if n >= 3 and len(scan.names) > n:
        out += [(slice(k, n + 1), k == 0) for k in (0, max(0, n - 5))]
    for length in LENGTHS:
        if length < n:
            out += [(slice(int(s), int(s) + length), False) for s in rng.permutation(n - length + 1)[:STARTS]]
    return out


def cut_volume(volume: Any, centres: np.ndarray, whole: bool, rng: np.random.Generator) -> tuple[Any, bool]:
    """The scan cut to a window, sometimes to a slab of 60-120 mm."""
    geometry, shape = volume.geometry, np.array(volume.array.shape)
    low, high = np.zeros(3), shape.astype(float)
    index = geometry.world_to_index(centres)
    step = np.array(geometry.spacing)
    slab = rng.random() < SLAB_FRACTION
    ends = rng.uniform(*ENDS_MM, 2)
    if not whole:
        low[0], high[0] = index[:, 0].min() - ends[0] / step[0], index[:, 0].max() + 1 + ends[1] / step[0]
    half = rng.uniform(30, 60)
    if slab:
        low[2], high[2] = index[:, 2].min() - half / step[2], index[:, 2].max() + 1 + half / step[2]
    low, high = np.maximum(np.rint(low), 0).astype(int), np.minimum(np.rint(high), shape).astype(int)
    return volume.cropped(low, high), slab
