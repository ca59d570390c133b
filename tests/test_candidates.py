"""Where a vertebra is looked for that localize did not find."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.imageio.volume import ImageGrid
from spineclue_v2.stages.segment.proposals import drop_fragments, mask_middle, propose_missed

GEOMETRY = ImageGrid((160, 60, 60), (1.5, 1.5, 1.5), (10.0, -20.0, 30.0), np.eye(3))


def vertebra(z: int, y: int = 20, height: int = 12) -> Vertebra:
    """A box of 12 x 16 x 16 voxels (body first) whose lowest slice is z; its box centre, as localize gave it, is far off on purpose."""
    mask = np.ones((height, 16, 16), bool)
    start = (z, y, 22)
    middle = GEOMETRY.index_to_world(np.array(start) + (np.array(mask.shape) - 1) / 2)
    return Vertebra(tuple(middle + [0, 0, 25.0]), (18.0, 24.0, 24.0), 0.9, 5, mask, start, tuple(middle), tuple(middle))


def places(found: list[Vertebra], tried: list[Vertebra] | None = None) -> list[list[float]]:
    """Candidates as indices (z, y, x)."""
    candidates = propose_missed(found, tried or [], GEOMETRY)
    assert all(c.score == 0 and c.mask is None for c in candidates)
    return [[pytest.approx(float(n), abs=1e-6) for n in GEOMETRY.world_to_index(np.array(c.box_centre))] for c in candidates]


def test_a_gap_and_both_ends_are_looked_at_by_the_masks_and_not_by_the_boxes():
    row = [vertebra(z) for z in (120, 100, 60, 40)]          # one is missing at 80, and the scan goes on beyond both ends
    beside = [[105.5 + 40 / 3, 27.5, 29.5], [65.5 - 40 / 3, 27.5, 29.5]]   # where the other half of a neighbour of the gap would be
    assert places(row) == [[85.5, 27.5, 29.5], *beside, [145.5, 27.5, 29.5], [25.5, 27.5, 29.5]]
    assert places(row[::-1]) == places(row)                    # in any order
    assert places([vertebra(z) for z in (130, 110, 50, 30, 10)])[:2] == [[95.5, 27.5, 29.5], [75.5, 27.5, 29.5]]   # two are missing


def test_ends_follow_the_curve_of_the_spine():
    assert places([vertebra(60, 20), vertebra(40, 26)]) == [[85.5, 21.5, 29.5], [25.5, 39.5, 29.5]]


def test_nothing_is_looked_for_beyond_the_scan_or_twice():
    cut_above, cut_below = vertebra(160 - 12), vertebra(0)
    assert places([cut_above, vertebra(128), vertebra(108)]) == [[93.5, 27.5, 29.5]]
    assert places([vertebra(38), vertebra(18), cut_below]) == [[63.5, 27.5, 29.5]]
    outside = [vertebra(138), vertebra(114)]                  # the next one's middle would lie above the last slice
    assert places(outside) == [[95.5, 27.5, 29.5]]
    row = [vertebra(z) for z in (120, 100, 60, 40)]
    first = propose_missed(row, [], GEOMETRY)
    assert propose_missed(row, first, GEOMETRY) == []
    more = propose_missed([*row, vertebra(20)], first[1:], GEOMETRY)  # ends only once; the gap was not looked at yet
    assert [round(float(GEOMETRY.world_to_index(np.array(c.box_centre))[0]), 1) for c in more] == [85.5]
    assert propose_missed([vertebra(80)], [], GEOMETRY) == [] and propose_missed([], [], GEOMETRY) == []


@given(steps=st.lists(st.integers(17, 21), min_size=4, max_size=6), removed=st.integers(1, 3), bend=st.floats(-0.2, 0.2))
@settings(max_examples=60, deadline=None)
def test_whichever_inner_vertebra_is_missing_one_candidate_lies_at_its_place(steps, removed, bend):
    heights = np.concatenate([[140], 140 - np.cumsum(steps)])
    row = [vertebra(int(z), int(round(20 + bend * (140 - z)))) for z in heights if z >= 0]
    gone = row.pop(removed)
    away = [np.linalg.norm(np.array(c.box_centre) - mask_middle(gone, GEOMETRY)) for c in propose_missed(row, [], GEOMETRY)]
    assert min(away) < 5.0 and sum(a < 12.0 for a in away) == 1


def test_a_fragment_goes_where_the_row_has_no_room_for_it_and_a_small_vertebra_stays():
    def row(*heights: int) -> list[Vertebra]:
        return [replace(vertebra(z), volume_ml=30.0) for z in heights]

    regular = row(120, 100, 80, 60, 40)
    piece = replace(vertebra(71), volume_ml=14.0)              # between two that follow each other
    assert drop_fragments([*regular, piece]) == regular
    assert drop_fragments([piece, *regular[::-1]]) == regular[::-1]
    collapsed = replace(regular[2], volume_ml=14.0)            # as small, but in its own place
    kept = [*regular[:2], collapsed, *regular[3:]]
    assert drop_fragments(kept) == kept
    for spared in (replace(piece, volume_ml=25.0), replace(piece, touches_border=True)):
        assert drop_fragments([*regular, spared]) == [*regular, spared]
    assert drop_fragments([piece]) == [piece] and drop_fragments([]) == []
