"""`vertebrae.csv`, `cases.csv` and their like: the results of all cases of a folder, one row each."""
from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..utilities.files import atomic_path, read_json
from .columns import CASE, IN_VERTEBRAE_TABLE, STRUCTURE, VERTEBRA, Column, at, flat_row

logger = logging.getLogger(__name__)

MEASURE = (
    Column("case", "text", "", "name of the case", at("case")),
    Column("group", "text", "", "group of the measure in `CASE.json`, such as alignment", at("group")),
    Column("name", "text", "", "of the measure", at("name")),
    Column("value", "number", "", "in the unit of its row", at("value")),
    Column("unit", "text", "", "of the value", at("unit")),
    Column("levels", "text", "", "that it spans, with spaces between", lambda record: " ".join(map(str, record.get("levels") or ()))),
    Column("confidence", "number", "probability", "of the measure, where it has one", at("confidence")),
    Column("note", "text", "", "what limits it", at("note")),
)

_OTHER_JSON = ("predict_args.json", "plans.json", "dataset.json")
_TYPES = {"text": "string", "whole": "int64", "number": "double", "truth": "bool"}          # in the file,
_DTYPES = {"text": "string", "whole": "Int64", "number": "Float64", "truth": "boolean"}     # and what pandas makes of it: unknown is NA


def write_tables(folder: str | Path) -> dict[str, Path]:
    """Write the tables of all cases that are complete in `folder`; {name: path}.

    They are made from the `CASE.json` files alone. Several processes may write into one folder: each calls this when its cases are done,
    they wait for each other, and the last one sees all.
    """
    folder = Path(folder)
    with _one_at_a_time(folder):
        return _write(folder, _records(folder))


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which the system lets go of with the process and which leaves no file behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Where the file system has no locks, two that end in the same moment may leave the older table.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _records(folder: Path) -> list[dict[str, Any]]:
    """Content of every `CASE.json`, with the key `case`."""
    records = []
    for name in sorted(path.name for path in folder.glob("*.json")):
        if name in _OTHER_JSON or name.endswith(("_ctd.json", ".mrk.json")) or name.startswith("."):
            continue
        try:
            content = read_json(folder / name, "prediction")
        except InputError as error:
            if (folder / name).exists():
                logger.warning("The tables leave %s out: %s", name, error)
            continue
        if isinstance(content, dict) and "status" in content and ("vertebrae" in content or "structures" in content):
            records.append({**content, "case": name.removesuffix(".json")})
    return records


def _write(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    tables: dict[str, tuple[tuple[Column, ...], list[dict[str, Any]]]] = {
        "cases": (CASE, [flat_row(CASE, record) for record in records]),
        "vertebrae": (IN_VERTEBRAE_TABLE + VERTEBRA, [flat_row(IN_VERTEBRAE_TABLE, record) | flat_row(VERTEBRA, row)
                                                      for record in records for row in record.get("vertebrae") or ()]),
        "structures": (IN_VERTEBRAE_TABLE[:1] + STRUCTURE, [{"case": record["case"]} | flat_row(STRUCTURE, row)
                                                            for record in records for row in record.get("structures") or ()]),
        "measures": (MEASURE, [flat_row(MEASURE, {**row, "case": record["case"], "group": group}) for record in records
                               for group, rows in (record.get("measures") or {}).items() if isinstance(rows, list) for row in rows]),
    }
    paths: dict[str, Path] = {}
    for name, (columns, rows) in tables.items():
        if not rows and (name in ("structures", "measures") or not records or (name == "vertebrae" and tables["structures"][1])):
            for ending in (".csv", ".parquet"):
                (folder / f"{name}{ending}").unlink(missing_ok=True)  # a table of an earlier run contradicts the present one
            continue
        paths[f"{name}.csv"] = _write_csv(folder / f"{name}.csv", columns, rows)
        if find_spec("pyarrow") is not None:
            paths[f"{name}.parquet"] = _write_parquet(folder / f"{name}.parquet", columns, rows)
    return paths


def _write_csv(path: Path, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> Path:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([column.name for column in columns])
        writer.writerows([_cell(row[column.name]) for column in columns] for row in rows)
    return path


def _cell(value: Any) -> Any:
    """Unknown is empty; a text that a spreadsheet would take for a formula is quoted with an apostrophe."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _write_parquet(path: Path, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> Path:
    """The table by pyarrow's own readers and writers: whatever else makes a table of Python's values imports pandas, which takes longer
    than all else that a case writes."""
    import pyarrow
    from pyarrow import json as arrow_json
    from pyarrow import parquet

    said = [{"name": column.name, "field_name": column.name, "pandas_type": _TYPES[column.kind].replace("double", "float64"),
             "numpy_type": _DTYPES[column.kind], "metadata": None} for column in columns]
    schema = pyarrow.schema([(column.name, _TYPES[column.kind]) for column in columns],
                            {"pandas": json.dumps({"index_columns": [], "column_indexes": [], "columns": said, "pandas_version": "2.0.0"})})
    lines = "\n".join(json.dumps({column.name: row[column.name] for column in columns}) for row in rows)
    table = arrow_json.read_json(io.BytesIO(lines.encode()), parse_options=arrow_json.ParseOptions(explicit_schema=schema)) if rows else \
        schema.empty_table()
    table = table.select(schema.names).replace_schema_metadata(schema.metadata)
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary)
    return path
