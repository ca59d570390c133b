"""Files of a preprocessed dataset: blosc2 arrays, and which of them are still valid."""
from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..imageio.volume import Volume
from ..utilities.files import atomic_path, read_json

logger = logging.getLogger(__name__)


READ_MM = 96.0            # crop whose reading the stored chunks are sized for (one vertebra with its surroundings)


def prepare_folder(folder: Path, cases: Sequence[str], digests: Mapping[str, str], clean: bool) -> None:
    """Remove preprocessed cases that left the raw dataset, whose raw files changed, or all of them with `clean`."""
    known = set(cases)
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        case = path.stem
        if case not in known:
            logger.info("%s is no longer in the raw dataset; its preprocessed files are removed.", case)
        elif not clean and read_json(path, "preprocessed case").get("source_digest") == digests[case]:
            continue
        # The JSON goes first: without it the rest counts as incomplete.
        for name in (f"{case}.json", f"{case}.b2nd", f"{case}_seg.b2nd"):
            (folder / name).unlink(missing_ok=True)


def remove_leftovers(folder: Path, case: str) -> None:
    """Delete what a cut run left half-written of a case."""
    if folder.is_dir():
        pattern = re.compile(r"\.part_.{8}_" + re.escape(case) + r"(\.b2nd|_seg\.b2nd|\.json)")
        for entry in os.scandir(folder):
            if pattern.fullmatch(entry.name):
                Path(entry.path).unlink(missing_ok=True)


def write_blosc2(path: Path, volume: Volume) -> None:
    """A volume as a blosc2 file whose chunks suit reading crops; complete or absent."""
    import blosc2

    from ..adapters import blosc2_layout

    array = np.ascontiguousarray(volume.array)
    patch = [max(1, round(READ_MM / s)) for s in volume.spacing]
    chunks, blocks = blosc2_layout(array.shape, patch, array.itemsize)
    with atomic_path(path) as temporary:
        try:
            # The file's header records the thread count: fixed, so that equal volumes are equal files.
            blosc2.asarray(array, urlpath=str(temporary), mode="w", chunks=chunks, blocks=blocks, dparams={"nthreads": 1},
                           cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1})
        except RuntimeError as error:  # how blosc2 reports a full disk
            raise InputError(f"Cannot write {path} ({error}); choose a folder that is writable and has space.") from error
