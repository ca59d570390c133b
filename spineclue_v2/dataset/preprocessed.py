"""Preprocessed datasets: arrays in network space that are read in parts, and what is known of each case."""
from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..utilities.files import read_json
from .raw import GRADES_FILE


class PreprocessedDataset:
    """One preprocessed folder, `preprocessed/DATASET/<data fingerprint>`: volumes in network space, read lazily.

    A case is complete exactly when its JSON is there (written last, by rename).
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"Preprocessed folder {self.folder} does not exist; run spineclue_plan_and_preprocess (or "
                             "spineclue_preprocess) for this plan.")
        self.cases: list[str] = sorted(entry.stem for entry in self.folder.glob("*.json") if not entry.name.startswith("."))
        if not self.cases:
            raise InputError(f"Preprocessed folder {self.folder} holds no complete case; run spineclue_preprocess.")

    def image(self, case: str) -> Any:
        """blosc2 NDArray int16 (z, y, x), HU, sliced lazily: `image[a:b, c:d, e:f]` decompresses only the chunks it touches."""
        return _open_blosc2(self.folder / f"{case}.b2nd")

    def labels(self, case: str) -> Any:
        """blosc2 NDArray uint8 (z, y, x), VerSe label values on the image's grid."""
        return _open_blosc2(self.folder / f"{case}_seg.b2nd")

    def properties(self, case: str) -> dict[str, Any]:
        """{"geometry", "source_geometry": ImageGrid.to_json(), "vertebrae": {name: {"label", "start", "stop", "centroid",
        "body_centre", "voxels", "touches_border"}}}; positions are network space indices (z, y, x), present vertebrae only."""
        if case not in self._properties:
            path = self.folder / f"{case}.json"
            content = read_json(path, "preprocessed case")
            if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("geometry", "vertebrae")):
                raise InputError(f"{path} does not describe a preprocessed case; run spineclue_preprocess --clean.")
            self._properties[case] = content
        return self._properties[case]

    @cached_property
    def grades(self) -> dict[str, dict[str, int]]:
        """case -> {level: Genant grade}, of the cases that were graded; empty without any."""
        path = self.folder.parent / GRADES_FILE
        return read_json(path, "grades") if path.is_file() else {}

    @cached_property
    def _properties(self) -> dict[str, dict[str, Any]]:
        return {}


def _open_blosc2(path: Path) -> Any:
    import blosc2

    if not path.is_file():
        raise InputError(f"{path} is missing although its case was complete; run spineclue_preprocess --clean.")
    # Loader workers are many; each decompresses with one thread. Memory mapping is not available on Windows.
    extra = {} if os.name == "nt" else {"mmap_mode": "r"}
    try:
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1}, **extra)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} is no intact blosc2 array; run spineclue_preprocess --clean.") from error
