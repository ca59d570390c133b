"""Body heights: constructed vertebrae with known heights, any pose, thick slices; comparison, grades, files and picture."""
from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spineclue_v2.anatomy.vertebra import BodyHeights, Vertebra
from spineclue_v2.export.case_record import case_record
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.volume import Volume
from spineclue_v2.results import SpineResult
from spineclue_v2.stages.grade.body_heights import add_heights
from spineclue_v2.stages.grade.comparison import INTACT, USUAL, compare, grade_of, shape_of
from spineclue_v2.stages.grade.heights import HEIGHT_POSITIONS, axes_along, body_mask, measure
from spineclue_v2.stages.grade.predictor import disagree

DEEP, WIDE = 30.0, 40.0


def vertebra(front: float, middle: float, back: float, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
             angles: tuple[float, float, float] = (0.0, 0.0, 0.0), shift: float = 0.0, skew: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A body with end plates through (front, middle, back) mm at HEIGHT_POSITIONS, pedicles, laminae and a spinous process round a canal,
    turned by `angles` (degrees about x, y, z); its walls lean by `skew` (mm along y per mm along z). Mask (z, y, x) and the body's axes."""
    size = 110.0
    shape = tuple(int(size / s) for s in spacing)
    along = [(np.arange(n) - (n - 1) / 2) * s + shift for n, s in zip(shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*along, indexing="ij"), -1)
    axes = turned(angles)
    z, y, x = np.moveaxis(grid @ axes.T, -1, 0)
    y = y - skew * z
    s = y / (DEEP / 2)
    curve = np.polyfit(HEIGHT_POSITIONS, (front, middle, back), 2)
    thickness = np.polyval(curve, s)
    body = (np.abs(z) <= thickness / 2) & (np.abs(y) <= DEEP / 2) & (np.abs(x) <= WIDE / 2)
    pedicle = (np.abs(np.abs(x) - 14) <= 4) & (y > 0) & (y <= DEEP / 2 + 14) & (np.abs(z - 3) <= 5)
    lamina = (np.abs(x) <= 18) & (np.abs(y - DEEP / 2 - 18) <= 4) & (np.abs(z + 2) <= 9)
    spinous = (np.abs(x) <= 4) & (y > DEEP / 2 + 18) & (y <= DEEP / 2 + 42) & (np.abs(z + 6) <= 8)
    return body | pedicle | lamina | spinous, axes


def turned(angles: tuple[float, float, float]) -> np.ndarray:
    """Rows z', y', x' in array order after turns about x, y and z (degrees)."""
    axes = np.eye(3)
    for angle, (a, b) in zip(np.radians(angles), ((0, 1), (0, 2), (1, 2)), strict=True):
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = np.sin(angle), -np.sin(angle)
        axes = axes @ turn
    return axes


SHAPES = {"intact": (26.0, 24.0, 27.0), "wedge": (17.0, 22.0, 27.0), "biconcave": (25.0, 15.0, 27.0), "crush": (14.0, 11.0, 17.0)}


@pytest.mark.parametrize("spacing, tolerance", [((1.0, 1.0, 1.0), 0.4),
                                                ((1.5, 1.5, 1.5), 0.8), ((3.0, 1.0, 1.0), 0.7), ((1.0, 1.0, 3.0), 0.5)])
@pytest.mark.parametrize("name", SHAPES)
def test_known_heights_come_back(name: str, spacing: tuple[float, float, float], tolerance: float) -> None:
    """Oblique to the slices: where an end plate runs along thick ones, no method could tell it to less than their thickness."""
    mask, _ = vertebra(*SHAPES[name], spacing, (-20.0, 15.0, 17.0), shift=0.3)
    found = measure(mask, spacing)
    assert found is not None
    np.testing.assert_allclose(found.heights_mm, SHAPES[name], atol=tolerance)
    assert found.walls_mm[1] - found.walls_mm[0] == pytest.approx(DEEP, abs=0.6)
    assert found.half_width_mm == pytest.approx(WIDE / 2, abs=0.7)


# The same poses each time: where an end plate runs along few steps of the voxel grid (crush, nod 4) no ruler holds 1.5 mm.
@settings(max_examples=16, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(SHAPES)), st.floats(-30, 30), st.floats(-20, 20), st.floats(-25, 25))
@example("biconcave", 3.0, 0.0, 1.0)      # few rows of voxels between hollow end plates: a stair looks like a leaning wall
@example("biconcave", 10.0, 0.0, 0.0)
@example("intact", 26.0, 19.0, -24.0)     # seen from above the arch lies further aside than the vertebra is turned
def test_heights_do_not_depend_on_the_pose(name: str, nod: float, tilt: float, turn: float) -> None:
    mask, axes = vertebra(*SHAPES[name], (1.5, 1.5, 1.5), (nod, tilt, turn))
    found = measure(mask, (1.5, 1.5, 1.5))
    assert found is not None
    np.testing.assert_allclose(found.heights_mm, SHAPES[name], atol=1.5)
    # A wedge's bisector is its own axis: z' and y' of the construction come back within a few degrees.
    assert found.axes[0] @ axes[0] > np.cos(np.radians(5)) and found.axes[1] @ axes[1] > np.cos(np.radians(8))


