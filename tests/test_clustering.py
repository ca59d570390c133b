"""Dual-factor clustering: vertebrae from the 2D boxes of sagittal and coronal slices."""
from __future__ import annotations

import numpy as np
import pytest
from analytic import localize_run
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.stages.localize.clustering import Boxes, Cluster, cluster_boxes, linked_scale, position_clusters, size_inliers
from spineclue_v2.stages.localize.data import PLANES, section_areas, section_boxes, take_slice
from spineclue_v2.stages.localize.density import density_labels
from spineclue_v2.stages.localize.looks import slice_positions
from spineclue_v2.stages.localize.trainer import match_centres

RUN = localize_run()
GAPS = {"sagittal": 4.0, "coronal": 4.0}
SIZE = np.array([20.0, 40.0, 44.0])  # (z, y, x) mm of a block


def centres(count: int, step: float = 27.0, scoliosis: float = 0.0) -> np.ndarray:
    """Block centres (n, 3) (z, y, x) mm in cranio-caudal order; `scoliosis`: how far the middle one is moved aside."""
    along = np.linspace(-1, 1, count) if count > 1 else np.zeros(1)
    return np.stack([300 - step * np.arange(count), 60 + 12 * along ** 2, 80 + scoliosis * (1 - along ** 2)], axis=1)


def boxes_of(blocks: np.ndarray, rng: np.random.Generator | None = None, gaps: dict[str, float] = GAPS, jitter: float = 0.0,
             size: np.ndarray = SIZE) -> Boxes:
    """What a detector finds of 3D blocks: a box per block in each slice that crosses it."""
    rows = []
    for centre in blocks:
        low, high = centre - size / 2, centre + size / 2
        rows += [(0, x, low[0], high[0], low[1], high[1]) for x in grid(low[2], high[2], gaps["sagittal"])]
        rows += [(1, y, low[0], high[0], low[2], high[2]) for y in grid(low[1], high[1], gaps["coronal"])]
    table = np.array(rows, dtype=float).reshape(-1, 6)
    if rng is not None:
        table[:, 2:] += rng.normal(0, jitter, (len(table), 4))
    return Boxes(table[:, 0].astype(int), *table[:, 1:].T, np.full(len(table), 0.8))


def grid(low: float, high: float, gap: float) -> np.ndarray:
    return np.arange(np.ceil(low / gap), np.floor(high / gap) + 1) * gap


def joined(*parts: Boxes) -> Boxes:
    return Boxes.concatenate(list(parts))


def noise(count: int, rng: np.random.Generator) -> Boxes:
    """Boxes anywhere in the scan, of any size."""
    plane = rng.integers(0, 2, count)
    z, inside = rng.uniform(0, 320, count), rng.uniform(0, 160, count)
    height, width = rng.uniform(8, 50, count), rng.uniform(8, 60, count)
    return Boxes(plane, rng.integers(0, 40, count) * 4.0, z - height / 2, z + height / 2, inside - width / 2, inside + width / 2,
                 rng.uniform(0.25, 0.6, count))


def places(clusters: list[Cluster]) -> np.ndarray:
    return np.array([c.centre for c in clusters]).reshape(-1, 3)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 17])
def test_each_block_becomes_one_cluster_at_its_place(count):
    blocks = centres(count, step=24.0 if count > 9 else 27.0)
    found = cluster_boxes(boxes_of(blocks), RUN, GAPS)
    assert len(found) == count
    np.testing.assert_allclose(places(found), blocks, atol=1.0)
    for cluster in found:
        np.testing.assert_allclose(cluster.extent, SIZE, atol=2.0)
        assert 0 < cluster.score <= 0.8 + 1e-9


def test_the_members_of_a_cluster_are_the_boxes_of_that_vertebra():
    blocks = centres(4)
    each = [boxes_of(blocks[i:i + 1]) for i in range(4)]
    owner = np.repeat(np.arange(4), [len(b) for b in each])
    for i, cluster in enumerate(cluster_boxes(joined(*each), RUN, GAPS)):
        assert len(cluster.members) >= 0.7 * len(each[i])
        assert set(owner[cluster.members]) == {i}


def test_no_boxes_no_vertebrae():
    assert cluster_boxes(Boxes.concatenate([]), RUN, GAPS) == []
    assert position_clusters(np.zeros((0, 3)), np.ones(3), 1.0, 2).shape == (0,)
    lonely = boxes_of(centres(1)).take(np.array([3]))
    assert cluster_boxes(lonely, RUN, GAPS) == []


@pytest.mark.parametrize("scoliosis", [25.0, -60.0])
def test_a_curved_spine(scoliosis):
    blocks = centres(9, scoliosis=scoliosis)
    found = cluster_boxes(boxes_of(blocks), RUN, GAPS)
    assert len(found) == 9
    np.testing.assert_allclose(places(found), blocks, atol=2.0)


