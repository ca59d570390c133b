"""Batches for the ribs classifier: what lies beside the bodies of the dataset's scans, levels equally often."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...anatomy import NAME_OF_LABEL
from ...anatomy.vertebral_gaps import sort_cranio_caudal
from ...dataset.preprocessed import PreprocessedDataset
from ...dataset.vertebra_rows import nothing_to_learn_from
from ...imageio.grid import ImageGrid
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from .features import inputs_of, narrowed, reaches
from .groups import GROUP_OF

VIEWS = 3            # of each scan, its centres moved differently
NARROWED = 0.7       # of the vertebrae that training sees


@dataclass(frozen=True)
class Beside:
    """A scan's vertebrae: `found` (n, 2, thresholds, bins, 4) of `reaches`, `names` (n,) levels."""

    found: np.ndarray
    names: tuple[str, ...]


def beside(volume: Volume, names: Sequence[str], centres_xyz: np.ndarray, thresholds_hu: Sequence[float], jitter_mm: float,
           rng: np.random.Generator) -> Beside:
    """What lies beside the bodies of a scan, seen from centres (n, 3) LPS mm that are moved by about `jitter_mm`."""
    centres = np.asarray(centres_xyz, dtype=float).reshape(-1, 3)
    moved = centres + rng.normal(0, 1, centres.shape) * jitter_mm / np.sqrt(3)
    return Beside(reaches(volume, moved, thresholds_hu), tuple(names))


def rows_of_case(dataset: PreprocessedDataset, case: str) -> tuple[list[str], np.ndarray]:
    """Levels and body centres (n, 3) LPS mm of a preprocessed case, cranio-caudal."""
    properties = dataset.properties(case)
    grid = ImageGrid.from_json(properties["geometry"])
    found = [(NAME_OF_LABEL[v["label"]], grid.index_to_world(np.array(v["body_centre"], dtype=float)))
             for v in properties["vertebrae"].values() if NAME_OF_LABEL.get(v["label"]) in GROUP_OF]
    if not found:
        return [], np.zeros((0, 3))
    centres = np.array([centre for _, centre in found])
    order = sort_cranio_caudal(centres)
    return [found[i][0] for i in order], centres[order]


def sample(scans: Sequence[Beside], size: int, rng: np.random.Generator, augment: bool) -> tuple[Tensor, Tensor]:
    """Inputs (B, features) and groups (B,) of `size` vertebrae, levels equally often.

    Args:
        scans: with a vertebra at least.
        size: B.
        rng: decides.
        augment: fields are narrowed and sides exchanged.
    """
    places: dict[str, list[tuple[int, int]]] = {}
    for i, scan in enumerate(scans):
        for k, name in enumerate(scan.names):
            places.setdefault(name, []).append((i, k))
    levels = sorted(places)
    rows, groups = [], []
    for level in rng.integers(len(levels), size=size):
        of_level = places[levels[int(level)]]
        i, k = of_level[int(rng.integers(len(of_level)))]
        found = scans[i].found[k:k + 1]
        if augment and rng.random() < NARROWED:
            found = narrowed(found, rng)
        rows.append(found)
        groups.append(GROUP_OF[levels[int(level)]])
    return torch.from_numpy(inputs_of(np.concatenate(rows))), torch.tensor(groups)


@dataclass
class RibsBatches:
    """{"inputs" (B, features), "group" (B,)}; levels equally often. Batch i depends on (seed, i)."""

    folder: Path
    cases: list[str]
    plan: StagePlan
    seed: int
    augment: bool = True

    def __post_init__(self) -> None:
        self._scans: list[Beside] = []

    def prepare(self) -> None:
        """Read what lies beside all bodies, once."""
        if self._scans:
            return
        dataset = PreprocessedDataset(self.folder)
        for case in self.cases:
            self._scans += [self.case(dataset, case, view if self.augment else None) for view in range(VIEWS if self.augment else 1)]
        self._scans = [scan for scan in self._scans if scan.names]
        if not self._scans:
            raise nothing_to_learn_from(dataset, self.cases)

    def case(self, dataset: PreprocessedDataset, case: str, view: int | None = None) -> Beside:
        """One case; `view`: its centres are moved, differently in each."""
        names, centres = rows_of_case(dataset, case)
        volume = Volume(np.asarray(dataset.image(case)[:]), ImageGrid.from_json(dataset.properties(case)["geometry"]))
        rng = np.random.default_rng([self.seed, 0 if view is None else view + 1])
        return beside(volume, names, centres, self.plan.network.thresholds_hu, 0.0 if view is None else self.plan.run.centre_jitter_mm, rng)

    def __call__(self, index: int) -> dict[str, Tensor]:
        self.prepare()
        inputs, group = sample(self._scans, self.plan.run.batch_size, np.random.default_rng([self.seed, index]), self.augment)
        return {"inputs": inputs, "group": group}
