"""Results as flat rows, for data frames and notebooks."""
from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..anatomy.vertebra import Vertebra
from .case_record import vertebra_entry
from .columns import STRUCTURE, VERTEBRA, flat_row


def vertebra_rows(vertebrae: Iterable[Vertebra]) -> list[dict[str, Any]]:
    """One flat dictionary per vertebra, all with the keys of `columns.VERTEBRA`. Points are LPS mm; None where unknown."""
    return [flat_row(VERTEBRA, vertebra_entry(vertebra)) for vertebra in vertebrae]


def mr_rows(structures: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`structure_records` with the centroid as three columns: those of `columns.STRUCTURE`."""
    return [flat_row(STRUCTURE, row) for row in structures]


def html_table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], notes: Iterable[str] = ()) -> str:
    """A small HTML table of some columns; every text is escaped."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_text(row[column]))}</td>" for column in columns) + "</tr>" for row in rows)
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return f"<div><p><b>{html.escape(title)}</b></p>{table}{below}</div>"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1 else f"{value:.1f}" if isinstance(value, float) else str(value)
