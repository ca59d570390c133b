"""What a folder of predictions says of the run that made it."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..plans.plans import Plans
from ..utilities.files import write_json


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from: the scan as it was given (a path, or the kind of object), the model's record for `CASE.json`, the
    plans it obeys, the options of the call, and the DICOM files of the slices (`Volume.files`)."""

    source: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    plans: Plans | None = None
    options: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


def write_run_files(folder: str | Path, made_by: Provenance) -> dict[str, Path]:
    """`predict_args.json` and `plans.json`: what was asked for, and by which numbers it was done. Returns their paths."""
    folder = Path(folder)
    paths = {"arguments": folder / "predict_args.json"}
    write_json(paths["arguments"], {"input": made_by.source, "model": made_by.model, "options": made_by.options})
    if made_by.plans is not None:
        paths["plans"] = folder / "plans.json"
        made_by.plans.save(paths["plans"])
    return paths


def check_target(folder: str | Path, case: str, source: str | Path) -> None:
    """InputError when the labels of `case` in `folder` would replace the scan `source` itself."""
    target = Path(folder) / f"{case}.nii.gz"
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise InputError(f"The labels of {source} would replace the scan itself; give another output folder than {folder}.")
