"""Naming a list of vertebral body centres that has no masks: by their geometry, and by the CT around them where it is given."""
from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..anatomy.vertebra import Vertebra
from ..anatomy.vertebral_gaps import GAP_RANGE_MM, sort_cranio_caudal
from ..errors import InputError
from ..imageio.points import ENDINGS, PointName, format_of, read_points, write_points
from ..imageio.volume import FILE_ENDINGS, Volume, read_volume
from ..results import SpineResult
from .model import Model
from .pipeline import Options, identify_masks

MAX_POINTS = 60   # no spine has more vertebrae, with false ones among them
SHOWN = 10        # point numbers in one note


def is_label_map(source: str | Path) -> bool:
    """Whether `source` is to be read as a label map: a folder, a file that ends like a scan, or a missing one that names no points."""
    source = Path(source)
    return source.is_dir() or source.name.lower().endswith(FILE_ENDINGS) or (not source.exists() and format_of(source) is None)


def relabel_points(source: str | Path, output: str | Path, model: Model, options: Options | None = None,
                   scan: str | Path | None = None) -> SpineResult:
    """Write the points of `source` with levels to `output`, in the same format and order.

    Args:
        source: VerSe centroid JSON, CSV with x, y, z (LPS mm), or 3D Slicer's `.mrk.json`.
        output: a file of the same ending.
        model: its classifiers geometry and, with `scan`, appearance name the points.
        options: whether variants are allowed, which classifiers count.
        scan: the CT of the points. VerSe's voxels are then those of its grid, else 1 mm.

    Raises:
        InputError: bad points, another ending, points outside the scan, more points than a spine has.
    """
    started = time.perf_counter()
    source, output = Path(source), Path(output)
    form = format_of(source)
    if form is None:
        raise InputError(f"{source} is of no known format; expected a list of points ({', '.join(ENDINGS)}) or a label map "
                         f"({', '.join(FILE_ENDINGS)}).")
    if format_of(output) != form:
        ending = next(ending for ending, own in ENDINGS.items() if own == form)
        raise InputError(f"Cannot write {output}: {source.name} is written back in its own format; choose a file name "
                         f"that ends with {ending}.")
    if output.exists() and output.resolve() == source.resolve():
        raise InputError(f"Cannot write {output}: it is the input; choose another name, so that the old file stays.")
    volume = None if scan is None else _read_scan(Path(scan))
    points = read_points(source, volume.geometry if volume is not None else None)
    if len(points.centres) > MAX_POINTS:
        raise InputError(f"{source} holds {len(points.centres)} points, no spine has that many; expected one body centre per vertebra, at "
                         f"most {MAX_POINTS}.")
    if volume is not None:
        _check_inside(points.centres, volume, source, scan)
    result, names = name_points(points.centres, model, options, volume)
    notes = _notes(points.centres, names, form == "verse" and volume is None)
    result = replace(result, notes=result.notes + notes, seconds={"total": time.perf_counter() - started})
    write_points(output, points, names)
    return result


def name_points(centres: np.ndarray, model: Model, options: Options | None = None,
                scan: Volume | None = None) -> tuple[SpineResult, list[PointName]]:
    """Names for body centres (n, 3) LPS mm in any order: the result along the spine, and the name of each point in the given order.

    Raises InputError where the model has no classifier that can name points.
    """
    vertebrae = [Vertebra((float(x), float(y), float(z)), (0.0, 0.0, 0.0), 1.0, number, body_centre=(float(x), float(y), float(z)))
                 for number, (x, y, z) in enumerate(centres)]     # `hits` carries the place in the list
    result = identify_masks(vertebrae, model, options, scan)
    named = {v.hits: PointName(v.level, v.confidence, bool(result.numbering_anchored)) for v in result.vertebrae}
    return result, [named.get(number, PointName(None, None, False)) for number in range(len(centres))]


def _notes(centres: np.ndarray, names: list[PointName], millimetre_voxels: bool) -> tuple[str, ...]:
    notes = []
    dropped = [str(number) for number, name in enumerate(names, 1) if name.level is None]
    if dropped:
        more = f" and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
        notes.append(f"{len(dropped)} of {len(names)} points are no vertebra in the chosen numbering and got no level: number "
                     f"{', '.join(dropped[:SHOWN])}{more} of the list.")
    if len(centres) > 1:
        gap = float(np.median(np.linalg.norm(np.diff(centres[sort_cranio_caudal(centres)], axis=0), axis=1)))
        if not GAP_RANGE_MM[0] <= gap <= GAP_RANGE_MM[1]:
            notes.append(f"Neighbouring points lie {gap:.1f} mm apart, vertebrae {GAP_RANGE_MM[0]:g} to {GAP_RANGE_MM[1]:g} mm: check the "
                         "units.")
    if millimetre_voxels:
        notes.append("The voxels of the list are taken as 1 mm; give the CT with -ct where they are not.")
    return tuple(notes)


def _read_scan(scan: Path) -> Volume:
    if scan.is_file() and not scan.name.lower().endswith(FILE_ENDINGS):
        raise InputError(f"{scan} is of no known format; expected {', '.join(FILE_ENDINGS)} or a DICOM folder.")
    return read_volume(scan)


def _check_inside(centres: np.ndarray, volume: Volume, source: Path, scan: str | Path | None) -> None:
    index = volume.geometry.world_to_index(centres)
    outside = ((index < -0.5) | (index > np.array(volume.geometry.shape) - 0.5)).any(axis=1)
    if outside.any():
        raise InputError(f"{source}: {int(outside.sum())} of {len(centres)} points lie outside {scan} (the first is number "
                         f"{int(np.argmax(outside)) + 1}); expected points of this scan, in its own voxels (VerSe) or in LPS mm.")
