"""The command line of a prediction, and the process that it runs in."""
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

COMMAND = "spineclue_predict"

# 3D Slicer brings a Python of its own, whose places would mislead the one that the command runs with.
_SLICERS_OWN = ("PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "QT_PLUGIN_PATH", "SSL_CERT_FILE")


class NotFound(Exception):
    """The command is not where it was looked for; the text says what to do."""


def find_command(given: str = "") -> str:
    """Path of the command: `given` (the command or the folder of an environment that holds it), else the first one on PATH.

    Raises NotFound.
    """
    if given:
        place = Path(given).expanduser()
        for candidate in (place, place / COMMAND, place / "bin" / COMMAND):
            if candidate.is_file() and os.access(candidate, os.X_OK):
                return str(candidate)
        raise NotFound(f"{given} is neither {COMMAND} nor an environment that holds it; choose the folder in which it was installed.")
    found = shutil.which(COMMAND)
    if found is None:
        raise NotFound(f"{COMMAND} is not installed; create a Python environment, run pip install spineclue_v2 there, and choose its "
                       "folder here.")
    return found


def command_line(command: str, scan: str, output: str, device: str = "", forbid_anomalies: bool = False) -> list[str]:
    """Arguments of the prediction of one scan file. The files that are loaded afterwards are asked for by name."""
    words = [command, "-i", scan, "-o", output, "--also", "seg.nrrd", "mrk.json", "--no_report", "--disable_progress_bar"]
    words += ["-device", device] if device else []
    return words + ["--forbid_anomalies"] * forbid_anomalies


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what 3D Slicer sets for its own Python."""
    return {name: value for name, value in environment.items() if name not in _SLICERS_OWN}


class Run:
    """A running command: iterate over its lines, `stop` it, ask for its `code` at the end."""

    def __init__(self, words: list[str]) -> None:
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                         env=clean_environment(os.environ))
        self.lines: list[str] = []

    def __iter__(self) -> Iterator[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip())
            yield self.lines[-1]

    def stop(self) -> None:
        """End the command; what it has not finished writing does not appear."""
        if self._process.poll() is None:
            self._process.terminate()

    @property
    def code(self) -> int:
        return self._process.wait()

    @property
    def reason(self) -> str:
        """The last line that says something: the command ends with the sentence of its failure."""
        return next((line for line in reversed(self.lines) if line.strip()), "it said nothing")
