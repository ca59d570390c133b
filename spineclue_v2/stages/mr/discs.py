"""Height and signal of intervertebral discs, measured in the label map of an MR."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...anatomy.structures import kind
from ...imageio.orientation import oriented_view
from ...imageio.volume import Volume

MIDDLE = 0.5             # of a disc's slices, and of its depth: there heights are measured
BEHIND_MM = (2.0, 18.0)  # of the bodies: where fluid is looked for
NEAR_MM = 25.0           # above and below a disc: fluid there lies as near the coil as the disc
BRIGHTER = 1.4           # times the bodies: fluid that is no brighter is not told from fat and cord
ROWS_FROM = 0.25         # of the rows may lack bright fluid: roots and folds


def measure_discs(scan: Volume, labels: Volume, classes: Mapping[str, int], orientation: str) -> dict[str, dict[str, Any]]:
    """{disc: {"height_mm", "signal", "signal_to_csf"}} of the discs in `labels`.

    height_mm: mean over the middle half of the depth, in the middle half of the slices, across the disc. signal: median of the same
    voxels. signal_to_csf: its ratio to the fluid in the canal beside it; None where no fluid is seen that is brighter than the bodies, as
    in T1-weighted scans. `orientation` sagittal, such as PIL: (slices, rows, columns). Values None where a disc shows too little.
    """
    image, found = oriented_view(scan, orientation), oriented_view(labels, orientation)
    spacing = np.array(found.spacing)
    bodies = np.isin(found.array, [value for name, value in classes.items() if kind(name) == "body"])
    fluid = _fluid(image.array, bodies, spacing) if bodies.any() else None
    result = {}
    for name, value in classes.items():
        if kind(name) != "disc":
            continue
        voxels = np.argwhere(found.array == value)
        if len(voxels):
            result[name] = _measure(voxels, image.array, spacing, fluid)
    return result


def _measure(voxels: np.ndarray, image: np.ndarray, spacing: np.ndarray, fluid: np.ndarray | None) -> dict[str, Any]:
    """One disc from its `voxels` (n, 3)."""
    low, high = np.quantile(voxels[:, 0], ((1 - MIDDLE) / 2, (1 + MIDDLE) / 2))
    middle = voxels[(voxels[:, 0] >= low) & (voxels[:, 0] <= high)]
    plane = (middle[:, 1:] - middle[:, 1:].mean(0)) * spacing[1:]
    axes = np.linalg.svd(plane, full_matrices=False)[2] if len(plane) > 3 else None
    # Longer from front to back than high, or it is no disc whose height means something.
    if axes is None or abs(axes[0][1]) < abs(axes[0][0]):
        return {"height_mm": None, "signal": None, "signal_to_csf": None}
    along = plane @ axes[0]
    reach = np.quantile(along, (0.02, 0.98))
    half = MIDDLE / 2 * (reach[1] - reach[0])
    core = np.abs(along - reach.mean()) <= half
    slices = len(np.unique(middle[:, 0]))
    height = float(core.sum() * spacing[1] * spacing[2] / (2 * half * slices)) if half > 0 else None
    signal = float(np.median(image[tuple(middle[core].T)]))
    beside = _fluid_near(fluid, voxels[:, 1].mean(), spacing[1])
    return {"height_mm": None if height is None else round(height, 2), "signal": round(signal, 1),
            "signal_to_csf": None if beside is None else round(signal / beside, 3)}


def _fluid(image: np.ndarray, bodies: np.ndarray, spacing: np.ndarray) -> np.ndarray | None:
    """(rows,) signal of the fluid behind the bodies, NaN where none is looked for; None where it is no brighter than the bodies."""
    shown = np.flatnonzero(bodies.any((1, 2)))
    middle = shown[len(shown) // 3:-(len(shown) // 3) or None]
    brightest = np.full(image.shape[1], np.nan)
    first, last = (int(round(mm / spacing[2])) for mm in BEHIND_MM)
    for row in np.flatnonzero(bodies[middle].any((0, 2))):
        seen = []
        for number in middle:
            columns = np.flatnonzero(bodies[number, row])
            if len(columns) and columns[-1] + first < image.shape[2]:
                seen.append(np.sort(image[number, row, columns[-1] + first:columns[-1] + last])[-3:].mean())
        if seen:
            brightest[row] = max(seen)
    if not np.isfinite(brightest).any():
        return None
    body = float(np.median(image[middle][bodies[middle]]))
    return brightest if np.nanquantile(brightest, ROWS_FROM) > BRIGHTER * max(body, 1e-6) else None


def _fluid_near(fluid: np.ndarray | None, row: float, step: float) -> float | None:
    if fluid is None:
        return None
    near = fluid[(np.abs(np.arange(len(fluid)) - row) * step <= NEAR_MM) & np.isfinite(fluid)]
    return float(np.median(near)) if len(near) and np.median(near) > 0 else None
