"""`CASE_evidence.npz`: what a numbering rests on, so that a case can be numbered again without its scan and without a network.

The masks of named vertebrae are in the label map; those of detections that the numbering takes for no vertebra are kept here, and so is
what lies below the row where a sacrum was looked for.
"""
from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import LABEL_OF_NAME
from ..anatomy.label_boxes import label_boxes
from ..anatomy.vertebra import BodyHeights, Vertebra, vertebra_from_record, vertebra_record
from ..errors import InputError
from ..imageio.grid import ImageGrid
from ..imageio.orientation import oriented_view
from ..imageio.volume import Volume
from ..stages.base import Evidence, NumberingBasis
from ..utilities.files import atomic_path
from ..utilities.triples import int_triple
from .label_map import THRESHOLD, interpolated, target_box
from .labelled_spine import LabelledSpine

VERSION = 1
ROWS = ("probabilities", "log_probabilities")     # arrays of a vertebra beside its masks
ENDING = "_evidence.npz"


def write_evidence(result: LabelledSpine, path: str | Path, labels: np.ndarray) -> None:
    """Write `path` by rename. `labels`: the result's label map (z, y, x) on its grid. Raises InputError for a result without `basis`."""
    basis = result.basis
    if basis is None:
        raise InputError("This result does not know what its numbering rests on; predict the scan again.")
    grid, mask_grid = result.grids()
    vertebrae, arrays = list(detections_of(result)), dict[str, Any]()
    for i, (vertebra, name) in enumerate(zip(vertebrae, basis.names, strict=True)):
        if name is None and vertebra.mask is not None and (crop := _crop(vertebra, mask_grid, grid, labels)) is not None:
            arrays[f"mask_{i}"], arrays[f"start_{i}"] = crop
        arrays |= {f"{row}_{i}": np.asarray(value, np.float64) for row in ROWS if (value := getattr(vertebra, row)) is not None}
    for classifier, found in basis.evidence.items():
        arrays |= {f"evidence_{classifier}_{part}": np.asarray(value, float) for part in ("logs", "variants", "landmarks")
                   if (value := getattr(found, part)) is not None}
    record = {"version": VERSION, "grid": grid.to_json(), "vertebrae": [_record(v) for v in vertebrae], "names": basis.names,
              "free": basis.free, "classifiers": {name: found.weight for name, found in basis.evidence.items()},
              "penalties": dict(basis.penalties), "weights": dict(basis.weights), "model": dict(basis.model),
              "forbid_anomalies": basis.forbid_anomalies}
    if basis.below is not None and (crop := _crop(basis.below, mask_grid, grid, labels)) is not None:
        record["below"], (arrays["mask_below"], arrays["start_below"]) = _record(basis.below), crop
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, record=np.array(json.dumps(record)), **arrays)


