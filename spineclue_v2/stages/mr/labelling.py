"""From class probabilities in network space to a label map on the scan's own grid."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...imageio.grid import ImageGrid
from ...imageio.orientation import oriented_view
from ...imageio.volume import Volume
from ...plans.data import MRData
from ...preprocessing.resampling import resample_floats
from ...training.stage_model import StageModel
from .level_assignment import LevelAssignment, assign_levels
from .positional_prior import pool_positional_priors
from .threshold import BACKGROUND_COUNTS


def label_scan(probability: np.ndarray, network_scan: Volume, scan: Volume, model: StageModel, data: MRData
               ) -> tuple[Volume, LevelAssignment]:
    """Label map on the grid of `scan` with the dataset's own values (uint8 or uint16), and how its levels were named.

    `probability` (C, slices, rows, columns) on the grid of `network_scan`; names follow one another along the spine.
    """
    prior = pool_positional_priors([fitted.get("places", {}) for fitted in model.fitted])
    named = assign_levels(probability, replace(data, spacing_mm=network_scan.geometry.spacing), prior)
    classes = most_likely(named.probability, network_scan.geometry, scan.geometry, data.orientation)
    values = np.array([0, *data.label_values], np.uint8 if max(data.label_values) < 256 else np.uint16)
    return Volume(values[classes], scan.geometry), named


def most_likely(probability: np.ndarray, model: ImageGrid, target: ImageGrid, orientation: str) -> np.ndarray:
    """Class (uint8) at every voxel of `target`, decided as `apply_threshold` does; one class at a time is interpolated there.

    `probability` (C, slices, rows, columns) on the grid `model`, whose axes run towards `orientation`.
    """
    oriented = target.reoriented(orientation)[0]
    best, label = np.full(oriented.shape, -1.0, np.float32), np.zeros(oriented.shape, np.uint8)
    for number, share in enumerate(probability):
        here = resample_floats(Volume(share, model), oriented, linear=True) * (1.0 if number else BACKGROUND_COUNTS)
        better = here > best
        best[better], label[better] = here[better], number
    return oriented_view(Volume(label, oriented), target.orientation).array
