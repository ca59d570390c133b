"""How an end plate lies in a mask of thick slices: from where each column of the mask may end.

A column along the body's axis ends somewhere between the last slice in which it is in the mask and the first in which it is not. The end
plate is the most probable smooth surface under all these intervals. An outline that is interpolated between slices (`bodies.mask_values`)
errs in other places: it knows where a slope crosses the slices and nothing of what lies between. The mean of both errs less than either.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..anatomy.vertebra import BodyFrame

STEP_MM = 1.5            # between columns
FOOTPRINT = 0.9          # share of depth and width that is looked at
BEYOND_MM = 10.0         # a column is followed for half the body's height and so much
FEWEST = 40              # columns
RIM = 0.85               # share of the depth between which the slope is taken
NOISE_MM = 0.5           # of an end plate round a smooth surface
OWN_SHARE = 0.1          # of the columns that say something of their own: neighbours end alike
ODD, ODD_WIDTH = 0.02, 0.05      # share of columns that may end anywhere, and how likely these are in any interval
USUAL_MM = np.array([0.0, 0.0, 0.0, 0.8, 0.5, 0.0, 0.0])             # coefficients: end plates rise towards their rims
SPREAD_MM = np.array([np.inf, np.inf, np.inf, 0.6, 0.6, 0.5, 0.5])   # and how far they differ; nothing is known of place and slopes
STEPS = 40
DEVIATION = 0.7          # of the slope, in those that the curvature of the likelihood gives: as errors on phantoms are


def stair_slope(mask: np.ndarray, spacing_mm: Sequence[float], frame: BodyFrame, side: int) -> tuple[float, float] | None:
    """Slope of an end plate along y' of the frame, mm along z' per mm, and its standard deviation; None where too few columns end in the
    mask. What this tells of the slope along x' is worse than what the interpolated outline tells, and is not given.

    Args:
        mask: bool (z, y, x).
        spacing_mm: (z, y, x).
        frame: of the body in the mask.
        side: 1: upper end plate, -1: lower.
    """
    spacing = np.asarray(spacing_mm, dtype=float)
    half_depth, half_width = float(np.ptp(frame.walls_mm)) / 2, frame.half_width_mm
    y, x = (axis.ravel() for axis in np.meshgrid(np.arange(-half_depth, half_depth + STEP_MM, STEP_MM),
                                                 np.arange(-half_width, half_width + STEP_MM, STEP_MM), indexing="ij"))
    inner = np.square(y / half_depth) + np.square(x / half_width) <= FOOTPRINT ** 2
    y, x = y[inner], x[inner]
    middle = np.asarray(frame.centre) + 0.5 * sum(frame.walls_mm) * frame.axes[1] / spacing
    feet = middle + (y[:, None] * frame.axes[1] + x[:, None] * frame.axes[2]) / spacing
    ends, known = _ends(mask, feet, side * frame.axes[0] / spacing, 0.5 * max(frame.heights_mm) + BEYOND_MM)
    if known.sum() < FEWEST:
        return None
    s, t = y[known] / half_depth, x[known] / half_width
    design = np.stack([np.ones_like(s), s, t, s * s, t * t, s * t, s ** 3], axis=1)
    surface, covariance = _most_probable(design, ends[known])
    rim = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, RIM ** 2])
    deviation = DEVIATION * float(np.sqrt(rim @ covariance @ rim)) / half_depth
    return side * float(rim @ surface) / half_depth, deviation


def _ends(mask: np.ndarray, feet: np.ndarray, step: np.ndarray, reach_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) mm along each column between which it leaves the mask, and (n,) whether it begins inside and leaves.

    `feet` (n, 3): indices where columns begin; `step` (3,): index per mm along them, which crosses slices along one axis.
    """
    from scipy.ndimage import map_coordinates

    across = int(np.argmax(np.abs(step)))
    sign, rate = np.sign(step[across]), abs(step[across])
    first = np.ceil(feet[:, across] * sign)
    slices = first[:, None] + np.arange(int(np.ceil(reach_mm * rate)) + 1)
    along = (slices - feet[:, across, None] * sign) / rate
    points = feet[:, None] + along[:, :, None] * step
    outside = map_coordinates(mask.astype(np.float32), np.moveaxis(points, -1, 0), order=1, mode="constant") < 0.5
    end, every = outside.argmax(1), np.arange(len(feet))
    return np.stack([along[every, np.maximum(end - 1, 0)], along[every, end]], axis=1), outside.any(1) & (end > 0)


def _most_probable(design: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the surface under which every column ends between its `ends` (n, 2), by Newton's method, and their covariance.

    A column's likelihood is the share of a normal deviation of `NOISE_MM` that falls between its ends; coefficients have normal priors.
    """
    from scipy.special import ndtr

    prior = np.diag(1 / np.square(SPREAD_MM))
    weak = np.diag(np.full(len(USUAL_MM), 1e-6))
    found = np.linalg.solve(design.T @ design + prior + weak, design.T @ ends.mean(1) + prior @ USUAL_MM)
    for _ in range(STEPS):
        low, high = ((end - design @ found) / NOISE_MM for end in ends.T)
        density_low, density_high = (np.exp(-0.5 * np.square(z)) / np.sqrt(2 * np.pi) for z in (low, high))
        likelihood = (1 - ODD) * (ndtr(high) - ndtr(low)) + ODD * ODD_WIDTH
        slope = (1 - ODD) * (density_low - density_high) / NOISE_MM / likelihood
        bend = (1 - ODD) * (density_low * low - density_high * high) / NOISE_MM ** 2 / likelihood
        weight = np.maximum(np.square(slope) - bend, 1e-4)
        curvature = OWN_SHARE * (design * weight[:, None]).T @ design + prior + weak
        change = np.linalg.solve(curvature, OWN_SHARE * design.T @ slope - prior @ (found - USUAL_MM))
        found = found + change / max(1.0, float(np.abs(change).max()))
        if np.abs(change).max() < 1e-3:
            break
    return found, np.linalg.inv(curvature)
