"""Columns of the tables: name, type, unit and meaning, in one place for CSV, Parquet, data frames and the documentation."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: ends with the unit where it has one.
        kind: "text", "whole", "number" or "truth".
        unit: such as "mm"; empty where there is none.
        meaning: one line.
        of: the value in a record of `CASE.json`: of a vertebra's, a structure's or the whole one.
    """

    name: str
    kind: str
    unit: str
    meaning: str
    of: Callable[[Record], Any]


def at(*path: str | int) -> Callable[[Record], Any]:
    """The value at the end of keys and positions; None where the way ends early."""
    def value(record: Record) -> Any:
        found: Any = record
        for step in path:
            if found is None or (isinstance(found, Mapping) and step not in found):
                return None
            found = found[step]
        return found
    return value


def _grade(record: Record) -> Any:
    both = at("grading", "combined", "grade")(record)
    return at("grading", "grade")(record) if both is None else both


def _suspicion(record: Record) -> Any:
    intact = at("grading", "combined", "probabilities")(record)
    return None if intact is None else round(1 - intact[0], 4)


VERTEBRA = (
    Column("level", "text", "", "name such as L3", at("level")),
    Column("label", "whole", "", "its value in the label map", at("label")),
    Column("confidence", "number", "probability", "of that level under all possible numberings", at("confidence")),
    Column("uncertainty", "number", "nats", "entropy of the shape classifier's answer", at("uncertainty")),
    Column("x_mm", "number", "mm", "body centre, LPS: towards the patient's left", at("body_centre_mm", 0)),
    Column("y_mm", "number", "mm", "towards the back", at("body_centre_mm", 1)),
    Column("z_mm", "number", "mm", "towards the head", at("body_centre_mm", 2)),
    Column("volume_ml", "number", "ml", "of the mask", at("volume_ml")),
    Column("touches_border", "truth", "", "whether the vertebra is truncated", at("touches_border")),
    Column("trabecular_hu", "number", "HU", "median in the middle of the body", at("trabecular_hu")),
    Column("height_anterior_mm", "number", "mm", "of the body, along its own axis", at("heights", "measured_mm", 0)),
    Column("height_middle_mm", "number", "mm", "the same in the middle", at("heights", "measured_mm", 1)),
    Column("height_posterior_mm", "number", "mm", "the same at the back", at("heights", "measured_mm", 2)),
    Column("height_doubt", "text", "", "why there are no heights", at("height_doubt")),
    Column("implied_grade", "whole", "", "Genant grade that the heights imply", at("heights", "implied_grade")),
    Column("grade", "whole", "", "Genant grade of network and heights together, where the model has the stage `grade`", _grade),
    Column("grade_probability", "number", "probability", "of grade 1 or higher, by both together", _suspicion),
    Column("grade_doubt", "text", "", "why there is no grade, where the model has the stage", at("grade_doubt")),
)
"""Of `SpineResult.to_dataframe` and, after `case` and `numbering_anchored`, of `vertebrae.csv`."""

STRUCTURE = (
    Column("structure", "text", "", "name such as L3 or L3/L4", at("structure")),
    Column("kind", "text", "", "body, disc or other", at("kind")),
    Column("label", "whole", "", "its value in the label map", at("label")),
    Column("volume_ml", "number", "ml", "of the mask", at("volume_ml")),
    Column("x_mm", "number", "mm", "centroid, LPS: towards the patient's left", at("centroid_mm", 0)),
    Column("y_mm", "number", "mm", "towards the back", at("centroid_mm", 1)),
    Column("z_mm", "number", "mm", "towards the head", at("centroid_mm", 2)),
    Column("touches_border", "truth", "", "whether the structure is truncated", at("touches_border")),
    Column("confidence", "number", "probability", "of the level of a body", at("confidence")),
    Column("height_mm", "number", "mm", "of a disc, in its middle", at("height_mm")),
    Column("signal_to_csf", "number", "", "of a disc, relative to the fluid in the canal", at("signal_to_csf")),
)
"""Of an MR result's `to_dataframe` and, after `case`, of `structures.csv`."""


def _found(record: Record) -> list[Any]:
    return list(record.get("vertebrae") or record.get("structures") or ())


def _levels(record: Record) -> list[str]:
    return [str(row.get("level") or row.get("structure") or "?") for row in _found(record)]


def _least(record: Record) -> float | None:
    values = [row["confidence"] for row in _found(record) if row.get("confidence") is not None]
    return min(values, default=None)


CASE = (
    Column("case", "text", "", "name of the case", at("case")),
    Column("status", "text", "", "ok, or that nothing was found", at("status")),
    Column("vertebrae", "whole", "", "how many were found; of MR: structures", lambda record: len(_found(record))),
    Column("levels", "text", "", "their names from head to foot, with spaces between; of MR as in `CASE.json`",
           lambda record: " ".join(_levels(record))),
    Column("numbering_anchored", "truth", "", "whether the numbering as a whole can be trusted", at("numbering_anchored")),
    Column("margin", "number", "log", "log weight of the numbering less that of its best shift by one level; on another scale than "
           "probabilities", at("margin")),
    Column("lowest_confidence", "number", "probability", "of the least sure level", _least),
    Column("incomplete", "text", "", "where the spine goes on and no vertebra was found", lambda r: "; ".join(r.get("incomplete") or ())),
    Column("review_required", "truth", "", "whether a flag asks for a person", at("review_required")),
    Column("flags", "text", "", "codes of the flags, with spaces between",
           lambda record: " ".join(dict.fromkeys(str(flag["code"]) for flag in record.get("flags") or ()))),
    Column("notes", "text", "", "sentences to keep in mind", lambda record: " ".join(record.get("notes") or ())),
    Column("seconds", "number", "s", "of the whole prediction", at("seconds", "total")),
)
"""Of `cases.csv`."""

IN_VERTEBRAE_TABLE = (
    Column("case", "text", "", "name of the case", at("case")),
    Column("numbering_anchored", "truth", "", "of the case: a level alone is worth no more than the whole numbering",
           at("numbering_anchored")),
)


def flat_row(columns: tuple[Column, ...], record: Record) -> dict[str, Any]:
    """One row: {name of the column: value}."""
    return {column.name: column.of(record) for column in columns}
