"""All files of a predicted case."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..imageio.centroids import write_ctd
from ..imageio.volume import ImageGrid, Volume, write_volume
from ..results import SpineResult
from ..utilities.files import write_json
from .case_record import case_record
from .colour_tables import write_colour_tables
from .label_map import label_map


def export_case(result: SpineResult, network_grid: ImageGrid, geometry: ImageGrid, folder: str | Path, case: str,
                plans: Mapping[str, Any] | None = None) -> dict[str, Path]:
    """Write `CASE.nii.gz`, `CASE_ctd.json`, the colour tables (once per folder) and, last, `CASE.json`; returns their paths.

    `model_geometry` is the grid of the vertebrae's masks, `geometry` the input scan's grid, on which the label map is written.
    A case whose `CASE.json` exists is complete. A result without vertebrae gives an empty label map and says so.
    """
    folder = Path(folder)
    paths = {"labels": folder / f"{case}.nii.gz", "centroids": folder / f"{case}_ctd.json", "record": folder / f"{case}.json"}
    write_volume(Volume(label_map(result.vertebrae, network_grid, geometry), geometry), paths["labels"])
    write_ctd(paths["centroids"], result.vertebrae, geometry)
    write_colour_tables(folder)
    write_json(paths["record"], case_record(result, plans))
    return paths
