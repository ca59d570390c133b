"""`CASE.html`: one file with views, table and reasons, which needs no network."""
from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...utilities.files import atomic_path
from .content import page_content
from .measure_tables import percent
from .preview import Preview, nifti_gz

FOLDER = Path(__file__).parent


def write_case_page(path: str | Path, record: Mapping[str, Any], name: str, preview: Preview | None = None,
                    picture: bytes | None = None) -> None:
    """Write the page of a case by rename.

    Args:
        path: of the page.
        record: content of CASE.json.
        name: of the case, the page's title.
        preview: what the views show; None: the page has no views.
        picture: PNG that stands for the views on paper and where a browser has no WebGL.
    """
    text = case_page(record, name, preview, picture)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def case_page(record: Mapping[str, Any], name: str, preview: Preview | None = None, picture: bytes | None = None) -> str:
    """The page as text."""
    content = page_content(record)
    script, viewer = _asset("case.js"), None
    if preview is not None:
        viewer = {"scan": _base64(nifti_gz(preview.scan, preview.step, preview.low)), "labels": _base64(nifti_gz(preview.labels)),
                  "code": _viewer_code(), "settings": _settings(content, preview)}
    return environment().get_template("case.html").render(
        name=name, content=content, viewer=viewer, preview=preview, style=_asset("common.css") + _asset("case.css"), script=script,
        script_hash=script_hash(script), picture=None if picture is None else _base64(picture))


@lru_cache(1)
def environment() -> Any:
    """Templates of this folder; every value is escaped, since names and notes come from files of others."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"percent": percent}
    return found


def script_hash(script: str) -> str:
    """What a content security policy calls an inline script by: only this very text may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _settings(content: Mapping[str, Any], preview: Preview) -> dict[str, Any]:
    """What the script needs to know, positions in RAS mm."""
    numbers = {value: number for number, value in enumerate(preview.values, start=1)}
    items = [{"name": row["name"], "colour": row["colour"], "number": numbers.get(row["key"], 0),
              "centre": None if row["centre"] is None else [-row["centre"][0], -row["centre"][1], row["centre"][2]]}
             for row in content["rows"]]
    high = preview.low + 255 * preview.step
    windows = {"full": [preview.low, high]} if content["is_mr"] else {"bone": [-250, 1200], "soft": [-100, 250]}
    return {"items": items, "windows": windows, "unit": "" if content["is_mr"] else "HU", "low": preview.low, "high": high}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


@lru_cache(8)
def _asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@lru_cache(1)
def _viewer_code() -> str:
    return _base64(gzip.compress((FOLDER / "niivue.umd.js").read_bytes(), compresslevel=9, mtime=0))
