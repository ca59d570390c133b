"""Whether the labels lie on the bone of their scan, or would if they were mirrored."""
from __future__ import annotations

import numpy as np

from spineclue_v2.anatomy import VERTEBRA_LABELS
from spineclue_v2.imageio.orientation import oriented_view
from spineclue_v2.imageio.volume import Volume

from .masks import grade
from .suspicion import Suspicion

SAMPLES = 20_000
WINDOW = (-200.0, 500.0)          # HU: metal and air count no more than bone and fat
BETTER_HU = (60.0, 160.0)         # mean HU under the mirrored labels over that under the labels
SOFT_HU = (70.0, 0.0)             # mean HU under the labels of vertebrae
SIDES = {"z": "head and feet", "y": "front and back", "x": "left and right"}


def check_scan(case: str, labels: Volume, scan: Volume) -> list[Suspicion]:
    """Suspicions from a label map (VerSe's values) and its CT, same grid, any orientation."""
    view, image = oriented_view(labels), oriented_view(scan)
    points = np.argwhere(np.isin(view.array, VERTEBRA_LABELS))
    if not len(points):
        return []
    points = points[:: max(1, len(points) // SAMPLES)]
    last = np.array(view.array.shape) - 1

    def under(places: np.ndarray) -> float:
        return float(np.clip(image.array[tuple(places.T)], *WINDOW).mean(dtype=np.float64))

    here = under(points)
    mirrored = {}
    for axis, name in enumerate("zyx"):
        places = points.copy()
        places[:, axis] = last[axis] - places[:, axis]
        mirrored[name] = under(places)
    best = max(mirrored, key=lambda name: mirrored[name])
    if mirrored[best] - here > BETTER_HU[0] / 2 and mirrored[best] > SOFT_HU[0]:
        return [Suspicion(case, "flip", (), grade(mirrored[best] - here, BETTER_HU),
                          f"The labels lie on {here:.0f} HU, with {SIDES[best]} exchanged they would lie on {mirrored[best]:.0f} HU: the "
                          "label map is mirrored against its scan.", f"flip {best}")]
    if here < 1.5 * SOFT_HU[0]:
        return [Suspicion(case, "beside", (), grade(here, SOFT_HU), f"The labels lie on {here:.0f} HU on average, which is no bone: they "
                                                                   "may belong to another scan or grid.")]
    return []
