"""Crops around vertebrae for stage 2: CT windows, heat map at a jittered centre, mask of the one vertebra."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...adapters import crop_and_pad, segmentation_transforms
from ...anatomy import IGNORED
from ...dataset.preprocessed import PreprocessedDataset
from ...dataset.vertebra_rows import vertebra_table
from ...preprocessing.augmentation import augment_hu, field_ends
from ...preprocessing.crops import crop_start
from ...preprocessing.resampling import windows
from ...utilities.triples import int_triple
from .heatmap import heatmap

CUT_PROBABILITY = 0.2  # of a crop in which the scan ends at the vertebra

KEPT_FRACTION = 0.5       # of a vertebra's length that such an end leaves at least

MARGIN = 1.2  # crops are taken this much larger, so that rotation and scaling bring in real voxels instead of padding


@dataclass
class CropBatches:
    """Training batches: random vertebrae (levels equally often), jittered centres, nnU-Net's augmentation. Targets are 0, 1 and, where
    nobody annotated, `IGNORED`."""

    folder: Path
    cases: list[str]
    windows_hu: tuple[tuple[float, float], ...]
    hu_min: int
    crop_size: tuple[int, int, int]
    sigma: float               # voxels
    jitter: float              # voxels
    batch_size: int
    seed: int
    augment: bool = True
    spacing: float = 1.0       # mm, for the augmentation

    def __post_init__(self) -> None:
        self._table: dict[int, list[tuple[str, int, np.ndarray]]] = {}
        self._transform: Any = None

    def _prepare(self) -> None:
        if not self._table:
            for row in vertebra_table(PreprocessedDataset(self.folder), self.cases):
                self._table.setdefault(row[1], []).append(row)
            self._dataset = PreprocessedDataset(self.folder)
            if self.augment:
                self._transform = segmentation_transforms(self.crop_size, len(self.windows_hu))

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        self._prepare()
        rng = np.random.default_rng([self.seed, index])
        # batchgeneratorsv2 draws from the global generators: seeding them makes batch i a function of (seed, i) alone.
        np.random.seed(int(rng.integers(2 ** 31)))
        torch.manual_seed(int(rng.integers(2 ** 31)))
        samples = [self._sample(rng) for _ in range(self.batch_size)]
        return {"image": torch.stack([s[0] for s in samples]), "target": torch.stack([s[1] for s in samples])}

    def _sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        levels = sorted(self._table)
        rows = self._table[levels[int(rng.integers(len(levels)))]]
        case, label, centre = rows[int(rng.integers(len(rows)))]
        direction = rng.normal(size=3)
        centre = centre + direction / np.linalg.norm(direction) * self.jitter * rng.random() ** (1 / 3)
        size = int_triple(round(n * MARGIN) for n in self.crop_size) if self.augment else self.crop_size
        start = crop_start(centre, size)
        ct = crop_and_pad(self._dataset.image(case), start, size, pad_value=self.hu_min)
        labels = crop_and_pad(self._dataset.labels(case), start, size)
        mask, ignored = labels == label, labels == IGNORED
        if self.augment:
            outside = ct == self.hu_min
            ct = augment_hu(ct, rng, self.spacing)
            ct[outside] = self.hu_min
            if mask.any() and rng.random() < CUT_PROBABILITY:
                centre = self._end_field(ct, mask, centre - start, rng) + start
        image = np.concatenate([windows(ct, self.windows_hu), heatmap(size, centre - start, self.sigma)[None]])
        target = np.where(ignored, IGNORED, mask).astype(np.int16)
        sample = {"image": torch.from_numpy(image), "segmentation": torch.from_numpy(target[None])}
        if self.augment:
            sample = self._transform(**sample)
        return sample["image"].float().clamp_(0, 1), sample["segmentation"]

    def _end_field(self, ct: np.ndarray, mask: np.ndarray, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Let the scan end within or near the vertebra (in place); the centre (z, y, x) moves to the middle of what is left."""
        inside = [np.flatnonzero(mask.any(axis)) for axis in ((1, 2), (0, 2), (0, 1))]
        start, stop = np.array([i[0] for i in inside]), np.array([i[-1] + 1 for i in inside])
        field = field_ends(start, stop, ct.shape, rng, KEPT_FRACTION)
        for axis, (first, end) in enumerate(field):
            for gone in (slice(0, first), slice(end, None)):
                beyond = tuple(gone if a == axis else slice(None) for a in range(3))
                ct[beyond], mask[beyond] = self.hu_min, False
        left = np.array([[max(a, f), min(b, e)] for a, b, (f, e) in zip(start, stop, field, strict=True)], dtype=float)
        return centre + left.mean(1) - (start + stop) / 2
