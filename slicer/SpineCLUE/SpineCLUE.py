"""3D Slicer module: label the vertebrae of the loaded CT with the installed command `spineclue_predict`, in a process of its own.

Nothing is installed into 3D Slicer's Python. What needs no 3D Slicer lies in `SpineCLUELib` and is tested without it.
"""
from __future__ import annotations

import os
import tempfile

import ctk
import qt
import slicer
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from SpineCLUELib.command import NotFound, Run, command_line, find_command
from SpineCLUELib.outcome import COLUMNS, Outcome, read_outcome

SETTING = "SpineCLUE/command"
CASE = "scan"


class SpineCLUE(ScriptedLoadableModule):
    """What the module is called and where it is listed."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = "SpineCLUE: vertebrae"
        parent.categories = ["Segmentation"]
        parent.contributors = ["The spineclue_v2 developers"]
        parent.helpText = ("Finds, segments and names every vertebra of a CT. The command spineclue_predict must be installed in a Python "
                           "environment of its own; choose its folder.")
        parent.acknowledgementText = ""


class SpineCLUEWidget(ScriptedLoadableModuleWidget):
    """Choose a scan, press a button, look at segments, points and table."""

    def setup(self):
        super().setup()
        self.logic, self.running = SpineCLUELogic(), None
        box = ctk.ctkCollapsibleButton()
        box.text = "Label vertebrae"
        self.layout.addWidget(box)
        form = qt.QFormLayout(box)

        self.scan = slicer.qMRMLNodeComboBox()
        self.scan.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.scan.addEnabled = self.scan.removeEnabled = False
        self.scan.setMRMLScene(slicer.mrmlScene)
        form.addRow("CT:", self.scan)

        self.command = ctk.ctkPathLineEdit()
        self.command.filters = ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Files
        self.command.currentPath = qt.QSettings().value(SETTING, "")
        self.command.toolTip = "Folder of the environment in which spineclue_v2 is installed; empty: the command on PATH"
        form.addRow("Environment:", self.command)

        self.device = qt.QComboBox()
        self.device.addItems(["best there is", "cuda", "cpu", "mps"])
        form.addRow("Device:", self.device)

        self.forbid = qt.QCheckBox("regular numbering only (no T13, no L6)")
        form.addRow("", self.forbid)

        self.start, self.stop = qt.QPushButton("Label"), qt.QPushButton("Stop")
        self.stop.enabled = False
        form.addRow(self.start, self.stop)
        self.said = qt.QPlainTextEdit()
        self.said.readOnly = True
        form.addRow(self.said)
        self.start.connect("clicked(bool)", self.on_start)
        self.stop.connect("clicked(bool)", self.on_stop)
        self.layout.addStretch(1)

    def on_start(self):
        node = self.scan.currentNode()
        if node is None:
            slicer.util.errorDisplay("Load a CT first.")
            return
        qt.QSettings().setValue(SETTING, self.command.currentPath)
        self.said.clear()
        self.start.enabled, self.stop.enabled = False, True
        device = "" if self.device.currentIndex == 0 else self.device.currentText
        try:
            messages = self.logic.process(node, self.command.currentPath, device, self.forbid.checked, self.on_line, self.on_run)
            for message in messages:
                self.said.appendPlainText(message)
        except (NotFound, RuntimeError, OSError) as error:
            slicer.util.errorDisplay(str(error))
        finally:
            self.start.enabled, self.stop.enabled = True, False

    def on_run(self, run):
        self.running = run

    def on_line(self, line):
        self.said.appendPlainText(line)
        slicer.app.processEvents()

    def on_stop(self):
        if self.running is not None:
            self.running.stop()


class SpineCLUELogic(ScriptedLoadableModuleLogic):
    """From a volume node to segmentation, points and table."""

    def process(self, scan, command="", device="", forbid_anomalies=False, on_line=print, on_run=lambda run: None):
        """Label the CT in `scan` (vtkMRMLScalarVolumeNode) and load the results into the scene; returns messages for the user.

        Raises:
            NotFound: the command is not installed where it was looked for.
            RuntimeError: it failed; the text is its own.
        """
        with tempfile.TemporaryDirectory(prefix="spineclue_") as folder:
            path, output = os.path.join(folder, f"{CASE}.nrrd"), os.path.join(folder, "out")
            found = find_command(command)
            if not slicer.util.saveNode(scan, path, {"useCompression": 0}):
                raise RuntimeError(f"{scan.GetName()} cannot be written to {folder}.")
            run = Run(command_line(found, path, output, device, forbid_anomalies))
            on_run(run)
            for line in run:
                on_line(line)
            if run.code != 0:
                raise RuntimeError(run.reason)
            return self.load(read_outcome(output, CASE), scan)

    @staticmethod
    def load(outcome: Outcome, scan):
        """Segmentation, points and table into the scene, named after the scan."""
        name = scan.GetName()
        segmentation = slicer.util.loadSegmentation(str(outcome.segmentation), {"name": f"{name} vertebrae"})
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(scan)
        segmentation.CreateClosedSurfaceRepresentation()
        points = slicer.util.loadMarkups(str(outcome.markups))
        points.SetName(f"{name} body centres")
        table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", f"{name} vertebrae")
        for number, column in enumerate(COLUMNS):
            values = table.AddColumn()
            values.SetName(column)
            for row in outcome.rows:
                values.InsertNextValue(row[number])
        table.Modified()
        return outcome.messages


class SpineCLUETest(ScriptedLoadableModuleTest):
    """Run inside 3D Slicer; what needs no 3D Slicer is tested in the project's own tests."""

    def runTest(self):
        self.setUp()
        self.assertRaises(NotFound, find_command, "/nowhere")
        self.delayDisplay("passed")
