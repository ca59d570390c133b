"""What DICOM files say of their slices: one record per slice, whether it lies in a file of its own or in a multi-frame object.

Values are taken from the raw elements, one file at a time and one slice at a time: no property of a series is ever taken from its first
file. A value that is no number where one is expected is `None`, and whoever needs it says so.
"""
from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import InputError

Point = tuple[float, float, float]

LOOK_BYTES = 1 << 20
PIXEL_DATA, _ROWS_BYTES = b"\xe0\x7f\x10\x00", b"\x28\x00\x10\x00"
DEFLATED = b"1.2.840.10008.1.2.1.99"
MAX_INFLATED = 2 << 30
MAX_FRAMES = 20_000
DIRECTORY = "1.2.840.10008.1.3.10"

# (group, element) of what is read.
_SOP_CLASS, _SOP, _IMAGE_TYPE, _MODALITY, _SERIES_TEXT = 0x00080016, 0x00080018, 0x00080008, 0x00080060, 0x0008103E
_STUDY, _SERIES, _SERIES_NUMBER, _NUMBER, _ACQUISITION = 0x0020000D, 0x0020000E, 0x00200011, 0x00200013, 0x00200012
_POSITION, _ORIENTATION, _THICKNESS, _STEP = 0x00200032, 0x00200037, 0x00180050, 0x00180088
_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _SPACING = 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280030
_INTERCEPT, _SLOPE, _RESCALE_TYPE = 0x00281052, 0x00281053, 0x00281054
_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_PLANE_POSITION, _PLANE_ORIENTATION, _MEASURES, _VALUES, _FRAME_TYPE = 0x00209113, 0x00209116, 0x00289110, 0x00289145, 0x00189329
_TAGS = [_SOP_CLASS, _SOP, _IMAGE_TYPE, _MODALITY, _SERIES_TEXT, _STUDY, _SERIES, _SERIES_NUMBER, _NUMBER, _ACQUISITION, _POSITION,
         _ORIENTATION, _THICKNESS, _STEP, _SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _SPACING, _INTERCEPT, _SLOPE, _RESCALE_TYPE,
         _SHARED, _PER_FRAME]


@dataclass(frozen=True)
class SliceHeader:
    """One slice: where it is stored, where it lies, and what its numbers mean.

    Attributes:
        path: the file.
        frame: of a multi-frame object, from 0; None for a file of one slice.
        frames: how many the file holds.
        series, study: their UIDs.
        modality: "CT", "PT", ...; empty where it is not stated.
        text: description of the series.
        series_number: of the series in its study.
        number: instance number, or frame number.
        shape: rows, columns.
        spacing: mm between rows, between columns.
        position: centre of the first pixel, LPS mm.
        orientation: direction cosines of the rows, then of the columns.
        step: mm to the next slice as the header claims it.
        slope, intercept: to the modality's unit; None where they are not stated.
        unit: Rescale Type; empty where it is not stated.
        localizer: whether it says to be a scout view.
        grey: one grey value per pixel.
    """

    path: Path
    frame: int | None
    frames: int
    series: str
    study: str
    modality: str
    text: str
    series_number: int | None
    number: int
    shape: tuple[int, int]
    spacing: tuple[float, float] | None
    position: Point | None
    orientation: tuple[Point, Point] | None
    step: float | None
    slope: float | None
    intercept: float | None
    unit: str
    localizer: bool
    grey: bool


@dataclass(frozen=True)
class Damaged:
    """A DICOM image that could not be read."""

    path: Path


def is_dicom(path: Path) -> bool:
    """Whether the file begins as DICOM files do, with the preamble or (old ones) without."""
    try:
        with open(path, "rb") as file:
            head = file.read(140)
    except OSError:
        return False
    return head[128:132] == b"DICM" or _without_preamble(head)


