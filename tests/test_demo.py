"""The first command a newcomer types."""
from __future__ import annotations

import json

import pytest

from spineclue_v2.cli import _common
from spineclue_v2.stages.registry import CORE_STAGES
from spineclue_v2.utilities import paths


@pytest.mark.skipif(not all((paths.weights_folder() / f"{stage}.pth").is_file() for stage in CORE_STAGES), reason="no shipped weights here")
def test_the_demo_labels_a_spine_it_never_saw(tmp_path, capsys):
    assert _common.main("demo", ["-o", str(tmp_path / "demo"), "-device", "cpu"]) == 0
    shown = capsys.readouterr().out
    picture = tmp_path / "demo" / "result" / "demo.png"
    assert str(picture) in shown and str(picture.with_suffix(".html")) in shown and picture.read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "demo" / "result" / "demo.json").read_text())
    assert record["status"] == "ok"
    figures = json.loads((tmp_path / "demo" / "summary.json").read_text())["spineclue"]
    assert figures["detection"]["f1"] >= 0.8
    assert figures["dice"] >= 0.7
