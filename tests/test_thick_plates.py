"""End plates of thick slices: what the ends of columns say of their slope, and the wedge that is usual at a level."""
from __future__ import annotations

import numpy as np
import pytest

from spineclue_v2.anatomy.vertebra import BodyFrame
from spineclue_v2.measures.bodies import EndPlate
from spineclue_v2.measures.stairs import stair_slope
from spineclue_v2.measures.usual_wedge import USUAL_DEG, turns_to_usual

SPACING = (3.0, 1.0, 1.0)


def slab(backwards: float, left: float, shift: float) -> tuple[np.ndarray, BodyFrame]:
    """A body of 30 x 40 mm whose upper end plate has these slopes (mm per mm) and lies `shift` mm off a slice; hollow by 0.8 mm."""
    z, y, x = np.meshgrid(np.arange(16) * 3.0 - 24, np.arange(40) - 20.0, np.arange(50) - 25.0, indexing="ij")
    s, t = y / 15, x / 20
    inside = s * s + t * t <= 1
    top = 12 + shift + backwards * y + left * x + 0.8 * s * s + 0.5 * t * t
    return inside & (z < top) & (z > -12), BodyFrame(np.array([8.0, 20.0, 25.0]), np.eye(3), (-15.0, 15.0), (24.0, 24.0, 24.0), 20.0, 0.3)


def test_slopes_come_back_and_are_less_sure_where_no_step_tells_them() -> None:
    errors, deviations = [], []
    for degrees in (2.0, 6.0, 12.0, -9.0):
        for shift in (0.0, 1.0, 2.0):
            mask, frame = slab(np.tan(np.radians(degrees)), np.tan(np.radians(4.0)), shift)
            found = stair_slope(mask, SPACING, frame, 1)
            assert found is not None
            errors.append(np.degrees(np.arctan(found[0])) - degrees)
            deviations.append((abs(degrees), found[1]))
    assert np.abs(errors).mean() < 1 and np.abs(errors).max() < 2.5
    steep, flat = (np.mean([d for slope, d in deviations if far(slope)]) for far in (lambda v: v > 8, lambda v: v < 3))
    assert steep < flat


def test_the_lower_end_plate_is_the_upper_one_upside_down() -> None:
    mask, frame = slab(0.15, 0.05, 0.7)
    above, below = stair_slope(mask, SPACING, frame, 1), stair_slope(mask[::-1], SPACING, BodyFrame(
        np.array([7.0, 20.0, 25.0]), frame.axes, frame.walls_mm, frame.heights_mm, frame.half_width_mm, 0.3), -1)
    assert above is not None and below is not None
    assert below == pytest.approx((-above[0], above[1]), abs=1e-6)


def test_an_end_plate_nods_to_the_front() -> None:
    axes, up = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]), np.array([0.0, 0, 1])
    front, back = np.array([0.0, -10, 5]), np.array([0.0, 10, 5])
    plate = EndPlate(np.array([0.0, 0, 5]), up, front, back, front, back, np.stack([front, back]), 0.0)
    nodded = plate.nodded(10, axes)
    assert plate.nod(axes) == 0 and nodded.nod(axes) == pytest.approx(10)
    assert nodded.front[2] == pytest.approx(5 - 10 * np.sin(np.radians(10))) and nodded.back[2] == pytest.approx(10 - nodded.front[2])
    assert nodded.normal @ (nodded.front - nodded.back) == pytest.approx(0)


def test_a_mask_without_the_body_says_nothing() -> None:
    mask, frame = slab(0.0, 0.0, 0.0)
    assert stair_slope(np.zeros_like(mask), SPACING, frame, 1) is None


def test_uncertain_plates_turn_towards_the_usual_wedge_and_exceptions_stay() -> None:
    usual = USUAL_DEG["L2"]
    assert turns_to_usual("L2", (3.0, 7.0), (0.0, 0.0)) == (0.0, 0.0) and turns_to_usual("C5", (3.0, 7.0), (2.0, 2.0)) == (0.0, 0.0)
    upper, lower = turns_to_usual("L2", (3.0, 3.0 + usual + 4.0), (1.0, 2.0))
    assert upper > 0 > lower and lower == pytest.approx(-4 * upper)      # the less certain one turns more
    assert 0.5 < upper - lower < 4                                       # towards the usual wedge, and not beyond it
    fractured = turns_to_usual("L2", (3.0, 3.0 + usual - 20.0), (1.5, 1.5))
    assert abs(fractured[1] - fractured[0]) < 0.6
