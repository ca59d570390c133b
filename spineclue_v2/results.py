"""What a prediction gives back."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .anatomy.vertebra import Vertebra
from .imageio.grid import ImageGrid


@dataclass(frozen=True)
class SpineResult:
    """A predicted scan: vertebrae in cranio-caudal order, and how far their numbering can be trusted."""

    vertebrae: tuple[Vertebra, ...]
    numbering_anchored: bool                             # False when shifted numberings together hold > 5 % of the posterior
    margin: float | None = None                          # log posterior of the best path minus its best shift by one
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()                          # warnings for the reader (thick slices, ...)
    extra: dict[str, Any] = field(default_factory=dict)
    grid: ImageGrid | None = None                        # of the scan
    mask_grid: ImageGrid | None = None                   # network space: the grid of `Vertebra.mask` and `mask_start`
