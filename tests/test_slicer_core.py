"""The 3D Slicer module on 3D Slicer's own libraries (`pip install slicer-core`, which has its scene and readers but no windows).

Only what starts a program and opens files by a dialog's ways is replaced: the application, Qt, and the two functions that ask it to load.
"""
from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from blocks import spine
from test_formats import result_of
from test_slicer_module import FOLDER, Base

from spineclue_v2.anatomy.levels import LABEL_OF_NAME
from spineclue_v2.export.formats.base import colour_of
from spineclue_v2.imageio.volume import Volume, write_volume

pytest.importorskip("slicer_core", reason="3D Slicer's libraries are not installed (pip install -e .[slicer])")


def read(scene: Any, node: str, storage: str, path: Path) -> Any:
    """A new node of the scene with what 3D Slicer's own reader finds in a file."""
    import slicer

    made, reader = (scene.AddNode(getattr(slicer, name)()) for name in (node, storage))
    reader.SetFileName(str(path))
    assert reader.ReadData(made) == 1, f"{storage} does not read {path.name}"
    return made


@pytest.fixture
def slicer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """3D Slicer's libraries with a scene, and the module's imports answered."""
    import slicer

    loadable = ModuleType("slicer.ScriptedLoadableModule")
    for name in ("ScriptedLoadableModule", "ScriptedLoadableModuleLogic", "ScriptedLoadableModuleTest", "ScriptedLoadableModuleWidget"):
        setattr(loadable, name, Base)
    for name, value in {"slicer.ScriptedLoadableModule": loadable, "qt": MagicMock(), "ctk": MagicMock()}.items():
        monkeypatch.setitem(sys.modules, name, value)
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    monkeypatch.setattr(slicer, "mrmlScene", scene, raising=False)
    monkeypatch.setattr(slicer, "modules", SimpleNamespace(segmentations=SimpleNamespace(logic=lambda: logic)), raising=False)
    monkeypatch.setattr(slicer.util, "loadSegmentation", lambda path, properties: read(
        scene, "vtkMRMLSegmentationNode", "vtkMRMLSegmentationStorageNode", Path(path)))
    monkeypatch.setattr(slicer.util, "loadMarkups", lambda path: read(
        scene, "vtkMRMLMarkupsFiducialNode", "vtkMRMLMarkupsJsonStorageNode", Path(path)))
    monkeypatch.syspath_prepend(str(FOLDER))
    yield slicer
    for name in [name for name in sys.modules if name.split(".")[0] in ("SpineCLUE", "SpineCLUELib")]:
        del sys.modules[name]


def test_segments_points_and_table_lie_on_the_scan_in_3d_slicer(slicer: Any, tmp_path: Path) -> None:
    """A tilted scan whose axes are not those of the patient: a mistake of one axis or sign moves everything."""
    levels = ("T12", "L1", "L2")
    ct, labels, _ = spine(levels)
    tilt = np.radians(20)
    turned = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    grid = replace(ct.geometry, origin=(-31.0, 17.0, 5.0), direction=turned @ np.asarray(ct.geometry.direction))
    ct = Volume(ct.array, grid)
    result_of(ct, labels.array).save(tmp_path, "scan", report=False, describe=False, also=("seg.nrrd", "mrk.json"))
    write_volume(ct, tmp_path / "ct.nii.gz")
    scan = read(slicer.mrmlScene, "vtkMRMLScalarVolumeNode", "vtkMRMLVolumeArchetypeStorageNode", tmp_path / "ct.nii.gz")
    scan.SetName("CT")
    module = importlib.import_module("SpineCLUE")
    module.SpineCLUELogic.load(module.read_outcome(tmp_path, "scan"), scan)

    [segmentation] = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    segments = segmentation.GetSegmentation()
    assert [segments.GetNthSegment(i).GetName() for i in range(segments.GetNumberOfSegments())] == list(levels)
    for level in levels:
        segment = segments.GetSegment(level)
        assert np.round(np.array(segment.GetColor()) * 255).astype(int).tolist() == list(colour_of(level))
        found = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, level, scan)
        assert np.array_equal(found > 0, labels.array == LABEL_OF_NAME[level])
        assert segment.GetRepresentation("Closed surface").GetNumberOfPoints() > 20

    [points] = slicer.util.getNodesByClass("vtkMRMLMarkupsFiducialNode")
    assert [points.GetNthControlPointLabel(i) for i in range(points.GetNumberOfControlPoints())] == list(levels)
    for i, level in enumerate(levels):
        left, back, up = grid.index_to_world(np.argwhere(labels.array == LABEL_OF_NAME[level]).mean(axis=0))
        assert points.GetNthControlPointPositionWorld(i) == pytest.approx((-left, -back, up), abs=0.01)  # 3D Slicer counts right, front, up

    [table] = slicer.util.getNodesByClass("vtkMRMLTableNode")
    assert table.GetName() == "CT vertebrae" and table.GetNumberOfRows() == 3 and table.GetCellText(0, 0) == "T12"
