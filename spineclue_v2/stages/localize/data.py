"""Slices and boxes for the detector, cut straight from preprocessed volumes (no image files)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from ...anatomy import IGNORED
from ...dataset.preprocessed import PreprocessedDataset
from ...preprocessing.augmentation import augment_hu, field_ends
from ...preprocessing.resampling import windows
from .slices import PLANES, take_slice

MIN_SHARE_OF_LARGEST = 0.25   # a box is made where the section holds at least this share of the vertebra's largest section
MIN_BOX_MM = 6.0
BACKGROUND_FRACTION = 0.2        # share of training slices drawn anywhere instead of through a vertebra
KEPT_FRACTION = 0.45             # a vertebra that the border cuts keeps its box while this much of the section is left
CUT_PROBABILITY = 0.3         # of a slice that ends at a vertebra
AIR_HU = -1024


def section_areas(labels: np.ndarray, values: list[int], starts: np.ndarray, stops: np.ndarray) -> dict[str, np.ndarray]:
    """Largest section of each label in pixels per plane: {'sagittal': (n,), 'coronal': (n,)}."""
    largest = {plane: np.zeros(len(values)) for plane in PLANES}
    for i, value in enumerate(values):
        box = tuple(slice(int(a), int(b)) for a, b in zip(starts[i], stops[i], strict=True))
        mask = labels[box] == value
        largest["sagittal"][i] = mask.sum((0, 1)).max()
        largest["coronal"][i] = mask.sum((0, 2)).max()
    return largest


def section_boxes(cut: np.ndarray, largest: dict[int, float], spacing: float) -> np.ndarray:
    """Boxes (n, 4) x0, y0, x1, y1 in pixels of the label sections of a slice; slivers and the mere edges of a vertebra dropped."""
    rows = []
    for value, box in enumerate(ndimage.find_objects(cut.astype(np.int32)), start=1):
        if box is None or value not in largest:
            continue
        area = int((cut[box] == value).sum())
        height, width = (box[0].stop - box[0].start), (box[1].stop - box[1].start)
        if area >= MIN_SHARE_OF_LARGEST * largest[value] and min(height, width) * spacing >= MIN_BOX_MM:
            rows.append((box[1].start, box[0].start, box[1].stop, box[0].stop))
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


@dataclass
class SliceBatches:
    """Training batches: random slices of random cases, augmented. Batch i depends on (seed, i) alone."""

    folder: Any
    cases: list[str]
    windows_hu: tuple[tuple[float, float], ...]
    slice_size: tuple[int, int]
    spacing: float
    batch_size: int
    seed: int
    augment: bool = True

    def __post_init__(self) -> None:
        self._cache: dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]] = {}

    def _case(self, case: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        if case not in self._cache:
            dataset = PreprocessedDataset(self.folder)
            content = dataset.properties(case)
            properties = content["vertebrae"]
            labels = dataset.labels(case)[:]
            values = [v["label"] for v in properties.values()]
            starts = np.array([v["start"] for v in properties.values()]).reshape(-1, 3)
            stops = np.array([v["stop"] for v in properties.values()]).reshape(-1, 3)
            areas = section_areas(labels, values, starts, stops)
            while self._cache and self._is_full(labels.size):
                self._cache.pop(next(iter(self._cache)))
            self._cache[case] = (dataset.image(case)[:], labels, {"values": values, "starts": starts, "stops": stops, "areas": areas,
                                                                    "partly_annotated": content.get("partly_annotated", False)})
        return self._cache[case]

    def _is_full(self, voxels: int) -> bool:
        """Whether a case must leave before one of so many voxels comes: a few tens of coarse volumes fit anywhere; thousands do not."""
        return len(self._cache) >= 48

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, index])
        images, owners, boxes = [], [], []
        # A batch shares few cases so that a volume, once read, is used more than once.
        chosen = rng.choice(len(self.cases), size=max(1, self.batch_size // 2))
        for slot in range(self.batch_size):
            image, found = self._sample(self.cases[chosen[slot % len(chosen)]], rng)
            images.append(image)
            boxes.append(found)
            owners.append(np.full(len(found), slot))
        return {"image": torch.from_numpy(np.stack(images)), "batch_index": torch.from_numpy(np.concatenate(owners)).long(),
                "boxes": torch.from_numpy(np.concatenate(boxes)).float()}

    def _sample(self, case: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, labels, info = self._case(case)
        plane = PLANES[int(rng.integers(2))]
        axis = 2 if plane == "sagittal" else 1
        if len(info["values"]) and rng.random() > BACKGROUND_FRACTION:
            pick = int(rng.integers(len(info["values"])))
            index = int(rng.integers(info["starts"][pick][axis], info["stops"][pick][axis]))
        else:
            index = int(rng.integers(image.shape[axis]))
        largest = {v: float(a) for v, a in zip(info["values"], info["areas"][plane], strict=True)}
        cut, truth = take_slice(image, plane, index), take_slice(labels, plane, index)
        found = section_boxes(truth, largest, self.spacing)
        if info["partly_annotated"]:
            # What nobody annotated may be a vertebra: as air it teaches neither that it is one nor that it is none.
            cut = np.where(truth == IGNORED, AIR_HU, cut)
        if not self.augment:
            return place_slice(windows(cut, self.windows_hu), found, self.slice_size, (0.5, 0.5))
        if len(found) and rng.random() < CUT_PROBABILITY:
            cut, found = cut_field(cut, found, rng)
        cut = windows(augment_hu(cut, rng, self.spacing), self.windows_hu)
        return augment_slice(cut, found, self.slice_size, rng, mirror=plane == "coronal")


def cut_field(cut: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A part of a slice (rows, columns) that ends within or near a random one of its boxes; boxes that mostly remain."""
    x0, y0, x1, y1 = boxes[int(rng.integers(len(boxes)))]
    (top, bottom), (left, right) = field_ends((y0, x0), (y1, x1), cut.shape, rng, KEPT_FRACTION)
    moved = boxes - np.array([left, top, left, top], dtype=np.float32)
    clipped, kept = clip_boxes(moved, (bottom - top, right - left))
    return cut[top:bottom, left:right], clipped[kept]


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) x0, y0, x1, y1 cut at an image of `size` (rows, columns), and bool (n,): those of which enough remains."""
    clipped = np.clip(boxes, 0, np.array([size[1], size[0], size[1], size[0]], dtype=np.float32))
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return clipped, np.prod(clipped[:, 2:] - clipped[:, :2], axis=1) >= KEPT_FRACTION * np.maximum(area, 1e-6)


def place_slice(cut: np.ndarray, boxes: np.ndarray, size: tuple[int, int], where: tuple[float, float],
                scale: float = 1.0, flip: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scale a slice (C, h, w), crop or pad it to `size`, and return it with its boxes as relative (cx, cy, w, h).

    `where` in 0..1 is the position of the crop (or of the slice inside the padding) along rows and columns.
    """
    if scale != 1.0:
        cut = ndimage.zoom(cut, (1, scale, scale), order=1)
        boxes = boxes * scale
    if flip:
        cut = cut[:, :, ::-1]
        boxes = np.stack([cut.shape[2] - boxes[:, 2], boxes[:, 1], cut.shape[2] - boxes[:, 0], boxes[:, 3]], axis=1)
    out = np.zeros((cut.shape[0], *size), dtype=np.float32)
    source, target, shift = [], [], []
    for length, wanted, share in zip(cut.shape[1:], size, where, strict=True):
        free = wanted - length
        begin = int(round(abs(free) * share))
        copied = min(length, wanted)
        source.append(slice(0, copied) if free >= 0 else slice(begin, begin + copied))
        target.append(slice(begin, begin + copied) if free >= 0 else slice(0, copied))
        shift.append(begin if free >= 0 else -begin)
    out[:, target[0], target[1]] = cut[:, source[0], source[1]]
    moved = boxes + np.array([shift[1], shift[0], shift[1], shift[0]], dtype=np.float32)
    clipped, kept = clip_boxes(moved, size)
    clipped = clipped[kept]
    centre, extent = (clipped[:, :2] + clipped[:, 2:]) / 2, clipped[:, 2:] - clipped[:, :2]
    relative = np.concatenate([centre, extent], axis=1) / np.array([size[1], size[0], size[1], size[0]], dtype=np.float32)
    return out, relative.astype(np.float32)


def augment_slice(cut: np.ndarray, boxes: np.ndarray, size: tuple[int, int], rng: np.random.Generator,
                  mirror: bool) -> tuple[np.ndarray, np.ndarray]:
    """Random scale, position, left-right mirror (coronal only; never up-down), brightness, contrast and gamma."""
    scale = float(np.exp(rng.uniform(np.log(0.8), np.log(1.25)))) if rng.random() < 0.7 else 1.0
    cut, boxes = place_slice(cut, boxes, size, (rng.random(), rng.random()), scale, mirror and rng.random() < 0.5)
    if rng.random() < 0.3:
        cut = cut * rng.uniform(0.8, 1.25) + rng.uniform(-0.08, 0.08)
    if rng.random() < 0.3:
        cut = np.clip(cut, 0, 1) ** rng.uniform(0.7, 1.4)
    return np.clip(cut, 0, 1).astype(np.float32), boxes
