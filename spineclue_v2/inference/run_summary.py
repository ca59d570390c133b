"""What a run has done, for programs: the counts, and one entry per case."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utilities.files import read_json

FILES = {"labels": "{}.nii.gz", "record": "{}.json", "centroids": "{}_ctd.json", "probabilities": "{}.npz", "report": "{}.png",
         "page": "{}.html"}


def run_summary(output: str | Path, outcome: Mapping[str, str | None]) -> dict[str, Any]:
    """The summary of `--json`.

    Args:
        output: folder of the results.
        outcome: {case: None or the sentence of its failure}, as `predict` returns it.

    Returns:
        `output`, the counts `labelled`, `without_finding` and `failed`, and `cases`: by name `status` ("ok", "no vertebra found" or
        "failed"), and either `reason` or `levels`, `numbering_anchored`, `review_required`, `flags` (codes), `seconds` and `files`.
    """
    output = Path(output)
    cases = {name: {"status": "failed", "reason": why} if why else _case(output, name) for name, why in outcome.items()}
    states = [case["status"] for case in cases.values()]
    return {"output": str(output), "labelled": states.count("ok"), "failed": states.count("failed"),
            "without_finding": len(states) - states.count("ok") - states.count("failed"), "cases": cases}


def _case(output: Path, name: str) -> dict[str, Any]:
    record = read_json(output / f"{name}.json", "prediction")
    found = [vertebra["level"] for vertebra in record.get("vertebrae", ())] or [row["structure"] for row in record.get("structures", ())]
    paths = {kind: output / pattern.format(name) for kind, pattern in FILES.items()}
    return {"status": record["status"], "levels": found, "numbering_anchored": record.get("numbering_anchored"),
            "review_required": record.get("review_required", False), "flags": [flag["code"] for flag in record.get("flags", ())],
            "seconds": record.get("seconds", {}).get("total"), "files": {kind: str(path) for kind, path in paths.items() if path.exists()}}
