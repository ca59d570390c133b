"""One spine per scan: the chain of clusters, and what supports a cluster."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.stages.localize.clustering import Cluster, hits
from spineclue_v2.stages.localize.predictor import convincing
from spineclue_v2.stages.localize.spine_path import find_spine_path, gap_penalty

BETWEEN = (12.0, 47.0)


def cluster(z: float, y: float = 60.0, x: float = 80.0, score: float = 0.6, height: float = 24.0) -> Cluster:
    body = np.array([z, y, x])
    return Cluster(body - 20, body + 20, score, body, height, np.arange(5))


def spine(count: int, step: float = 28.0, **what: float) -> list[Cluster]:
    return [cluster(400 - step * i, **what) for i in range(count)]


def test_no_cluster_and_one_cluster():
    assert find_spine_path([], BETWEEN) == []
    one = cluster(50)
    assert find_spine_path([one], BETWEEN) == [one]


def test_hips_beside_and_below_the_spine_are_left_out():
    true = spine(6)
    hips = [cluster(true[-1].body[0] - 85, x=80 + side, score=0.5) for side in (-85, 85)]
    shoulders = [cluster(true[0].body[0] + 3, x=80 + side, score=0.55) for side in (-120, 120)]
    assert find_spine_path([*hips, *true, *shoulders], BETWEEN) == true


def test_a_gap_does_not_end_the_spine():
    true = spine(12)
    assert find_spine_path(true[:4] + true[7:], BETWEEN) == true[:4] + true[7:]


@given(shift=st.floats(-80, 80), count=st.integers(3, 17), order=st.randoms())
@settings(max_examples=25, deadline=None)
def test_a_curved_spine_stays_whole(shift, count, order):
    along = np.linspace(-1, 1, count)
    curved = [cluster(400 - 24.0 * i, x=100 + shift * (1 - a * a) * count / 17) for i, a in enumerate(along)]
    shuffled = list(curved)
    order.shuffle(shuffled)
    assert find_spine_path(shuffled, BETWEEN) == curved


def test_of_two_clusters_of_one_vertebra_the_better_is_kept():
    true = spine(5)
    twin = cluster(true[2].body[0] + 4, x=90, score=0.2)
    assert find_spine_path([*true, twin], BETWEEN) == true
    assert gap_penalty(twin, true[2], BETWEEN) is None


def test_support_counts_both_planes_or_one_of_them():
    gaps = {"sagittal": 3.0, "coronal": 2.2}                       # 10 boxes of each plane are expected
    assert hits(np.array([0] * 10 + [1] * 10), gaps) == pytest.approx(1.0)
    assert hits(np.array([0] * 5 + [1] * 5), gaps, folds=2) == pytest.approx(0.25)
    assert hits(np.array([0] * 5), gaps) == pytest.approx(0.3)  # 0.6 of a half, more than a quarter of all
    assert hits(np.array([0] * 5), {"sagittal": 3.0}) == pytest.approx(0.5)


@pytest.mark.parametrize("scores, enough", [([0.4, 0.4], False), ([0.3, 0.3, 0.25], False),
                                            ([0.4, 0.4, 0.4], True), ([0.55], True), ([], False)])
def test_little_and_weak_evidence_is_no_spine(scores, enough):
    assert convincing([cluster(300 - 28 * i, score=score) for i, score in enumerate(scores)]) == enough
