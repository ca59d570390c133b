"""Training patches of stage centres: CT along the row, heat maps of what is known, and where nothing is known.

A scan's labels end somewhere, and often before its vertebrae do. Beyond the last labelled one nothing is known, unless it is C1 (a skull
lies above) or a last lumbar vertebra (a sacrum lies below).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...adapters import crop_and_pad
from ...anatomy import IGNORED
from ...dataset.preprocessed import PreprocessedDataset
from ...dataset.vertebra_rows import nothing_to_learn_from
from ...imageio.grid import ImageGrid
from ...plans.plans import StagePlan
from ...preprocessing.moving_grids import rotations
from ...preprocessing.resampling import windows

LAST_LUMBAR = ("L5", "L6")
BEYOND = 0.6                 # of the step at an end: so far beyond the last labelled body the labels still speak
ALONE_MM = 12.0              # of a single body: so far to both sides
SACRUM_WIDTH = 1.6           # of the bodies' Gaussian: where the sacrum begins is a wider place
SACRUM_BACK_MM = 6.0         # behind the line on which the lumbar bodies lie
ON_A_BODY, ASIDE = 0.9, 0.12  # patches around a body, and of these the fraction moved to the side
SPREAD_MM = (36.0, 10.0, 10.0)   # of their middles around it (z, y, x)
ASIDE_MM = (30.0, 90.0)
TURN_DEG = (4.0, 7.0, 7.0)   # standard deviations about the z, y and x axis
SCALE, STRETCH = 0.12, 0.04  # of the logarithm, of all axes and of each
GAIN, SHIFT_HU, NOISE_HU = 0.12, 25.0, 35.0
COARSE_ALL, COARSE_Z, SMOOTH = 0.15, 0.35, 0.5   # cumulated: coarse voxels, thick slices, a soft kernel
CUT, CUT_FRACTION = 0.25, 0.35   # patches in which the field ends, and how much is cut at most


@dataclass(frozen=True)
class Row:
    """What is known of a scan's bodies: `bodies` (n, 3), `sacrum` (0 or 1, 3), indices (z, y, x), z upwards; between `bottom` and `top`
    (z) all bodies are labelled. `sacrum_known`: whether the labels tell where the sacrum is, or that none is in view."""

    bodies: np.ndarray
    sacrum: np.ndarray
    bottom: float
    top: float
    sacrum_known: bool


def row_of(names: Sequence[str], bodies: np.ndarray, spacing: float, sacrum: np.ndarray | None = None) -> Row:
    """The row of a scan's labelled bodies.

    Args:
        names: (n,) level names.
        bodies: (n, 3) indices (z, y, x), z upwards.
        spacing: mm per voxel.
        sacrum: (3,) where S1 is labelled; where it is not, it is taken to follow a last lumbar vertebra as that one follows its own.
    """
    bodies = np.asarray(bodies, dtype=float).reshape(-1, 3)
    order = np.argsort(-bodies[:, 0], kind="stable")
    bodies, names = bodies[order], [names[i] for i in order]
    if not len(bodies):
        return Row(bodies, np.zeros((0, 3)), -np.inf, np.inf, True)
    ends_low = sacrum is not None or names[-1] in LAST_LUMBAR
    if sacrum is None and names[-1] in LAST_LUMBAR and len(bodies) > 1:
        sacrum = 2 * bodies[-1] - bodies[-2] + np.array([2.0, SACRUM_BACK_MM, 0.0]) / spacing
    steps = np.linalg.norm(np.diff(bodies, axis=0), axis=1) if len(bodies) > 1 else np.full(1, ALONE_MM / spacing / BEYOND)
    top = np.inf if names[0] == "C1" else bodies[0, 0] + BEYOND * steps[0]
    bottom = -np.inf if ends_low else bodies[-1, 0] - BEYOND * steps[-1]
    found = np.zeros((0, 3)) if sacrum is None else np.asarray(sacrum, dtype=float).reshape(1, 3)
    return Row(bodies, found, float(bottom), float(top), sacrum is not None or names[-1] not in ("L4", *LAST_LUMBAR))


def cut_patch(array: Any, row: Row, plan: StagePlan, rng: np.random.Generator, augment: bool, labels: Any = None
              ) -> tuple[Tensor, Tensor, Tensor]:
    """CT windows (C, z, y, x), target heat maps (2, z, y, x) and how much each voxel counts (2, z, y, x) of a random patch.

    Args:
        array: int16 HU (z, y, x) in the stage's network space; numpy or blosc2.
        row: what is known of the scan.
        plan: of stage centres.
        rng: decides where, and how the patch is turned and changed.
        augment: False: only where.
        labels: of a scan that is annotated in parts, on the grid of `array`: voxels of the label "ignore" count for nothing.
    """
    size, spacing = plan.network.patch_size, plan.data.spacing_mm
    shape = np.array(array.shape)
    middle = _middle(row, shape, spacing, rng)
    matrix = _movement(rng) if augment else np.eye(3)
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    index = place @ torch.from_numpy(matrix.T).float() + torch.from_numpy(middle).float()
    ct = _look_up(array, index, plan.data.hu_min)
    blind = ((index < -0.5) | (index > torch.from_numpy(shape - 0.5).float())).any(-1)
    if augment:
        ct, cut = _other_scanner(ct, plan.data.hu_min, rng)
        blind |= cut
    back = np.linalg.inv(matrix)

    def heat(points: np.ndarray, sigma: float) -> Tensor:
        height = torch.zeros(size)
        for point in (points - middle) @ back.T:
            squares = ((place - torch.from_numpy(point).float()) ** 2).sum(-1)
            height = torch.maximum(height, torch.exp(-squares / (2 * (sigma / spacing) ** 2)))
        return height

    target = torch.stack([heat(row.bodies, plan.run.sigma_mm), heat(row.sacrum, SACRUM_WIDTH * plan.run.sigma_mm)])
    known = ((index[..., 0] <= row.top) & (index[..., 0] >= row.bottom)).float()
    if labels is not None:
        known = known * (_look_up(labels, index, 0, nearest=True) != IGNORED)
    weight = torch.stack([known, known * float(row.sacrum_known)])
    ct[blind] = plan.data.hu_min
    target[:, blind], weight[:, blind] = 0, 1          # what is not in view is no body, whatever lies there
    return torch.from_numpy(windows(ct.numpy(), plan.data.windows_hu)), target, weight


def _middle(row: Row, shape: np.ndarray, spacing: float, rng: np.random.Generator) -> np.ndarray:
    if not len(row.bodies) or rng.random() > ON_A_BODY:
        return rng.uniform(0, 1, 3) * (shape - 1)
    middle = row.bodies[int(rng.integers(len(row.bodies)))] + rng.normal(0, 1, 3) * np.array(SPREAD_MM) / spacing
    if rng.random() < ASIDE:
        middle = middle + np.array([rng.choice([-1, 1]) * rng.uniform(*ASIDE_MM) / spacing, 0, 0])
    return np.clip(middle, 0, shape - 1)


def _movement(rng: np.random.Generator) -> np.ndarray:
    """(3, 3) from a patch's (z, y, x) to the scan's: turns, scales, left and right exchanged in every second patch."""
    z, y, x = np.radians(rng.normal(0, TURN_DEG))
    turn = rotations(np.array([[x, y, z]]))[0][::-1, ::-1]
    matrix = turn * np.exp(rng.normal(0, SCALE)) * np.exp(rng.normal(0, STRETCH, 3))
    return matrix @ np.diag([1.0, 1.0, rng.choice([-1.0, 1.0])])


def _look_up(array: Any, index: Tensor, outside: int, nearest: bool = False) -> Tensor:
    """Values (z, y, x) at indices (z, y, x, 3), linear or the nearest one's; `outside` beyond the array."""
    low = np.floor(index.reshape(-1, 3).min(0).values.numpy()).astype(int) - 1
    size = np.ceil(index.reshape(-1, 3).max(0).values.numpy()).astype(int) + 2 - low
    box = torch.from_numpy(crop_and_pad(array, low, size, pad_value=outside).astype(np.float32))
    scale = 2 / (torch.from_numpy(size).float() - 1)
    grid = (index - torch.from_numpy(low).float()) * scale - 1
    mode = "nearest" if nearest else "bilinear"
    return functional.grid_sample(box[None, None], grid.flip(-1)[None], mode=mode, align_corners=True)[0, 0]


