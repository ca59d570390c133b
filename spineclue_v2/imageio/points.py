"""Lists of vertebral body centres: VerSe's centroid JSON, CSV and 3D Slicer's markups, read and written back with levels.

Whatever a format does not say of the levels stays as it was: order, extra columns and fields, the numbers of the positions.
"""
from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import LABEL_OF_NAME
from ..errors import InputError
from ..utilities.files import atomic_path, read_json, write_json
from .centroids import checked_direction, millimetre_voxels_to_lps, to_world
from .volume import ImageGrid

ENDINGS = {".mrk.json": "markups", ".json": "verse", ".csv": "csv"}
"""Ending -> format; the first that fits counts."""
SAME_PLACE_MM = 1.0     # nearer than this are no two body centres
LARGEST_MM = 1e5        # a larger coordinate is no millimetre of a scan
NO_VERTEBRA = "no vertebra"
TO_LPS = {"LPS": (1.0, 1.0, 1.0), "RAS": (-1.0, -1.0, 1.0)}
UNSET = ("undefined", "preview")   # 3D Slicer's words for a point that has not been placed
COLUMNS = ("level", "confidence", "anchored")
AXES = "xyz"
Row = dict[str, Any]


@dataclass(frozen=True)
class PointName:
    """What is known of one point. `level` None: no vertebra in the chosen numbering. `anchored`: of the numbering as a whole."""

    level: str | None
    confidence: float | None
    anchored: bool


@dataclass(frozen=True)
class PointList:
    """Body centres (n, 3) LPS mm in the order of the file, and the file's own content, for writing it back."""

    centres: np.ndarray
    form: str
    content: Any


def format_of(path: str | Path) -> str | None:
    """"markups", "verse" or "csv" by the file's ending; None: no list of points."""
    name = Path(path).name.lower()
    return next((form for ending, form in ENDINGS.items() if name.endswith(ending)), None)


def read_points(path: str | Path, grid: ImageGrid | None = None) -> PointList:
    """The body centres of a file.

    Args:
        path: ends with `.json` (VerSe), `.csv` or `.mrk.json`.
        grid: of the scan, for VerSe's voxels; without it they count as 1 mm from an unknown origin.

    Raises:
        InputError: another format, no points, a position that is no three finite numbers, the same place twice, unknown axes.
    """
    path = Path(path)
    form = format_of(path)
    if form is None:
        raise InputError(f"{path} is no list of points; expected a file that ends with {', '.join(ENDINGS)}.")
    content, centres = _READERS[form](path, grid)
    if not len(centres):
        raise InputError(f"{path} holds no points; expected one body centre per vertebra.")
    _check_apart(centres, path)
    return PointList(centres, form, content)


def write_points(path: str | Path, points: PointList, names: Sequence[PointName]) -> None:
    """Write the list in its own format with `names` (n,), by rename; earlier levels in it are replaced."""
    if len(names) != len(points.centres):
        raise ValueError(f"{len(points.centres)} points need as many names, got {len(names)}")
    _WRITERS[points.form](Path(path), points.content, names)


def _check_apart(centres: np.ndarray, path: Path) -> None:
    for i, centre in enumerate(centres):
        near = np.flatnonzero(np.linalg.norm(centres[:i] - centre, axis=1) < SAME_PLACE_MM)
        if len(near):
            raise InputError(f"{path}: points {near[0] + 1} and {i + 1} lie at the same place (less than {SAME_PLACE_MM:g} mm apart); "
                             "expected one body centre per vertebra, so remove one of them.")


