"""The 3D Slicer module without 3D Slicer: its own parts as they are, the module against a stand-in for Slicer's modules."""
from __future__ import annotations

import importlib
import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pytest
from blocks import spine
from test_formats import result_of

FOLDER = Path(__file__).parents[1] / "slicer" / "SpineCLUE"


class Base:
    """Stands in for Slicer's base classes."""

    def __init__(self, *arguments: object) -> None:
        pass


@pytest.fixture
def module(monkeypatch):
    """The module, imported with stand-ins for slicer, qt and ctk."""
    monkeypatch.syspath_prepend(str(FOLDER))
    loadable = ModuleType("slicer.ScriptedLoadableModule")
    for name in ("ScriptedLoadableModule", "ScriptedLoadableModuleLogic", "ScriptedLoadableModuleTest", "ScriptedLoadableModuleWidget"):
        setattr(loadable, name, Base)
    stand_in = MagicMock(ScriptedLoadableModule=loadable)
    for name, value in {"slicer": stand_in, "slicer.ScriptedLoadableModule": loadable, "qt": MagicMock(), "ctk": MagicMock()}.items():
        monkeypatch.setitem(sys.modules, name, value)
    found = importlib.import_module("SpineCLUE")
    yield found
    for name in [name for name in sys.modules if name.split(".")[0] in ("SpineCLUE", "SpineCLUELib")]:
        del sys.modules[name]


@pytest.fixture
def outputs(tmp_path) -> Path:
    """What the command leaves of a scan with three vertebrae."""
    ct, labels, _ = spine(("T12", "L1", "L2"))
    result = replace(result_of(ct, labels.array), numbering_anchored=False, notes=("Slices are thick.",))
    result.save(tmp_path / "made", "scan", report=False, describe=False, also=("seg.nrrd", "mrk.json"))
    return tmp_path / "made"


def command(folder: Path, body: str) -> Path:
    """An environment whose `spineclue_predict` does `body`; the words it was called with lie beside it."""
    path = folder / "env" / "bin" / "spineclue_predict"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!{sys.executable}\nimport json, os, shutil, sys, time\n"
                    f"json.dump([sys.argv[1:], dict(os.environ)], open({str(folder / 'call.json')!r}, 'w'))\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder / "env"


def test_a_scan_goes_out_and_segmentation_points_and_table_come_back(module, outputs, tmp_path, monkeypatch):
    environment = command(tmp_path, f"shutil.copytree({str(outputs)!r}, sys.argv[sys.argv.index('-o') + 1]); print('1 of 1')")
    monkeypatch.setenv("PYTHONHOME", "/slicer/python")
    slicer, table = module.slicer, MagicMock()
    slicer.mrmlScene.AddNewNodeByClass.return_value = table
    slicer.util.loadSegmentation.side_effect = lambda path, properties: MagicMock(path=Path(path).read_bytes())  # must still be there
    columns: list[list[str]] = []
    table.AddColumn.side_effect = lambda: columns.append([]) or MagicMock(InsertNextValue=columns[-1].append)
    lines: list[str] = []
    scan = MagicMock(GetName=lambda: "CT")
    messages = module.SpineCLUELogic().process(scan, str(environment), "cpu", True, lines.append)
    words, seen = json.loads((tmp_path / "call.json").read_text())
    assert words[words.index("-device") + 1] == "cpu" and "--forbid_anomalies" in words and "PYTHONHOME" not in seen
    assert words[words.index("-i") + 1] == slicer.util.saveNode.call_args.args[1]
    assert lines == ["1 of 1"]
    assert messages == ["The numbering is not anchored: the whole sequence may be shifted up or down.", "Slices are thick."]
    assert columns[0] == ["T12", "L1", "L2"] and columns[1] == ["0.75"] * 3 and columns[3] == ["20.0"] * 3
    assert not os.path.exists(words[words.index("-o") + 1])  # nothing of the patient stays behind


def test_a_failure_is_the_command_s_own_sentence(module, tmp_path):
    environment = command(tmp_path, "print('loading'); print('The scan is no CT.', file=sys.stderr); sys.exit(2)")
    with pytest.raises(RuntimeError, match=r"^The scan is no CT\.$"):
        module.SpineCLUELogic().process(MagicMock(), str(environment), on_line=lambda line: None)


def test_a_run_can_be_stopped(module, tmp_path):
    environment = command(tmp_path, "print('began', flush=True); time.sleep(60)")
    runs: list = []
    with pytest.raises(RuntimeError, match="began"):
        module.SpineCLUELogic().process(MagicMock(), str(environment), on_line=lambda line: runs[0].stop(), on_run=runs.append)


def test_a_missing_command_is_said_with_what_to_do(module, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(module.NotFound, match="is not installed; create a Python environment"):
        module.find_command()
    with pytest.raises(module.NotFound, match="is neither spineclue_predict nor an environment"):
        module.find_command(str(tmp_path))


def test_what_the_module_asks_for_is_what_the_command_takes(module):
    import argparse

    from spineclue_v2.cli import predict

    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    args = parser.parse_args(module.command_line("spineclue_predict", "scan.nrrd", "out", "cuda", True)[1:])
    assert (args.i, args.o, args.device, args.forbid_anomalies, args.also) == ("scan.nrrd", "out", "cuda", True, ["seg.nrrd", "mrk.json"])


def test_an_empty_result_says_so(module, tmp_path):
    ct, _, _ = spine(("L1",))
    result_of(ct, np.zeros(ct.array.shape, np.uint8)).save(tmp_path, "scan", report=False, describe=False, also=("seg.nrrd", "mrk.json"))
    outcome = module.read_outcome(tmp_path, "scan")
    assert outcome.rows == [] and outcome.messages[0] == "No vertebra found." and outcome.segmentation.exists()