def _other_scanner(ct: Tensor, hu_min: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The patch as another scanner and another field might show it, and what that field does not hold (z, y, x)."""
    air = ct <= hu_min + 25
    size = list(ct.shape)
    ct = ct * float(np.exp(rng.normal(0, GAIN))) + float(rng.normal(0, SHIFT_HU))
    roll = rng.random()
    if roll < COARSE_Z:
        steps = 1 + (rng.uniform(0, 1.0, 3) if roll < COARSE_ALL else rng.uniform(0, 1.5) * np.array([1, 0, 0]))
        small = [max(4, round(n / s)) for n, s in zip(size, steps, strict=True)]
        coarse = functional.interpolate(ct[None, None], small, mode="area")
        ct = functional.interpolate(coarse, size, mode="trilinear", align_corners=False)[0, 0]
    elif roll < SMOOTH:
        ct = functional.avg_pool3d(functional.pad(ct[None, None], (1,) * 6, mode="replicate"), 3, 1)[0, 0]
    ct = ct + torch.from_numpy(rng.standard_normal(size, np.float32)) * float(abs(rng.normal(0, NOISE_HU)))
    ct[air] = hu_min
    cut = torch.zeros(size, dtype=torch.bool)
    if rng.random() < CUT:
        axis = int(rng.integers(3))
        count = int(rng.uniform(0, CUT_FRACTION) * size[axis])
        cut.movedim(axis, 0)[slice(0, count) if rng.random() < 0.5 else slice(size[axis] - count, None)] = True
    return ct, cut


@dataclass
class PatchBatches:
    """{"image" (B, C, z, y, x), "target", "weight" (B, 2, z, y, x)}; scans equally often. Batch i depends on (seed, i)."""

    folder: Path
    cases: list[str]
    plan: StagePlan
    seed: int
    augment: bool = True

    def __post_init__(self) -> None:
        self._rows: dict[str, Row] = {}

    def prepare(self) -> None:
        """Read where the bodies are."""
        if self._rows:
            return
        dataset = PreprocessedDataset(self.folder)
        self._rows = {case: case_row(dataset, case) for case in self.cases}
        if not any(len(row.bodies) for row in self._rows.values()):
            raise nothing_to_learn_from(dataset, self.cases)

    def __call__(self, index: int) -> dict[str, Tensor]:
        self.prepare()
        rng = np.random.default_rng([self.seed, index])
        dataset = PreprocessedDataset(self.folder)
        patches = []
        for _ in range(self.plan.run.batch_size):
            case = self.cases[int(rng.integers(len(self.cases)))]
            labels = dataset.labels(case) if dataset.properties(case).get("partly_annotated") else None
            patches.append(cut_patch(dataset.image(case), self._rows[case], self.plan, rng, self.augment, labels))
        return dict(zip(("image", "target", "weight"), map(torch.stack, zip(*patches, strict=True)), strict=True))


def case_row(dataset: PreprocessedDataset, case: str) -> Row:
    """The row of a preprocessed case."""
    from ...anatomy import NAME_OF_LABEL

    properties = dataset.properties(case)
    found = {NAME_OF_LABEL[v["label"]]: np.array(v["body_centre"], dtype=float) for v in properties["vertebrae"].values()
             if v["label"] in NAME_OF_LABEL}
    return row_of(list(found), np.array(list(found.values())).reshape(-1, 3), ImageGrid.from_json(properties["geometry"]).spacing[0])