def test_a_steep_body_is_found_along_the_spine() -> None:
    mask, axes = vertebra(*SHAPES["intact"], angles=(55.0, 0.0, 0.0))
    found = measure(mask, (1.0, 1.0, 1.0), axis=axes[0])
    assert found is not None
    np.testing.assert_allclose(found.heights_mm, SHAPES["intact"], atol=0.7)


@pytest.mark.parametrize("skew", [-0.35, 0.35])
def test_walls_may_lean(skew: float) -> None:
    """Upper thoracic bodies are skewed: columns along z' left the end plate at the rim, and a T3 was said to lack 38 % of its height."""
    for name in ("intact", "wedge"):
        mask, axes = vertebra(*SHAPES[name], angles=(-20.0, 0.0, 0.0), skew=skew)
        found = measure(mask, (1.0, 1.0, 1.0), axis=axes[0])
        assert found is not None
        np.testing.assert_allclose(found.heights_mm, SHAPES[name], atol=1.0)


def test_holes_and_crumbs_do_not_change_the_heights() -> None:
    """Of predicted masks: holes in the front wall were taken for its end plates, mask in the canal for the posterior wall."""
    mask, _ = vertebra(*SHAPES["intact"])
    middle = np.array(mask.shape) // 2
    ragged = mask.copy()
    ragged[middle[0] - 1:middle[0] + 1, middle[1] - 15:middle[1] - 9, ::2] = False            # holes behind the anterior wall
    ragged[middle[0] - 2:middle[0] + 2, middle[1] + 15:middle[1] + 20, middle[2] - 5:middle[2] + 6] = True   # in the canal
    found = measure(ragged, (1.0, 1.0, 1.0))
    assert found is not None
    np.testing.assert_allclose(found.heights_mm, SHAPES["intact"], atol=1.2)


