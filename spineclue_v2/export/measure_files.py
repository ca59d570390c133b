"""Files of the measures of a case: a table, and the map of sub-regions."""
from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..imageio.volume import Volume, write_volume
from ..measures.parts import part_map
from ..utilities.files import atomic_path
from .label_map import label_map
from .labelled_spine import LabelledSpine

MEASURE_ENDINGS = ["_measures.csv", "_parts.nii.gz", "_measures.png"]

COLUMNS = ("group", "name", "levels", "disc", "value", "unit", "confidence", "position", "convexity", "apex", "sd", "volume_ml",
           "where", "measured_mm", "expected_mm", "loss", "interval", "reference", "grade_probabilities", "shape", "note")


def measure_rows(measures: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """All records as flat rows with the same keys, COLUMNS; lists as one text, their values apart by spaces."""
    for group, records in measures.items():
        for record in records:
            yield {"group": group} | {name: _flat(record.get(name)) for name in COLUMNS[1:]}


def _flat(value: Any) -> Any:
    if isinstance(value, Mapping):
        return " ".join(f"{key}:{entry}" for key, entry in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else value


def write_measures_table(path: Path, measures: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the rows as CSV, by rename; what is not known is empty."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(measure_rows(measures))


def export_measures(result: LabelledSpine, labels: Volume, folder: Path, case: str) -> dict[str, Path]:
    """Write `CASE_measures.csv` and `CASE_parts.nii.gz` of a result with measures; `labels` is its label map."""
    paths = {"measures": folder / f"{case}_measures.csv", "parts": folder / f"{case}_parts.nii.gz"}
    write_measures_table(paths["measures"], result.measures)
    parts = part_map(labels, result.bodies)
    if result.sacrum is not None:
        drawn = label_map([replace(result.sacrum, level="sacrum")], result.grids()[1], labels.geometry)
        parts = np.where((parts == 0) & (labels.array == 0), drawn, parts)
    write_volume(Volume(parts, labels.geometry), paths["parts"])
    return paths
