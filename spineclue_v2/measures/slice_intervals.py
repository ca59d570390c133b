"""End plates between thick slices: a column of the mask ends somewhere between two of them, and that is all it says.

A surface that stays between two slices leaves no trace of its slope, one that crosses several leaves lines. So the most probable surface is
looked for under which columns end in the intervals where they do (interval-censored regression, Tobin 1958), with what end plates look like
as prior: then stairs are no slope, and what the mask does not say stays with the body's own axis.
"""
from __future__ import annotations

import numpy as np

from ..stages.grade.heights import HOLE_MM

SIGMA_MM = 0.2              # of the real surface round the fitted one, beside what the prior lets it bend
COUNTED = 0.2               # of a column's log likelihood: neighbouring columns say the same
STEEP_ENOUGH = 0.7          # cosine of the body's axis with the thick direction: else columns run along the slices
OUTSIDE_MM = 2.0            # beyond its interval, a column is on a spur or in a breach
# Of 1, s, t, s^2, t^2, s t, s^3, mm at the rims: slopes as of bodies in their own frames, hollow towards the middle.
PRIOR_MEAN = np.array([0.0, 0.0, 0.0, 1.0, 0.4, 0.0, 0.0])
PRIOR_SD = np.array([30.0, 1.2, 1.2, 0.8, 0.6, 0.4, 0.4])


def column_intervals(mask: np.ndarray, spacing: np.ndarray, centre: np.ndarray, axes: np.ndarray, side: int, thick: int,
                     y: np.ndarray, x: np.ndarray, reach_mm: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Between which heights (mm along `side` z', each (ny, nx)) columns of the mask end: the last slice inside and the first one outside;
    nan where a column does not begin inside or does not end. None where columns do not cross the slices.

    `mask` 0..1 (z, y, x), 0.5 at its outline within slices; `centre`: index from which columns run; `axes` rows z', y', x' in array order;
    `thick`: array axis of the slices.
    """
    from scipy.ndimage import map_coordinates

    rate = side * axes[0, thick] / spacing[thick]           # slices per mm outwards
    if abs(axes[0, thick]) < STEEP_ENOUGH:
        return None
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    base = centre + (grid_y[..., None] * axes[1] + grid_x[..., None] * axes[2]) / spacing
    way = int(np.sign(rate))
    first = np.ceil(base[..., thick] * way) * way           # the first slice outwards
    steps = np.arange(int(np.ceil(reach_mm * abs(rate))) + 1)
    height = ((first[None] + way * steps[:, None, None]) - base[None, ..., thick]) / rate
    index = base[None] + (side * height)[..., None] * axes[0] / spacing
    inside = map_coordinates(mask, np.moveaxis(index, -1, 0), order=1, mode="constant", output=np.float32) >= 0.5
    gap = max(1, int(HOLE_MM * abs(rate)) + 1)              # slices that a column must stay outside
    outside = np.pad(~inside, ((0, gap - 1), (0, 0), (0, 0)), constant_values=True)
    ended = np.lib.stride_tricks.sliding_window_view(outside, gap, axis=0).all(-1)
    last = ended.argmax(0)
    known = ended.any(0) & (last > 0)
    low = np.take_along_axis(height, np.maximum(last - 1, 0)[None], 0)[0]
    high = np.take_along_axis(height, last[None], 0)[0]
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


def censored_surface(s: np.ndarray, t: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients of height = a + b s + c t + d s^2 + e t^2 + f s t + g s^3 (mm, outwards), and how far columns end outside of their
    intervals beside it (root mean square, mm). `s`, `t` from -1 to 1 front to back and right to left."""
    design = np.stack([np.ones_like(s), s, t, s * s, t * t, s * t, s ** 3], axis=1)
    mean = PRIOR_MEAN.copy()
    mean[0] = float(np.median(0.5 * (low + high)))
    used = np.ones(len(s), bool)
    coefficients = mean
    for _ in range(2):
        coefficients = _most_probable(design[used], low[used], high[used], coefficients, mean)
        height = design @ coefficients
        beyond = np.maximum(np.maximum(low - height, height - high), 0.0)
        used = beyond <= OUTSIDE_MM
        if used.sum() < 0.5 * len(used):
            return coefficients, np.inf
        if used.all():
            break
    return coefficients, float(np.sqrt(np.mean(np.square(beyond[used]))))


def _most_probable(design: np.ndarray, low: np.ndarray, high: np.ndarray, start: np.ndarray, mean: np.ndarray) -> np.ndarray:
    from scipy.optimize import minimize
    from scipy.special import log_ndtr, ndtr

    scaled = design * PRIOR_SD

    def cost(off: np.ndarray) -> tuple[float, np.ndarray]:
        height = design @ mean + scaled @ off
        above, below = (high - height) / SIGMA_MM, (low - height) / SIGMA_MM
        flip = below > 0                                    # in the upper tail differences of ndtr vanish
        a, b = np.where(flip, -below, above), np.where(flip, -above, below)
        share = np.maximum(ndtr(a) - ndtr(b), 1e-300)
        log_share = np.where(share > 1e-290, np.log(share), log_ndtr(a))
        density_a, density_b = (np.exp(-0.5 * z * z - log_share) / np.sqrt(2 * np.pi) for z in (above, below))
        slope = np.clip(density_b - density_a, -1e3, 1e3) / SIGMA_MM
        return float(-COUNTED * log_share.sum() + 0.5 * off @ off), -COUNTED * scaled.T @ slope + off
    off = minimize(cost, (start - mean) / PRIOR_SD, jac=True, method="L-BFGS-B", options={"maxiter": 60}).x
    return mean + PRIOR_SD * np.asarray(off)