def _without_preamble(head: bytes) -> bool:
    """Group 8 first, with an element length that makes sense (implicit), or a value representation (explicit)."""
    if len(head) < 140 or head[:2] != b"\x08\x00" or head[2:4] not in (b"\x00\x00", b"\x01\x00", b"\x05\x00", b"\x08\x00", b"\x16\x00"):
        return False
    return head[4:6] in (b"UL", b"UI", b"CS") or int.from_bytes(head[4:8], "little") <= 64


def headers_of(path: Path) -> tuple[SliceHeader, ...] | Damaged | None:
    """Slices of a DICOM file; None for what holds no slices (reports, directories, other files). Remembered until the file changes."""
    try:
        state = path.stat()
    except OSError:
        return None
    return _headers_of(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=50_000)
def _headers_of(path: Path, size: int, changed: int) -> tuple[SliceHeader, ...] | Damaged | None:
    if not is_dicom(path):
        return None
    try:
        dataset = read_dataset(path, pixels=False)
        if _text(dataset, _SOP_CLASS) == DIRECTORY:
            return None
        found = tuple(_slices(path, dataset))
    except Exception:  # a parser of damaged files fails in many ways
        found = ()
    if found:
        return found
    with open(path, "rb") as file:
        head = file.read(LOOK_BYTES)
    return Damaged(path) if PIXEL_DATA in head or _ROWS_BYTES in head else None


def read_dataset(path: Path, pixels: bool) -> Any:
    """The pydicom dataset of a file: what describes slices, or with `pixels` all of it. Raises whatever pydicom raises."""
    import pydicom

    check_inflation(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers beside the standard: what matters of them we say ourselves
        if pixels:
            return pydicom.dcmread(path, force=True)
        return pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=_TAGS)


def check_inflation(path: Path) -> None:
    """InputError where a deflated file would fill the memory: pydicom unpacks it in one go."""
    with open(path, "rb") as file:
        head = file.read(2048)
        if DEFLATED not in head:
            return
        # Group 2 begins at byte 132 with its own length; what is deflated follows it.
        file.seek(144 + int.from_bytes(head[140:144], "little"))
        unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        try:
            while (block := file.read(1 << 20)) and total <= MAX_INFLATED:
                while block and total <= MAX_INFLATED:
                    total += len(unpacker.decompress(block, 1 << 24))
                    block = unpacker.unconsumed_tail
        except zlib.error:
            raise InputError(f"{path} is no intact deflated DICOM file; copy it again.") from None
    if total > MAX_INFLATED:
        raise InputError(f"{path} unpacks to more than {MAX_INFLATED >> 30} GiB; it is no DICOM file of a scan.")


def _slices(path: Path, dataset: Any) -> Iterator[SliceHeader]:
    rows, columns = _whole(dataset, _ROWS), _whole(dataset, _COLUMNS)
    series = _text(dataset, _SERIES)
    if not rows or not columns:
        return
    frames = int(_numbers(dataset, _FRAMES)[0] or 1) if _numbers(dataset, _FRAMES) else 1
    if not 0 < frames <= min(MAX_FRAMES, path.stat().st_size):
        raise ValueError(f"{frames} frames")
    shared = _first(dataset, _SHARED)
    per_frame = _items(dataset, _PER_FRAME)
    if per_frame and len(per_frame) != frames:
        raise ValueError("functional groups do not fit the number of frames")
    several = frames > 1 or bool(per_frame)
    for frame in range(frames):
        own = [part for part in (per_frame[frame] if per_frame else None, shared) if part is not None]
        yield _slice(path, dataset, own, frame if several else None, frames, series, (rows, columns))


