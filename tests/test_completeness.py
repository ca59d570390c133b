"""What goes on beyond the vertebrae that were found is said."""
from __future__ import annotations

import numpy as np
import pytest

from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.imageio.volume import ImageGrid, Volume
from spineclue_v2.inference.completeness import find_incomplete, incomplete_flag

STEP, FIRST = 30.0, 20.0          # mm between bodies; height of the lowest one of ten


def column(bodies: range, direction: np.ndarray | None = None) -> Volume:
    """A CT 300 mm high with bodies (200 HU) at these steps from below, in soft tissue."""
    array = np.full((150, 60, 60), 40, np.int16)
    for number in bodies:
        z = int((FIRST + STEP * number) / 2)
        array[z - 6:z + 6, 22:38, 20:40] = 200
    return Volume(array, ImageGrid(array.shape, (2.0, 2.0, 2.0), (-60.0, -60.0, 1000.0), np.eye(3) if direction is None else direction))


def found(numbers: list[int], names: list[str]) -> list[Vertebra]:
    rows = []
    for number, name in zip(numbers, names, strict=True):
        centre = (-60.0 + 59.0, -60.0 + 59.0, 1000.0 + FIRST + STEP * number - 1.0)
        rows.append(Vertebra(centre, (30.0, 40.0, 40.0), 0.5, body_centre=centre, level=name))
    return rows


@pytest.mark.parametrize("numbers, names, missing", [
    ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [f"T{i}" for i in range(2, 12)], ()),
    ([6, 5, 4, 3, 2, 1, 0], [f"T{i}" for i in range(5, 12)], ("above",)),
    ([9, 8, 7, 6, 5, 4], [f"T{i}" for i in range(2, 8)], ("below",)),
    ([9, 8, 7, 4, 3, 2, 1, 0], [f"T{i}" for i in (2, 3, 4, 7, 8, 9, 10, 11)], ("gap between T4 and T7",)),
    ([5], ["T5"], ("above", "below")),
    ([], [], ())])
def test_bone_that_goes_on_without_a_vertebra_is_said(numbers, names, missing):
    assert find_incomplete(found(numbers, names), column(range(10))) == missing


def test_skull_and_sacrum_do_not_count():
    scan = column(range(10))
    assert find_incomplete(found([6, 5, 4, 3], ["L2", "L3", "L4", "L5"]), scan) == ("above",)
    assert find_incomplete(found([6, 5, 4, 3], ["C1", "C2", "C3", "C4"]), scan) == ("below",)


def test_where_the_column_or_the_scan_ends_nothing_is_missing():
    assert find_incomplete(found([6, 5, 4, 3], ["T8", "T9", "T10", "T11"]), column(range(3, 7))) == ()
    assert find_incomplete(found([8, 7, 6, 5], ["T8", "T9", "T10", "T11"]), column(range(5, 9))) == ()


def test_the_note_names_the_places():
    row = found([6, 5, 4, 3], ["T8", "T9", "T10", "T11"])
    text = incomplete_flag(("above", "gap between T9 and T10", "below"), row).message
    assert "above T8, between T9 and T10, below T11" in text
