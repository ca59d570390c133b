"""Three numbers, one per axis, as typed tuples: positions, sizes, spacings and boxes come as arrays or lists and are kept as tuples."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Floats3 = tuple[float, float, float]
Ints3 = tuple[int, int, int]
Box = tuple[slice, slice, slice]


def float_triple(values: Iterable[Any]) -> Floats3:
    """Three numbers as Python floats, in the order given. ValueError unless there are three."""
    first, second, third = (float(value) for value in values)
    return first, second, third


def int_triple(values: Iterable[Any]) -> Ints3:
    """Three whole numbers as Python ints, in the order given. ValueError unless there are three."""
    first, second, third = (int(value) for value in values)
    return first, second, third


def box_slices(start: Iterable[Any], shape: Iterable[Any]) -> Box:
    """Slices of the box of `shape` voxels that begins at index `start`, one per axis. ValueError unless there are three axes."""
    first, second, third = (slice(int(a), int(a) + int(n)) for a, n in zip(start, shape, strict=True))
    return first, second, third
