"""A relabelled map in the scheme that its source came in: mended masks and new levels, all other structures as they were."""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..anatomy import LABEL_OF_NAME
from ..anatomy.label_schemes import LabelScheme, kind_of_name
from ..flags import Flag
from ..imageio.orientation import oriented_view
from ..imageio.volume import Volume, write_volume
from .bodies import Body
from .label_source import LabelSource


def source_map_path(source: LabelSource, scheme: LabelScheme, base: str, ending: str) -> Path:
    """The file, or of a folder of masks the folder, that is written."""
    return Path(f"{base}_masks" if source.folder else f"{base}_{scheme.name}{ending}")


def write_source_map(source: LabelSource, scheme: LabelScheme, owners: Sequence[tuple[Body, str]], base: str, ending: str) -> list[Flag]:
    """Write `BASE_<scheme>ENDING`, of a folder of masks the folder `BASE_masks`; a flag names levels that the scheme cannot say.

    Voxels of vertebrae that were dropped become background. Discs and end plates that carry the number of their vertebra get its new one.
    """
    target = source_map_path(source, scheme, base, ending)
    if source.folder:
        _write_folder(source, scheme, owners, target, ending)
        return []
    values = scheme.values
    lacking = sorted({level for _, level in owners if level not in values})
    labels = source.labels
    array = labels.array.copy()
    vertebrae = [value for value in scheme.levels if value <= np.iinfo(array.dtype).max]
    array[np.isin(array, vertebrae)] = 0
    moves: dict[int, int] = {}
    view = oriented_view(Volume(array, labels.geometry)).array   # shares memory with `array`
    for body, level in owners:
        if level in values:
            view[body.box][body.mask] = values[level]
            moves[body.value] = values[level]
    for step in scheme.companions:
        for old, new in moves.items():
            if old != new:
                array[labels.array == old + step] = new + step
    write_volume(Volume(array, labels.geometry), target)
    if not lacking:
        return []
    message = f"{scheme.title} has no value for {', '.join(lacking)}: left out in the map with its values."
    return [Flag("level_without_value", "relabel", "warning", message, ", ".join(lacking), None, "Use the map with VerSe's values.")]


def _write_folder(source: LabelSource, scheme: LabelScheme, owners: Sequence[tuple[Body, str]], folder: Path, ending: str) -> None:
    names = source.names or {}
    folder.mkdir(parents=True, exist_ok=True)
    example, level = next((names[value], level) for value, level in scheme.levels.items())
    for value, name in names.items():
        if value not in scheme.levels:
            write_volume(Volume((source.labels.array == value).astype(np.uint8), source.labels.geometry), folder / f"{name}{ending}")
    for number in sorted({level for _, level in owners}):
        array = np.zeros(source.labels.array.shape, np.uint8)
        view = oriented_view(Volume(array, source.labels.geometry)).array
        for body, named in owners:
            if named == number:
                view[body.box][body.mask] = 1
        name = re.sub(rf"{level}(?!\d)", number, example, flags=re.IGNORECASE)
        write_volume(Volume(array, source.labels.geometry), folder / f"{name}{ending}")


def remove_vertebrae(folder: Path) -> None:
    """Take the masks of vertebrae out of a folder: one of an earlier run must not stay beside those of this one."""
    for old in folder.glob("*"):
        if old.is_file() and kind_of_name(old.name.split(".")[0]) in LABEL_OF_NAME:
            old.unlink()
