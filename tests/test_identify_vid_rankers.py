"""The VID model's boosted trees and its joint distribution of sizes, each against a calculation by another way."""
from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeRegressor

from spineclue_v2.anatomy import LEVEL_INDEX
from spineclue_v2.stages.geometry.landmarks import Landmarks
from spineclue_v2.stages.geometry.vid_landmarks import VidScan
from spineclue_v2.vid.candidates import L1, NONE, T12, Seen
from spineclue_v2.vid.features import features
from spineclue_v2.vid.forest import UNKNOWN, Forest, Growth, _softmax
from spineclue_v2.vid.likelihood import FACTORS, LEVELS_SEEN, Likelihood, Likelihoods, quantities

FEW = Growth(trees=60, leaves=6, features=1.0)


def scans_to_rank(count, seed, unknown=0.0):
    """Six candidates each; right is the one whose first feature is the largest of its scan, whatever the scan's own level."""
    random = np.random.default_rng(seed)
    tables, right = [], []
    for _ in range(count):
        table = random.normal(size=(6, 4)).astype(np.float32)
        right.append(np.arange(6) == table[:, 0].argmax())
        table[:, 1:][random.random((6, 3)) < unknown] = np.nan
        tables.append(table)
    return tables, right


def test_a_forest_ranks_scans_that_it_has_not_seen():
    forest = Forest.grow(*scans_to_rank(300, 0), np.ones(300), seed=0, growth=FEW)
    tables, right = scans_to_rank(100, 1)
    assert np.mean([ok[forest.scores(table).argmax()] for table, ok in zip(tables, right, strict=True)]) > 0.85


def test_a_scan_of_little_weight_teaches_little():
    tables, right = scans_to_rank(200, 0)
    wrong = [row[::-1] for row in right[100:]]
    weight = np.r_[np.ones(100), np.full(100, 1e-3)]
    forest = Forest.grow(tables, [*right[:100], *wrong], weight, seed=0, growth=FEW)
    tables, right = scans_to_rank(100, 1)
    assert np.mean([ok[forest.scores(table).argmax()] for table, ok in zip(tables, right, strict=True)]) > 0.7


def test_the_arrays_answer_as_scikit_learn_does():
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 5)).astype(np.float32)
    x[random.random(x.shape) < 0.2] = np.nan
    known = np.nan_to_num(x, nan=UNKNOWN)
    x0 = np.maximum(known[:, 0], -3)
    trees = [DecisionTreeRegressor(max_leaf_nodes=leaves, random_state=leaves).fit(known, np.sin(3 * x0) + (known[:, leaves % 5] > 0))
             for leaves in (2, 9, 12)]
    forest = Forest._of_trees([(tree.tree_, tree.tree_.value.ravel()) for tree in trees], 23)
    np.testing.assert_allclose(forest.scores(x), sum(tree.predict(known) for tree in trees), atol=2e-3)
    assert len(np.unique(forest.scores(x))) > 8


def test_a_forest_read_from_a_file_scores_the_same():
    tables, right = scans_to_rank(60, 0, unknown=0.2)
    forest = Forest.grow(tables, right, np.ones(60), seed=0, growth=FEW)
    buffer = io.BytesIO()
    torch.save(forest.tensors(), buffer)
    buffer.seek(0)
    again = Forest.of_tensors(torch.load(buffer, weights_only=True))
    np.testing.assert_array_equal(again.scores(tables[0]), forest.scores(tables[0]))
    assert np.ptp(forest.scores(tables[0])) > 0


def test_softmax_is_taken_within_each_scan_and_among_the_marked():
    score, scan = np.log([1.0, 3.0, 5.0, 2.0, 2.0]), np.array([0, 0, 0, 1, 1])
    marked = np.array([True, True, False, False, True])
    np.testing.assert_allclose(_softmax(score, np.array([0, 3]), scan, np.ones(5, dtype=bool)), [1 / 9, 3 / 9, 5 / 9, 0.5, 0.5])
    np.testing.assert_allclose(_softmax(score, np.array([0, 3]), scan, marked), [0.25, 0.75, 0.0, 0.0, 1.0])


def hand_made(levels=3, per_level=2, seed=0):
    random = np.random.default_rng(seed)
    d = levels * per_level
    return Likelihood(random.normal(size=per_level), random.uniform(0.5, 2.0, per_level), random.normal(scale=0.3, size=d),
                      random.normal(scale=0.5, size=(d, FACTORS)), random.uniform(0.3, 1.0, d), np.ones(d, dtype=bool))


