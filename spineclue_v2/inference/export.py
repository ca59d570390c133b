"""A SpineResult as files on the scan's own grid: label map, centres, record, colour tables. Each appears by rename."""
from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import anatomy
from ..storage import atomic_path, write_json
from ..vertebra import BodyHeights, SpineResult, Vertebra
from ..volume import Geometry, Volume, write_volume
from .centroids import read_ctd, write_ctd

__all__ = ["case_record", "export_case", "label_map", "read_ctd", "versions", "write_colour_tables", "write_ctd"]

THRESHOLD = 0.5
JUST_OUTSIDE = 127 / 255  # the highest 8-bit probability that is no mask
SLICER_TABLE, ITKSNAP_TABLE = "labels_slicer.ctbl", "labels_itksnap.txt"
NO_VERTEBRA = "no vertebra found"
REMARKS = ("heights: [anterior, middle, posterior] of the body in the mask, mm; loss: missing share of what the reference lets expect; "
           "implied_grade: Genant's limits (20, 25, 40 %) on the largest loss, arithmetic that says nothing of the cause.",
           "trabecular_hu: median CT number in the middle of the body; intravenous contrast raises it, tube voltage and scanner shift it.")


def export_case(result: SpineResult, model_geometry: Geometry, geometry: Geometry, folder: str | Path, case: str,
                plans: Mapping[str, Any] | None = None) -> dict[str, Path]:
    """Write `CASE.nii.gz`, `CASE_ctd.json`, the colour tables (once per folder) and, last, `CASE.json`; returns their paths.

    `model_geometry` is the grid of the vertebrae's masks, `geometry` the input scan's grid, on which the label map is written.
    A case whose `CASE.json` exists is complete. A result without vertebrae gives an empty label map and says so.
    """
    folder = Path(folder)
    paths = {"labels": folder / f"{case}.nii.gz", "centroids": folder / f"{case}_ctd.json", "record": folder / f"{case}.json"}
    write_volume(Volume(label_map(result.vertebrae, model_geometry, geometry), geometry), paths["labels"])
    write_ctd(paths["centroids"], result.vertebrae, geometry)
    write_colour_tables(folder)
    write_json(paths["record"], case_record(result, plans))
    return paths


def label_map(vertebrae: Iterable[Vertebra], model_geometry: Geometry, geometry: Geometry) -> np.ndarray:
    """VerSe label values, uint8 (z, y, x) on grid `geometry`.

    Each vertebra's probability (model space; its mask where there is none) is interpolated linearly inside its own bounding box only; a
    voxel belongs to the vertebra with the highest value of at least 0.5. Vertebrae without mask or level leave no trace.
    """
    labels = np.zeros(geometry.shape, dtype=np.uint8)
    drawn = [(v, box) for v in vertebrae if v.mask is not None and v.level is not None
             and (box := target_box(v, model_geometry, geometry)) is not None]
    if not drawn:
        return labels
    # Values of the current owners, 8 bit, only where vertebrae are: no float volume of the whole scan.
    start = np.min([low for _, (low, _) in drawn], axis=0)
    stop = np.max([high for _, (_, high) in drawn], axis=0)
    owned = np.zeros(stop - start, dtype=np.uint8)
    for vertebra, (low, high) in drawn:
        value = np.round(interpolated(vertebra, model_geometry, geometry, low, high) * 255).astype(np.uint8)
        best = owned[_slices(low - start, high - start)]
        wins = (value >= THRESHOLD * 255) & (value > best)
        best[wins] = value[wins]
        labels[_slices(low, high)][wins] = anatomy.LABEL_OF_NAME[vertebra.level]
    return labels


