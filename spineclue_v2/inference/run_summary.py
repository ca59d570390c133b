"""What a run has done, for programs: the counts, and one entry per case."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..export.colour_tables import ITKSNAP_TABLE, SLICER_TABLE
from ..export.formats import FORMATS, format_files
from ..export.formats.bids import DESCRIPTION, bids_files
from ..utilities.files import read_json

FILES = {"labels": "{}.nii.gz", "record": "{}.json", "centroids": "{}_ctd.json", "evidence": "{}_evidence.npz",
         "measures": "{}_measures.csv", "parts": "{}_parts.nii.gz", "probabilities": "{}.npz", "report": "{}.png",
         "measures_picture": "{}_measures.png", "page": "{}.html", "thumbnail": "thumbnails/{}.jpg"}
"""Files of a case, by kind; those on demand have the name of their format."""
TABLES = ("cases", "vertebrae", "structures", "measures")
FOLDER_FILES = {"arguments": "predict_args.json", "plans": "plans.json", "index": "index.html", "failed": "failed_cases.json",
                "colours_slicer": SLICER_TABLE, "colours_itksnap": ITKSNAP_TABLE, "bids": f"derivatives/{DESCRIPTION}",
                **{name: name for table in TABLES for name in (f"{table}.csv", f"{table}.parquet")}}
"""Files of the folder, by kind."""


def run_summary(output: str | Path, outcome: Mapping[str, str | None]) -> dict[str, Any]:
    """The summary of `--json`.

    Args:
        output: folder of the results.
        outcome: {case: None or the sentence of its failure}, as `predict` returns it.

    Returns:
        `output`, the counts `labelled`, `without_finding` and `failed`, `files` of the folder as {kind: path}, and `cases`: by name
        `status` ("ok", "no vertebra found" or "failed"), and either `reason` or `levels`, `numbering_anchored`, `review_required`,
        `flags` (codes), `seconds` and `files`. Of crops, the path is that of their folder.
    """
    output = Path(output)
    cases = {name: {"status": "failed", "reason": why} if why else _case(output, name) for name, why in outcome.items()}
    states = [case["status"] for case in cases.values()]
    files = {kind: output / name for kind, name in FOLDER_FILES.items()}
    return {"output": str(output), "labelled": states.count("ok"), "failed": states.count("failed"),
            "without_finding": len(states) - states.count("ok") - states.count("failed"), "files": _existing(files), "cases": cases}


def _case(output: Path, name: str) -> dict[str, Any]:
    record = read_json(output / f"{name}.json", "prediction")
    found = [vertebra["level"] for vertebra in record.get("vertebrae", ())] or [row["structure"] for row in record.get("structures", ())]
    paths = {kind: output / pattern.format(name) for kind, pattern in FILES.items()}
    paths |= dict(zip(FORMATS, format_files(FORMATS, output, name), strict=True))
    paths |= dict(zip(("bids", "bids_centroids", "bids_picture"), bids_files(output, name), strict=True))
    return {"status": record["status"], "levels": found, "numbering_anchored": record.get("numbering_anchored"),
            "review_required": record.get("review_required", False), "flags": [flag["code"] for flag in record.get("flags", ())],
            "seconds": record.get("seconds", {}).get("total"), "files": _existing(paths)}


def _existing(paths: Mapping[str, Path]) -> dict[str, str]:
    return {kind: str(path) for kind, path in paths.items() if path.exists()}