def _position(values: Sequence[Any], where: str) -> list[float]:
    """Three finite numbers; texts are read as numbers. InputError that says `where` they stand."""
    try:
        numbers = [math.nan if isinstance(value, bool) else float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != 3 or not all(abs(number) <= LARGEST_MM for number in numbers):
        said = ", ".join(str(value)[:20] for value in values)[:80] or "(none)"
        raise InputError(f"{where} has the position {said}; expected three finite numbers of millimetres or voxels. Correct or remove it.")
    return numbers


def _array(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array(rows, dtype=float).reshape(-1, 3)


# VerSe

def _read_verse(path: Path, grid: ImageGrid | None) -> tuple[list[Row], np.ndarray]:
    content = read_json(path, "list of points")
    if isinstance(content, dict) and "markups" in content:
        raise InputError(f"{path} is a markups file of 3D Slicer; rename it so that it ends with .mrk.json.")
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError(f'{path} is no VerSe centroid file; expected [{{"direction": ["P","I","R"]}}, '
                         '{"label": 20, "X": .., "Y": .., "Z": ..}, ...].')
    sides = content[0].get("direction") if content else None
    if content and not isinstance(sides, list):
        raise InputError(f'{path} does not say along which axes its voxels count; expected a first entry such as '
                         '{"direction": ["P","I","R"]}.')
    direction = checked_direction(sides or "PIR", path)
    voxels = _array([_position([row.get(axis) for axis in AXES.upper()], f"{path}: point {number}")
                     for number, row in enumerate(content[1:], 1)])
    centres = millimetre_voxels_to_lps(voxels, direction) if grid is None else to_world(voxels, grid, direction)
    return content, centres


def _write_verse(path: Path, content: list[Row], names: Sequence[PointName]) -> None:
    """Label 0 (background) for a point that is no vertebra."""
    rows = [row | {"label": 0 if name.level is None else LABEL_OF_NAME[name.level], "confidence": _rounded(name.confidence),
                   "anchored": None if name.level is None else name.anchored}
            for row, name in zip(content[1:], names, strict=True)]
    write_json(path, [content[0], *rows])


# CSV

def _read_csv(path: Path, grid: ImageGrid | None) -> tuple[list[list[str]], np.ndarray]:
    """The lines as lists of texts, the header first."""
    try:
        lines = [line for line in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
                 if any(cell.strip() for cell in line)]
    except FileNotFoundError:
        raise InputError(f"list of points {path} does not exist.") from None
    except OSError as error:
        raise InputError(f"list of points {path} cannot be read: {error.strerror}.") from None
    except (ValueError, csv.Error) as error:
        raise InputError(f"list of points {path} is no CSV in UTF-8 ({error}).") from None
    header = [name.strip().lower() for name in lines[0]] if lines else []
    if missing := [axis for axis in AXES if header.count(axis) != 1]:
        raise InputError(f"{path} has the columns {', '.join(header)[:200] or '(none)'} and not {', '.join(missing)}; expected a header "
                         "with x, y and z once each (LPS mm), separated by commas.")
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(header):
            raise InputError(f"{path}: point {number} has {len(line)} columns; expected {len(header)} as in the header.")
    columns = [header.index(axis) for axis in AXES]
    return lines, _array([_position([line[column] for column in columns], f"{path}: point {number}")
                          for number, line in enumerate(lines[1:], 1)])


def _write_csv(path: Path, content: list[list[str]], names: Sequence[PointName]) -> None:
    """The three columns are the last, or stay where an earlier run has put them; they are empty for a point that is no vertebra."""
    header = [*content[0], *(name for name in COLUMNS if name not in content[0])]
    rows = [header]
    for line, name in zip(content[1:], names, strict=True):
        said = dict(zip(COLUMNS, ("", "", ""), strict=True)) if name.level is None else {
            "level": name.level, "confidence": str(_rounded(name.confidence)), "anchored": str(name.anchored).lower()}
        row = [*line, *[""] * (len(header) - len(line))]
        rows.append([said.get(column, cell) for column, cell in zip(header, row, strict=True)])
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


# 3D Slicer

def _read_markups(path: Path, grid: ImageGrid | None) -> tuple[Row, np.ndarray]:
    content = read_json(path, "list of points")
    try:
        nodes = [(node.get("coordinateSystem"), node.get("coordinateUnits", "mm"), [dict(point) for point in node["controlPoints"]])
                 for node in content["markups"]]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f'{path} is no markups file of 3D Slicer; expected {{"markups": [{{"coordinateSystem": "LPS", "controlPoints": '
                         '[{"position": [x, y, z]}, ...]}]}.') from None
    centres: list[list[float]] = []
    for system, units, points in nodes:
        if not isinstance(system, str) or system not in TO_LPS:
            raise InputError(f"{path} has the coordinate system {str(system)[:40] if system is not None else '(none)'}; expected "
                             f"{' or '.join(TO_LPS)}. Save it again with 3D Slicer.")
        if "mm" not in str(units):
            raise InputError(f"{path} has the units {str(units)[:40]}; expected mm.")
        for point in points:
            position = None if point.get("positionStatus") in UNSET else point.get("position")
            numbers = _position(position if isinstance(position, list) else [], f"{path}: point {len(centres) + 1}")
            centres.append([sign * number for sign, number in zip(TO_LPS[system], numbers, strict=True)])
    return content, _array(centres)


def _write_markups(path: Path, content: Row, names: Sequence[PointName]) -> None:
    left = iter(names)
    nodes = [node | {"controlPoints": [point | _texts(next(left)) for point in node["controlPoints"]]} for node in content["markups"]]
    write_json(path, content | {"markups": nodes})


def _texts(name: PointName) -> dict[str, str]:
    if name.level is None:
        return {"label": NO_VERTEBRA, "description": "no vertebra in the chosen numbering"}
    return {"label": name.level,
            "description": f"confidence {_rounded(name.confidence)}, numbering {'' if name.anchored else 'not '}anchored"}


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(float(confidence), 6)


_READERS: dict[str, Callable[[Path, ImageGrid | None], tuple[Any, np.ndarray]]] = {
    "verse": _read_verse, "csv": _read_csv, "markups": _read_markups}
_WRITERS: dict[str, Callable[[Path, Any, Sequence[PointName]], None]] = {
    "verse": _write_verse, "csv": _write_csv, "markups": _write_markups}
