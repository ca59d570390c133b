"""Batches of spines for the geometry classifier: the dataset's own centres, and spine curves of the phantom."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...anatomy import EMITTING_LEVEL, LEVEL_INDEX, NAME_OF_LABEL, ORDER_INDEX
from ...anatomy.vertebral_gaps import sort_cranio_caudal
from ...dataset.preprocessed import PreprocessedDataset
from ...imageio.grid import ImageGrid
from ...plans.plans import StagePlan
from .features import Augmentation, Batch, augment
from .landmarks import L6, Landmarks
from .training import sample_spine_curves
from .variants import with_rare_numberings


def landmarks_of(dataset: PreprocessedDataset, case: str) -> Landmarks | None:
    """Body centres (LPS mm, cranio-caudal) and levels of a preprocessed case; None when it shows no vertebra. T13 counts as T12."""
    properties = dataset.properties(case)
    grid = ImageGrid.from_json(properties["geometry"])
    rows = [(NAME_OF_LABEL.get(v["label"], ""), v["body_centre"]) for v in properties["vertebrae"].values()]
    rows = [(name, grid.index_to_world(np.array(centre))) for name, centre in rows if name in ORDER_INDEX]
    if not rows:
        return None
    centres = np.array([centre for _, centre in rows])
    order = sort_cranio_caudal(centres)
    targets = np.array([L6 if name == "L6" else LEVEL_INDEX[EMITTING_LEVEL[name]] for name, _ in rows])
    return Landmarks(centres[order], targets[order])


@dataclass
class SpineBatches:
    """{"0.centres" (S, N, 3), "0.targets" (S, N), ..., "1.centres", ...}: the fields of a `Batch` for each member of the network, which
    see different scans. Batch i depends on (seed, i) alone."""

    folder: Path
    cases: list[str]
    plan: StagePlan
    seed: int
    with_phantom: bool = True
    augment: bool = True

    def __post_init__(self) -> None:
        self._members: list[Batch] = []

    def _prepare(self) -> None:
        if self._members:
            return
        dataset = PreprocessedDataset(self.folder)
        own = [found for case in self.cases if (found := landmarks_of(dataset, case)) is not None]
        made = sample_spine_curves(self.plan.run.sampled_spines, self.seed) if self.with_phantom else []
        for member in range(self.plan.network.members):
            scans = with_rare_numberings([*own, *made], self.seed + member) if self.augment else own
            self._members.append(Batch.of(scans, spare=1))

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        self._prepare()
        result: dict[str, torch.Tensor] = {}
        for member, data in enumerate(self._members):
            generator = torch.Generator().manual_seed(int(np.random.default_rng([self.seed, index, member]).integers(2 ** 62)))
            rows = torch.randint(len(data.present), (self.plan.run.batch_size,), generator=generator)
            batch = data.take(rows, spare=1)
            if self.augment:
                batch = augment(batch, Augmentation(window=self.plan.run.window), generator)
            result |= {f"{member}.{name}": value for name, value in batch.each().items()}
        return result


def member_batch(batch: dict[str, torch.Tensor], member: int) -> Batch:
    """The `Batch` of one member out of what `SpineBatches` gives."""
    return Batch(**{name.partition(".")[2]: value for name, value in batch.items() if name.startswith(f"{member}.")})
