"""What a run tells: the bar over its cases, the summary for programs, and the index of its folder."""
from __future__ import annotations

import json
import re
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_case import blocks
from test_predict import NAMES, spine, trained, trained_once  # noqa: F401
from test_predict import run as predict

from spineclue_v2.export.folder_tables import write_tables
from spineclue_v2.imageio.volume import ImageGrid, Volume, write_volume
from spineclue_v2.inference.progress import RunProgress
from spineclue_v2.inference.run_summary import run_summary
from spineclue_v2.results import MRResult
from spineclue_v2.utilities.files import write_json
from spineclue_v2.visualization.page.batch_index import FAILED, card, cards, doubt, index_page, update_index

ROOT = Path(__file__).parents[1]


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_moves_with_the_stages_and_learns_their_length(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with RunProgress(2) as bar:
        bar.begin("a", ["read", "localize", "segment", "report"])
        bar.step("segment")
        assert 0.2 < bar._bar.n < 0.5
        bar.step("no such stage")
        bar.end({"read": 1.0, "localize": 1.0, "segment": 7.0, "report": 1.0, "total": 10.0})
        assert bar._bar.n == 1.0
        bar.begin("b", ["read", "localize", "segment", "report"])
        bar.step("segment")
        assert bar._bar.n == pytest.approx(1.2)
        bar.end()
    assert "2/2 b, segmenting" in sys.stderr.getvalue() and "to go" in sys.stderr.getvalue()


def test_without_a_terminal_there_is_silence(monkeypatch):
    monkeypatch.setattr(sys, "stderr", StringIO())
    with RunProgress(1) as bar:
        bar.begin("a", ["read"])
        bar.end()
    assert sys.stderr.getvalue() == ""


def test_the_summary_counts_and_lists(tmp_path):
    blocks().save(tmp_path, "a", report=False)
    blocks(()).save(tmp_path, "b", report=False)
    found = run_summary(tmp_path, {"a": None, "b": None, "c": "no scan"})
    assert json.loads(json.dumps(found)) == found
    assert (found["labelled"], found["without_finding"], found["failed"]) == (1, 1, 1)
    assert found["cases"]["c"] == {"status": "failed", "reason": "no scan"}
    assert found["cases"]["a"]["levels"] == ["T12", "L1", "L2", "L3"] and found["cases"]["a"]["flags"] == ["thick_slices"]
    assert set(found["cases"]["a"]["files"]) == {"labels", "record", "centroids"} and found["cases"]["b"]["levels"] == []


def test_the_index_keeps_failures_until_they_are_done(tmp_path):
    blocks().save(tmp_path, "a", report=False)
    update_index(tmp_path, {"a": None, "b": "broken <b>"})
    update_index(tmp_path, {"c": "also"})
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "broken &lt;b&gt;" in text and "also" in text and "4 vertebrae, T12 to L3" in text
    blocks(()).save(tmp_path, "b", report=False)
    update_index(tmp_path, {"b": None, "c": None})
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "broken" not in text and json.loads((tmp_path / FAILED).read_text(encoding="utf-8")) == {}
    assert [entry["name"] for entry in cards(tmp_path)] == ["b", "a"]         # nothing found is in greater doubt


def test_other_json_files_are_no_cases(tmp_path):
    write_json(tmp_path / "plans.json", {"status": "ok"})
    (tmp_path / "broken.json").write_text("{")
    assert cards(tmp_path) == []


def test_doubt_puts_review_before_nothing_before_unanchored_before_unsure():
    sure = {"status": "ok", "numbering_anchored": True, "vertebrae": [{"level": "L1", "confidence": 0.99}]}
    unsure = sure | {"vertebrae": [{"level": "L1", "confidence": 0.3}]}
    ranks = [doubt(record) for record in (sure, unsure, sure | {"numbering_anchored": False}, {"status": "no", "vertebrae": []},
                                          sure | {"review_required": True})]
    assert ranks == sorted(ranks) and len(set(ranks)) == 5


def test_links_of_odd_names_lead_to_their_files():
    text = index_page([card(blocks().to_dict(), 'a b#1%?"')], {}, "r")
    assert 'href="a%20b%231%25%3F%22.html"' in text and 'src="thumbnails/a%20b%231%25%3F%22.jpg"' in text


def named_in_outputs(case: str) -> set[str]:
    """Every file and folder that the reference of outputs names in the first cells of its tables, for a case of this name."""
    text = (ROOT / "documentation" / "reference" / "outputs.md").read_text(encoding="utf-8")
    page = text.split("## Relabelling")[0].replace("CASE", case)
    cells = [cell for line in page.splitlines() if line.startswith("| ") for cell in line.split("|")[1:4]]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def listed(summary: dict[str, Any]) -> set[Path]:
    return {Path(path) for part in (summary, *summary["cases"].values()) for path in part.get("files", {}).values()}


def check_all_are_named(folder: Path, summary: dict[str, Any], case: str) -> None:
    """Each file of a run is in the summary, is there, and has its place in the reference."""
    files = {path for path in folder.rglob("*") if path.is_file()}
    known = listed(summary)
    assert {path for path in files if path not in known and not known & set(path.parents)} == set() and all(path.exists() for path in known)
    named = named_in_outputs(case)
    places = {str(path.relative_to(folder)) for path in listed({**summary, "cases": {case: summary["cases"][case]}})}
    places = {place if not place.startswith("derivatives/") else Path(place).name for place in places}
    assert {place for place in places if place not in named and f"{place}/" not in named} == set()


def test_every_file_of_a_run_is_listed_and_documented(trained, tmp_path, capsys):  # noqa: F811
    for number, name in enumerate(("X", "two")):
        write_volume(spine(NAMES[:2 + number])[0], tmp_path / "scans" / f"{name}.nii.gz")
    (tmp_path / "scans" / "bad.nii.gz").write_bytes(b"no scan")
    out = tmp_path / "out"
    assert predict("-i", tmp_path / "scans", "-o", out, "-m", trained, "-f", 0, "-device", "cpu", "--json", "--disable_progress_bar",
                   "--save_probabilities", "--bids", "--crops", "upright", "--also", "seg.nrrd", "mrk.json", "crops") == 1
    summary = json.loads(capsys.readouterr().out)
    check_all_are_named(out, summary, "X")
    assert {"measures", "parts", "evidence", "bids", "bids_picture", "crops"} <= set(summary["cases"]["X"]["files"])
    assert {"index", "failed", "cases.csv", "colours_slicer"} <= set(summary["files"])


def test_the_files_of_an_mr_are_documented(tmp_path):
    grid = ImageGrid((20, 40, 40), (4.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    labels = np.zeros(grid.shape, np.uint8)
    labels[6:12, 10:30, 10:30] = 24
    scan = Volume(labels * 3, grid)
    MRResult((), False, grid=grid, scan=scan, label_volume=Volume(labels, grid), classes={"L5": 24}, stage="hybrid_2d").save(tmp_path, "X")
    write_tables(tmp_path)
    summary = run_summary(tmp_path, {"X": None})
    check_all_are_named(tmp_path, summary, "X")
    page = (ROOT / "documentation" / "reference" / "outputs.md").read_text(encoding="utf-8")
    exceptions = next(line for line in page.splitlines() if line.startswith("Of an MR come "))
    case = {Path(path).name for kind, path in summary["cases"]["X"]["files"].items() if kind != "thumbnail"}
    assert case == {name.replace("CASE", "X") for name in re.findall(r"`(CASE[^`]*)`", exceptions)}
