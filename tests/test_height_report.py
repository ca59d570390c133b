"""The report of heights: what is lost, how surely, and why nothing is said of a body."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_heights import stacked

from spineclue_v2.imageio.volume import Volume
from spineclue_v2.measures.height_records import EXPECTED_SD, grade_probabilities, loss_deviation
from spineclue_v2.measures.spine import measure_spine
from spineclue_v2.stages.grade.body_heights import add_heights
from spineclue_v2.stages.grade.comparison import grade_of
from spineclue_v2.stages.grade.trust import METAL


def report(vertebrae, geometry, scan=None):
    return {row["levels"][0]: row for row in measure_spine(vertebrae, geometry, geometry, scan).records["heights"]}


def test_a_fracture_is_reported_with_its_spread():
    vertebrae, geometry, _ = stacked()
    rows = report(tuple(replace(v, confidence=0.9) for v in vertebrae), geometry)
    assert len(rows) == len(vertebrae) and {row["name"] for row in rows.values()} == {"height loss"}
    broken = rows[vertebrae[1].level]
    low, high = broken["interval"]
    assert low < broken["value"] == max(broken["loss"]) < high and broken["confidence"] == 0.9
    assert sum(broken["grade_probabilities"].values()) == pytest.approx(1, abs=0.01)
    assert broken["grade_probabilities"]["2"] == max(broken["grade_probabilities"].values()) and broken["shape"]
    whole = rows[vertebrae[0].level]
    assert whole["grade_probabilities"]["0"] > 0.95 and "shape" not in whole


def test_a_body_that_is_not_measured_says_why():
    vertebrae, geometry, scan = stacked()
    cut, rough = "the body reaches the border of the scan", "end plates of the mask are rough (1.2 mm)"
    doubtful = (replace(vertebrae[0], height_doubt=cut), replace(vertebrae[1], height_doubt=rough),
                *add_heights(vertebrae[2:], geometry, scan))
    rows = report(doubtful, geometry)
    assert [rows[v.level]["value"] is None for v in vertebrae[:2]] == [True, True]
    assert rows[vertebrae[0].level]["note"].startswith("not measured: cut")
    assert rows[vertebrae[1].level]["note"].startswith("not measured: doubtful mask")


def test_metal_in_a_vertebra_leaves_it_unmeasured_and_its_neighbours_not():
    vertebrae, geometry, scan = stacked()
    array = scan.array.copy()
    middle = np.rint(np.argwhere(vertebrae[2].mask).mean(0) + vertebrae[2].mask_start).astype(int)
    place = scan.geometry.world_to_index(geometry.index_to_world(middle))
    z, y, x = (int(round(c)) for c in place)
    array[z - 2:z + 3, y - 8:y + 9, x - 2:x + 3] = 3000
    found = add_heights(vertebrae, geometry, Volume(array, scan.geometry))
    assert [v.height_doubt for v in found] == [None, None, METAL, None]
    assert report(found, geometry)[vertebrae[2].level]["note"].startswith("not measured: metal")


@given(st.floats(-0.3, 0.9), st.floats(0.01, 0.15))
def test_probabilities_of_grades_are_some_and_follow_the_loss(loss, deviation):
    found = grade_probabilities(loss, deviation)
    assert sum(found.values()) == pytest.approx(1) and min(found.values()) >= 0
    sharp = grade_probabilities(loss, 1e-4)
    assert sharp[grade_of(loss)] > 0.49
    worse = grade_probabilities(loss + 0.05, deviation)
    assert worse[0] <= found[0] + 1e-12 and worse[3] >= found[3] - 1e-12


def test_coarse_voxels_and_small_bodies_are_less_sure():
    assert loss_deviation(25, "neighbours", 1) < loss_deviation(25, "neighbours", 3) < loss_deviation(15, "neighbours", 3)
    assert EXPECTED_SD["neighbours"] < loss_deviation(25, "neighbours", 1) < loss_deviation(25, "own posterior wall", 1)
