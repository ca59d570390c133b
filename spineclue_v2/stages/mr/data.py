"""Batches of the MR stages: labelled and unlabelled slices for the 2D branches, class-placed patches for the 3D network."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ...adapters import crop_and_pad, mr_transforms
from ...anatomy import IGNORED
from ...dataset.preprocessed import PreprocessedDataset
from .cutmix import box_mask
from .network import NEIGHBOURS, shrink
from .soft_labels import labels_of_pixels, soft_labels_of_pixels

OPEN_ARRAYS = 256   # opened at a time: systems allow a process about 1000 files
DISC_EDGE = 5       # voxels: discs are changed less nearer to their border than half this
MARGIN = 1.15  # crops are taken this much larger, so that rotation and scaling bring in real pixels instead of padding


def other_discs(image: torch.Tensor, labels: torch.Tensor, discs: torch.Tensor, spread: float, rng: np.random.Generator) -> torch.Tensor:
    """`image` (S, rows, columns) with every disc brighter or darker by a normal offset of standard deviation `spread`, most in its middle.

    `labels` (S, rows, columns) class numbers; `discs` (classes,) which of them are discs. A nucleus is bright in a young disc and dark in
    a degenerated one; few labelled spines show but some of that. Half of the variance is common to all discs of the image.
    """
    offsets = torch.from_numpy((rng.normal(0, spread, len(discs)) + rng.normal(0, spread)) / 2 ** 0.5).float() * discs
    number = torch.where(labels == IGNORED, 0, labels).long()
    depth = F.avg_pool2d(discs.float()[number], DISC_EDGE, stride=1, padding=DISC_EDGE // 2)
    return image + offsets[number] * depth


def inside(start: np.ndarray, size: Sequence[int] | np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """`start` moved so that the box of `size` stays within `shape` where it fits, and centred on the axis where it does not."""
    room = np.asarray(shape) - np.asarray(size)
    return np.where(room >= 0, np.clip(start, 0, np.maximum(room, 0)), room // 2)


@dataclass
class _Batches:
    """What both kinds of batches share: lazily opened cases, a seeded generator per batch, augmentation."""

    folder: Path
    cases: list[str]
    seed: int
    rotation_deg: float
    scaling: tuple[float, float]
    discs: torch.Tensor
    disc_signal: float
    augment: bool

    def __post_init__(self) -> None:
        self._open: dict[Path, PreprocessedDataset] = {}
        self._arrays: dict[tuple[Path, str, str], Any] = {}
        self._transforms: dict[tuple[int, ...], Any] = {}

    def dataset(self, folder: Path) -> PreprocessedDataset:
        if folder not in self._open:
            self._open[folder] = PreprocessedDataset(folder)
        return self._open[folder]

    def array(self, folder: Path, case: str, what: str) -> Any:
        """The "image" or "labels" of a case, sliced lazily; opened once, since opening takes as long as reading a crop."""
        if (folder, case, what) not in self._arrays:
            if len(self._arrays) >= OPEN_ARRAYS:
                self._arrays.clear()
            self._arrays[folder, case, what] = getattr(self.dataset(folder), what)(case)
        return self._arrays[folder, case, what]

    def generator(self, index: int) -> np.random.Generator:
        rng = np.random.default_rng([self.seed, index])
        # batchgeneratorsv2 draws from the global generators: seeding them makes batch i a function of (seed, i) alone.
        np.random.seed(int(rng.integers(2 ** 31)))
        torch.manual_seed(int(rng.integers(2 ** 31)))
        return rng

    def other_signal(self, image: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """`image` with discs of another signal where batches are augmented so; both (S, rows, columns)."""
        return other_discs(image, labels, self.discs, self.disc_signal, rng) if self.augment and self.disc_signal else image

    def transform(self, size: tuple[int, int], image: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Augmented and cut to `size` in plane; image (S, rows, columns) float, labels (S', rows, columns)."""
        sample = {"image": image} if labels is None else {"image": image, "segmentation": labels}
        if not self.augment:
            return sample
        if size not in self._transforms:
            self._transforms[size] = mr_transforms(size, self.rotation_deg, self.scaling)
        return self._transforms[size](**sample)