def test_the_log_ratio_is_that_of_the_normal_distributions_of_what_is_seen():
    model = hand_made()
    table = np.random.default_rng(1).normal(scale=0.5, size=(4, 3, 2)) + model.mean
    table[1, 0], table[2, 1:, 1] = np.nan, np.nan
    whole = model.loadings @ model.loadings.T + np.diag(model.noise)
    expected = []
    for row in ((table - model.mean) / model.spread).reshape(4, -1):
        seen = np.isfinite(row)
        apart, cov = (row - model.centre)[seen], whole[np.ix_(seen, seen)]
        expected.append(0.5 * ((row[seen] ** 2).sum() - apart @ np.linalg.solve(cov, apart) - np.linalg.slogdet(cov)[1]))
    np.testing.assert_allclose(model.log_ratio(table), expected, rtol=1e-9)


def test_a_level_that_was_hardly_seen_says_nothing_and_a_wild_value_little():
    model = hand_made()
    model.known[:2] = False
    table = np.tile(model.mean, (2, 3, 1))
    table[1, 0] = 50.0
    assert np.ptp(model.log_ratio(table)) == 0.0
    one, other = np.tile(model.mean, (1, 3, 1)), np.tile(model.mean, (1, 3, 1))
    one[0, 2, 1], other[0, 2, 1] = 1e3, 1e6
    assert model.log_ratio(one) == pytest.approx(model.log_ratio(other))


def patients(count, seed):
    """(count, 25, 8): everything grows down the spine, by half a level's step from patient to patient, who show twelve levels each."""
    random = np.random.default_rng(seed)
    table = np.full((count, LEVELS_SEEN, 8), np.nan, dtype=np.float32)
    for row in table:
        first = int(random.integers(10, 14))
        size = np.arange(LEVELS_SEEN)[:, None] * 0.1 + random.normal(scale=0.3) + random.normal(scale=0.02, size=(LEVELS_SEEN, 8))
        size[19:] += 1.0                                   # the step between T12 and L1 tells the level, the size does not
        row[first:first + 12] = size[first:first + 12]
    return table


def test_sizes_tell_the_level_by_how_they_go_together():
    right = patients(400, 0)
    shifted = [np.stack([row, np.roll(row, 1, axis=0), np.roll(row, -1, axis=0)]) for row in patients(100, 1)]
    model = Likelihoods.fit(right)
    posteriors = np.stack([model.posteriors(table) for table in shifted])
    assert (posteriors.argmax(axis=1) == 0).mean() > 0.95
    np.testing.assert_allclose(np.exp(posteriors).sum(axis=1), 1.0, atol=1e-3)


def test_a_training_scan_is_judged_without_itself():
    """One scan unlike all others: learned with it, its level's values are less of a surprise than without."""
    right = patients(60, 0)
    tables = [np.stack([row, np.roll(row, 1, axis=0)]) for row in right]
    crossed = Likelihoods.cross_fit(right, tables, seed=0)
    whole = Likelihoods.fit(right)
    assert len(crossed) == 60 and crossed[0].shape == (2, 2)
    assert any(not np.allclose(row, whole.posteriors(table)) for row, table in zip(crossed, tables, strict=True))


def row_of_bodies(n=4):
    centres = np.stack([np.zeros(n), np.zeros(n), -30.0 * np.arange(n)], axis=1)
    left, right = centres + [15.0, 25.0, 5.0], centres + [-15.0, 25.0, 5.0]
    marks = Landmarks(centres, None, left, right, np.tile([0.1, 0.8, 0.1], (n, 1)), rank=np.full(n, np.nan))
    return Seen(VidScan("a", "", marks, np.arange(n), np.concatenate([left, right]), np.zeros((0, 3)), (), np.zeros(0, dtype=int)))


def test_quantities_of_a_known_row():
    classes = np.array([[17, 18, 19, 20], [17, NONE, 19, 20]])
    table = quantities(row_of_bodies(), classes)
    assert table.shape == (2, LEVELS_SEEN, 8)
    np.testing.assert_allclose(table[0, 17], [np.log(30), 5, 25, np.log(30), 0, np.log(1 / 9), np.log(4), np.log(1 / 9)], atol=1e-5)
    assert np.isnan(table[0, 20, 3:5]).all() and np.isnan(table[0, 16]).all()
    assert np.isnan(table[1, 17, 3:5]).all() and np.isnan(table[1, 18]).all() and np.isfinite(table[1, 19]).all()


def test_the_height_of_l1_is_a_feature():
    classes = np.array([[T12 - 1, T12, L1, L1 + 1], [L1, L1 + 1, L1 + 2, L1 + 3], [T12 - 4, T12 - 3, T12 - 2, T12 - 1],
                        [T12, NONE, NONE, L1 + 2]])
    height = features(row_of_bodies(), classes, np.zeros(4))[:, -1]
    np.testing.assert_allclose(height, [-60.0, 0.0, -90.0 - 2 * 29.0, -30.0])
    assert LEVEL_INDEX["L1"] == L1
