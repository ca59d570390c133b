"""Measures of label maps that exist: results of a prediction, or any map with VerSe's label values."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import LABEL_OF_NAME, VERTEBRA_LABELS
from ..errors import InputError
from ..export.case_record import vertebra_entry
from ..export.evidence_file import ENDING as EVIDENCE
from ..export.evidence_file import read_evidence
from ..export.measure_files import MEASURE_ENDINGS, export_measures
from ..flags import review_required
from ..imageio.orientation import check_same_grid
from ..imageio.volume import FILE_ENDINGS, Volume, read_labels, read_volume
from ..results import SpineResult
from ..stages.base import NumberingBasis
from ..utilities.files import read_json, write_json
from ..visualization.measures_picture import write_measures_picture
from ..visualization.overlay import vertebrae_of
from .predict_folder import list_cases


@dataclass(frozen=True)
class LabelledCase:
    """A label map to measure, what is known of it (the content of its `CASE.json`), and its CT where there is one."""

    name: str
    labels: Path
    record: Path | None = None
    scan: Path | None = None


def labelled_cases(source: str | Path, scans: str | Path | None = None) -> list[LabelledCase]:
    """The label map `source`, or all cases of the prediction folder `source`; `scans`: the CT, or a folder of CTs with the cases' names.

    Raises InputError where nothing is to be measured, and where a CT is asked for and missing.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source} does not exist.")
    if source.is_file():
        name = next((source.name[:-len(e)] for e in FILE_ENDINGS if source.name.lower().endswith(e)), "")
        if not name:
            raise InputError(f"{source} is no label map; expected {', '.join(FILE_ENDINGS)}, or a folder that spineclue_predict wrote.")
        record = source.parent / f"{name}.json"
        cases = [LabelledCase(name, source, record if record.is_file() else None)]
    else:
        records = sorted(p for p in source.glob("*.json") if (source / f"{p.stem}.nii.gz").is_file())
        cases = [LabelledCase(p.stem, source / f"{p.stem}.nii.gz", p) for p in records]
        if not cases:
            raise InputError(f"{source} holds no case (CASE.json beside CASE.nii.gz); give a folder that spineclue_predict wrote, or a "
                             "label map.")
    return cases if scans is None else [replace(case, scan=path) for case, path in zip(cases, _scans_of(cases, scans), strict=True)]


def _scans_of(cases: list[LabelledCase], scans: str | Path) -> list[Path]:
    found = {case.name: case.path for case in list_cases(scans)}
    if len(cases) == len(found) == 1:
        return list(found.values())
    if lacking := [case.name for case in cases if case.name not in found]:
        raise InputError(f"{scans} holds no scan of {lacking[0]}; give the folder that was predicted, whose files have the cases' names.")
    return [found[case.name] for case in cases]


def measure_case(case: LabelledCase, output: str | Path | None = None) -> SpineResult:
    """Measure one label map and write `NAME_measures.csv`, `NAME_parts.nii.gz`, with a CT `NAME_measures.png`, and `NAME_measures.json`,
    last; of a prediction's case the `measures` of its `CASE.json` instead.

    `output`: folder; beside the labels by default. The map's values are VerSe's; 26 is taken as the sacrum.
    """
    labels = read_labels(case.labels)
    record: dict[str, Any] = read_json(case.record, "record") if case.record is not None else {}
    if not isinstance(record, dict) or "structures" in record:
        raise InputError(f"{case.record} is no record of a CT's vertebrae; give the label map alone, without it.")
    if not np.isin(labels.array, VERTEBRA_LABELS).any():
        raise InputError(f"{case.labels} holds no vertebra with VerSe's values (1 to 25, 28); name its bodies with spineclue_relabel "
                         "first.")
    scan = read_volume(case.scan) if case.scan is not None else None
    if scan is not None:
        check_same_grid(scan.geometry, labels.geometry, case.name, case.labels)
    folder = Path(output) if output is not None else case.labels.parent
    stored = case.labels.parent / f"{case.name}{EVIDENCE}"
    basis = read_evidence(stored, labels)[1] if "vertebrae" in record and stored.is_file() else None
    result = measured(labels, record, scan, basis)
    for ending in MEASURE_ENDINGS:
        (folder / f"{case.name}{ending}").unlink(missing_ok=True)
    export_measures(result, labels, folder, case.name)
    if scan is not None:
        write_measures_picture(result, result.grids()[1], scan, folder / f"{case.name}_measures.png", case.name)
    if "vertebrae" in record and folder.resolve() == case.labels.parent.resolve():
        flags = [*(f for f in record.get("flags", ()) if f.get("stage") != "measures"), *(flag.to_dict() for flag in result.flags)]
        wanted = bool(record.get("review_required")) or review_required(result.flags)
        write_json(folder / f"{case.name}.json", record | {"vertebrae": _with_heights(record["vertebrae"], result),
                                                           "measures": result.measures, "flags": flags, "review_required": wanted})
    else:
        write_json(folder / f"{case.name}_measures.json", {"measures": result.measures, "flags": [f.to_dict() for f in result.flags]})
    return result


def _with_heights(entries: Sequence[dict[str, Any]], result: SpineResult) -> list[dict[str, Any]]:
    """The record's vertebrae; those whose heights were never measured (of an ensemble, say) get what was measured now."""
    found = {v.level: vertebra_entry(v) for v in result.vertebrae}
    return [entry if entry.get("heights") or entry.get("height_doubt") or entry.get("level") not in found
            else entry | {key: found[entry["level"]][key] for key in ("heights", "height_doubt")} for entry in entries]


def measured(labels: Volume, record: dict[str, Any] | None = None, scan: Volume | None = None, basis: NumberingBasis | None = None
             ) -> SpineResult:
    """A result with the measures of a label map of VerSe's values. `record`: content of its `CASE.json`, for confidences; `basis` of its
    numbering, for what lies below L5."""
    record = record or {}
    view = labels.reoriented("LPS")
    whole = np.where(np.isin(view.array, VERTEBRA_LABELS), view.array, 0).astype(np.uint8)
    vertebrae = vertebrae_of(Volume(whole, view.geometry), record)
    sacrum = labels.array == LABEL_OF_NAME["sacrum"]
    result = SpineResult(vertebrae, bool(record.get("numbering_anchored", True)), grid=labels.geometry, mask_grid=view.geometry,
                         basis=basis)
    return result.with_measures(scan, Volume(sacrum.astype(np.uint8), labels.geometry) if sacrum.any() else None)
