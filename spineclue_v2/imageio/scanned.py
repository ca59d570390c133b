"""What every reader gives back."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..flags import Flag
from .grid import ImageGrid


@dataclass(frozen=True, eq=False)
class Scanned:
    """A scan as stored (rescaled where the header says so), before its values are checked. See `volume.Volume` for the attributes."""

    array: np.ndarray
    geometry: ImageGrid
    flags: tuple[Flag, ...] = ()
    files: tuple[Path, ...] = ()