def test_half_an_arch_does_not_turn_the_body() -> None:
    mask, axes = vertebra(*SHAPES["wedge"])
    half = mask.copy()
    half[:, mask.shape[1] // 2 + 16:, :mask.shape[2] // 2 + 2] = False
    half[:, mask.shape[1] // 2 + 16:, mask.shape[2] // 2 + 2:] |= mask[:, mask.shape[1] // 2 + 16:, mask.shape[2] // 2 + 2:]
    half[40:70, mask.shape[1] // 2:mask.shape[1] // 2 + 20, mask.shape[2] // 2 + 20:mask.shape[2] // 2 + 40] = True   # a rib clings to it
    found = measure(half, (1.0, 1.0, 1.0))
    assert found is not None and found.axes[1] @ axes[1] > np.cos(np.radians(10))
    np.testing.assert_allclose(found.heights_mm, SHAPES["wedge"], atol=1.0)


@pytest.mark.parametrize("depth", [2, 4, 6, 8, 10, 12])
def test_a_missing_corner_is_no_loss_of_height(depth: int) -> None:
    """A mask that lacks the upper front corner from `depth` mm before the middle on: nothing is said, or what the rest of the body says."""
    mask, _ = vertebra(*SHAPES["intact"])
    cut = mask.copy()
    cut[mask.shape[0] // 2 + 1:, :mask.shape[1] // 2 - depth] = False
    found = measure(cut, (1.0, 1.0, 1.0))
    assert measure(mask, (1.0, 1.0, 1.0)) is not None
    assert found is None or min(np.array(found.heights_mm) / SHAPES["intact"]) > 1 - INTACT
    assert depth > 4 or found is None


def test_body_and_arch_part_at_the_posterior_wall() -> None:
    mask, _ = vertebra(*SHAPES["intact"], angles=(10.0, 0.0, 0.0))
    found = measure(mask, (1.0, 1.0, 1.0))
    body = body_mask(mask, (1.0, 1.0, 1.0), found)
    alone, _ = vertebra(*SHAPES["intact"], angles=(10.0, 0.0, 0.0))
    axes = turned((10.0, 0.0, 0.0))
    place = (np.argwhere(alone) - (np.array(mask.shape) - 1) / 2) @ axes.T
    front = np.zeros(mask.shape, bool)
    front[tuple(np.argwhere(alone)[place[:, 1] <= DEEP / 2].T)] = True
    assert (body & front).sum() / (body | front).sum() > 0.95


@pytest.mark.parametrize("mask", [np.zeros((9, 9, 9), bool), np.ones((80, 6, 6), bool), np.ones((3, 3, 3), bool)])
def test_what_is_no_body_has_no_heights(mask: np.ndarray) -> None:
    assert measure(mask, (1.0, 1.0, 1.0)) is None


def test_a_mask_of_crumbs_is_no_error() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = measure(rng.random((30, 30, 30)) < rng.uniform(0.02, 0.7), (1.0, 1.0, 1.0))
        assert found is None or min(found.heights_mm) > 0


def test_directions_along_a_curve() -> None:
    angle = np.radians([0, 20, 40])
    centres = 100 * np.stack([np.zeros(3), 1 - np.cos(angle), -np.sin(angle)], 1)  # an arc that runs down and backwards
    found = axes_along(centres)
    np.testing.assert_allclose(found[1], [np.cos(angle[1]), -np.sin(angle[1]), 0], atol=0.02)
    assert all(np.linalg.norm(axis) == pytest.approx(1) for axis in found)


# ---- comparison -------------------------------------------------------------------------------------------------------------
LEVELS = ("T9", "T10", "T11", "T12", "L1", "L2", "L3", "L4")


def spine(losses: dict[str, tuple[float, float, float]], scale: float = 1.1) -> list[BodyHeights | None]:
    heights = [tuple(scale * USUAL[level] * (1 - np.array(losses.get(level, (0, 0, 0))))) for level in LEVELS]
    return compare(LEVELS, heights)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss, grade", [(0.0, 0), (0.199, 0), (0.2, 1), (0.249, 1), (0.25, 2), (0.4, 2), (0.401, 3), (-0.3, 0)])
def test_genants_limits(loss: float, grade: int) -> None:
    assert grade_of(loss) == grade


@pytest.mark.parametrize("loss, shape, grade", [((0.3, 0.2, 0.05), "wedge", 2), ((0.1, 0.23, 0.0), "biconcave", 1),
                                                ((0.5, 0.55, 0.4), "crush", 3)])
def test_a_loss_is_measured_against_the_neighbours(loss: tuple[float, float, float], shape: str, grade: int) -> None:
    for scale in (0.8, 1.0, 1.3):
        found = spine({"T12": loss}, scale)
        body = found[LEVELS.index("T12")]
        assert body.reference == "neighbours" and (body.grade, body.shape) == (grade, shape)
        np.testing.assert_allclose(body.loss, loss, atol=1e-6)
        assert shape_of(np.array(loss)) == shape
        assert all(other.grade == 0 and other.shape is None for level, other in zip(LEVELS, found, strict=True) if level != "T12")


def test_crushed_neighbours_do_not_tell_what_is_normal() -> None:
    found = spine({"T11": (0.5, 0.5, 0.4), "T12": (0.3, 0.3, 0.2), "L1": (0.45, 0.5, 0.3)})
    assert [body.grade for body in found] == [0, 0, 3, 2, 3, 0, 0, 0]
    np.testing.assert_allclose(found[3].loss, (0.3, 0.3, 0.2), atol=0.01)


def test_a_vertebra_alone_is_compared_with_its_own_wall() -> None:
    body = compare(["L1"], [tuple(USUAL["L1"] * np.array([0.7, 0.9, 1.0]))])[0]
    assert body.reference == "own posterior wall" and body.shape == "wedge" and body.grade == 2
    np.testing.assert_allclose(body.loss, (0.3, 0.1, 0.0), atol=1e-9)


def test_masks_that_share_a_body_are_left_out() -> None:
    """One mask holds a part of its neighbour: the one is too high, the other seems to have lost height; neither has any."""
    heights = [tuple(USUAL[level]) for level in LEVELS]
    heights[3] = tuple(USUAL["T12"] * np.array([1.0, 1.1, 1.5]))
    heights[4] = tuple(USUAL["L1"] * np.array([1.0, 0.9, 0.55]))
    found = compare(LEVELS, heights)
    assert [body is None for body in found] == [False, False, True, True, True, False, False, False]
    for body in found[:2] + found[5:]:
        np.testing.assert_allclose(body.loss, 0, atol=1e-9)


def test_who_has_no_grade() -> None:
    heights = [(12.0, 11.0, 12.0), None, (20.0, 19.0, 21.0), (25.0, 24.0, 26.0)]
    neck, missing, unknown, lumbar = compare(["C5", "L1", None, "L2"], heights)
    assert neck.grade is None and neck.expected is not None and missing is None
    assert unknown == BodyHeights(20.0, 19.0, 21.0) and unknown.loss is None and lumbar.grade == 0


# ---- in the result ----------------------------------------------------------------------------------------------------------
def stacked(levels: tuple[str, ...] = ("T12", "L1", "L2", "L3"), crushed: str = "L1") -> tuple[tuple[Vertebra, ...], ImageGrid, Volume]:
    """Vertebrae above one another on one grid, one of them wedged by 40 % in front; CT of 150 HU in bone and 40 elsewhere."""
    placed, step = [], 40
    labels = np.zeros((step * len(levels) + 100, 110, 110), bool)
    geometry = ImageGrid(labels.shape, (1.0, 1.0, 1.0), (-20.0, 5.0, 30.0), np.eye(3))
    for number, level in enumerate(levels):
        mask, _ = vertebra(0.6 * 25 if level == crushed else 25.0, 24.0, 26.0)
        inside = np.argwhere(mask)
        low, high = inside.min(0), inside.max(0) + 1
        start = low + (step * (len(levels) - 1 - number), 0, 0)
        part = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        labels[tuple(slice(a, a + n) for a, n in zip(start, part.shape, strict=True))] |= part
        centre = start - low + 54.5
        placed.append(Vertebra(tuple(geometry.index_to_world(centre)), tuple(float(n) for n in part.shape), 1.0, 0, part,
                               tuple(int(s) for s in start), body_centre=tuple(geometry.index_to_world(centre)), level=level,
                               confidence=0.9))
    return tuple(placed), geometry, Volume(np.where(labels, 150, 40).astype(np.int16), geometry)


def test_heights_reach_the_record() -> None:
    vertebrae, geometry, scan = stacked()
    found = add_heights(vertebrae, geometry, scan)
    content = json.loads(json.dumps(case_record(SpineResult(found, True))))
    wedge = content["vertebrae"][1]["heights"]
    assert wedge["implied_grade"] == 2 and wedge["shape"] == "wedge" and wedge["measured_mm"] == pytest.approx([15, 24, 26], abs=0.6)
    assert wedge["loss"][0] == pytest.approx(0.4, abs=0.08) and wedge["to_posterior"][0] == pytest.approx(15 / 26, abs=0.03)
    assert [v["heights"]["implied_grade"] for v in content["vertebrae"]] == [0, 2, 0, 0]
    assert all(v["trabecular_hu"] == pytest.approx(150, abs=1) and v["grading"] is None for v in content["vertebrae"])
    assert any("contrast" in text for text in content["remarks"])
    assert add_heights((), geometry) == ()


def test_the_scan_may_lie_on_another_grid() -> None:
    vertebrae, geometry, scan = stacked()
    found = add_heights(vertebrae, geometry, scan.reoriented("RAI"))
    assert [v.trabecular_hu for v in found] == pytest.approx([150] * 4, abs=1)
    without = add_heights(vertebrae, geometry)
    assert [v.heights for v in without] == [v.heights for v in found] and all(v.trabecular_hu is None for v in without)


def test_a_patient_may_lie_on_one_side() -> None:
    """Then all arches point sideways: backwards is where they lie together."""
    vertebrae, geometry, _ = stacked()
    turned_over = []
    for v in vertebrae:
        z, y, x = geometry.world_to_index(np.array(v.body_centre))
        start = (v.mask_start[0], v.mask_start[2], v.mask_start[1])
        turned_over.append(replace(v, mask=v.mask.swapaxes(1, 2), mask_start=start, body_centre=tuple(geometry.index_to_world(
            np.array([z, x, y])))))
    found = add_heights(tuple(turned_over), geometry)
    assert [v.heights.grade for v in found] == [0, 2, 0, 0]
    np.testing.assert_allclose(found[1].heights.measured, (15, 24, 26), atol=0.7)


def test_no_heights_for_axis_and_for_cut_bodies() -> None:
    vertebrae, geometry, scan = stacked()
    renamed = (replace(vertebrae[0], level="C2"), *vertebrae[1:])
    assert add_heights(renamed, geometry, scan)[0].heights is None
    top = scan.geometry.world_to_index(np.array(vertebrae[0].body_centre))[0]
    cut = scan.cropped((0, 0, 0), (int(top) + 8, 110, 110))
    found = add_heights(vertebrae, geometry, cut)
    assert found[0].heights is None and all(v.heights is not None for v in found[1:])


def test_network_and_heights_may_disagree() -> None:
    vertebra_ = Vertebra((0, 0, 0), (1, 1, 1), 1.0, heights=BodyHeights(20, 20, 20, (20, 20, 20), "neighbours", 0))
    assert disagree(vertebra_) is None
    for grade, implied, expected in ((0, 0, False), (1, 0, True), (0, 1, True), (2, 1, False), (1, 3, True), (3, 2, False)):
        probabilities = tuple(float(g == grade) for g in range(4))
        heights = replace(vertebra_.heights, grade=implied)
        assert disagree(replace(vertebra_, heights=heights, grade_probabilities=probabilities)) is expected


def test_the_picture_marks_missing_height(tmp_path) -> None:
    from spineclue_v2.visualization.report import spine_figure

    vertebrae, geometry, scan = stacked()
    texts = [t.get_text() for t in spine_figure(SpineResult(add_heights(vertebrae, geometry, scan), True), geometry, scan, "x").texts]
    assert sum("↓" in text and "%" in text for text in texts) == 1 and any("body height missing" in text for text in texts)
    # A loss that is no grade yet is shown too: of 15 % here, below Genant's 20 %.
    slight = [replace(v, heights=BodyHeights(17.0, 20.0, 20.0, (20.0, 20.0, 20.0), "neighbours", 0)) for v in vertebrae[:1]]
    texts = [t.get_text() for t in spine_figure(SpineResult((*slight, *vertebrae[1:]), True), geometry, scan, "x").texts]
    assert any("↓15 %" in text for text in texts)
    plain = spine_figure(SpineResult(vertebrae, True), geometry, scan, "x")
    assert not any("↓" in t.get_text() for t in plain.texts)
