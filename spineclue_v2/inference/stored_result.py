"""A result read back from the files of a prediction."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..export.evidence_file import ENDING, read_evidence
from ..export.run_files import Provenance
from ..flags import Flag
from ..imageio.hounsfield import checked_ct
from ..imageio.volume import read_labels, read_volume
from ..results import SpineResult
from ..utilities.files import read_json
from .cases import list_cases


def stored_cases(folder: str | Path) -> list[str]:
    """Names of the complete cases of a prediction folder. InputError where there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"Folder {folder} does not exist; give a folder that spineclue_predict wrote.")
    found = sorted(file.name.removesuffix(".nii.gz") for file in folder.glob("*.nii.gz")
                   if not file.name.startswith(".") and (folder / f"{file.name.removesuffix('.nii.gz')}.json").is_file())
    if not found:
        raise InputError(f"{folder} holds no results (CASE.nii.gz beside CASE.json); give a folder that spineclue_predict wrote.")
    return found


def read_result(folder: str | Path, name: str) -> SpineResult:
    """The CT result `name` of a prediction folder, without its scan; masks lie on the scan's grid.

    Raises InputError for a result of MR, of an older version, or whose files do not belong together.
    """
    folder = Path(folder)
    record = read_json(folder / f"{name}.json", "prediction")
    if not isinstance(record, dict) or "structures" in record or "vertebrae" not in record:
        raise InputError(f"{folder / name}.json is no result of a CT; only those are numbered again.")
    labels = read_labels(folder / f"{name}.nii.gz")
    if not record["vertebrae"] and not (folder / f"{name}{ENDING}").exists():
        return _result(record, grid=labels.geometry, mask_grid=labels.geometry.reoriented("LPS")[0])
    vertebrae, basis, mask_grid = read_evidence(folder / f"{name}{ENDING}", labels)
    return _result(record, vertebrae=vertebrae, basis=basis, grid=labels.geometry, mask_grid=mask_grid)


def _result(record: dict[str, Any], **more: Any) -> SpineResult:
    try:
        flags = tuple(Flag(**flag) for flag in record.get("flags", ()))
    except (TypeError, ValueError) as error:
        raise InputError(f"A flag of the result is unknown to this version ({error}); predict the scan again.") from error
    values: dict[str, Any] = {"vertebrae": (), "numbering_anchored": bool(record["numbering_anchored"])} | more
    return SpineResult(**values, margin=record.get("margin"), seconds=dict(record.get("seconds", {})),
                       notes=tuple(record.get("notes", ())), extra=dict(record.get("extra", {})),
                       incomplete=tuple(record.get("incomplete", ())), flags=flags,
                       anchored_by=record.get("anchored_by"), known=record.get("known"),
                       provenance=Provenance(model=record.get("plans", {})))


def with_scan(result: SpineResult, folder: str | Path, name: str, source: str | Path | None = None) -> SpineResult:
    """The result with its scan (HU), which is looked for where `predict_args.json` of `folder` says, or in `source`.

    Raises InputError where it is not there any more or has another grid.
    """
    asked = read_json(Path(folder) / "predict_args.json", "arguments of the prediction")
    place = source or asked.get("input")
    found = [case for case in list_cases(place or "", modality="CT") if case.name == name] if place else []
    if not found:
        raise InputError(f"The scan of {name} is not in {place}.")
    volume = read_volume(found[0].path, series=found[0].series, modality="CT")
    if result.grid is None or not volume.geometry.same_grid(result.grid, tolerance=0.1):
        raise InputError(f"{found[0].path} lies on another grid than the result {name}.")
    volume = checked_ct(volume, str(found[0].path), asked.get("options", {}).get("intensity_offset"))
    made_by = replace(result.provenance or Provenance(), source=str(found[0].path), files=volume.files,
                      options=asked.get("options", {}))
    return replace(result, scan=volume, provenance=made_by)
