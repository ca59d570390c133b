"""Random smooth deformations of crops as sampling grids."""
from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

MAX_ROTATION_DEG = (12.0, 12.0, 18.0)   # about the x (nod), y (tilt) and z (turn) axis
MAX_SHIFT_MM = 5.0
LARGEST_SCALE = 1.08                    # size tells levels apart: scaling stays well inside the between-subject range
ELASTIC_MM = 1.5
ELASTIC_GRID = (4, 5, 5)


def moving_grid(count: int, size: np.ndarray, rng: np.random.Generator, spacing: float) -> torch.Tensor:
    """Sampling grids (count, z, y, x, 3) for `grid_sample`: random turn, shift, slight scale, bend and left-right mirror."""
    angles = np.radians(rng.uniform(-1, 1, (count, 3)) * MAX_ROTATION_DEG)
    matrix = rotations(angles) * np.exp(rng.uniform(-1, 1, (count, 1, 1)) * np.log(LARGEST_SCALE))
    matrix[:, :, 0] *= rng.choice([-1.0, 1.0], (count, 1))  # mirror left-right
    # affine_grid works in coordinates of -1..1 per axis (x, y, z): bring the isotropic map into them.
    half = size[::-1] / 2
    theta = np.zeros((count, 3, 4))
    theta[:, :, :3] = matrix * half[None, None, :] / half[None, :, None]
    theta[:, :, 3] = rng.uniform(-1, 1, (count, 3)) * MAX_SHIFT_MM / spacing / half
    grid = functional.affine_grid(torch.from_numpy(theta).float(), [count, 1, *map(int, size)], align_corners=False)
    bend = torch.from_numpy(rng.normal(0, ELASTIC_MM / spacing, (count, 3, *ELASTIC_GRID))).float()
    bend = functional.interpolate(bend, size=tuple(map(int, size)), mode="trilinear", align_corners=True)
    return grid + bend.permute(0, 2, 3, 4, 1) / torch.from_numpy(half.copy()).float()


def rotations(angles: np.ndarray) -> np.ndarray:
    """Rotation matrices (n, 3, 3) in (x, y, z) coordinates from angles (n, 3) about x, y and z (radians)."""
    result = np.tile(np.eye(3), (len(angles), 1, 1))
    for axis in range(3):
        first, second = [(1, 2), (0, 2), (0, 1)][axis]
        turn = np.tile(np.eye(3), (len(angles), 1, 1))
        cosine, sine = np.cos(angles[:, axis]), np.sin(angles[:, axis])
        turn[:, first, first], turn[:, second, second] = cosine, cosine
        turn[:, first, second], turn[:, second, first] = -sine, sine
        result = result @ turn
    return result
