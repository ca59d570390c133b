"""What a run tells: the bar over its cases, the summary for programs, and the index of its folder."""
from __future__ import annotations

import json
import sys
from io import StringIO

import pytest
from page_case import blocks

from spineclue_v2.inference.progress import RunProgress
from spineclue_v2.inference.run_summary import run_summary
from spineclue_v2.utilities.files import write_json
from spineclue_v2.visualization.page.batch_index import FAILED, card, cards, doubt, index_page, update_index


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
