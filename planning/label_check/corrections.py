"""Corrections that a person has confirmed, applied to a copy of the dataset."""
from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from spineclue_v2.anatomy import LABEL_OF_NAME
from spineclue_v2.anatomy.label_boxes import label_boxes
from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.dataset_conversion.common import place
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.orientation import oriented_view
from spineclue_v2.imageio.volume import Volume, read_labels, write_volume
from spineclue_v2.utilities.files import read_json, write_json

from .row import ISLAND_MM, SECOND_BODY

YES = {"yes", "y", "x", "1", "true"}
FORMS = "'rename L2=L3 L3=L2', 'drop islands L4', 'drop L6', 'flip x' (y, z)"
COLUMNS = ("case", "correction", "confirmed")
RECORD = "label_corrections.json"


def read_corrections(path: str | Path, raw: RawDataset) -> dict[str, list[str]]:
    """{case: confirmed corrections} of a table that `spineclue_check_labels` wrote. Raises InputError for anything that cannot be done."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the CSV that spineclue_check_labels wrote.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table; give the CSV that spineclue_check_labels wrote.") from error
    lacking = [name for name in COLUMNS if rows and name not in rows[0]]
    if not rows or lacking:
        raise InputError(f"{path} has no column {lacking[0] if lacking else COLUMNS[0]} with content; give the CSV that "
                         "spineclue_check_labels wrote.")
    wanted: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=2):
        if (row["confirmed"] or "").strip().lower() not in YES:
            continue
        case, text = (row["case"] or "").strip(), (row["correction"] or "").strip()
        if case not in raw.cases:
            raise InputError(f"{path}, line {number}: {raw.name} has no case '{case}'.")
        if not text:
            raise InputError(f"{path}, line {number}: '{case}' is confirmed without a correction; write one of {FORMS}, or draw it by "
                             "hand and use spineclue_import_corrections.")
        parse_correction(text)
        wanted.setdefault(case, []).append(text)
    if not wanted:
        raise InputError(f"{path} confirms nothing; write 'yes' into the column 'confirmed' of every correction to apply.")
    return wanted


def parse_correction(text: str) -> tuple[str, list[str]]:
    """("rename", ["L2=L3", ...]), ("drop islands", [levels]), ("drop", [levels]) or ("flip", [axis]). Raises InputError."""
    for kind, argument in (("rename", r"\w+=\w+"), ("drop islands", r"\w+"), ("drop", r"\w+"), ("flip", "[xyz]")):
        if re.fullmatch(rf"{kind}( {argument})+", text):
            words = text[len(kind):].split()
            names = [name for word in words for name in word.split("=")] if kind != "flip" else []
            unknown = [name for name in names if name not in LABEL_OF_NAME]
            if unknown:
                raise InputError(f"The correction '{text}' names {unknown[0]}, which is no level; expected C1..L6, T13 or sacrum.")
            return kind, words
    raise InputError(f"'{text}' is no correction; expected {FORMS}.")


def correct(labels: Volume, corrections: Sequence[str], value_of: Mapping[str, int]) -> Volume:
    """A corrected label map, on the same grid.

    Args:
        labels: label map, any orientation.
        corrections: in the words of `FORMS`; they apply one after the other.
        value_of: level -> value of this map. InputError where a level to write has none.
    """
    array = labels.array.copy()
    for text in corrections:
        kind, words = parse_correction(text)
        if kind == "flip":
            view = oriented_view(Volume(array, labels.geometry))
            axis = "zyx".index(words[0])
            view.array[:] = np.flip(view.array, axis).copy()      # a view: shares memory with `array`
            continue
        if kind == "rename":
            before = array.copy()
            for word in words:
                old, new = word.split("=")
                if new not in value_of:
                    raise InputError(f"The correction '{text}' needs a value for {new}, which dataset.json does not name; add it there.")
                array[before == value_of.get(old, -1)] = value_of[new]
            continue
        for level in words:
            if kind == "drop":
                array[array == value_of.get(level, -1)] = 0
            else:
                _drop_islands(array, value_of.get(level, 0), labels.spacing)
    return Volume(array, labels.geometry)


def _drop_islands(array: np.ndarray, value: int, spacing: tuple[float, float, float]) -> None:
    import cc3d
    from scipy.ndimage import distance_transform_edt

    box = label_boxes(array).get(value)
    if box is None:
        return
    region = array[box]
    pieces, count = cc3d.connected_components(np.ascontiguousarray(region == value, dtype=np.uint8), connectivity=26, return_N=True)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    away = distance_transform_edt(pieces != int(np.argmax(sizes)), sampling=spacing)
    far = [i for i in range(1, count + 1) if sizes[i] < SECOND_BODY * sizes.max() and float(away[pieces == i].min()) >= ISLAND_MM]
    region[np.isin(pieces, far)] = 0


def corrected_copy(raw: RawDataset, corrections: Mapping[str, Sequence[str]], folder: str | Path) -> Path:
    """Write the dataset with corrected labels into `folder`, which must not exist; everything else is linked or copied.

    `label_corrections.json` in it says what was done to which case. The original stays as it is.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is there already; choose another -o, so that nothing is overwritten.")
    if not re.fullmatch(r"Dataset\d{3}_.+", folder.name):
        raise InputError(f"{folder.name} is no name of a dataset; call the copy DatasetXXX_Name, with another number.")
    from spineclue_v2.anatomy import NAME_OF_LABEL

    value_of = {NAME_OF_LABEL[verse]: value for value, verse in raw.verse_value.items() if verse in NAME_OF_LABEL}
    for source in sorted(p for p in raw.folder.rglob("*") if p.is_file() and p.parent.name != "labelsTr" and not p.name.startswith(".")):
        if source.name != "dataset.json":
            place(source, folder / source.relative_to(raw.folder))
    for case in raw.cases:
        target = folder / "labelsTr" / f"{case}{raw.file_ending}"
        if case in corrections:
            write_volume(correct(read_labels(raw.label(case)), corrections[case], value_of), target)
        else:
            place(raw.label(case), target)
        image = folder / "imagesTr" / f"{case}_0000{raw.file_ending}"
        if not image.is_file():
            place(raw.image(case), image)
    write_json(folder / RECORD, {"from": raw.name, "corrections": {case: list(done) for case, done in corrections.items()}})
    content = read_json(raw.folder / "dataset.json", "dataset description")
    content.pop("dataset", None)          # absolute paths of the original
    write_json(folder / "dataset.json", content | {"name": folder.name})
    return folder
