"""Crops of the CT around vertebrae for the appearance classifier: balanced over levels, with places that are no vertebra."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...anatomy import IGNORED, LABEL_OF_NAME, LEVEL_INDEX_OF_LABEL
from ...dataset.preprocessed import PreprocessedDataset
from ...dataset.vertebra_rows import nothing_to_learn_from
from ...imageio.grid import ImageGrid
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...preprocessing.moving_grids import moving_grid
from ...utilities.triples import box_slices
from .crops import NOT_A_VERTEBRA, SACRUM, SKULL, cut_crops, to_coarse_grid

FALSE_DISTANCE_MM = 30.0
BEYOND_FRACTION = 0.6               # of false places, just beyond C1 or the last lumbar vertebra: a sacrum looks like one more vertebra
BEYOND_MM = 8.0
CUT_FRACTION = 0.4                  # crops whose upper or lower end is cut off, as fields of view do
GAIN, OFFSET, NOISE = 0.25, 0.12, 0.06   # of windowed intensities 0..1
GAMMA, SHADING, SHADING_GRID = 0.4, 0.12, (3, 4, 4)   # logarithm of the exponent; slow changes across the crop and their grid
BLUR_FRACTION, HIDDEN_FRACTION = 0.3, 0.5     # crops that are blurred; crops with a box of random intensity


def beyond_ends(labels: Sequence[int], centres_xyz: np.ndarray) -> list[np.ndarray]:
    """Where one more vertebra would lie above C1 and below the last lumbar one (LPS mm): skull and sacrum. `labels` (n,) VerSe values of
    `centres_xyz` (n, 3); an end of the field of view is no end of the spine."""
    order = np.argsort(-np.asarray(centres_xyz)[:, 2])
    if len(order) < 2:
        return []
    values, centres = [labels[i] for i in order], np.asarray(centres_xyz)[order]
    places = [2 * centres[0] - centres[1]] if values[0] == LABEL_OF_NAME["C1"] else []
    return places + ([2 * centres[-1] - centres[-2]] if values[-1] in (LABEL_OF_NAME["L5"], LABEL_OF_NAME["L6"]) else [])


@dataclass
class AppearanceBatches:
    """{"image" (B, C, z, y, x), "level" (B,)}; levels equally often, class 24 are places off the spine, with the plan's `landmarks` 25 the
    sacrum and 26 the skull base. Batch i depends on (seed, i)."""

    folder: Path
    cases: list[str]
    plan: StagePlan
    seed: int
    augment: bool = True

    def __post_init__(self) -> None:
        self._scans: dict[str, Volume] = {}
        self._centres: dict[str, np.ndarray] = {}
        self._beyond: dict[str, list[np.ndarray]] = {}
        self._rows: dict[int, list[tuple[str, np.ndarray]]] = {}

    def prepare(self) -> None:
        """Read what is needed once: coarse scans stay in memory, a few hundred kilobytes each."""
        if self._rows:
            return
        dataset = PreprocessedDataset(self.folder)
        for case in self.cases:
            properties = dataset.properties(case)
            geometry = ImageGrid.from_json(properties["geometry"])
            vertebrae = [v for v in properties["vertebrae"].values() if v["label"] in LEVEL_INDEX_OF_LABEL]
            if not vertebrae:
                continue
            self._scans[case] = to_coarse_grid(Volume(np.asarray(dataset.image(case)[:]), geometry), self.plan)
            self._centres[case] = geometry.index_to_world(np.array([v["body_centre"] for v in properties["vertebrae"].values()]))
            self._beyond[case] = beyond_ends([v["label"] for v in properties["vertebrae"].values()], self._centres[case])
            for vertebra in vertebrae:
                row = (case, geometry.index_to_world(np.array(vertebra["body_centre"])))
                self._rows.setdefault(LEVEL_INDEX_OF_LABEL[vertebra["label"]], []).append(row)
        if not self._rows:
            raise nothing_to_learn_from(dataset, self.cases, "regular vertebra (C1 to L5)")

    def rows_of(self, case: str) -> tuple[Tensor, Tensor]:
        """Inputs (n, C, z, y, x) and levels (n,) of one case's regular vertebrae, in cranio-caudal order, not augmented."""
        self.prepare()
        rows = [(level, centre) for level, found in self._rows.items() for name, centre in found if name == case]
        if not rows:
            return torch.zeros(0, len(self.plan.data.windows_hu), *self.plan.network.crop_size), torch.zeros(0, dtype=torch.long)
        rows.sort(key=lambda row: -row[1][2])
        images = cut_crops(self._scans[case], np.array([centre for _, centre in rows]), self.plan)
        return torch.from_numpy(images), torch.tensor([level for level, _ in rows])

    def __call__(self, index: int) -> dict[str, Tensor]:
        self.prepare()
        rng = np.random.default_rng([self.seed, index])
        levels = sorted(self._rows)
        images, targets = [], []
        for k in rng.permutation(max(len(levels), self.plan.run.batch_size))[:self.plan.run.batch_size]:
            level = levels[k % len(levels)]
            case, centre = self._rows[level][int(rng.integers(len(self._rows[level])))]
            if rng.random() < self.plan.run.false_fraction and (found := self._off_the_spine(case, rng)) is not None:
                level, centre = found
            elif self.augment:
                centre = centre + rng.normal(0, self.plan.run.centre_jitter_mm / np.sqrt(3), 3)
            images.append(cut_crops(self._scans[case], centre[None], self.plan)[0])
            targets.append(level)
        batch = torch.from_numpy(np.stack(images))
        return {"image": augment(batch, rng, self.plan.network.spacing_mm) if self.augment else batch, "level": torch.tensor(targets)}

    def _off_the_spine(self, case: str, rng: np.random.Generator) -> tuple[int, np.ndarray] | None:
        """Class and place (LPS mm) beyond an end of the spine, or of a random place of the scan well away from every vertebra; None when
        ten tries find none."""
        scan = self._scans[case]
        ends = [place for place in self._beyond[case] if (scan.geometry.world_to_index(place) > 0).all()
                and (scan.geometry.world_to_index(place) < np.array(scan.array.shape) - 1).all()]
        if ends and rng.random() < BEYOND_FRACTION:
            end = ends[int(rng.integers(len(ends)))]
            landmark = SKULL if end[2] > self._centres[case][:, 2].max() else SACRUM
            return landmark if self.plan.network.landmarks else NOT_A_VERTEBRA, end + rng.normal(0, BEYOND_MM / np.sqrt(3), 3)
        for _ in range(10):
            place = scan.geometry.index_to_world(rng.uniform(0, np.array(scan.array.shape) - 1))
            if self._is_ignored(case, place):
                continue
            if np.linalg.norm(self._centres[case] - place, axis=1).min() >= FALSE_DISTANCE_MM:
                return NOT_A_VERTEBRA, place
        return None


    def _is_ignored(self, case: str, place: np.ndarray) -> bool:
        """Whether nobody annotated this place (LPS mm): it may be a vertebra."""
        dataset = PreprocessedDataset(self.folder)
        properties = dataset.properties(case)
        if not properties.get("partly_annotated"):
            return False
        labels = dataset.labels(case)
        index = np.round(ImageGrid.from_json(properties["geometry"]).world_to_index(place)).astype(int)
        z, y, x = np.clip(index, 0, np.array(labels.shape) - 1)
        return int(labels[int(z):int(z) + 1, int(y):int(y) + 1, int(x):int(x) + 1].item()) == IGNORED


