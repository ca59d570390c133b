"""A spine of blocks whose angles are known: bodies with level end plates in their own frames, pedicles, laminae, processes."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from spineclue_v2.anatomy import LABEL_OF_NAME
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.volume import Volume

DEEP, WIDE, HIGH, STEP = 32.0, 44.0, 26.0, 35.0
BONE, DISC, FAT = 300, 70, -80


@dataclass(frozen=True)
class Pose:
    """Degrees by which a body nods to the front, tilts to the left and turns its front to the left; mm by which it lies to the front."""

    nod: float = 0.0
    tilt: float = 0.0
    turn: float = 0.0
    ahead: float = 0.0

    def axes(self) -> np.ndarray:
        """Rows: cranial, posterior and left unit vectors, LPS (x, y, z)."""
        nod, tilt, turn = np.radians((self.nod, self.tilt, self.turn))
        about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        about_y = np.array([[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]])
        about_x = np.array([[1, 0, 0], [0, np.cos(nod), -np.sin(nod)], [0, np.sin(nod), np.cos(nod)]])
        turned = about_y @ about_x @ about_z
        return np.stack([turned @ [0, 0, 1], turned @ [0, 1, 0], turned @ [1, 0, 0]])


@dataclass
class BlockSpine:
    """`labels` and `ct` on one grid, and the `centres` (LPS mm) of the bodies; a slab below the last body where `sacrum` says its nod."""

    labels: Volume
    ct: Volume
    centres: dict[str, np.ndarray] = field(default_factory=dict)


def block_spine(poses: Mapping[str, Pose], spacing: Sequence[float] = (1.0, 1.0, 1.0), sacrum: float | None = None,
                vessel: int | None = None, below_mm: float = 45.0) -> BlockSpine:
    """Bodies of the levels of `poses`, from above downwards, STEP mm apart; `vessel`: HU of a tube in front of them."""
    count = len(poses)
    size = np.array([count * STEP + 15.0 + below_mm, 116.0, 64.0])
    shape = tuple(int(n) for n in np.ceil(size / spacing))
    labels, ct = np.zeros(shape, np.uint8), np.full(shape, FAT, np.int16)
    grid = ImageGrid(shape, tuple(spacing), (-31.5, -53.5, 0.0), np.eye(3))  # type: ignore[arg-type]
    points = grid.index_to_world(np.stack(np.indices(shape), -1))
    centres = {}
    for number, (level, pose) in enumerate(poses.items()):
        centre = np.array([0.0, -pose.ahead, size[0] - 30.5 - number * STEP])
        rows = slice(max(int((centre[2] - 42) / spacing[0]), 0), int((centre[2] + 42) / spacing[0]))
        up, back, left = np.moveaxis((points[rows] - centre) @ pose.axes().T, -1, 0)
        near = ct[rows]
        near[(np.abs(up) <= HIGH / 2 + 6) & (np.abs(back) <= DEEP / 2) & (np.abs(left) <= WIDE / 2) & (near == FAT)] = DISC
        mask = solid(up, back, left)
        labels[rows][mask] = LABEL_OF_NAME[level]
        near[mask] = BONE
        centres[level] = centre
    if sacrum is not None:
        centre = np.array([0.0, 0.0, size[0] - 30.0 - count * STEP + 4.0])
        up, back, left = np.moveaxis((points - centre) @ Pose(sacrum).axes().T, -1, 0)
        ct[(np.abs(up) <= 15) & (np.abs(back) <= DEEP / 2) & (np.abs(left) <= WIDE / 2) & (ct == FAT)] = DISC
        ct[(up <= 0) & (np.abs(back) <= DEEP / 2) & (np.abs(left) <= WIDE / 2) & (labels == 0)] = BONE
    if vessel is not None:
        ct[np.hypot(points[..., 0] - 6, points[..., 1] + DEEP / 2 + 14) <= 9] = vessel
    return BlockSpine(Volume(labels, grid), Volume(ct, grid), centres)


def solid(up: np.ndarray, back: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Whether points (mm in the body's own frame) lie in the vertebra: body, pedicles, laminae, spinous process."""
    body = (np.abs(up) <= HIGH / 2) & (np.abs(back) <= DEEP / 2) & (np.abs(left) <= WIDE / 2)
    pedicle = (np.abs(np.abs(left) - 15) <= 4) & (back > 0) & (back <= DEEP / 2 + 14) & (np.abs(up - 3) <= 5)
    lamina = (np.abs(left) <= 19) & (np.abs(back - DEEP / 2 - 18) <= 4) & (np.abs(up + 1) <= 9)
    spinous = (np.abs(left) <= 4) & (back > DEEP / 2 + 18) & (back <= DEEP / 2 + 40) & (np.abs(up + 5) <= 8)
    return body | pedicle | lamina | spinous
