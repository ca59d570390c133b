"""The measures of a record as tables to read: one row a vertebra or disc, one column a measure; other groups one row a measure."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEFT_OUT = ("lines_mm", "plane")   # for drawing, not for reading
NOT_GIVEN = "not given: "
UNITS = {"deg": "°"}
WIDE = ("heights", "discs")


@dataclass(frozen=True)
class Table:
    """A table of measures: `columns` are pairs of name and unit, `rows` texts; `note` says how to read it, `missing` what has no value and
    why; `numbers`: the first cell of a row is its heading and the others are numbers."""

    title: str
    columns: list[tuple[str, str]]
    rows: list[list[str]]
    note: str = ""
    missing: list[tuple[str, str]] = field(default_factory=list)
    numbers: bool = False


@dataclass(frozen=True)
class _Group:
    title: str
    note: str
    by: str = ""                   # what a row is, where measures are columns
    more: tuple[tuple[str, str, str], ...] = ()   # further keys that are columns: key, name, unit


GROUPS = {
    "alignment": _Group("Alignment", "Thoracic kyphosis is positive as kyphosis, all other sagittal angles as lordosis."),
    "vertebrae": _Group("Angles of the vertebrae", "Positive: higher in front; higher on the right; front turned to the patient's left.",
                        "Level"),
    "heights": _Group("Heights", "Loss is what the body lacks of the height that is expected, where it lacks most. Three heights: "
                                 "anterior, middle, posterior.", "Level",
                      (("interval", "95 % interval", "%"), ("where", "at", ""), ("measured_mm", "measured", "mm"),
                       ("expected_mm", "expected", "mm"), ("reference", "expected from", ""),
                       ("grade_probabilities", "likely grade", ""))),
    "discs": _Group("Discs", "Angles are positive where they open to the front. Listhesis is positive where the upper vertebra lies in "
                             "front; some 3 mm lie within the error of masks. Where a height is negative, the two masks overlap.", "Disc"),
    "bone": _Group("Density of bone", "Mean over the region in the middle of the body whose median is the trabecular HU above, of whole "
                                      "bodies with clear end plates. Contrast raises it, tube voltage and scanner shift it.", "Level",
                   (("sd", "standard deviation", "HU"), ("volume_ml", "region", "ml"))),
}
"""Groups of `measures` that have a form of their own."""


def measure_tables(measures: Mapping[str, Any]) -> list[Table]:
    """A table for each group of `measures` in a CASE.json that is a list of records; groups of any other name and form, too."""
    tables = []
    for name, records in sorted(measures.items(), key=lambda entry: entry[0] in WIDE):  # after the pair of narrow ones
        if isinstance(records, Sequence) and not isinstance(records, str) and records and all(isinstance(r, Mapping) for r in records):
            group = GROUPS.get(name, _Group(words(name), ""))
            tables.append(_by_row(group, records) if group.by else _one_a_row(group, records))
    return tables


def _by_row(group: _Group, records: Sequence[Mapping[str, Any]]) -> Table:
    names: dict[str, str] = {}
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in records:
        names.setdefault(str(row.get("name", "")), str(row.get("unit", "")))
        found.setdefault(str(row.get("disc") or plain(row.get("levels"))), {})[str(row.get("name", ""))] = row
    rows = []
    for key, given in found.items():
        cells = [plain(given[name].get("value")) if name in given else "" for name in names]
        cells += [next((_part(more, row[more]) for row in given.values() if row.get(more) is not None), "") for more, _, _ in group.more]
        rows.append([key, *(cell or "–" for cell in cells)])
    columns = [(group.by, ""), *((words(name), UNITS.get(unit, unit)) for name, unit in names.items()),
               *((words(name), unit) for _, name, unit in group.more)]
    missing = {(f"{key} {name}" if row.get("value") is None else key, _reason(row))
               for key, given in found.items() for name, row in given.items() if row.get("note")}
    return Table(group.title, columns, rows, _note(group, records), sorted(missing), numbers=True)


def _part(key: str, value: Any) -> str:
    """A further value of a row: ends of an interval, three heights, the likeliest grade with its probability."""
    if key == "interval" and len(value) == 2:
        return " to ".join(map(plain, value))
    if key == "grade_probabilities" and value:
        likeliest = max(value, key=value.__getitem__)
        return f"{likeliest} ({percent(value[likeliest])})"
    return " / ".join(map(plain, value)) if isinstance(value, Sequence) and not isinstance(value, str) else plain(value)


def _one_a_row(group: _Group, records: Sequence[Mapping[str, Any]]) -> Table:
    shown = [row for row in records if row.get("value") is not None or not str(row.get("note", "")).startswith(NOT_GIVEN)]
    missing = [(plain(row.get("name")), _reason(row)) for row in records if not any(row is other for other in shown)]
    alike = {"position"} if len({plain(row.get("position")) for row in records}) == 1 else set()
    keys = [key for key in dict.fromkeys(key for row in shown for key in row) if key not in {*LEFT_OUT, "unit", *alike}]
    keys = [key for key in keys if any(row.get(key) not in (None, "", [], ()) for row in shown)]
    return Table(group.title, [(words(key), "") for key in keys], [[_cell(row, key) for key in keys] for row in shown],
                 _note(group, records), missing)


def _cell(row: Mapping[str, Any], key: str) -> str:
    value, unit = row.get(key), str(row.get("unit") or "")
    if key == "confidence" and isinstance(value, float):
        return percent(value)
    text = plain(value)
    return f"{text}\N{NO-BREAK SPACE}{UNITS.get(unit, unit)}" if key == "value" and text and unit else text


def _reason(row: Mapping[str, Any]) -> str:
    return str(row.get("note", "")).removeprefix(NOT_GIVEN)


def _note(group: _Group, records: Sequence[Mapping[str, Any]]) -> str:
    lying = any(row.get("position") == "lying" for row in records) and group is GROUPS["alignment"]
    return " ".join(filter(None, [group.note, "The patient lies: curves are flatter than in a standing radiograph." if lying else ""]))


def percent(probability: float) -> str:
    """Without false certainty: never 0 or 100 where it is not so."""
    if probability <= 0:
        return "0 %"
    if probability < 0.001:
        return "< 0.1 %"
    if probability > 0.9995:
        return "> 99.9 %"
    value = 100 * probability
    return f"{value:.1f} %" if value < 2 or value > 98 else f"{value:.0f} %"


def words(name: str) -> str:
    """A key as words: "disc_height_mm" -> "Disc height (mm)"."""
    text = str(name)
    for unit in ("mm", "ml", "hu", "deg"):
        if text.lower().endswith(f"_{unit}"):
            text = f"{text[:-len(unit) - 1]} ({ {'hu': 'HU', 'deg': '°'}.get(unit, unit)})"
    text = text.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def plain(value: Any) -> str:
    """A value as the text of a cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:.1f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(entry)}" for key, entry in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(plain(entry) for entry in value)
    return str(value)
