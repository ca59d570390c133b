"""One row per labelled vertebra of preprocessed cases: what batches are drawn from."""
from __future__ import annotations

import numpy as np

from ..anatomy import LEVEL_INDEX_OF_LABEL
from ..errors import InputError
from .preprocessed import PreprocessedDataset


def nothing_to_learn_from(dataset: PreprocessedDataset, cases: list[str], what: str = "vertebra") -> InputError:
    """The error of a sampler whose cases all lack what it learns from."""
    return InputError(f"None of the {len(cases)} cases of {dataset.folder} shows a {what} to learn from; check the labels of the dataset.")


def regular_rows(dataset: PreprocessedDataset, cases: list[str]) -> list[tuple[str, int, np.ndarray]]:
    """`vertebra_table` without variants (T13, L6): the networks know the 24 regular levels."""
    return [row for row in vertebra_table(dataset, cases) if row[1] in LEVEL_INDEX_OF_LABEL]






def vertebra_table(dataset: PreprocessedDataset, cases: list[str]) -> list[tuple[str, int, np.ndarray]]:
    """(case, label value, centre of the mask's bounding box (z, y, x) index) of every labelled vertebra."""
    rows = []
    for case in cases:
        for vertebra in dataset.properties(case)["vertebrae"].values():
            centre = (np.array(vertebra["start"]) + np.array(vertebra["stop"]) - 1) / 2
            rows.append((case, int(vertebra["label"]), centre))
    return rows
