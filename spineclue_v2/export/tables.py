"""Results as flat rows, for data frames and notebooks."""
from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import anatomy
from ..anatomy.vertebra import Vertebra


def vertebra_rows(vertebrae: Iterable[Vertebra]) -> list[dict[str, Any]]:
    """One flat dictionary per vertebra, all with the same keys. Body centres `x_mm`, `y_mm`, `z_mm` are LPS mm; None where unknown."""
    rows = []
    for vertebra in vertebrae:
        x, y, z = vertebra.body_centre or (None, None, None)
        heights = vertebra.heights
        anterior, middle, posterior = heights.measured if heights is not None else (None, None, None)
        rows.append({"level": vertebra.level, "label": anatomy.LABEL_OF_NAME.get(vertebra.level or ""),
                     "confidence": vertebra.confidence, "uncertainty": vertebra.uncertainty, "x_mm": x, "y_mm": y, "z_mm": z,
                     "volume_ml": vertebra.volume_ml, "touches_border": vertebra.touches_border,
                     "trabecular_hu": vertebra.trabecular_hu, "height_anterior_mm": anterior, "height_middle_mm": middle,
                     "height_posterior_mm": posterior, "height_doubt": vertebra.height_doubt,
                     "implied_grade": None if heights is None else heights.grade, "grade": _grade(vertebra)})
    return rows


def _grade(vertebra: Vertebra) -> int | None:
    """Genant grade of network and heights together; None without a network, whose code is then not imported."""
    if vertebra.grade_probabilities is None:
        return None
    from ..stages.grade.predictor import grade_given

    return grade_given(vertebra)


def mr_rows(structures: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`structure_records` with the centroid as three columns; None where a column is nothing for a structure."""
    before, after = ("structure", "kind", "label", "volume_ml"), ("touches_border", "confidence", "height_mm", "signal_to_csf")
    return [{name: row.get(name) for name in before} | dict(zip(("x_mm", "y_mm", "z_mm"), row["centroid_mm"], strict=True))
            | {name: row.get(name) for name in after} for row in structures]


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
