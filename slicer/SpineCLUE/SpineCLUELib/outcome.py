"""What a prediction left in its folder."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("level", "confidence", "volume_ml", "height_anterior_mm", "height_middle_mm", "height_posterior_mm", "trabecular_hu", "grade")


@dataclass(frozen=True)
class Outcome:
    """Paths of the files to load, rows of the table (COLUMNS, as text), and what to tell the user."""

    segmentation: Path
    markups: Path
    rows: list[list[str]]
    messages: list[str]


def read_outcome(folder: str | Path, case: str) -> Outcome:
    """The outcome of `case` in `folder`. FileNotFoundError where the command left none."""
    folder = Path(folder)
    record = json.loads((folder / f"{case}.json").read_text(encoding="utf-8"))
    messages = []
    if record["vertebrae"] and not record.get("numbering_anchored"):
        messages.append("The numbering is not anchored: the whole sequence may be shifted up or down.")
    if record["status"] != "ok":
        messages.append(record["status"][:1].upper() + record["status"][1:] + ".")
    messages += [note for note in record.get("notes", ()) if note not in messages]
    return Outcome(folder / f"{case}.seg.nrrd", folder / f"{case}.mrk.json", [_row(v) for v in record["vertebrae"]], messages)


def _row(vertebra: dict[str, Any]) -> list[str]:
    measured = (vertebra.get("heights") or {}).get("measured_mm") or (None, None, None)
    grading = vertebra.get("grading") or {}
    grade = (grading.get("combined") or grading).get("grade")
    values = (vertebra["level"], vertebra["confidence"], vertebra["volume_ml"], *measured, vertebra["trabecular_hu"], grade)
    return ["" if value is None else f"{value:.3g}" if isinstance(value, float) and value < 1 else
            f"{value:.1f}" if isinstance(value, float) else str(value) for value in values]
