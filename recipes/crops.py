"""Training crops of segment from phantoms and real scans: places without a trusted mask count for nothing, fields end and are masked."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from spineclue_v2.adapters import crop_and_pad
from spineclue_v2.preprocessing.augmentation import augment_hu
from spineclue_v2.preprocessing.crops import crop_start
from spineclue_v2.preprocessing.resampling import windows
from spineclue_v2.stages.segment.data import CUT_PROBABILITY, MARGIN, CropBatches
from spineclue_v2.stages.segment.heatmap import heatmap

from .cases import IGNORE

UNKNOWN = 2                   # class of the target that counts for nothing
COARSE_MM = (2.5, 4.2)
MASK_HU = -1000
REGION_FRACTION = {"C": 0.45, "T": 0.3, "L": 0.25}   # of the crops; levels of a region are drawn equally often


@dataclass
class MixedCrops(CropBatches):
    """`weights`: how often a case is drawn, relative to others."""

    weights: dict[str, float] = field(default_factory=dict)

    def _sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.augment:
            return super()._sample(rng)
        case, label, centre = self._drawn(rng)
        direction = rng.normal(size=3)
        centre = centre + direction / np.linalg.norm(direction) * self.jitter * rng.random() ** (1 / 3)
        size = tuple(int(round(n * MARGIN)) for n in self.crop_size)
        start = crop_start(centre, size)
        ct = crop_and_pad(self._dataset.image(case), start, size, pad_value=self.hu_min)
        marks = crop_and_pad(self._dataset.labels(case), start, size)
        mask, unknown = marks == label, marks == IGNORE
        outside = ct == self.hu_min
        ct = coarse_voxels(augment_hu(ct, rng, self.spacing), rng, self.spacing)
        ct[outside] = self.hu_min
        if mask.any() and rng.random() < CUT_PROBABILITY:
            centre = self._end_field(ct, mask, centre - start, rng) + start
            unknown &= ct != self.hu_min
        if rng.random() < 0.1:
            ct = stripped(ct, marks > 0, rng, self.spacing)
        image = np.concatenate([windows(ct, self.windows_hu), heatmap(size, centre - start, self.sigma)[None]])
        target = np.where(unknown, UNKNOWN, mask)[None].astype(np.int16)
        sample = self._transform(image=torch.from_numpy(image), segmentation=torch.from_numpy(target))
        return sample["image"].float().clamp_(0, 1), sample["segmentation"]

    def _drawn(self, rng: np.random.Generator) -> tuple[str, int, np.ndarray]:
        """A vertebra: region, level, then case by weight."""
        if not hasattr(self, "_by_region"):
            from spineclue_v2.anatomy import NAME_OF_LABEL

            self._by_region: dict[str, list[int]] = {}
            for label in sorted(self._table):
                self._by_region.setdefault(NAME_OF_LABEL[label][0], []).append(label)
            self._chance = {label: np.array([self.weights.get(row[0], 1.0) for row in rows]) for label, rows in self._table.items()}
        regions = [r for r in REGION_FRACTION if r in self._by_region]
        share = np.array([REGION_FRACTION[r] for r in regions])
        labels = self._by_region[regions[int(rng.choice(len(regions), p=share / share.sum()))]]
        label = labels[int(rng.integers(len(labels)))]
        chance = self._chance[label]
        return self._table[label][int(rng.choice(len(chance), p=chance / chance.sum()))]


def coarse_voxels(ct: np.ndarray, rng: np.random.Generator, spacing: float) -> np.ndarray:
    """The crop as a scan of 2.5-4 mm voxels, along all axes or along z alone, shows it; most crops as they are."""
    roll = rng.random()
    if roll > 0.3:
        return ct
    steps = np.array([rng.uniform(*COARSE_MM), *[rng.uniform(*COARSE_MM) if roll < 0.12 else spacing] * 2])
    small = [max(4, int(round(n * spacing / s))) for n, s in zip(ct.shape, steps, strict=True)]
    low = ndimage.zoom(ndimage.gaussian_filter(ct, 0.4 * np.maximum(0, steps / spacing - 1)),
                       [s / n for s, n in zip(small, ct.shape, strict=True)], order=1)
    back = ndimage.zoom(low, [n / s for n, s in zip(ct.shape, low.shape, strict=True)], order=1)
    return np.ascontiguousarray(back)


def stripped(ct: np.ndarray, bone: np.ndarray, rng: np.random.Generator, spacing: float) -> np.ndarray:
    """The crop with `MASK_HU` beyond a random distance from the labelled vertebrae, as in scans stripped to a treated region."""
    if not bone.any():
        return ct
    near = ndimage.binary_dilation(bone, iterations=int(rng.uniform(4, 25) / spacing))
    return np.where(near, ct, MASK_HU).astype(ct.dtype)


def masked_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice + cross entropy of logits (B, 2, z, y, x) and target (B, 1, z, y, x); voxels of class `UNKNOWN` count for nothing."""
    known = (target[:, 0] != UNKNOWN).float()
    wanted = (target[:, 0] == 1).float()
    losses = torch.nn.functional.cross_entropy(logits, (target[:, 0] == 1).long(), reduction="none")
    probability = logits.softmax(1)[:, 1]
    axes: Any = (1, 2, 3)
    shared = (probability * wanted * known).sum(axes)
    total = (probability * known).sum(axes) + (wanted * known).sum(axes)
    dice = (2 * shared + 1e-5) / total.clamp(min=1e-5)
    return (losses * known).sum() / known.sum().clamp(min=1) - dice.mean()
