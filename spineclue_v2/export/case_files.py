"""All files of a predicted case."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..imageio.centroids import write_ctd
from ..imageio.volume import Volume, write_volume
from ..utilities.files import write_json
from .case_record import case_record
from .colour_tables import write_colour_tables
from .formats import remove_formats
from .label_map import label_map
from .labelled_spine import LabelledSpine


def export_case(result: LabelledSpine, folder: str | Path, case: str, plans: Mapping[str, Any] | None = None,
                labels: Volume | None = None) -> dict[str, Path]:
    """Write `CASE.nii.gz`, `CASE_ctd.json`, the colour tables (once per folder) and, last, `CASE.json`; returns their paths.

    A case whose `CASE.json` exists is complete. A result without vertebrae gives an empty label map and says so.

    Args:
        result: with both grids; everything is written on the scan's own.
        folder: made where it is missing.
        case: name of the files.
        plans: what is said of the model in `CASE.json`.
        labels: the label map where it was drawn before, else it is drawn here.

    Raises:
        InputError: the result has no grids, or a file cannot be written.
    """
    folder = Path(folder)
    grid, mask_grid = result.grids()
    paths = {"labels": folder / f"{case}.nii.gz", "centroids": folder / f"{case}_ctd.json", "record": folder / f"{case}.json"}
    write_volume(labels or Volume(label_map(result.vertebrae, mask_grid, grid), grid), paths["labels"])
    write_ctd(paths["centroids"], result.vertebrae, grid)
    write_colour_tables(folder)
    write_json(paths["record"], case_record(result, plans))
    return paths


def remove_earlier(folder: str | Path, case: str) -> None:
    """Take away what an earlier run left of a case and this one may not write again: CASE.json first, which vouches for the rest."""
    for ending in (".json", ".npz", ".png"):
        (Path(folder) / f"{case}{ending}").unlink(missing_ok=True)
    remove_formats(folder, case)