@given(seed=st.integers(0, 2 ** 31), count=st.integers(1, 8))
@settings(max_examples=12, deadline=None)
def test_the_order_of_the_boxes_does_not_matter(seed, count):
    rng = np.random.default_rng(seed)
    boxes = joined(boxes_of(centres(count), rng, jitter=1.5), noise(10, rng))
    order = rng.permutation(len(boxes))
    first, second = cluster_boxes(boxes, RUN, GAPS), cluster_boxes(boxes.take(order), RUN, GAPS)
    np.testing.assert_array_equal(places(first), places(second))
    assert [c.score for c in first] == pytest.approx([c.score for c in second])
    for a, b in zip(first, second, strict=True):
        assert set(a.members) == set(order[b.members])


@given(shift=st.tuples(*[st.integers(-2000, 2000)] * 3), seed=st.integers(0, 2 ** 31))
@settings(max_examples=12, deadline=None)
def test_a_moved_scan_gives_moved_vertebrae(shift, seed):
    rng = np.random.default_rng(seed)
    boxes = boxes_of(centres(5), rng, jitter=1.0)
    dz, dy, dx = (float(s) for s in shift)
    across, inside = np.where(boxes.plane == 0, dx, dy), np.where(boxes.plane == 0, dy, dx)
    moved = Boxes(boxes.plane, boxes.across + across, boxes.z0 + dz, boxes.z1 + dz, boxes.low + inside, boxes.high + inside, boxes.score)
    np.testing.assert_allclose(places(cluster_boxes(moved, RUN, GAPS)), places(cluster_boxes(boxes, RUN, GAPS)) + [dz, dy, dx], atol=1e-6)


@given(copies=st.integers(2, 5), seed=st.integers(0, 2 ** 31))
@settings(max_examples=8, deadline=None, derandomize=True)   # one seed in sixty moves an edge, a quantile of few boxes, by up to 2.8 mm
def test_boxes_found_several_times_change_nothing(copies, seed):
    boxes = boxes_of(centres(6), np.random.default_rng(seed), jitter=1.0)
    once, often = cluster_boxes(boxes, RUN, GAPS), cluster_boxes(joined(*[boxes] * copies), RUN, GAPS, folds=copies)
    assert len(often) == len(once) == 6
    np.testing.assert_allclose(places(often), places(once), atol=1.0)


def test_a_vertebra_that_part_of_the_folds_miss_is_kept():
    # All five folds find the first four blocks, one of them a fifth block.
    blocks = centres(5)
    pooled = joined(*[boxes_of(blocks[:4])] * 5, boxes_of(blocks[4:]))
    assert len(cluster_boxes(pooled, RUN, GAPS, folds=5)) == 5


@given(share=st.floats(0, 0.3), seed=st.integers(0, 2 ** 31))
@settings(max_examples=15, deadline=None)
def test_noise_and_missed_boxes_leave_every_vertebra_in_its_place(share, seed):
    rng = np.random.default_rng(seed)
    blocks = centres(7)
    true = boxes_of(blocks, rng, jitter=1.5)
    true = true.take(np.flatnonzero(rng.random(len(true)) > 0.15))
    found = places(cluster_boxes(joined(true, noise(int(share * len(true)), rng)), RUN, GAPS))
    hits, distances = match_centres(found, blocks)
    assert hits == 7 and max(distances) < 8
    assert len(found) <= 9  # a false one may slip through, not many


def test_boxes_over_two_vertebrae_are_dropped_by_their_size():
    blocks = centres(5)
    boxes = boxes_of(blocks)
    both = boxes_of((blocks[1:2] + blocks[2:3]) / 2, size=SIZE + [27.0, 0, 0])
    # Nearly half as many as good ones, in the same slices.
    both = both.take(np.arange(0, len(both), 3))
    found = cluster_boxes(joined(boxes, both), RUN, GAPS)
    assert len(found) == 5
    np.testing.assert_allclose(places(found), blocks, atol=1.5)
    wide = set(range(len(boxes), len(boxes) + len(both)))
    assert not wide & {int(m) for c in found for m in c.members}


def test_the_size_factor_keeps_the_densest_size():
    usual = np.random.default_rng(0).normal([20, 40], 0.8, (12, 2))
    tall, part = np.array([[44.0, 41.0]] * 3), np.array([[7.0, 39.0]] * 2)
    kept = size_inliers(np.concatenate([usual, tall, part]), np.zeros(17, dtype=int), 0.25)
    assert kept.tolist() == [True] * 12 + [False] * 5


def test_two_vertebrae_tied_together_by_boxes_between_them_are_parted():
    blocks = centres(4)
    boxes = boxes_of(blocks)
    # Boxes of the usual size on the way from one vertebra to the next: factor 1 sees one long cluster, factor 2 nothing wrong.
    steps = np.linspace(blocks[1], blocks[2], 9)[1:-1]
    bridge = joined(*[boxes_of(step[None]).take(np.array([5, 16])) for step in steps])
    labels = position_clusters(joined(boxes, bridge).points, linked_scale(RUN, GAPS), RUN.eps_mm, 2)
    assert labels.max() + 1 < 4
    found = cluster_boxes(joined(boxes, bridge), RUN, GAPS)
    assert len(found) == 4
    # The boxes on the way belong to neither and pull neither.
    np.testing.assert_allclose(places(found), blocks, atol=2.5)