def _slice(path: Path, dataset: Any, groups: list[Any], frame: int | None, frames: int, series: str, shape: tuple[int, int]) -> SliceHeader:
    """`groups`: functional groups of the frame, then the shared ones; empty for a file of one slice."""
    measures, values = _places(dataset, groups, _MEASURES), _places(dataset, groups, _VALUES)
    cosines = _point(_places(dataset, groups, _PLANE_ORIENTATION), _ORIENTATION, 6)
    position = _point(_places(dataset, groups, _PLANE_POSITION), _POSITION, 3)
    spacing = _point(measures, _SPACING, 2)
    kinds = " ".join(_text(place, tag) for place in (dataset, *groups) for tag in (_IMAGE_TYPE,))
    steps = [number for tag in (_STEP, _THICKNESS) for number in _number_of(measures, tag)]
    number = _number_of([dataset], _NUMBER)
    series_number = _number_of([dataset], _SERIES_NUMBER)
    return SliceHeader(
        path, frame, frames, series, _text(dataset, _STUDY), _text(dataset, _MODALITY).upper(), _text(dataset, _SERIES_TEXT),
        int(series_number[0]) if series_number else None, frame if frame is not None else int(number[0]) if number else 0, shape,
        (spacing[0], spacing[1]) if spacing else None, (position[0], position[1], position[2]) if position else None,
        ((cosines[0], cosines[1], cosines[2]), (cosines[3], cosines[4], cosines[5])) if cosines else None,
        abs(steps[0]) if steps else None, _single(values, _SLOPE), _single(values, _INTERCEPT),
        next((text for place in values if (text := _text(place, _RESCALE_TYPE))), ""), "LOCALIZER" in kinds.upper(),
        (_whole(dataset, _SAMPLES) or 1) == 1 and _text(dataset, _PHOTOMETRIC).upper() in ("MONOCHROME1", "MONOCHROME2", ""))


def _places(dataset: Any, groups: list[Any], sequence: int) -> list[Any]:
    """Where an attribute may stand: in the first item of `sequence` of the functional groups, or in the file itself."""
    return [item for group in groups if (item := _first(group, sequence)) is not None] + [dataset]


def _single(places: list[Any], tag: int) -> float | None:
    numbers = _number_of(places, tag)
    return numbers[0] if numbers else None


def _number_of(places: list[Any], tag: int) -> list[float]:
    """The first number that one of `places` states; NaN where it states something else."""
    for place in places:
        numbers = _numbers(place, tag)
        if numbers:
            return [math.nan if numbers[0] is None else numbers[0]]
    return []


def _point(places: list[Any], tag: int, count: int) -> list[float] | None:
    """`count` numbers; None where nobody states them; NaN where they are stated and are no numbers."""
    for place in places:
        numbers = _numbers(place, tag)
        if numbers:
            good = len(numbers) == count and all(n is not None for n in numbers)
            return [float(n) for n in numbers if n is not None] if good else [math.nan] * count
    return None


def _raw(dataset: Any, tag: int) -> Any:
    # The raw element: pydicom's conversion warns or raises where a value is out of the standard.
    element = dataset.get_item(tag) if tag in dataset else None
    return None if element is None else element


def _values(dataset: Any, tag: int) -> list[str]:
    element = _raw(dataset, tag)
    if element is None or element.value is None:
        return []
    value = element.value
    if isinstance(value, bytes):
        return [part.strip(" \0\t\r\n") for part in value.decode("latin-1").split("\\")] if value.strip(b" \0") else []
    return [str(part) for part in value] if isinstance(value, list | tuple) or hasattr(value, "append") else [str(value)]


def _text(dataset: Any, tag: int) -> str:
    return " ".join(_values(dataset, tag))


def _numbers(dataset: Any, tag: int) -> list[float | None]:
    def number(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            return None

    return [number(text) for text in _values(dataset, tag)]


def _whole(dataset: Any, tag: int) -> int | None:
    """An unsigned short."""
    element = _raw(dataset, tag)
    if element is None or element.value is None:
        return None
    if isinstance(element.value, bytes):
        return int.from_bytes(element.value[:2], "little" if element.is_little_endian else "big")
    return int(element.value)


def _items(dataset: Any, tag: int) -> list[Any]:
    return list(dataset[tag].value or []) if tag in dataset else []


def _first(dataset: Any, tag: int) -> Any:
    items = _items(dataset, tag)
    return items[0] if items else None
