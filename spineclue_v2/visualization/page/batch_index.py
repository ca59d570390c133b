"""`index.html` of a folder of results: all cases as cards, those in doubt first, and what failed with its reason."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ... import anatomy
from ...errors import InputError
from ...utilities.files import atomic_path, read_json, write_json
from .case_page import FOLDER, environment, script_hash
from .content import summary
from .write import THUMBNAILS

FAILED = "failed_cases.json"
"""{case: reason} of the cases that the latest run of each could not do: so that parts and later runs know of one another."""
KEYS = {"vertebrae", "structures"}
REGIONS = {"C": "cervical", "T": "thoracic", "L": "lumbar"}


def update_index(folder: str | Path, outcome: Mapping[str, str | None]) -> Path:
    """Note what failed and write `index.html` anew over all cases in `folder`; returns its path.

    `outcome`: {case: None or the reason of its failure} of the run that has ended; failures of earlier runs stay until the case is done.
    """
    folder = Path(folder)
    noted = read_json(folder / FAILED, "list of failures") if (folder / FAILED).is_file() else {}
    failed = {case: why for case, why in (noted | dict(outcome)).items() if why}
    if failed or noted:
        write_json(folder / FAILED, failed)
    path = folder / "index.html"
    with atomic_path(path) as temporary:
        temporary.write_text(index_page(cards(folder), failed, folder.absolute().name), encoding="utf-8")
    return path


def cards(folder: Path) -> list[dict[str, Any]]:
    """What is shown of every case in `folder` that has a CASE.json, those in doubt first."""
    thumbnails = {path.stem for path in (folder / THUMBNAILS).glob("*.jpg")}
    pages = {path.stem for path in folder.glob("*.html")}
    found = []
    for path in sorted(folder.glob("*.json")):
        record = _record(path)
        if record is not None:
            found.append(card(record, path.stem, path.stem in thumbnails, path.stem in pages))
    return sorted(found, key=lambda entry: (-entry["doubt"], entry["name"]))


def card(record: Mapping[str, Any], name: str, thumbnail: bool = True, page: bool = True) -> dict[str, Any]:
    """One case: its sentence, marks and what it can be filtered by."""
    vertebrae = record.get("vertebrae", [])
    confidences = [v["confidence"] for v in vertebrae if v.get("confidence") is not None]
    flags = sorted({flag.get("code", "") for flag in record.get("flags", [])})
    levels = [v.get("level") or "" for v in vertebrae] + [s.get("structure", "").split("/")[0] for s in record.get("structures", [])]
    regions = sorted({REGIONS[level[0]] for level in levels if level in anatomy.LABEL_OF_NAME and level[0] in REGIONS})
    number = len(vertebrae) + len(record.get("structures", []))
    return {"name": name, "page": page, "thumbnail": thumbnail, "summary": summary(record), "count": number, "flags": flags,
            "regions": regions, "anchored": record.get("numbering_anchored") if "vertebrae" in record else None,
            "review": bool(record.get("review_required")), "least": min(confidences, default=None), "doubt": doubt(record)}


def doubt(record: Mapping[str, Any]) -> float:
    """How much a case deserves a look first: review, nothing found, not anchored, warnings, then what is missing to full confidence."""
    vertebrae = record.get("vertebrae", [])
    warnings = sum(flag.get("severity") == "warning" for flag in record.get("flags", []))
    missing = 1.0 - min((v["confidence"] for v in vertebrae if v.get("confidence") is not None), default=1.0)
    unanchored = "vertebrae" in record and not record.get("numbering_anchored")
    return 100.0 * bool(record.get("review_required")) + 50.0 * (record.get("status") != "ok") + 10.0 * unanchored + warnings + missing


def index_page(found: Iterable[Mapping[str, Any]], failed: Mapping[str, str], title: str) -> str:
    """The index as text."""
    shown = list(found)
    script, style = ((FOLDER / name).read_text(encoding="utf-8") for name in ("index.js", "common.css"))
    style += (FOLDER / "index.css").read_text(encoding="utf-8")
    total = {"cases": len(shown), "vertebrae": sum(entry["count"] for entry in shown), "anchored": sum(bool(e["anchored"]) for e in shown),
             "review": sum(e["review"] for e in shown), "empty": sum(not e["count"] for e in shown), "failed": len(failed)}
    return str(environment().get_template("index.html").render(
        cards=shown, failed=sorted(failed.items()), total=total, title=title, style=style, script=script, script_hash=script_hash(script),
        flags=sorted({flag for entry in shown for flag in entry["flags"]}), regions=list(REGIONS.values()), thumbnails=THUMBNAILS))


def _record(path: Path) -> Mapping[str, Any] | None:
    """The content of a CASE.json; None for other JSON files in the folder."""
    try:
        content = read_json(path)
    except InputError:
        return None
    return content if isinstance(content, dict) and "status" in content and KEYS & set(content) else None