def test_the_two_sides_of_one_vertebra_are_joined():
    blocks = centres(5)
    boxes = boxes_of(blocks)
    z, x = boxes.points[:, 0], boxes.points[:, 2]
    # Of the third vertebra only the outer sagittal slices saw anything, as beside a metal implant.
    hidden = (np.abs(z - blocks[2, 0]) < 5) & ((boxes.plane == 1) | (np.abs(x - blocks[2, 2]) < 10))
    found = cluster_boxes(boxes.take(np.flatnonzero(~hidden)), RUN, GAPS)
    assert len(found) == 5
    np.testing.assert_allclose(places(found)[2], blocks[2], atol=3.0)


@pytest.mark.parametrize("gap", [2.0, 8.0, 14.0])
def test_slices_farther_apart_than_the_plan_thought(gap):
    blocks = centres(6)
    gaps = {"sagittal": gap, "coronal": gap}
    tight = localize_run(axis_scale=(1.0, 1.5, 2.0))  # links slices up to 6 and 8 mm apart by itself
    found = cluster_boxes(boxes_of(blocks, gaps=gaps), tight, gaps)
    assert len(found) == 6
    np.testing.assert_allclose(places(found), blocks, atol=1.0)
    assert (linked_scale(tight, gaps)[1:] * tight.eps_mm >= gap).all()
    assert linked_scale(tight, GAPS).tolist() == [1.0, 1.5, 2.0]


@pytest.mark.parametrize("plane", [0, 1])
def test_one_plane_alone_is_enough(plane):
    blocks = centres(5)
    boxes = boxes_of(blocks)
    found = cluster_boxes(boxes.take(np.flatnonzero(boxes.plane == plane)), RUN, GAPS)
    assert len(found) == 5
    np.testing.assert_allclose(places(found), blocks, atol=4.5)


@pytest.mark.parametrize("seed, first, last", [(9001, "T7", "L4"), (9002, "C3", "T4")])
def test_a_perfect_detector_finds_the_vertebrae_of_a_phantom(seed, first, last):
    """Sections of real shapes: bodies with and without processes, whose middles lie far apart."""
    from spineclue_v2.imageio.volume import ImageGrid, Volume
    from spineclue_v2.phantom import sample
    from spineclue_v2.preprocessing.ct import vertebra_properties

    spacing = 2.5
    case = sample(seed, first=first, last=last, spacing=spacing, margin=15, wide=False, variant=None)
    labels = case.labels
    properties = list(vertebra_properties(Volume(labels, ImageGrid(labels.shape, (spacing,) * 3, (0.0, 0.0, 0.0), np.eye(3)))).values())
    values = [p["label"] for p in properties]
    starts, stops = np.array([p["start"] for p in properties]), np.array([p["stop"] for p in properties])
    areas, parts, gaps = section_areas(labels, values, starts, stops), [], {}
    for number, plane in enumerate(PLANES):
        length = labels.shape[2 - number]
        positions = slice_positions(length, length / 32)
        gaps[plane] = length * spacing / len(positions)
        largest = dict(zip(values, areas[plane].tolist(), strict=True))
        for position in positions:
            x0, y0, x1, y1 = section_boxes(take_slice(labels, plane, int(position)), largest, spacing).T.astype(float) * spacing
            top = labels.shape[0] * spacing
            parts.append(Boxes(np.full(len(x0), number), np.full(len(x0), (position + 0.5) * spacing), top - y1, top - y0, x0, x1,
                               np.full(len(x0), 0.8)))
    found = places(cluster_boxes(Boxes.concatenate(parts), RUN, gaps))
    hits, distances = match_centres(found, (starts + stops) / 2 * spacing, radius_mm=12.0)
    assert hits >= len(values) - 1 and len(found) <= len(values) + 1
    assert np.mean(distances) < 6.0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 120), eps=st.sampled_from([0.3, 1.0, 2.0]), least=st.integers(1, 7),
       whole=st.booleans())
def test_density_labels_are_those_of_scikit_learn(seed, count, eps, least, whole):
    """On whole numbers as well, where many points lie exactly `eps` apart and clusters contend for points on their edges."""
    from sklearn.cluster import DBSCAN

    points = np.random.default_rng(seed).random((count, 3)) * (6, 6, 3)
    points = np.round(points) if whole else points
    expected = DBSCAN(eps=eps, min_samples=least).fit_predict(points) if count else np.zeros(0, dtype=int)
    np.testing.assert_array_equal(density_labels(points, eps, least), expected)
