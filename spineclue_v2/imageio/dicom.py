"""A DICOM series as one volume: slices put in order by their own positions, each rescaled by its own numbers.

Positions are exact: where the slices are moved against each other (a tilted gantry) the grid is sheared, see `grid.ImageGrid`.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..flags import Flag
from .dicom_headers import SliceHeader
from .dicom_pixels import PixelReader
from .dicom_series import UNKNOWN_MODALITIES, DicomFolder, Series, choose_series, is_dicom_folder, look_through
from .grid import ImageGrid
from .grid_checks import MIN_SLICES, check_grid, check_placement
from .nifti import shear_flags
from .scanned import Scanned

__all__ = ["is_dicom_folder", "read_dicom"]

SAME_PLACE_MM = 0.01
SAME_SPACING_MM, SAME_COSINE = 0.001, 0.01    # slices of one stack differ by less
UNEVEN = 0.2            # of the step: beyond it a slice is missing
WOBBLE = 0.05           # of the step (lateral: of a pixel): beyond it the reader is told
LARGEST_SCALING = 1e6
_STATED = "read"


def read_dicom(source: Path, series: str | None = None, modality: str | None = None) -> Scanned:
    """A series of a folder (at any depth), or a file that holds all slices of a scan.

    Args:
        source: folder or file.
        series: UID (or its end) of the series; None: the one with the most slices.
        modality: "CT" or "MR": series of other modalities are no scan. None: either.

    Raises:
        InputError: no such series, files that cannot be read, slices that are no regular stack.
    """
    found = look_through(source) if source.is_dir() else look_through(source.parent, [source])
    chosen, rivals = choose_series(found, series, modality)
    flags = _choice_flags(found, chosen, rivals)
    headers = _check_headers(source, chosen, found)
    headers, left_out = _one_stack(headers)
    if left_out:
        message = (f"{len(left_out)} slices of the series are scout views, or of another orientation, size or pixel spacing, e.g. "
                   f"{left_out[0].path.name}; they were left out.")
        large = len(left_out) >= MIN_SLICES and not all(h.localizer for h in left_out)
        flags.append(Flag("slices_left_out", _STATED, "review" if large else "warning", message, len(left_out),
                          what_to_do="Check that nothing of the scan is missing."))
    if len(headers) < MIN_SLICES:
        alone = source.is_file() and len(headers) == 1
        what = "one slice (give the folder of its series)" if alone else f"a DICOM series of {len(headers)} slices"
        rest = f", and {len(left_out)} of other directions or sizes, as a localizer does" if left_out else ""
        raise InputError(f"{source} holds {what}{rest}; expected {MIN_SLICES} or more.")
    stored = sum(path.stat().st_size for path in {header.path for header in headers})
    check_grid(source, (*headers[0].shape[::-1], len(headers)), (1.0, 1.0, 1.0), 1, stored)  # before anything is allocated
    headers, placed = _in_order(source, headers)
    flags += placed
    arrays, headers, doubles = _read_slices(source, headers)
    flags += doubles
    geometry, uneven = _geometry(source, headers)
    check_grid(source, geometry.shape[::-1], geometry.spacing[::-1], 1, stored)
    check_placement(source, geometry)
    flags += uneven + shear_flags(geometry) + _value_flags(headers)
    files = tuple(header.path for header in headers)
    return Scanned(arrays, geometry, tuple(flags), files[:1] if headers[0].frame is not None and len(set(files)) == 1 else files)


def _choice_flags(found: DicomFolder, chosen: Series, rivals: Sequence[Series]) -> list[Flag]:
    flags = []
    if rivals:
        studies = len({series.study for series in (chosen, *rivals)})
        many = ", of several studies" if studies > 1 else ""
        message = (f"The folder holds {len(rivals) + 1} DICOM series that could be the scan{many}; the "
                   f"longest one ({len(chosen.slices)} slices) is used.")
        flags.append(Flag("several_series", _STATED, "review" if studies > 1 else "warning", message, len(rivals) + 1, 1,
                          "spineclue_predict --list shows them, --series UID chooses one."))
    others = len(found.others) + sum(len({h.path for h in series.slices}) for series in found.series if series is not chosen
                                     and series not in rivals)
    if others:
        message = f"{others} DICOM files belong to no series that could be the scan (reports, other modalities, scouts); they are left out."
        flags.append(Flag("other_objects", _STATED, "info", message, others))
    if chosen.modality in UNKNOWN_MODALITIES:
        flags.append(Flag("modality_unknown", _STATED, "review", "The DICOM header names no modality; the series was taken for a scan of "
                          "the model's own.", chosen.modality or None, what_to_do="Check that it is one."))
    return flags


def _check_headers(source: Path, chosen: Series, found: DicomFolder) -> list[SliceHeader]:
    """The slices of a series, after what would make it unreadable was looked for."""
    places = {header.path.parent for header in chosen.slices}
    if near := [path for path in found.damaged if path.parent in places]:
        raise InputError(f"{source} holds the image {near[0].name} that cannot be read; is it truncated? Copy it again.")
    headers = list(chosen.slices)
    if not any(header.grey for header in headers):
        raise InputError(f"The DICOM series in {source} is in colour; expected a CT.")
    for header in headers:
        numbers = [*(header.position or ()), *(n for axis in header.orientation or () for n in axis), *(header.spacing or ())]
        if not np.isfinite(numbers).all():
            raise InputError(f"The DICOM series in {source} has slices whose position, orientation or spacing is no list of numbers, or "
                             f"not finite, e.g. {header.path.name}.")
        scaling = [n for n in (header.slope, header.intercept) if n is not None]
        if not np.isfinite(scaling).all() or header.slope == 0 or any(abs(n) > LARGEST_SCALING for n in scaling):
            raise InputError(f"The DICOM file {header.path} has a rescale slope or intercept that is no number, zero, or beyond "
                             f"{LARGEST_SCALING:g}; fix its header.")
        if header.spacing is not None and min(header.spacing) <= 0:
            raise InputError(f"The DICOM file {header.path} has a spacing of pixels of {header.spacing} mm; fix its header.")
    if any(header.spacing is None for header in headers):
        raise InputError(f"The DICOM series in {source} does not state the spacing of its pixels; expected PixelSpacing.")
    return headers


def _one_stack(headers: list[SliceHeader]) -> tuple[list[SliceHeader], list[SliceHeader]]:
    """Slices that fit together, and those that do not: scout views, pictures in colour, and all but the most frequent shape, spacing and
    orientation, whose numbers may be rounded differently from slice to slice."""
    usable = [header for header in headers if header.grey and not header.localizer] or [header for header in headers if header.grey]
    stacks: list[list[SliceHeader]] = []
    for header in usable:
        stack = next((stack for stack in stacks if _fit_together(header, stack[0])), None)
        if stack is None:
            stacks.append(stack := [])
        stack.append(header)
    kept = max(stacks, key=len)
    chosen = set(map(id, kept))
    return kept, [header for header in headers if id(header) not in chosen]


def _fit_together(one: SliceHeader, other: SliceHeader) -> bool:
    if one.shape != other.shape or (one.position is None) != (other.position is None):
        return False
    return _near(one.spacing, other.spacing, SAME_SPACING_MM) and _near(one.orientation, other.orientation, SAME_COSINE)


def _near(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two lists of numbers, or none, are the same within `tolerance`."""
    if one is None or other is None:
        return one is other
    return bool(np.abs(np.subtract(one, other)).max() <= tolerance)


