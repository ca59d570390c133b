"""The program as the exam sees it: its public interface, loaded once per process and weights."""
from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .real_scoring import Predicted

WEIGHTS_VARIABLE = "SPINECLUE_WEIGHTS"


class Program:
    """`SpineCLUE` with its shipped weights, or with those of a folder."""

    def __init__(self, weights: Path | None = None) -> None:
        import torch

        torch.set_num_threads(1)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if weights is not None:
            self._folder = completed(weights)
            os.environ[WEIGHTS_VARIABLE] = self._folder.name
        from spineclue_v2 import SpineCLUE

        self.program = SpineCLUE.from_pretrained(device="cpu")

    def predict(self, image: Any) -> dict[str, Any]:
        """Prediction of a SimpleITK image: `labels` (z, y, x) on its grid, `vertebrae`, `anchored`, `seconds`, `notes`."""
        import SimpleITK as sitk

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scan.nii"
            sitk.WriteImage(image, str(path))
            started = time.perf_counter()
            result = self.program.predict(path)
            labels = label_map(self.program, result, path)
            seconds = time.perf_counter() - started
        vertebrae = [predicted(v) for v in result.vertebrae]
        return {"labels": labels, "vertebrae": vertebrae, "anchored": bool(result.numbering_anchored), "seconds": seconds,
                "notes": list(result.notes)}


def label_map(program: Any, result: Any, path: Path) -> np.ndarray:
    """The label map (z, y, x) on the scan's grid, as the version of the package gives it."""
    if hasattr(result, "labels"):
        labels = result.labels() if callable(result.labels) else result.labels
        return np.asarray(getattr(labels, "array", labels))
    from spineclue_v2.imageio.volume import read_volume

    return program.label_map(result, read_volume(path))


def predicted(vertebra: Any) -> Predicted:
    """What the exam needs of a named vertebra."""
    x, y, z = (float(v) for v in vertebra.body_centre)
    return Predicted(vertebra.level, (x, y, z), float(vertebra.confidence), height_loss(vertebra))


def height_loss(vertebra: Any) -> float | None:
    """The largest missing share of a body height, None where the program gives no expected heights."""
    heights = getattr(vertebra, "heights", None)
    loss = getattr(heights, "loss", None) if heights is not None else None
    return None if loss is None else float(max(loss))


def completed(weights: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder with the weights of `weights`, and the shipped ones for what it lacks. Raises SystemExit when it is no folder."""
    if not weights.is_dir():
        raise SystemExit(f"{weights} is no folder; --weights names folders with localize.pth, segment.pth, ...")
    from spineclue_v2 import __file__ as package

    folder = tempfile.TemporaryDirectory()
    for source in (Path(package).parent / "weights", weights):
        for file in source.glob("*.pth"):
            (Path(folder.name) / file.name).unlink(missing_ok=True)
            try:
                (Path(folder.name) / file.name).symlink_to(file.resolve())
            except OSError:                              # file systems without links
                shutil.copy(file, Path(folder.name) / file.name)
    return folder
