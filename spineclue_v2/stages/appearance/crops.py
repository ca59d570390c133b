"""What the appearance classifier sees: coarse crops of the CT around body centres. Its classes after the 24 levels."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...adapters import crop_and_pad
from ...anatomy import NUM_LEVELS
from ...imageio.orientation import oriented_view
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...preprocessing.crops import crop_start
from ...preprocessing.resampling import to_network_space, windows

NOT_A_VERTEBRA, SACRUM, SKULL = NUM_LEVELS, NUM_LEVELS + 1, NUM_LEVELS + 2


def to_coarse_grid(volume: Volume, plan: StagePlan, centres_xyz: np.ndarray | None = None) -> Volume:
    """The scan on the classifier's grid, int16 HU; with `centres_xyz` (n, 3) LPS mm only what crops around them can touch."""
    data, size = plan.data, plan.network.crop_size
    view = oriented_view(volume, data.orientation)
    if centres_xyz is not None:
        spacing = np.array(view.geometry.spacing)
        reach = (np.array(size) / 2 + 3) * plan.network.spacing_mm / spacing
        centres = view.geometry.world_to_index(centres_xyz)
        low = np.floor(np.clip(centres.min(0) - reach, 0, np.array(view.array.shape) - 1)).astype(int)
        high = np.ceil(np.clip(centres.max(0) + reach + 1, low + 1, view.array.shape)).astype(int)
        view = view.cropped(low, high)
    return to_network_space(view, replace(data, spacing_mm=plan.network.spacing_mm))


def cut_crops(volume: Volume, centres_xyz: np.ndarray, plan: StagePlan) -> np.ndarray:
    """Network inputs (n, C, z, y, x) of a `to_coarse_grid` volume around centres (n, 3), LPS mm; air beyond the scan."""
    size = plan.network.crop_size
    places = volume.geometry.world_to_index(np.asarray(centres_xyz, dtype=float).reshape(-1, 3))
    return np.stack([windows(crop_and_pad(volume.array, crop_start(place, size), size, pad_value=plan.data.hu_min), plan.data.windows_hu)
                     for place in places])