def read_evidence(path: str | Path, labels: Volume) -> tuple[tuple[Vertebra, ...], NumberingBasis, ImageGrid]:
    """Named vertebrae (cranio-caudal), the basis, and the grid of their masks.

    Args:
        path: what `write_evidence` wrote.
        labels: the label map of the same case.

    Raises:
        InputError: no such file, none of ours, or the label map is another one.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: the case was merged by spineclue_ensemble, or predicted by an older version; predict it "
                         "again.")
    try:
        with np.load(path, allow_pickle=False) as content:
            record, arrays = json.loads(str(content["record"])), {name: content[name] for name in content.files if name != "record"}
        if record["version"] != VERSION:
            raise InputError(f"{path} has version {record['version']}, this program reads {VERSION}; predict the case again.")
        basis, grid = _basis(record, arrays), ImageGrid.from_json(record["grid"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no evidence of this version ({type(error).__name__}); predict the case again.") from error
    if not grid.same_grid(labels.geometry, tolerance=0.1):
        raise InputError(f"{path} belongs to another label map than {path.name.removesuffix(ENDING)}.nii.gz; predict the case again.")
    view = oriented_view(labels)
    boxes, found = label_boxes(view.array), []
    for i, (vertebra, name) in enumerate(zip(basis.detections, basis.names, strict=True)):
        box = None if name is None else boxes.get(LABEL_OF_NAME[name])
        if name is not None and box is not None:
            mask = np.ascontiguousarray(view.array[box] == LABEL_OF_NAME[name])
            vertebra = replace(vertebra, mask=mask, mask_start=int_triple(part.start for part in box))
        elif f"mask_{i}" in arrays:
            vertebra = _with_mask(vertebra, arrays[f"mask_{i}"], arrays[f"start_{i}"], labels.geometry, view.geometry)
        found.append(vertebra)
    if basis.below is not None:
        basis = replace(basis, below=_with_mask(basis.below, arrays["mask_below"], arrays["start_below"], labels.geometry, view.geometry))
    named = tuple(v for v, name in zip(found, basis.names, strict=True) if name is not None)
    return named, replace(basis, detections=tuple(found)), view.geometry


def _with_mask(vertebra: Vertebra, mask: np.ndarray, start: np.ndarray, grid: ImageGrid, view: ImageGrid) -> Vertebra:
    """The vertebra with a mask that begins at index `start` of `grid`, as it lies on `view`, the same grid in LPS order."""
    crop = oriented_view(Volume(mask, grid.cropped(start, mask.shape)))
    first = np.round(view.world_to_index(crop.geometry.origin)).astype(int)
    return replace(vertebra, mask=np.ascontiguousarray(crop.array), mask_start=int_triple(first))


def detections_of(result: LabelledSpine) -> tuple[Vertebra, ...]:
    """All detections of a result with a basis: its vertebrae, which say more than the basis, and what is no vertebra in its numbering."""
    assert result.basis is not None
    named = iter(result.vertebrae)
    if sum(name is not None for name in result.basis.names) != len(result.vertebrae):
        raise InputError("A stage after identify has dropped vertebrae, so this result cannot be numbered again.")
    return tuple(next(named) if name is not None else v for v, name in zip(result.basis.detections, result.basis.names, strict=True))


def _crop(vertebra: Vertebra, mask_grid: ImageGrid, grid: ImageGrid, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The voxels (bool) that a detection would have in the label map, where no vertebra has them, and the first index."""
    box = target_box(vertebra, mask_grid, grid)
    if box is None:
        return None
    low, high = box
    inside = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    crop = (interpolated(vertebra, mask_grid, grid, low, high) >= THRESHOLD) & (labels[inside] == 0)
    return (crop, low) if crop.any() else None


def _record(vertebra: Vertebra) -> dict[str, Any]:
    values = vertebra_record(vertebra)
    values.pop("mask_start", None)
    return values if vertebra.heights is None else values | {"heights": asdict(vertebra.heights)}


def _vertebrae(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Vertebra]:
    return [_vertebra(values, **{row: arrays[f"{row}_{i}"] for row in ROWS if f"{row}_{i}" in arrays})
            for i, values in enumerate(record["vertebrae"])]


def _vertebra(values: dict[str, Any], **arrays: np.ndarray) -> Vertebra:
    heights = values.pop("heights", None)
    if heights is not None:
        expected = heights.pop("expected")
        values["heights"] = BodyHeights(**heights, expected=None if expected is None else tuple(expected))
    return vertebra_from_record(values, **arrays)


def _basis(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> NumberingBasis:
    evidence = {}
    for name, weight in record["classifiers"].items():
        parts = {part: arrays.get(f"evidence_{name}_{part}") for part in ("variants", "landmarks")}
        evidence[name] = Evidence(arrays[f"evidence_{name}_logs"], weight=weight, **parts)
    below = None if "below" not in record else _vertebra(record["below"])
    return NumberingBasis(tuple(_vertebrae(record, arrays)), tuple(record["names"]), tuple(record["free"]), evidence,
                          record["penalties"], record["weights"], record["model"], bool(record["forbid_anomalies"]), below)
