"""Bodies whose heights cannot be trusted: none are given, and the reason is."""
from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from test_heights import stacked

from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.export.case_record import case_record
from spineclue_v2.export.tables import vertebra_rows
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.results import SpineResult
from spineclue_v2.stages.grade.body_heights import add_heights


def grid_of(geometry: ImageGrid, spacing: tuple[float, float, float]) -> ImageGrid:
    """A grid of that spacing (z, y, x) mm on the place of `geometry`, whose voxels measure 1 mm."""
    shape = tuple(int(n / s) for n, s in zip(geometry.shape, spacing, strict=True))
    return ImageGrid(shape, spacing, geometry.origin, geometry.direction)


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (1.0, 5.0, 5.0)])
def test_fine_voxels_along_the_spine_show_the_fracture(spacing: tuple[float, float, float]) -> None:
    """Upright bodies: what voxels measure across the spine does not matter for heights."""
    vertebrae, geometry, _ = stacked()
    found = add_heights(vertebrae, geometry, source=grid_of(geometry, spacing))
    assert [v.height_doubt for v in found] == [None] * 4 and [v.heights.grade for v in found] == [0, 2, 0, 0]


def test_coarse_voxels_give_no_height_and_say_why() -> None:
    vertebrae, geometry, scan = stacked()
    found = add_heights(vertebrae, geometry, scan, grid_of(geometry, (5.0, 1.0, 1.0)))
    assert all(v.heights is None for v in found)
    assert found[0].height_doubt == "voxels of 5.0 mm along the spine are too coarse for a body of 21 mm"
    assert all(v.trabecular_hu == pytest.approx(150, abs=1) for v in found)         # which needs no end plates
    content = json.loads(json.dumps(case_record(SpineResult(found, True))))["vertebrae"][0]
    assert content["heights"] is None and content["height_doubt"] == found[0].height_doubt
    row = vertebra_rows(found)[0]
    assert row["height_middle_mm"] is None and row["implied_grade"] is None and row["height_doubt"] == found[0].height_doubt


def test_a_small_body_needs_finer_voxels() -> None:
    """The same voxels serve for a lumbar body and not for one of the neck."""
    vertebrae, geometry, _ = stacked()
    source = grid_of(geometry, (3.0, 1.0, 1.0))
    found = add_heights((replace(vertebrae[0], level="C7"), *vertebrae[1:]), geometry, source=source)
    assert "3.0 mm" in found[0].height_doubt and [v.height_doubt for v in found[1:]] == [None] * 3


def test_rough_end_plates_are_no_loss() -> None:
    vertebrae, geometry, _ = stacked()
    ragged = vertebrae[1].mask.copy()
    middle = np.argwhere(ragged).mean(0).astype(int)[0]
    rough = np.random.default_rng(0).integers(0, 6, ragged.shape[1:])
    rows = np.arange(ragged.shape[0])[:, None, None]
    ragged &= (rows <= middle) | (rows < ragged.shape[0] - 4 - rough[None])
    found = add_heights((vertebrae[0], replace(vertebrae[1], mask=ragged), *vertebrae[2:]), geometry)
    assert found[1].heights is None and "end plates" in found[1].height_doubt and found[2].heights is not None


def top_of(vertebra: Vertebra, geometry: ImageGrid) -> int:
    """Index (z) of the upper end of the body of a `stacked` vertebra: its mask begins and ends with the processes."""
    assert vertebra.mask is not None and vertebra.mask_start is not None
    front = vertebra.mask[:, 5:20, :].any((1, 2))
    return int(vertebra.mask_start[0] + np.flatnonzero(front).max())


def test_a_body_at_the_border_is_not_called_crushed() -> None:
    """What it lacks may lie outside; the same body with room above it has lost height."""
    vertebrae, geometry, scan = stacked(crushed="T12")
    top = top_of(vertebrae[0], geometry)
    for room, doubt in ((25, None), (4, "what is missing may lie beyond the border of the scan"),
                        (-2, "the body reaches the border of the scan")):
        found = add_heights(vertebrae, geometry, scan.cropped((0, 0, 0), (top + room, 110, 110)))
        assert found[0].height_doubt == doubt and (found[0].heights is None) == (doubt is not None)
        assert all(v.heights is not None and v.height_doubt is None for v in found[1:])


def test_levels_without_heights_are_not_in_doubt() -> None:
    vertebrae, geometry, _ = stacked()
    found = add_heights((replace(vertebrae[0], level="C2"), *vertebrae[1:]), geometry)
    assert found[0].heights is None and found[0].height_doubt is None


def test_the_picture_says_nothing_of_a_body_in_doubt() -> None:
    from spineclue_v2.visualization.report import spine_figure

    vertebrae, geometry, scan = stacked()
    graded = tuple(replace(v, grade_probabilities=(0.0, 0.0, 1.0, 0.0)) for v in vertebrae)

    def marks(source: ImageGrid) -> list[bool]:
        found = add_heights(graded, geometry, scan, source)
        texts = [t.get_text() for t in spine_figure(SpineResult(found, True), geometry, scan, "x").texts]
        return [any("↓" in t and "%" in t for t in texts), any("G2" in t for t in texts)]

    assert marks(geometry) == [True, True]
    assert marks(grid_of(geometry, (5.0, 1.0, 1.0))) == [False, False]