@dataclass
class SliceBatches(_Batches):
    """For the 2D branches: `batch_size` labelled slices around foreground, two batches of unlabelled ones anywhere, CutMix masks.

    A batch: image (L, 3, rows, columns), target (L, classes, rows, columns) with `label_shares`, else (L, 1, rows, columns), and, with
    unlabelled cases, first, second (U, 3, rows, columns), mask (U, rows, columns) boolean. Rows and columns are pixels of the 2D branches.
    """

    unlabelled_folder: Path
    unlabelled_cases: list[str]
    crop_size: tuple[int, int]
    factor: int
    soft_labels: bool
    classes: int
    batch_size: int
    unlabelled_batch_size: int
    boxes: int
    area: tuple[float, float]

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        rng = self.generator(index)
        samples = [self._draw_labelled(rng) for _ in range(self.batch_size)]
        batch = {"image": torch.stack([s["image"] for s in samples]), "target": torch.stack([s["segmentation"] for s in samples])}
        if self.unlabelled_cases and self.unlabelled_batch_size:
            for name in ("first", "second"):
                batch[name] = torch.stack([self._draw_unlabelled(rng) for _ in range(self.unlabelled_batch_size)])
            masks = [box_mask(self.crop_size, self.boxes, self.area, rng) for _ in range(self.unlabelled_batch_size)]
            batch["mask"] = torch.from_numpy(np.stack(masks))
        return batch

    def _draw_labelled(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        case = self.cases[int(rng.integers(len(self.cases)))]
        structures = list(self.dataset(self.folder).properties(case)["structures"].values())
        if not structures:
            return self._crop(self.folder, case, self._anywhere(self.folder, case, rng), rng)
        weights = np.array([s["voxels"] for s in structures], float)
        voxels = structures[int(rng.choice(len(structures), p=weights / weights.sum()))]["locations"]
        shape = self.array(self.folder, case, "image").shape
        return self._crop(self.folder, case, self._around(np.array(voxels[int(rng.integers(len(voxels)))]), shape, rng), rng)

    def _draw_unlabelled(self, rng: np.random.Generator) -> torch.Tensor:
        case = self.unlabelled_cases[int(rng.integers(len(self.unlabelled_cases)))]
        return self._crop(self.unlabelled_folder, case, self._anywhere(self.unlabelled_folder, case, rng), None)["image"]

    def _voxels(self) -> np.ndarray:
        margin = MARGIN if self.augment else 1.0
        return np.array([int(round(n * margin)) * self.factor for n in self.crop_size])

    def _around(self, voxel: np.ndarray, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        size = self._voxels()
        start = voxel[1:] - (rng.uniform(0.1, 0.9, 2) * size).astype(int)
        return np.array([voxel[0], *inside(start, size, shape[1:])])

    def _anywhere(self, folder: Path, case: str, rng: np.random.Generator) -> np.ndarray:
        size, shape = self._voxels(), self.array(folder, case, "image").shape
        start = (rng.random(2) * (np.asarray(shape[1:]) - size + 1)).astype(int)
        return np.array([int(rng.integers(shape[0])), *inside(start, size, shape[1:])])

    def _crop(self, folder: Path, case: str, first: np.ndarray, rng: np.random.Generator | None) -> dict[str, torch.Tensor]:
        """Slice `first[0]` with its neighbours from row and column `first[1:]` on; with `rng` the label of the middle one too."""
        middle = NEIGHBOURS // 2
        box = [first[0] - middle, *first[1:]], [NEIGHBOURS, *self._voxels()]
        image = torch.from_numpy(crop_and_pad(self.array(folder, case, "image"), *box).astype(np.float32))
        if rng is None:
            return self.transform(self.crop_size, shrink(image, self.factor), None)
        stored = torch.from_numpy(crop_and_pad(self.array(folder, case, "labels"), *box).astype(np.int16))
        image, labels = self.other_signal(image, stored, rng), stored[middle:middle + 1]
        if not self.soft_labels:
            return self.transform(self.crop_size, shrink(image, self.factor), labels_of_pixels(labels, self.factor, self.classes))
        # Moved as voxels and averaged then: averaged first, shares would be blurred once more by every rotation.
        rows, columns = self.crop_size
        moved = self.transform((rows * self.factor, columns * self.factor), image, labels)
        return {"image": shrink(moved["image"], self.factor),
                "segmentation": soft_labels_of_pixels(moved["segmentation"][0], self.factor, self.classes)}


@dataclass
class PatchBatches(_Batches):
    """For the 3D network: patches of one volume, placed on a voxel of a random class or anywhere.

    A batch: image (B, D + 2, H + 2 c0, W + 2 c1), the patch with its context and one slice more on both ends; corner (B, 2), row and
    column of the patch in it, multiples of `step`; target (B, 1, D, H, W). The context lies where the scan is, as windows do at
    inference: a patch at the upper end keeps the sacrum in view.
    """

    patch_size: tuple[int, int, int]
    context: tuple[int, int]
    step: int
    batch_size: int
    class_centred_fraction: float

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        rng = self.generator(index)
        case = self.cases[int(rng.integers(len(self.cases)))]
        samples = [self._patch(case, rng) for _ in range(self.batch_size)]
        return {key: torch.stack([s[key] for s in samples]) for key in samples[0]}

    def _patch(self, case: str, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        image, size = self.array(self.folder, case, "image"), np.array(self.patch_size)
        structures = list(self.dataset(self.folder).properties(case)["structures"].values())
        if structures and rng.random() < self.class_centred_fraction:
            voxels = structures[int(rng.integers(len(structures)))]["locations"]
            start = np.array(voxels[int(rng.integers(len(voxels)))]) - (rng.uniform(0.2, 0.8, 3) * size).astype(int)
        else:
            start = (rng.random(3) * (np.array(image.shape) - size + 1)).astype(int)
        start = inside(start, size, image.shape)
        context, corner = np.array([0, *self.context]), np.zeros(3, int)
        corner[1:] = (start - inside(start - context, size + 2 * context, image.shape))[1:]
        corner[1:] = np.clip(np.round(corner[1:] / self.step).astype(int) * self.step, 0, 2 * context[1:])
        box = start - corner - [1, 0, 0], size + 2 * context + [2, 0, 0]
        region = torch.from_numpy(crop_and_pad(image, *box).astype(np.float32))
        labels = torch.from_numpy(crop_and_pad(self.array(self.folder, case, "labels"), *box).astype(np.int16))
        rows, columns = region.shape[1:]
        sample = self.transform((rows, columns), self.other_signal(region, labels, rng), labels[1:-1])
        row, column = corner[1:]
        target = sample["segmentation"][:, row:row + size[1], column:column + size[2]]
        return {"image": sample["image"], "corner": torch.from_numpy(corner[1:]), "target": target[None]}
