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
from .evidence_file import ENDING as EVIDENCE
from .evidence_file import write_evidence
from .formats import remove_formats
from .label_map import label_map
from .labelled_spine import LabelledSpine
from .measure_files import MEASURE_ENDINGS


def export_case(result: LabelledSpine, folder: str | Path, case: str, plans: Mapping[str, Any] | None = None,
                labels: Volume | None = None) -> dict[str, Path]:
    """Write `CASE.nii.gz`, `CASE_evidence.npz`, `CASE_ctd.json`, the colour tables (once per folder) and, last, `CASE.json`; returns paths.

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
    paths = write_labels(result, folder, case, labels)
    paths["record"] = Path(folder) / f"{case}.json"
    write_json(paths["record"], case_record(result, plans))
    return paths


def write_labels(result: LabelledSpine, folder: str | Path, case: str, labels: Volume | None = None) -> dict[str, Path]:
    """What `export_case` writes, without `CASE.json`: for those who have more to write before the case is complete."""
    folder = Path(folder)
    grid, mask_grid = result.grids()
    paths = {"labels": folder / f"{case}.nii.gz", "centroids": folder / f"{case}_ctd.json"}
    labels = labels or Volume(label_map(result.vertebrae, mask_grid, grid), grid)
    write_volume(labels, paths["labels"])
    if result.basis is not None:
        paths["evidence"] = folder / f"{case}{EVIDENCE}"
        write_evidence(result, paths["evidence"], labels.array)
    write_ctd(paths["centroids"], result.vertebrae, grid)
    write_colour_tables(folder)
    return paths


def remove_earlier(folder: str | Path, case: str, probabilities: bool = True) -> None:
    """Take away what an earlier run left of a case and this one may not write again: CASE.json first, which vouches for the rest.

    `probabilities`: also CASE.npz.
    """
    for ending in (".json", EVIDENCE, *([".npz"] if probabilities else []), ".png", ".html", *MEASURE_ENDINGS):
        (Path(folder) / f"{case}{ending}").unlink(missing_ok=True)
    remove_formats(folder, case)
