"""Cases that a training learns from beside its own: they lie in folders of their own, and have their own part of the batches."""
from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..dataset.preprocessed import PreprocessedDataset
from ..errors import InputError

logger = logging.getLogger("spineclue_v2.training")


@dataclass(frozen=True)
class AddedCases:
    """Preprocessed cases outside the dataset's folders.

    Attributes:
        base: folder that holds one preprocessed folder per data fingerprint.
        cases: their names.
        share: part of the training batches that is made of them, 0 to 1; each batch is of one kind.
    """

    base: Path
    cases: tuple[str, ...]
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"The share of batches of added cases is {self.share:g}; expected a number between 0 and 1.")

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint says of them."""
        return {"cases": list(self.cases), "share": self.share}


@dataclass
class MixedBatches:
    """Batch i from `added` with probability `share`, else from `own`; which one depends on (seed, i) alone."""

    own: Any
    added: Any
    share: float
    seed: int

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        chosen = self.added if np.random.default_rng([self.seed, index, 2]).random() < self.share else self.own
        batch: dict[str, torch.Tensor] = chosen(index)
        return batch


def mixed_sampler(trainer: Any, added: AddedCases) -> Any:
    """Training batches of a trainer's own cases and of the added ones, which its sampler draws from their own folder."""
    own, here = trainer.batch_sampler(training=True), (trainer.dataset, trainer.train_cases)
    try:
        trainer.dataset, trainer.train_cases = PreprocessedDataset(added.base / trainer.plan.data_fingerprint), list(added.cases)
        if not trainer.has_samples(trainer.train_cases):
            logger.info("The added cases have nothing that stage %s learns from.", trainer.stage)
            return own
        return MixedBatches(own, trainer.batch_sampler(training=True), added.share, trainer.seed)
    finally:
        trainer.dataset, trainer.train_cases = here
