"""Crops for stage `grade`: the whole vertebra zoomed to one size, two CT windows and the mask; grades equally often in a batch."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ...adapters import crop_and_pad
from ...anatomy import ORDER_INDEX
from ...anatomy.vertebra import Vertebra
from ...dataset.preprocessed import PreprocessedDataset
from ...imageio.volume import ImageGrid
from ...preprocessing.moving_grids import rotations
from ...preprocessing.resampling import windows
from ...utilities.triples import box_slices, float_triple
from .comparison import GRADED

AIR_HU = -1024
MARGIN = 1.1              # the crop's in-plane side, as a share of the larger in-plane side of the mask's box
MAX_ROTATION_DEG = 10.0   # augmentation as in Wei et al.: 10 degrees, 20 % zoom, 10 of 128 voxels, 10 % intensity, noise, erased cuboids
MAX_ZOOM = 1.2
MAX_SHIFT = 10 / 128
INTENSITY = 0.1
NOISE = 0.05
ERASED = 0.25             # longest side of an erased cuboid, share of the crop


def grade_crop(image: Any, mask: np.ndarray, start: Sequence[int], crop_size: Sequence[int], windows_hu: Sequence[tuple[float, float]],
               turn: np.ndarray | None = None, shift: np.ndarray | None = None) -> np.ndarray:
    """Network input (windows + 1, z, y, x), float32.

    `image`: HU (z, y, x), numpy or blosc2; `mask` bool whose [0, 0, 0] lies at index `start` of it. The mask's box is zoomed, by one
    factor on all axes, until its larger in-plane side fills the crop but for MARGIN. `turn` (3, 3) in (z, y, x) and `shift` (3,), a share
    of the crop, move what is seen (augmentation). Outside the image is air.
    """
    size, shape = np.asarray(crop_size), np.array(mask.shape)
    voxel = MARGIN * max(shape[1:]) / min(size[1:])          # image voxels per crop voxel
    linear = voxel * (np.eye(3) if turn is None else turn)
    offset = np.zeros(3) if shift is None else np.asarray(shift) * size * voxel
    centre = (shape - 1) / 2 + offset                        # in mask indices
    reach = np.ceil(np.abs(linear) @ (size / 2)).astype(int) + 1
    low = np.floor(centre - reach).astype(int)
    box = 2 * reach + 3
    hu = crop_and_pad(image, np.asarray(start) + low, box, pad_value=AIR_HU).astype(np.float32)
    own = crop_and_pad(mask, low, box).astype(np.float32)
    # grid_sample wants (x, y, z) in -1..1 of the box; align_corners False puts voxel i at (2 i + 1) / n - 1.
    steps = [np.arange(n) - (n - 1) / 2 for n in size]
    position = np.stack(np.meshgrid(*steps, indexing="ij"), -1) @ linear.T + (centre - low)
    grid = torch.from_numpy(((2 * position + 1) / box - 1)[..., ::-1].astype(np.float32).copy())
    both = torch.from_numpy(np.stack([hu, own]))[None]
    found = F.grid_sample(both, grid[None], align_corners=False, padding_mode="border")[0].numpy()
    return np.concatenate([windows(found[0], windows_hu), np.clip(found[1:], 0, 1)])


def graded_rows(dataset: PreprocessedDataset, cases: Sequence[str]) -> list[tuple[str, str, int]]:
    """(case, level, Genant grade) of every graded thoracic and lumbar vertebra whose mask is there."""
    rows = []
    for case in cases:
        present = dataset.properties(case)["vertebrae"]
        rows += [(case, level, grade) for level, grade in sorted(dataset.grades.get(case, {}).items())
                 if level in GRADED and level in present]
    return rows


def stored_crop(dataset: PreprocessedDataset, case: str, level: str, size: Sequence[int], windows_hu: Sequence[tuple[float, float]],
                turn: np.ndarray | None = None, shift: np.ndarray | None = None) -> np.ndarray:
    """`grade_crop` of a vertebra of a preprocessed case."""
    found = dataset.properties(case)["vertebrae"][level]
    box = tuple(slice(a, b) for a, b in zip(found["start"], found["stop"], strict=True))
    return grade_crop(dataset.image(case), dataset.labels(case)[box] == found["label"], found["start"], size, windows_hu, turn, shift)


@cache
def stored_losses(folder: Path, case: str) -> dict[str, float]:
    """level -> largest missing share of height, in the true masks of a case preprocessed in `folder`; without those that have no
    heights. Measured once per process: a tenth of a second per vertebra."""
    from .body_heights import add_heights

    dataset = PreprocessedDataset(folder)
    content, labels = dataset.properties(case), dataset.labels(case)
    geometry, vertebrae = ImageGrid.from_json(content["geometry"]), []
    for level, found in sorted(content["vertebrae"].items(), key=lambda item: ORDER_INDEX.get(item[0], -1)):
        box = tuple(slice(a, b) for a, b in zip(found["start"], found["stop"], strict=True))
        centre = float_triple(geometry.index_to_world(np.array(found["body_centre"])))
        vertebrae.append(Vertebra(centre, (0.0, 0.0, 0.0), 1.0, mask=labels[box] == found["label"], mask_start=tuple(found["start"]),
                                  body_centre=centre, level=level))
    return {v.known_level: max(v.heights.loss) for v in add_heights(tuple(vertebrae), geometry)
            if v.heights is not None and v.heights.loss is not None}


@dataclass
class GradeBatches:
    """Batches {"image" (views * batch_size, windows + 1, z, y, x), "grade" (views * batch_size,)}; batch i depends on (seed, i) alone.

    Grades that the cases hold are drawn equally often. With two views, rows t and batch_size + t are the same vertebra.
    """

    folder: Path
    cases: list[str]
    crop_size: tuple[int, int, int]
    windows_hu: tuple[tuple[float, float], ...]
    batch_size: int
    seed: int
    views: int = 2
    augment: bool = True

    def __post_init__(self) -> None:
        self._by_grade: dict[int, list[tuple[str, str]]] = {}

    def _prepare(self) -> None:
        if not self._by_grade:
            self._dataset = PreprocessedDataset(self.folder)
            for case, level, grade in graded_rows(self._dataset, self.cases):
                self._by_grade.setdefault(grade, []).append((case, level))

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        self._prepare()
        rng = np.random.default_rng([self.seed, index])
        present = sorted(self._by_grade)
        grades = [present[i % len(present)] for i in rng.permutation(self.batch_size)]
        chosen = [self._by_grade[g][int(rng.integers(len(self._by_grade[g])))] for g in grades]
        crops = [self._crop(rng, *row) for _ in range(self.views) for row in chosen]
        return {"image": torch.from_numpy(np.stack(crops)), "grade": torch.tensor(grades * self.views)}

    def _crop(self, rng: np.random.Generator, case: str, level: str) -> np.ndarray:
        if not self.augment:
            return stored_crop(self._dataset, case, level, self.crop_size, self.windows_hu)
        turn = rotations(np.radians(rng.uniform(-1, 1, (1, 3)) * MAX_ROTATION_DEG))[0][::-1, ::-1] * MAX_ZOOM ** rng.uniform(-1, 1)
        turn[:, 2] *= rng.choice([-1.0, 1.0])   # mirror left-right
        crop = stored_crop(self._dataset, case, level, self.crop_size, self.windows_hu, turn, rng.uniform(-1, 1, 3) * MAX_SHIFT)
        ct = crop[:-1]
        ct *= 1 + rng.uniform(-INTENSITY, INTENSITY)
        ct += rng.normal(0, rng.uniform(0, NOISE), ct.shape).astype(np.float32)
        np.clip(ct, 0, 1, out=ct)
        if rng.random() < 0.5:
            length = np.maximum(1, (rng.uniform(0.1, ERASED, 3) * self.crop_size).astype(int))
            begin = [int(rng.integers(0, n - m + 1)) for n, m in zip(self.crop_size, length, strict=True)]
            z, y, x = box_slices(begin, length)
            crop[:, z, y, x] = 0
        return crop