def _in_order(source: Path, headers: list[SliceHeader]) -> tuple[list[SliceHeader], list[Flag]]:
    """Slices by their place along the normal of the first one; by number where no place is stated."""
    if headers[0].position is not None and headers[0].orientation is not None:
        normal = np.cross(*headers[0].orientation)
        if np.linalg.norm(normal) < 0.5:
            raise InputError(f"The DICOM series in {source} has an orientation whose axes lie almost on one line; fix the header.")
        if np.ptp([_place(header) for header in headers], axis=0).max() < SAME_PLACE_MM:
            raise InputError(f"The DICOM series in {source} states one and the same position for all its {len(headers)} slices; export it "
                             "again.")
        return sorted(headers, key=lambda h: (round(float(np.dot(_place(h), normal)), 4), h.number)), []
    message = "The DICOM files do not state where the slices lie; they were put in order by number, and taken for axial from the feet up."
    flag = Flag("no_orientation", _STATED, "review", message, what_to_do="Check left and right, head and feet, or export the series again.")
    return sorted(headers, key=lambda h: h.number), [flag]


def _place(header: SliceHeader) -> np.ndarray:
    assert header.position is not None
    return np.array(header.position)


def _read_slices(source: Path, headers: list[SliceHeader]) -> tuple[np.ndarray, list[SliceHeader], list[Flag]]:
    """Rescaled voxels (z, y, x); of slices that are there twice one. InputError where two different ones lie at one place."""
    reader, kept, doubles = PixelReader(), list[SliceHeader](), 0
    whole = all((header.slope or 1.0).is_integer() and (header.intercept or 0.0).is_integer() for header in headers)
    array = np.empty((len(headers), *headers[0].shape), np.int32 if whole else np.float32)
    for header in headers:
        values = reader.read(header)
        scaled = values.astype(np.int64 if whole else np.float64) * (header.slope or 1.0) + (header.intercept or 0.0)
        if whole:
            scaled = np.clip(scaled, -2 ** 31, 2 ** 31 - 1)
        array[len(kept)] = scaled
        if kept and header.position is not None and np.linalg.norm(_place(header) - _place(kept[-1])) < SAME_PLACE_MM:
            if not np.array_equal(array[len(kept)], array[len(kept) - 1]):
                raise InputError(f"The DICOM series in {source} has several images at one position that differ (e.g. {_name(kept[-1])} and "
                                 f"{_name(header)}); expected one phase only. Keep one of them.")
            doubles += 1
            continue
        kept.append(header)
    message = f"{doubles} slices are there twice; one of each was used."
    flags = [Flag("duplicate_slices", _STATED, "info", message, doubles, 0)] if doubles else []
    if len(kept) < MIN_SLICES:
        raise InputError(f"{source} holds a DICOM series of {len(kept)} slices; expected {MIN_SLICES} or more.")
    return array[:len(kept)], kept, flags


