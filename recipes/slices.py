"""Training slices of localize from phantoms and real scans: whole wide fields, slabs, thick slices, masked surroundings."""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage

from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.preprocessing.augmentation import augment_hu
from spineclue_v2.preprocessing.resampling import windows
from spineclue_v2.stages.localize.data import (
    PLANES,
    SliceBatches,
    augment_slice,
    clip_boxes,
    cut_field,
    section_boxes,
    take_slice,
)

BACKGROUND_FRACTION = 0.25          # of slices drawn anywhere instead of through a vertebra
KINDS = {"usual": 0.5, "wide": 0.27, "slab": 0.23}
SIZES = {"usual": (256, 160), "wide": (256, 288), "slab": (256, 96)}   # pixels (rows, columns) that the kinds are padded or cropped to
COUNTS = {"usual": 8, "wide": 5, "slab": 12}                          # slices of a batch, so that batches cost alike
WIDE_MM, SLAB_MM, SHORT_MM = 330.0, (55.0, 125.0), (60.0, 200.0)
THICK_MM = (2.5, 6.0)
MASK_HU = -1000.0
CACHE_VOXELS = 1_500_000_000     # of decompressed scans kept in memory


@dataclass
class MixedSlices(SliceBatches):
    """Batches of one kind each. `weights`: how often a case is drawn, relative to others."""

    weights: dict[str, float] = field(default_factory=dict)

    def _is_full(self, voxels: int) -> bool:
        return sum(image.size for image, _, _ in self._cache.values()) + voxels > CACHE_VOXELS

    def _width_mm(self, case: str) -> float:
        return float(min(PreprocessedDataset(self.folder).properties(case)["geometry"]["shape"][1:])) * self.spacing

    def _pools(self) -> dict[str, tuple[list[str], np.ndarray]]:
        if not hasattr(self, "_known_pools"):
            wide = [c for c in self.cases if self._width_mm(c) >= 0.7 * WIDE_MM] or self.cases
            pools = {"usual": self.cases, "wide": wide, "slab": self.cases}
            self._known_pools = {}
            for kind, cases in pools.items():
                share = np.array([self.weights.get(c, 1.0) for c in cases])
                self._known_pools[kind] = (cases, share / share.sum())
        return self._known_pools

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        if not self.augment:
            return super().__call__(index)
        rng = np.random.default_rng([self.seed, index])
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        cases, share = self._pools()[kind]
        chosen = rng.choice(len(cases), size=COUNTS[kind], p=share)
        images, owners, boxes = [], [], []
        for slot, number in enumerate(chosen):
            image, found = self._slice(cases[number], kind, rng)
            images.append(image)
            boxes.append(found)
            owners.append(np.full(len(found), slot))
        return {"image": torch.from_numpy(np.stack(images)), "batch_index": torch.from_numpy(np.concatenate(owners)).long(),
                "boxes": torch.from_numpy(np.concatenate(boxes)).float()}

    def _slice(self, case: str, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, labels, info = self._case(case)
        plane = PLANES[int(rng.integers(2))]
        axis = 2 if plane == "sagittal" else 1
        if len(info["values"]) and rng.random() > BACKGROUND_FRACTION:
            pick = int(rng.integers(len(info["values"])))
            index = int(rng.integers(info["starts"][pick][axis], info["stops"][pick][axis]))
        else:
            index = int(rng.integers(image.shape[axis]))
        cut = take_slice(image, plane, index).astype(np.float32)
        if rng.random() < 0.15:     # a thick slice of this plane
            reach = int(rng.integers(1, 3))
            near = [int(np.clip(index + k, 0, image.shape[axis] - 1)) for k in range(-reach, reach + 1)]
            cut = np.mean([take_slice(image, plane, k) for k in near], axis=0, dtype=np.float32)
        marks = take_slice(labels, plane, index)
        if rng.random() < 0.25:
            cut, marks = turned(cut, marks, float(rng.uniform(-14, 14)))
        largest = {v: float(a) for v, a in zip(info["values"], info["areas"][plane], strict=True)}
        boxes = section_boxes(marks, largest, self.spacing)
        if kind == "slab":
            cut, boxes = slab(cut, boxes, self.spacing, rng)
        if len(boxes) and rng.random() < (0.25 if kind != "wide" else 0.1):
            cut, boxes = cut_field(cut, boxes, rng)
        if rng.random() < 0.12:
            cut = masked(cut, boxes, self.spacing, rng)
        kept = cut == MASK_HU
        cut = coarser(augment_hu(cut, rng, self.spacing), rng, self.spacing)
        cut[kept] = MASK_HU
        return augment_slice(windows(cut, self.windows_hu), boxes, SIZES[kind], rng, mirror=plane == "coronal")


def turned(cut: np.ndarray, marks: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """A slice and its labels turned in their plane, as on a grid oblique to the body."""
    low = float(cut.min())
    return (ndimage.rotate(cut, degrees, reshape=False, order=1, mode="constant", cval=low),
            ndimage.rotate(marks, degrees, reshape=False, order=0, mode="constant", cval=0))


def slab(cut: np.ndarray, boxes: np.ndarray, spacing: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A narrow part of a slice (all rows or few of them), around a box where there is one; boxes of which enough remains."""
    rows, columns = cut.shape
    width = min(columns, int(rng.uniform(*SLAB_MM) / spacing))
    height = min(rows, int(rng.uniform(*SHORT_MM) / spacing)) if rng.random() < 0.4 else rows
    if len(boxes):
        x0, y0, x1, y1 = boxes[int(rng.integers(len(boxes)))]
        middle = (rng.uniform(y0, y1), rng.uniform(x0, x1))
    else:
        middle = (rng.uniform(0, rows), rng.uniform(0, columns))
    top = int(np.clip(middle[0] - height * rng.uniform(0.2, 0.8), 0, rows - height))
    left = int(np.clip(middle[1] - width * rng.uniform(0.25, 0.75), 0, columns - width))
    moved, kept = clip_boxes(boxes - np.array([left, top, left, top], np.float32), (height, width))
    return cut[top:top + height, left:left + width], moved[kept]


def masked(cut: np.ndarray, boxes: np.ndarray, spacing: float, rng: np.random.Generator) -> np.ndarray:
    """The slice with `MASK_HU` outside a crooked region around all of its boxes, as in scans stripped to a treated region."""
    if not len(boxes):
        return cut
    rows, columns = cut.shape
    far = rng.uniform(5, 70, 4) / spacing
    top, bottom = boxes[:, 1].min() - far[0], boxes[:, 3].max() + far[1]
    knots = np.linspace(0, rows, 6)
    wave = ndimage.gaussian_filter1d(rng.uniform(0, 25, (2, 6)) / spacing, 0.8, axis=1)
    row = np.arange(rows)[:, None]
    left = boxes[:, 0].min() - far[2] - np.interp(row, knots, wave[0])
    right = boxes[:, 2].max() + far[3] + np.interp(row, knots, wave[1])
    column = np.arange(columns)[None]
    return np.where((row >= top) & (row < bottom) & (column >= left) & (column < right), cut, np.float32(MASK_HU))


def coarser(cut: np.ndarray, rng: np.random.Generator, spacing: float) -> np.ndarray:
    """The slice as thick axial slices, coarse voxels in plane, or neither, show it."""
    roll = rng.random()
    if roll > 0.35 or min(cut.shape) < 12:
        return cut
    up = rng.uniform(*THICK_MM)
    across = rng.uniform(3.0, 4.5) if roll < 0.12 else spacing
    small = [max(4, int(round(n * spacing / s))) for n, s in zip(cut.shape, (up, across), strict=True)]
    sigma = [max(0.0, 0.4 * (s / spacing - 1)) for s in (up, across)]
    low = ndimage.zoom(ndimage.gaussian_filter(cut, sigma), [s / n for s, n in zip(small, cut.shape, strict=True)], order=1)
    back = ndimage.zoom(low, [n / s for n, s in zip(cut.shape, low.shape, strict=True)], order=1)
    return np.ascontiguousarray(back[:cut.shape[0], :cut.shape[1]])
