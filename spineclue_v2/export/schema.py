"""The JSON Schema of `CASE.json`, which comes with the package."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA_FILE = Path(__file__).parents[1] / "schemas" / "case.schema.json"


def case_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) that every `CASE.json` obeys, of CT and of MR. For validators such as jsonschema."""
    content: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return content
