"""`.seg.nrrd` of 3D Slicer: which voxels each named segment has (Slicer documentation, "Segmentation file format")."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..utilities.triples import int_triple
from .grid import ImageGrid
from .itk import unit_columns
from .volume import Volume

SEGMENT = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer)")


def read_segments(path: str | Path) -> tuple[Volume, dict[str, int]]:
    """Label map and {segment name: value in it}; segments of several layers are put into one map, later ones over earlier ones.

    InputError where the file names no segments, two have one name, or it cannot be read.
    """
    import SimpleITK as sitk

    path = Path(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read as a segmentation; save it again in 3D Slicer as .seg.nrrd.") from error
    fields: dict[int, dict[str, str]] = {}
    for key in image.GetMetaDataKeys():
        if found := SEGMENT.fullmatch(key):
            fields.setdefault(int(found[1]), {})[found[2]] = image.GetMetaData(key)
    if not fields or image.GetDimension() != 3:
        raise InputError(f"{path} names no segments; save the segmentation in 3D Slicer as .seg.nrrd.")
    stored = sitk.GetArrayFromImage(image)
    layers = stored[..., None] if stored.ndim == 3 else stored
    array, names = np.zeros(layers.shape[:3], np.uint16), {}
    for number, (_, segment) in enumerate(sorted(fields.items()), start=1):
        name = segment.get("Name", "")
        if name in names:
            raise InputError(f"{path} has two segments called '{name}'; give each its own level.")
        array[layers[..., int(segment.get("Layer", 0))] == int(segment.get("LabelValue", number))] = number
        names[name] = number
    grid = ImageGrid(int_triple(array.shape), tuple(image.GetSpacing()[::-1]), tuple(image.GetOrigin()),
                     np.array(image.GetDirection()).reshape(3, 3))
    return Volume(array, unit_columns(grid)), names
