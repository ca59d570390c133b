"""What the stages hand to each other: one frozen record per vertebra that gains fields stage by stage."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Vertebra:
    """One vertebra of a scan. Positions are LPS millimetres (x, y, z); extents and sizes are (z, y, x) millimetres.

    localize fills `box_centre`, `extent`, `score`, `support`; segment fills `mask`, `mask_start`, `mask_centroid`,
    `body_centre`, `volume_ml`, `touches_border`; identify fills the rest.
    """

    box_centre: tuple[float, float, float]
    extent: tuple[float, float, float]
    score: float
    support: int = 0                                     # detector boxes behind this vertebra
    mask: np.ndarray | None = field(default=None, repr=False)   # bool (z, y, x), model space, tight crop
    mask_start: tuple[int, int, int] | None = None       # index (z, y, x) of mask[0, 0, 0] in model space
    mask_centroid: tuple[float, float, float] | None = None
    body_centre: tuple[float, float, float] | None = None
    volume_ml: float | None = None
    touches_border: bool = False
    probabilities: np.ndarray | None = field(default=None, repr=False)  # (24,) over anatomy.LEVELS, sums to 1
    uncertainty: float | None = None                     # entropy of the Monte-Carlo mean, nats (SpineCLUE Eq. 6)
    level: str | None = None                             # name in anatomy.ANATOMICAL_ORDER
    confidence: float | None = None                      # posterior of `level` under the decoder


@dataclass(frozen=True)
class SpineResult:
    """A predicted scan: vertebrae from head to foot, and how far their numbering can be trusted."""

    vertebrae: tuple[Vertebra, ...]
    numbering_anchored: bool                             # False when shifted numberings together hold > 5 % of the posterior
    margin: float | None = None                          # log posterior of the best path minus its best shift by one
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()                          # warnings for the reader (thick slices, ...)
    extra: dict[str, Any] = field(default_factory=dict)