def augment(images: Tensor, rng: np.random.Generator, spacing_mm: float) -> Tensor:
    """Random movement with left-right mirror, contrast, brightness, shading, blur, noise, boxes that hide a part, and ends of the field
    of view cut off (air): what a patient's surroundings have in common with a phantom's must do."""
    count, channels, size = len(images), images.shape[1], np.array(images.shape[2:])

    def draw(spread: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(-spread, spread, (count, *shape))).float()

    moved = functional.grid_sample(images, moving_grid(count, size, rng, spacing_mm), align_corners=False, padding_mode="border")
    blurred = torch.from_numpy(rng.random(count) < BLUR_FRACTION)
    moved[blurred] = functional.avg_pool3d(moved[blurred], 3, 1, 1, count_include_pad=False)
    moved = moved.clamp_(0, 1) ** draw(GAMMA, channels, 1, 1, 1).exp()
    shading = functional.interpolate(draw(SHADING, channels, *SHADING_GRID), images.shape[2:], mode="trilinear", align_corners=True)
    noise = torch.from_numpy(rng.normal(0, NOISE * rng.random(), moved.shape).astype(np.float32))
    moved = (moved * (1 + draw(GAIN, channels, 1, 1, 1)) + draw(OFFSET, channels, 1, 1, 1) + shading + noise).clamp_(0, 1)
    for i in np.flatnonzero(rng.random(count) < HIDDEN_FRACTION):
        hidden = np.rint(size * rng.uniform(0.2, 0.5, 3)).astype(int)
        start = rng.integers(0, size - hidden + 1)
        z, y, x = box_slices(start, hidden)
        moved[i, :, z, y, x] = torch.from_numpy(rng.random(channels).astype(np.float32))[:, None, None, None]
    for i in np.flatnonzero(rng.random(count) < CUT_FRACTION):
        kept = int(rng.integers(size[0] // 2 + 1, size[0]))  # the vertebra itself stays
        moved[i, :, slice(kept, None) if rng.random() < 0.5 else slice(0, int(size[0]) - kept)] = 0
    return moved
