"""Mask crops for stage 3: class-balanced batches with two views for the contrastive phase, whole spines for the classifier."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from ...adapters import crop_and_pad
from ...anatomy import LEVEL_INDEX_OF_LABEL
from ...dataset.preprocessed import PreprocessedDataset
from ...dataset.vertebra_rows import regular_rows, vertebra_table
from ...preprocessing.crops import crop_start
from ...preprocessing.moving_grids import moving_grid


@dataclass
class MaskBatches:
    """Batches of augmented mask crops; batch i depends on (seed, i) alone.

    i < `contrastive_batches`: {"image" (2T, 1, z, y, x), "level" (2T,)}, views t and T + t of one mask; levels equally often, and as
    many as leave two masks or more of each, for a mask whose only positive is itself learns nothing about its level.
    Otherwise whole spines in order: {"image" (n, 1, z, y, x), "level" (n,), "spine" (n,)} with `classifier_batch_size` vertebrae (0:
    `batch_size`), filled up to a whole spine.
    """

    folder: Path
    cases: list[str]
    crop_size: tuple[int, int, int]
    spacing: float
    batch_size: int
    contrastive_batches: int
    seed: int
    augment: bool = True
    classifier_batch_size: int = 0
    variants: bool = False      # T13 and L6 too: for `inputs_of` only, training batches know the regular levels

    def __post_init__(self) -> None:
        self._rows: list[tuple[str, int, np.ndarray]] = []
        self._packed: dict[tuple[str, int], np.ndarray] = {}

    def _prepare(self) -> None:
        if self._rows:
            return
        self._dataset = PreprocessedDataset(self.folder)
        table = vertebra_table if self.variants else regular_rows
        self._rows = [row for case in self.cases for row in sorted(table(self._dataset, [case]), key=lambda row: -row[2][0])]
        self._by_level: dict[int, list[int]] = {}
        self._by_case: dict[str, list[int]] = {}
        for number, (case, label, _) in enumerate(self._rows):
            self._by_level.setdefault(label, []).append(number)
            self._by_case.setdefault(case, []).append(number)

    def _mask(self, number: int) -> np.ndarray:
        """Binary crop of row `number`, kept as packed bits after the first reading."""
        case, label, centre = self._rows[number]
        if (case, label) not in self._packed:
            crop = crop_and_pad(self._dataset.labels(case), crop_start(centre, self.crop_size), self.crop_size) == label
            self._packed[case, label] = np.packbits(crop)
        return np.unpackbits(self._packed[case, label], count=int(np.prod(self.crop_size))).reshape(self.crop_size)

    def inputs_of(self, case: str) -> torch.Tensor:
        """Network inputs (n, C, z, y, x) of one case in cranio-caudal order, not augmented."""
        self._prepare()
        return self.inputs(self._by_case[case])

    def labels_of(self, case: str) -> list[int]:
        """Label values (VerSe) of one case's vertebrae in the order of `inputs_of`; empty when it has none."""
        self._prepare()
        return [self._rows[number][1] for number in self._by_case.get(case, [])]

    def inputs(self, numbers: list[int]) -> torch.Tensor:
        """Network inputs (n, C, z, y, x), float32 in 0..1, of these rows."""
        return torch.from_numpy(np.stack([self._mask(n) for n in numbers])).float()[:, None]

    def augment_images(self, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Random variants of `inputs`."""
        return augment_masks(images, rng, self.spacing)

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        self._prepare()
        rng = np.random.default_rng([self.seed, index])
        contrastive = index < self.contrastive_batches
        spines: list[int] = []
        if contrastive:
            chosen = self._balanced(rng) * 2
        else:
            chosen = []
            cases = sorted(self._by_case)
            while len(chosen) < (self.classifier_batch_size or self.batch_size):
                own = self._by_case[cases[int(rng.integers(len(cases)))]]
                spines += [len(set(spines))] * len(own)
                chosen += own
        images = self.inputs(chosen)
        if self.augment:
            images = self.augment_images(images, rng)
        batch = {"image": images, "level": torch.tensor([LEVEL_INDEX_OF_LABEL[self._rows[n][1]] for n in chosen])}
        if not contrastive:
            batch["spine"] = torch.tensor(spines)
        return batch

    def _balanced(self, rng: np.random.Generator) -> list[int]:
        """`batch_size` rows, the drawn levels equally often (to within one); rows of a level differ while it has enough."""
        levels = rng.permutation(sorted(self._by_level))[:max(1, self.batch_size // 2)]
        chosen: list[int] = []
        for level, own in zip(levels, np.array_split(np.arange(self.batch_size), len(levels)), strict=True):
            rows = self._by_level[int(level)]
            chosen += rng.choice(rows, len(own), replace=len(rows) < len(own)).tolist()
        return chosen


def augment_masks(masks: torch.Tensor, rng: np.random.Generator, spacing: float) -> torch.Tensor:
    """Random turn, shift, slight scale, bend, left-right mirror, rough edges and lost parts of masks (B, 1, z, y, x).

    Never up-down. The last three imitate what a segmentation network gets wrong.
    """
    count, size = len(masks), np.array(masks.shape[2:])
    moved = functional.grid_sample(masks, moving_grid(count, size, rng, spacing), align_corners=False)
    rough = torch.from_numpy(rng.normal(0, 1, (count, 1, *(size // 3)))).float()
    rough = functional.interpolate(rough, size=tuple(size), mode="trilinear") * torch.from_numpy(
        rng.uniform(0, 0.25, (count, 1, 1, 1, 1))).float()
    offset = torch.from_numpy(rng.uniform(-0.2, 0.2, (count, 1, 1, 1, 1))).float()
    smooth = functional.avg_pool3d(moved, 3, stride=1, padding=1)
    result = ((smooth + rough + offset - 0.5) * 4 + 0.5).clamp_(0, 1)
    for i in np.flatnonzero(rng.random(count) < 0.2):
        length = rng.integers(3, np.maximum(4, size // 4))
        begin = [int(rng.integers(0, n - m)) for n, m in zip(size, length, strict=True)]
        result[i, 0, begin[0]:begin[0] + length[0], begin[1]:begin[1] + length[1], begin[2]:begin[2] + length[2]] = 0
    return result
