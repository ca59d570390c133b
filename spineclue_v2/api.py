"""The Python interface: `SpineCLUE.from_pretrained().predict(path)`."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from .export.label_map import label_map
from .imageio.volume import Volume, read_volume
from .inference.model import Model, load_shipped, load_trained
from .inference.pipeline import Options, predict_volume
from .results import SpineResult
from .utilities import paths


class SpineCLUE:
    """A loaded model. `predict` takes a path or a `Volume` and returns a `SpineResult`; `label_map` draws it on the scan's grid."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @staticmethod
    def from_pretrained(source: str | Path | int | None = None, folds: list[int | str] | None = None,
                        device: str | None = None) -> SpineCLUE:
        """Shipped weights (None), a dataset id or name among the results, or the folder of a model."""
        from .training.device import resolve_device

        where = resolve_device(device)
        if source is None:
            return SpineCLUE(load_shipped(where))
        folder = Path(source) if not str(source).isdigit() and Path(source).is_dir() else None
        return SpineCLUE(load_trained(folder or paths.results_folder() / paths.dataset_name(source), folds, where))

    def predict(self, scan: str | Path | Volume, options: Options | None = None) -> SpineResult:
        """Vertebrae of a scan in cranio-caudal order."""
        volume = scan if isinstance(scan, Volume) else read_volume(scan)
        return predict_volume(volume, self.model, options)

    @staticmethod
    def label_map(result: SpineResult, volume: Volume) -> np.ndarray:
        """VerSe label values, uint8 (z, y, x) on the grid of `volume`."""
        return label_map(result.vertebrae, result.mask_grid, volume.geometry)