def _name(header: SliceHeader) -> str:
    return header.path.name if header.frame is None else f"frame {header.frame + 1} of {header.path.name}"


def _geometry(source: Path, headers: list[SliceHeader]) -> tuple[ImageGrid, list[Flag]]:
    """The grid of slices in order; sheared where they are moved against each other. InputError where they are no regular stack."""
    (between_rows, between_columns), count = headers[0].spacing or (1.0, 1.0), len(headers)
    shape = (count, *headers[0].shape)
    if headers[0].position is None or headers[0].orientation is None:
        step = headers[0].step
        if not step or not np.isfinite(step):
            raise InputError(f"The DICOM series in {source} states neither where its slices lie nor how far apart; export it again.")
        return ImageGrid(shape, (step, between_rows, between_columns), (0.0, 0.0, 0.0), np.eye(3)), []
    x, y = (np.array(axis) / np.linalg.norm(axis) for axis in headers[0].orientation)
    places = np.array([header.position for header in headers])
    normal = np.cross(x, y)
    along = np.diff(places, axis=0) @ (normal / np.linalg.norm(normal))
    step = float(np.median(along))
    widest = int(np.argmax(along))
    if along.max() > (1 + UNEVEN) * step or along.min() < (1 - UNEVEN) * step:
        raise InputError(f"The DICOM series in {source} has slices {along.min():.4g} to {along.max():.4g} mm apart; expected even steps. "
                         f"Are files missing, e.g. between {_name(headers[widest])} and {_name(headers[widest + 1])}?")
    move = (places[-1] - places[0]) / (count - 1)
    wobble = np.abs(places - places[0] - np.arange(count)[:, None] * move)
    off, limit = float(np.linalg.norm(wobble, axis=1).max()), min(between_rows, between_columns, step)
    if off > limit:
        raise InputError(f"The DICOM series in {source} has slices up to {off:.1f} mm beside a straight line; expected a regular stack.")
    flags = []
    if off > WOBBLE * max(limit, step):
        message = f"Slices lie up to {off:.2f} mm beside even steps; they were taken for even."
        flags.append(Flag("uneven_slices", _STATED, "warning", message, round(off, 3), round(WOBBLE * max(limit, step), 3),
                          "Check masks where a slice seems to be moved."))
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack((x * between_columns, y * between_rows, move))
    affine[:3, 3] = places[0]
    return ImageGrid.from_affine(affine, shape), flags


def _value_flags(headers: Sequence[SliceHeader]) -> list[Flag]:
    flags = []
    missing = sum(header.slope is None and header.intercept is None for header in headers)
    if missing and headers[0].modality != "MR":
        flags.append(Flag("missing_rescale", _STATED, "review", f"{missing} of {len(headers)} slices do not say how their numbers become "
                          "HU; they were taken for HU as they are.", missing, 0, "Check the values, or give --intensity-offset."))
    units = {header.unit.upper() for header in headers} - {"", "HU", "US"}
    if units and headers[0].modality == "CT":
        message = f"The header calls the unit of the values '{min(units)}'; they were taken for HU."
        flags.append(Flag("unit_not_hu", _STATED, "review", message, min(units), "HU", "Use a reconstruction in Hounsfield units."))
    return flags