def _slices(low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def target_box(vertebra: Vertebra, model: Geometry, target: Geometry) -> tuple[np.ndarray, np.ndarray] | None:
    """Index box [low, high) of `target` that the mask reaches, half-open; None when it lies outside."""
    first = np.array(vertebra.mask_start) - 1
    last = np.array(vertebra.mask_start) + np.array(vertebra.mask.shape)
    corners = np.stack(np.meshgrid(*zip(first, last, strict=True), indexing="ij"), axis=-1).reshape(-1, 3)
    index = target.world_to_index(model.index_to_world(corners))
    low = np.maximum(np.floor(index.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(index.max(axis=0)) + 1, target.shape).astype(int)
    return (low, high) if (low < high).all() else None


def interpolated(vertebra: Vertebra, model: Geometry, target: Geometry, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The vertebra's probability, or mask, at the target voxels [low, high), float32 in [0, 1]; 0 outside it.

    A mask that touches the border of model space is continued by one voxel: the outer half voxels of a finer grid lie beyond the
    last voxel centres of model space.
    """
    start = np.array(vertebra.mask_start)
    mask = _field(vertebra)
    for axis in range(3):
        ends = np.moveaxis(mask, axis, 0)
        if start[axis] == 0:
            ends[0] = ends[1]
        if start[axis] + vertebra.mask.shape[axis] == model.shape[axis]:
            ends[-1] = ends[-2]
    # Affine map from target index (from `low` on) to index in the padded mask.
    origin = model.world_to_index(target.index_to_world(low)) - (start - 1)
    moved = model.world_to_index(target.index_to_world(low + np.eye(3))) - (start - 1)
    steps = (moved - origin).T
    if all((np.abs(column) > 1e-6).sum() == 1 for column in steps.T):
        return _separable(mask, steps, origin, high - low)
    from scipy.ndimage import affine_transform

    return affine_transform(mask, steps, origin, tuple(high - low), order=1, mode="constant", prefilter=False)


def _field(vertebra: Vertebra) -> np.ndarray:
    """Values to interpolate, float32, one voxel wider than the mask on every side; the probability places the surface between voxels."""
    if vertebra.mask_probability is None:
        return np.pad(vertebra.mask.astype(np.float32), 1)
    # What the tight box cuts off: the fall goes on, and the surface lies at most half a voxel outside the last voxel of the mask.
    probability = vertebra.mask_probability.astype(np.float32) / 255
    fall, nearest = np.pad(probability, 1, mode="reflect", reflect_type="odd"), np.pad(probability, 1, mode="edge")
    field = np.clip(np.minimum(fall, 1 - nearest), 0, JUST_OUTSIDE)
    field[1:-1, 1:-1, 1:-1] = probability
    return field


def _separable(mask: np.ndarray, steps: np.ndarray, origin: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Linear interpolation where target axes run along mask axes: one axis after the other, many times faster than in general."""
    source = [int(np.argmax(np.abs(steps[:, axis]))) for axis in range(3)]  # mask axis of each target axis
    values = mask.transpose(source)
    # Axes that shrink first: fewer voxels for the rest.
    for axis in sorted(range(3), key=lambda a: shape[a] / values.shape[a]):
        place = origin[source[axis]] + steps[source[axis], axis] * np.arange(shape[axis])
        below = np.floor(place).astype(int)
        weight = (place - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        size = values.shape[axis]
        inside = ((place >= 0) & (place <= size - 1)).astype(np.float32).reshape(weight.shape)
        lower = np.take(values, np.clip(below, 0, size - 1), axis=axis)
        upper = np.take(values, np.clip(below + 1, 0, size - 1), axis=axis)
        values = (lower + (upper - lower) * weight) * inside
    return values


def case_record(result: SpineResult, plans: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Content of `CASE.json`. Points are LPS mm (x, y, z), `extent_mm` is (z, y, x); numbers unknown to a stage are null."""
    return {
        "status": "ok" if result.vertebrae else NO_VERTEBRA,
        "vertebrae": [_vertebra_record(vertebra) for vertebra in result.vertebrae],
        "numbering_anchored": bool(result.numbering_anchored),
        "margin": _number(result.margin, 4),
        "notes": list(result.notes),
        "remarks": list(REMARKS) if any(v.heights or v.trabecular_hu is not None for v in result.vertebrae) else [],
        "plans": dict(plans or {}),
        "versions": versions(),
        "seconds": {stage: round(float(value), 3) for stage, value in result.seconds.items()},
    }


def _vertebra_record(vertebra: Vertebra) -> dict[str, Any]:
    probabilities = None
    if vertebra.probabilities is not None:
        probabilities = {name: round(float(p), 6) for name, p in zip(anatomy.LEVELS, vertebra.probabilities, strict=True)}
    return {
        "level": vertebra.level,
        "label": anatomy.LABEL_OF_NAME[vertebra.level] if vertebra.level else None,
        "confidence": _number(vertebra.confidence, 6),
        "uncertainty": _number(vertebra.uncertainty, 6),
        "body_centre_mm": None if vertebra.body_centre is None else [round(float(c), 3) for c in vertebra.body_centre],
        "extent_mm": [round(float(e), 2) for e in vertebra.extent],
        "volume_ml": _number(vertebra.volume_ml, 3),
        "probabilities": probabilities,
        "touches_border": bool(vertebra.touches_border),
        "heights": _heights_record(vertebra.heights),
        "trabecular_hu": _number(vertebra.trabecular_hu, 0),
        "grading": _grading_record(vertebra),
    }


def _heights_record(heights: BodyHeights | None) -> dict[str, Any] | None:
    """Millimetres and shares in the order anterior, middle, posterior."""
    if heights is None:
        return None
    def rounded(values: tuple[float, float, float] | None, decimals: int) -> list[float] | None:
        return None if values is None else [round(value, decimals) for value in values]

    return {"measured_mm": rounded(heights.measured, 2), "expected_mm": rounded(heights.expected, 2), "reference": heights.reference,
            "loss": rounded(heights.loss, 3), "to_posterior": rounded(tuple(h / heights.posterior for h in heights.measured), 3),
            "implied_grade": heights.grade, "shape": heights.shape}


def _grading_record(vertebra: Vertebra) -> dict[str, Any] | None:
    """The network's Genant grade, beside whether the heights contradict it, and what both say together."""
    if vertebra.grade_probabilities is None:
        return None
    from ..stages.grade.predictor import disagree, grade_given

    both = vertebra.combined_grade_probabilities
    return {"grade": int(np.argmax(vertebra.grade_probabilities)), "probabilities": [round(p, 4) for p in vertebra.grade_probabilities],
            "disagrees_with_heights": disagree(vertebra),
            "combined": None if both is None else {"grade": grade_given(vertebra), "probabilities": [round(p, 4) for p in both]}}


def _number(value: float | None, decimals: int) -> float | None:
    """Rounded; None (null) also for what is not finite, which JSON has no word for."""
    return None if value is None or not math.isfinite(value) else round(float(value), decimals)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on, where installed."""
    found = {"python": platform.python_version()}
    for package in ("spineclue_v2", "torch", "numpy", "SimpleITK", "ultralytics"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_colour_tables(folder: str | Path) -> tuple[Path, Path]:
    """Colour tables of all label values for 3D Slicer and ITK-SNAP, written once per folder; returns their paths."""
    slicer, itksnap = Path(folder) / SLICER_TABLE, Path(folder) / ITKSNAP_TABLE
    rows = [(label, name, anatomy.colour(name)) for label, name in sorted(anatomy.NAME_OF_LABEL.items())]
    if not slicer.is_file():
        lines = ["# 3D Slicer colour table, VerSe label values: number name red green blue opacity", "0 background 0 0 0 0"]
        lines += [f"{label} {name} {r} {g} {b} 255" for label, name, (r, g, b) in rows]
        _write_lines(slicer, lines)
    if not itksnap.is_file():
        lines = ["# ITK-SNAP label descriptions, VerSe label values: number red green blue opacity visible mesh name",
                 '    0     0    0    0        0  0  0    "Clear Label"']
        lines += [f'{label:5d} {r:5d}{g:5d}{b:5d}        1  1  1    "{name}"' for label, name, (r, g, b) in rows]
        _write_lines(itksnap, lines)
    return slicer, itksnap


def _write_lines(path: Path, lines: list[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
