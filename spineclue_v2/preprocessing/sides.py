"""What lies beside vertebrae and tells right from left, which they themselves do not."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..imageio.volume import Volume

LUNG_HU = -500


def lung_beside(scan: Volume, body_centre_mm: Sequence[float]) -> list[float]:
    """[right, left]: share of lung (under -500 HU) 22 to 42 mm beside a body of an LPS scan, `body_centre_mm` (z, y, x) from its corner.

    At the lung bases the aorta lies left of the bodies and lung right of them: the only thing near a vertebra that tells its sides.
    """
    z, y, x = np.meshgrid((-4, 0, 4), np.arange(-22, 6, 3), np.arange(22, 44, 2), indexing="ij")
    shares = []
    for side in (-1, 1):
        offsets = np.stack((z, y, side * x), -1).reshape(-1, 3)
        index = np.round((np.asarray(body_centre_mm) + offsets) / scan.spacing).astype(int)
        index = index[((index >= 0) & (index < scan.array.shape)).all(1)]
        shares.append(float((scan.array[tuple(index.T)] < LUNG_HU).mean()) if 2 * len(index) > len(offsets) else float("nan"))
    return [round(share, 2) for share in shares] if np.isfinite(shares).all() else []
