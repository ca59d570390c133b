"""Label maps with their names: a label table inside a NIfTI file, a `dataset.json` beside it, a folder with one mask per structure."""
from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..utilities.files import read_json
from .orientation import check_same_grid
from .volume import FILE_ENDINGS, Volume, read_labels

MAX_MASKS = 400                         # files of one folder; the largest known tool writes 117


def file_stem(path: Path) -> str:
    """The file's name without `.nii.gz` or another ending of an image."""
    lower = path.name.lower()
    ending = next((e for e in sorted(FILE_ENDINGS, key=len, reverse=True) if lower.endswith(e)), path.suffix)
    return path.name[:len(path.name) - len(ending)]


def read_mask_folder(folder: Path) -> tuple[Volume, dict[int, str]]:
    """A folder with one binary mask per structure (`vertebrae_L1.nii.gz`, `sacrum.nii.gz`): values 1.. by file name, and their names.

    Where masks overlap the first in the order of names keeps the voxel. Raises InputError for a folder without masks, masks of different
    grids, and values besides 0 and one other.
    """
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".") and f.name.lower().endswith(FILE_ENDINGS))
    if not files or len(files) > MAX_MASKS:
        raise InputError(f"{folder} holds {len(files)} images; expected one mask per structure, such as vertebrae_L1.nii.gz.")
    first = read_labels(files[0])
    array = np.zeros(first.array.shape, np.uint8 if len(files) < 256 else np.uint16)
    for value, file in enumerate(files, start=1):
        mask = first if value == 1 else read_labels(file)
        check_same_grid(first.geometry, mask.geometry, files[0].name, file)
        if not mask.geometry.same_grid(first.geometry, tolerance=0.1 * min(first.geometry.spacing)):
            mask = mask.reoriented(first.geometry.orientation)
        inside = mask.array > 0
        if inside.any() and (mask.array[inside] != mask.array.max()).any():
            raise InputError(f"{file} holds several values; expected one mask per file. Give a label map as a file, not its folder.")
        array[inside & (array == 0)] = value
    return Volume(array, first.geometry), {value: file_stem(file) for value, file in enumerate(files, start=1)}


def label_table(path: Path) -> dict[int, str]:
    """Names of the values from the label table that a NIfTI-1 file may carry (Caret's XML, as TotalSegmentator writes it); {} without."""
    import nibabel

    if not path.name.lower().endswith((".nii.gz", ".nii")):
        return {}
    try:
        extensions = getattr(nibabel.load(path).header, "extensions", ())
        texts = [e.get_content() for e in extensions]
    except Exception:                   # the voxels were read by our own reader; without a table the values speak for themselves
        return {}
    for content in texts:
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        if "<LabelTable" in text and "<!DOCTYPE" not in text:
            try:
                root = ElementTree.fromstring(text.strip("\x00 \n"))
            except ElementTree.ParseError:
                continue
            return {int(e.attrib["Key"]): (e.text or "").strip() for e in root.iter("Label") if e.attrib.get("Key", "").isdigit()}
    return {}


def names_of_json(path: Path) -> dict[int, str]:
    """Names of the values in a JSON file: `labels` of nnU-Net's `dataset.json` ({name: value}, or v1's {value: name}), or one such table.

    Raises InputError where it holds neither.
    """
    content: Any = read_json(path)
    table = content.get("labels", content) if isinstance(content, dict) else None
    names: dict[int, str] = {}
    for key, value in table.items() if isinstance(table, Mapping) else ():
        if isinstance(value, int) and not isinstance(value, bool):
            names[value] = str(key)
        elif isinstance(value, str) and re.fullmatch(r"\d{1,5}", str(key)):
            names[int(key)] = value
    if not names:
        raise InputError(f"{path} names no label values; expected a dataset.json of nnU-Net, or {json.dumps({'L1': 20})}.")
    return names


def dataset_json_of(path: Path) -> Path | None:
    """The `dataset.json` in the folder of a map, or one or two above it."""
    for folder in list(path.resolve().parents)[:3]:
        if (folder / "dataset.json").is_file():
            return folder / "dataset.json"
    return None
