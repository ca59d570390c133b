"""The geometry classifier on made spines: it learns, forgets how a patient lies, knows up from down, is saved without pickle."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dataset import DATASET

from spineclue_v2.anatomy import LEVELS
from spineclue_v2.cross_validation.run_training import train
from spineclue_v2.errors import InputError
from spineclue_v2.inference.model import load_stage
from spineclue_v2.stages.geometry import features as gf
from spineclue_v2.stages.geometry import landmarks as gl
from spineclue_v2.stages.geometry import variants as gv
from spineclue_v2.stages.geometry.network import GeometryNetwork, SequenceNetwork, Shape
from spineclue_v2.stages.geometry.predictor import evidence_of, level_probabilities
from spineclue_v2.stages.geometry.training import Schedule, fit_network
from spineclue_v2.stages.identify.evidence import fold_variants
from spineclue_v2.training.stage_model import StageModel
from spineclue_v2.training.tensor_files import load_weights

POSITIONS = ("centres", "left", "right")
SMALL = Shape(width=32, layers=2, heads=2, dropout=0.0)


def made_spine(seed: int, first: int = 0, last: int = 23) -> gl.Landmarks:
    """A spine with gaps that grow downwards, two lordoses and a kyphosis, pedicles and region probabilities."""
    generator = np.random.default_rng(seed)
    level = np.arange(23)
    gaps = np.interp(level, [0, 2, 6, 12, 18, 21, 22], [20, 16, 18, 22, 29, 34, 32]) * generator.normal(1, 0.08)
    tilt = np.radians(np.interp(level, [0, 6, 12, 18, 22], [15, 25, 0, -12, 12]) + generator.normal(0, 4))
    steps = np.stack([generator.normal(0, 0.5, 23), gaps * np.sin(tilt), -gaps * np.cos(tilt)], axis=1)
    centres = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)]) + generator.normal(0, 0.5, (24, 3))
    half = np.interp(np.arange(24), [0, 7, 12, 18, 23], [17, 14, 11, 14, 22])[:, None]
    left, right = centres + half * [1, 0, 0] + [0, 25, 5], centres - half * [1, 0, 0] + [0, 25, 5]
    region = np.array([0] * 7 + [1] * 12 + [2] * 5)
    ctl = np.where(np.arange(3) == region[:, None], 0.97, 0.03)
    cut = slice(first, last + 1)
    return gl.Landmarks(centres[cut], np.arange(24)[cut], left[cut], right[cut], ctl[cut])


@dataclass
class Classifier:
    """A trained network with the optional inputs that training showed."""

    network: GeometryNetwork
    inputs: tuple[str, ...]

    def log_probabilities(self, centres: np.ndarray, **optional: np.ndarray | None) -> np.ndarray:
        """(n, 25), an L6 counts as L5."""
        scan = gl.Landmarks(np.asarray(centres, dtype=float).reshape(-1, 3), **optional)
        rows = level_probabilities(self.network, [scan], self.inputs)[0]
        folded = rows[:, :25].copy()
        folded[:, 23] += rows[:, gl.L6]
        return np.log(np.maximum(folded, 1e-12))

    @property
    def model(self) -> StageModel:
        return StageModel([self.network], [{"inputs": list(self.inputs)}], [{}], [""])


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    scans = [made_spine(seed, first=seed % 12) for seed in range(120)]
    schedule = Schedule(epochs=25, batch=16, learning_rate=1e-2, augmentation=gf.Augmentation(noise=1.0, window=0.3, drop=0.2))
    return Classifier(*fit_network(scans, SMALL, schedule, members=1))


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    x, y, z = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
    about_y = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    about_z = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def named_right(classifier: Classifier, seed: int, change=lambda scan: scan) -> float:
    scan = change(made_spine(1000 + seed))
    answer = classifier.log_probabilities(scan.centres, left=scan.left, right=scan.right, ctl=scan.ctl)
    assert answer.shape == (len(scan.centres), 25)
    np.testing.assert_allclose(np.exp(answer).sum(axis=1), 1.0, atol=1e-5)
    return float((answer.argmax(axis=1) == scan.targets).mean())


def test_learns_whole_spines_and_misses_optional_inputs_little(classifier):
    assert np.mean([named_right(classifier, seed) for seed in range(6)]) > 0.8
    bare = [named_right(classifier, seed, lambda s: replace(s, left=None, right=None, ctl=None)) for seed in range(6)]
    assert np.mean(bare) > 0.75


def test_does_not_care_how_the_patient_lies_but_knows_up_from_down(classifier):
    def turned(scan):
        turn = rotation((9.0, -6.0, 6.0))
        return replace(scan, **{name: getattr(scan, name) @ turn.T + [40.0, -80.0, 900.0] for name in POSITIONS})

    def upside_down(scan):
        flip = np.array([1.0, 1.0, -1.0])
        return replace(scan, **{name: (getattr(scan, name) * flip)[::-1] for name in POSITIONS}, ctl=None)
    assert np.mean([named_right(classifier, seed, turned) for seed in range(6)]) > 0.8
    assert np.mean([named_right(classifier, seed, upside_down) for seed in range(6)]) < 0.4


def test_a_false_detection_far_off_the_line_is_doubted(classifier):
    scan = made_spine(2000)
    centres = np.insert(scan.centres, 12, scan.centres[11] + [14.0, 16.0, -11.0], axis=0)
    doubt = classifier.log_probabilities(centres)[:, gl.NOT_A_VERTEBRA]
    # More likely false than not; of its neighbours at most the one it crowds is doubted too, the far ones are not.
    assert doubt[12] > np.log(0.5)
    assert np.delete(doubt, [11, 12, 13]).max() < np.log(0.2)


def test_without_a_labelled_scan_it_cannot_be_trained():
    with pytest.raises(InputError, match="cannot be trained"):
        fit_network([replace(made_spine(0), targets=None)])


def test_other_files_are_refused_with_a_sentence(tmp_path):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="broken.pth"):
        load_weights(broken, "spineclue_v2 other")
    with pytest.raises(InputError, match="do not exist"):
        load_weights(tmp_path / "none.pth", "spineclue_v2 other")
    torch.save({"weights": torch.zeros(2)}, broken)
    with pytest.raises(InputError, match="not a file of"):
        load_weights(broken, "spineclue_v2 other")


def test_trained_as_a_stage_it_predicts_and_is_the_models_own(tiny):
    folder, summary = train(DATASET, "geometry", 0, device="cpu")
    assert 0 <= summary["id_rate_single"] <= 1
    model, plans = load_stage(folder / "checkpoint_final.pth", "geometry", torch.device("cpu"))
    assert len(model.networks[0].members) == plans.stage("geometry").network.members and model.fitted[0]["temperature"] > 0
    centres = made_spine(3).centres
    found = evidence_of(centres, model)
    assert found.logs.shape == (24, 25) and found.variants.shape == (24, 2)
    twice = evidence_of(centres, StageModel(model.networks * 2, model.fitted * 2, model.extra * 2, model.sha256 * 2))
    np.testing.assert_allclose(twice.logs, found.logs)      # folds are averaged


def test_inputs_that_training_never_showed_are_ignored(classifier):
    centres = made_spine(4).centres
    without = classifier.log_probabilities(centres)
    np.testing.assert_array_equal(classifier.log_probabilities(centres, extents=np.full((24, 3), 80.0)), without)
    assert "extents" not in classifier.inputs and "ctl" in classifier.inputs


def test_no_or_one_detection_is_answered(classifier):
    assert classifier.log_probabilities(np.zeros((0, 3))).shape == (0, 25)
    assert np.isfinite(classifier.log_probabilities(np.zeros((1, 3)))).all()
    rows = level_probabilities(classifier.network, [made_spine(1), gl.Landmarks(np.zeros((0, 3))), made_spine(2, 5, 9)])
    assert [len(row) for row in rows] == [24, 0, 5]


def test_l6_has_evidence_of_its_own_and_counts_as_l5_where_variants_are_unknown(classifier):
    scan = made_spine(5, 15)
    found = evidence_of(scan.centres, classifier.model)
    folded = classifier.log_probabilities(scan.centres)
    np.testing.assert_allclose(np.exp(folded[:, 23]), np.exp(found.logs[:, 23]) + np.exp(found.variants[:, 1]), rtol=1e-6)
    np.testing.assert_allclose(fold_variants(found), folded, rtol=1e-6)
    assert np.isnan(found.variants[:, 0]).all()


def test_training_is_deterministic_and_leaves_the_global_state():
    scans = [made_spine(seed) for seed in range(8)]
    state = torch.random.get_rng_state()
    schedule = Schedule(epochs=2, batch=4)
    first, second = (Classifier(*fit_network(scans, SMALL, schedule, members=1)) for _ in range(2))
    centres = made_spine(9).centres
    np.testing.assert_array_equal(first.log_probabilities(centres), second.log_probabilities(centres))
    assert torch.equal(torch.random.get_rng_state(), state)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.5, 2.0), st.integers(0, 20), st.integers(2, 24))
def test_features_are_finite_and_ratios_ignore_size_and_place(seed, factor, first, length):
    scan = made_spine(seed, first, min(first + length - 1, 23))
    moved = replace(scan, **{name: getattr(scan, name) * factor + 50.0 for name in POSITIONS})
    one, other = (gf.features(gf.Batch.of([s]))[0] for s in (scan, moved))
    assert one.shape[-1] == gl.FEATURES and torch.isfinite(one).all() and torch.isfinite(other).all()
    ratios = slice(4, 9)                                  # gap to typical gap, next gap to last gap
    torch.testing.assert_close(one[:, ratios], other[:, ratios], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(one[:, 9:18], other[:, 9:18], atol=1e-3, rtol=1e-3)      # directions and bends


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_augmented_scans_stay_spines(seed):
    """Levels still run downwards, what is gone carries no target, and at least one detection stays."""
    batch = gf.Batch.of([made_spine(seed + i, i, 23 - i) for i in range(4)], spare=1)
    how = gf.Augmentation(window=1.0, drop=1.0, drop_rate=0.5, insert=1.0, exchange=1.0)
    view = gf.augment(batch, how, torch.Generator().manual_seed(seed % 1000))
    assert (view.present.sum(dim=1) >= 1).all()
    assert (view.targets[~view.present] == gl.UNKNOWN).all() and (view.targets[view.present] != gl.UNKNOWN).all()
    for present, targets, centres in zip(view.present, view.targets, view.centres, strict=True):
        levels = targets[present & (targets < len(LEVELS))]
        assert (levels.diff() > 0).all()
        assert (centres[present][:, 2].diff() <= 0).all()


def test_exchange_keeps_the_class_of_region_probabilities():
    scans = [made_spine(seed) for seed in range(3)]
    for number, scan in enumerate(scans):
        scan.ctl[:, 0] = np.arange(24) + 0.1 * number     # says which class and scan it came from
    view = gf.augment(gf.Batch.of(scans, spare=1), gf.Augmentation(window=0, drop=0, insert=0, hide_ctl=0, exchange=1),
                      torch.Generator().manual_seed(0))
    came_from = view.ctl[:, :24, 0]
    assert torch.equal(came_from.floor().long(), view.targets[:, :24])
    assert len(set((came_from[0] - came_from[0].floor()).round(decimals=1).tolist())) > 1


def test_padding_does_not_change_an_answer():
    torch.manual_seed(0)
    network = SequenceNetwork(SMALL).eval()
    alone, padded = gf.Batch.of([made_spine(0, 10)]), gf.Batch.of([made_spine(0, 10), made_spine(1)])
    with torch.inference_mode():
        torch.testing.assert_close(network(alone)[0], network(padded)[0, :14], atol=1e-5, rtol=1e-4)


def test_a_sixth_lumbar_is_made_in_order_and_in_place():
    scan = made_spine(1, 17)
    made = gv.with_sixth_lumbar(scan, np.random.default_rng(0))
    assert made.targets.tolist() == [17, 18, 19, 20, 21, 22, 23, gl.L6]
    gaps = np.linalg.norm(np.diff(made.centres, axis=0), axis=1)
    assert gaps.min() > 25 and gaps.max() < 45 and (np.diff(made.centres[:, 2]) < 0).all()
    assert len(made.ctl) == len(made.left) == 8
    assert gv.with_sixth_lumbar(made_spine(1, 17, 22), np.random.default_rng(0)) is None


def test_a_missing_t12_is_made_without_a_hole():
    scan = made_spine(2, 12)
    made = gv.without_twelfth_thoracic(scan)
    assert made.targets.tolist() == [12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23]
    gap = np.linalg.norm(made.centres[6] - made.centres[5])
    before = np.linalg.norm(np.diff(scan.centres, axis=0), axis=1)
    assert gap == pytest.approx(0.5 * (before[5] + before[6]), rel=0.05)
    assert gv.without_twelfth_thoracic(made_spine(2, 18)) is None


def test_rare_numberings_are_repeated():
    rare, plain = gv.with_sixth_lumbar(made_spine(1, 17), np.random.default_rng(0)), made_spine(1, 15)
    out = gv.with_rare_numberings([rare, plain], seed=0)
    assert sum(scan is rare for scan in out) == 3 and sum(scan is plain for scan in out) == 1
