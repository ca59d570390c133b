"""Training batches of stage volume: masks of labelled vertebrae and their volumes."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spineclue_v2.adapters import crop_and_pad
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.dataset.vertebra_rows import vertebra_table
from spineclue_v2.plans.plans import StagePlan
from spineclue_v2.preprocessing.crops import crop_start


@dataclass
class VolumeBatches:
    """{"image" (B, 1, z, y, x), "log_ml" (B,)}. Batch i depends on (seed, i) alone, so that a training can be continued.

    The scans are opened at the first batch: the object travels to worker processes.
    """

    folder: Path
    cases: list[str]
    plan: StagePlan
    seed: int
    rows: list[tuple[str, int, np.ndarray]] = field(default_factory=list, init=False)

    def __call__(self, index: int) -> dict[str, Tensor]:
        if not self.rows:
            self.dataset = PreprocessedDataset(self.folder)
            self.rows = vertebra_table(self.dataset, self.cases)
        rng = np.random.default_rng([self.seed, index])
        return self.batch([self.rows[int(k)] for k in rng.integers(len(self.rows), size=self.plan.run.batch_size)])

    def batch(self, rows: list[tuple[str, int, np.ndarray]]) -> dict[str, Tensor]:
        """Masks and volumes of these (case, label value, middle of the mask)."""
        size, voxel_ml = self.plan.network.crop_size, self.plan.data.spacing_mm ** 3 / 1000
        masks = np.stack([crop_and_pad(self.dataset.labels(case), crop_start(middle, size), size) == label for case, label, middle in rows])
        image = torch.from_numpy(masks[:, None].astype(np.float32))
        return {"image": image, "log_ml": (image.sum((1, 2, 3, 4)) * voxel_ml).clamp(min=voxel_ml).log()}
