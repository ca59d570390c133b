"""A cubic smoothing spline (Reinsch 1967). scipy has more of them, at a quarter of a second for its import."""
from __future__ import annotations

import numpy as np

HALVINGS = 50      # of the range in which the strength of the smoothing lies
STRONGEST = 1e12


def smoothing_spline(x: np.ndarray, y: np.ndarray, squares: float, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes at `at` (m,), within the range of x, of the natural cubic spline of least bending near the points (x, y).

    Args:
        x: (n,) ascending, at least three.
        y: (n,).
        squares: sum of the squared distances from the points that it may have.
        at: where it is wanted.
    """
    step = np.diff(x)
    inner = len(x) - 2
    second = np.zeros((len(x), inner))      # y @ second: differences of the slopes
    bend = np.zeros((inner, inner))         # half the bending of a spline by its second derivatives
    for j in range(inner):
        second[j:j + 3, j] = 1 / step[j], -1 / step[j] - 1 / step[j + 1], 1 / step[j + 1]
        bend[j, j] = (step[j] + step[j + 1]) / 3
        if j + 1 < inner:
            bend[j, j + 1] = bend[j + 1, j] = step[j + 1] / 6

    def moved(strength: float) -> tuple[np.ndarray, np.ndarray]:
        curvature = np.linalg.solve(bend + strength * second.T @ second, second.T @ y)
        return y - strength * second @ curvature, curvature

    low, high = 0.0, STRONGEST
    for _ in range(HALVINGS):
        middle = np.sqrt(max(low, 1e-12) * high)
        low, high = (middle, high) if ((moved(middle)[0] - y) ** 2).sum() <= squares else (low, middle)
    knots, curvature = moved(low)
    curvature = np.concatenate([[0.0], curvature, [0.0]])
    part = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(step) - 1)
    wide, left, right = step[part], at - x[part], x[part + 1] - at
    first, last = curvature[part], curvature[part + 1]
    value = ((first * right ** 3 + last * left ** 3) / (6 * wide) + (knots[part] / wide - first * wide / 6) * right
             + (knots[part + 1] / wide - last * wide / 6) * left)
    slope = ((last * left ** 2 - first * right ** 2) / (2 * wide) + (knots[part + 1] - knots[part]) / wide - (last - first) * wide / 6)
    return value, slope
