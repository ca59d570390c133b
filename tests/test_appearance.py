"""The appearance classifier: it learns what surrounds a vertebra, knows what is none, is saved without pickle, and can be left out."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from example_fingerprint import fingerprint
from tiny_dataset import DATASET

from spineclue_v2.anatomy import LEVEL_INDEX, NUM_LEVELS
from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.cross_validation.run_training import train
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.volume import Volume
from spineclue_v2.inference.model import load_stage
from spineclue_v2.model_sharing.export_model import write_shipped_stage
from spineclue_v2.planning.paper_planner import SpineCLUEPaperPlanner
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.plans.data import Data
from spineclue_v2.plans.plans import StagePlan
from spineclue_v2.stages.appearance import data as appearance_data
from spineclue_v2.stages.appearance import predictor as appearance_predictor
from spineclue_v2.stages.appearance.data import (
    FALSE_DISTANCE_MM,
    NOT_A_VERTEBRA,
    SACRUM,
    SKULL,
    AppearanceBatches,
    augment,
    beyond_ends,
    cut_crops,
    to_coarse_grid,
)
from spineclue_v2.stages.appearance.network import AppearanceNetwork
from spineclue_v2.stages.appearance.plan import AppearanceNetworkPlan, AppearanceRun
from spineclue_v2.stages.appearance.predictor import beyond, follow, log_probabilities, predict
from spineclue_v2.stages.appearance.trainer import AppearanceTrainer
from spineclue_v2.stages.base import Context, Evidence, Findings, Options
from spineclue_v2.stages.identify.calibration import START
from spineclue_v2.stages.identify.evidence import combine_evidence, shape_logs
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.training.stage_model import StageModel
from spineclue_v2.utilities.paths import weights_folder

CROP, SPACING_MM = (24, 32, 32), 5.0
PLAN = StagePlan(Data(2.0), AppearanceNetworkPlan(SPACING_MM, CROP, (8, 8, 8, 8), (2, 2, 1), 0.3),
                 AppearanceRun(40, 1, 1, 1e-3, 1e-4, 6.0, 0.12))
CPU = torch.device("cpu")


def model(*networks: torch.nn.Module, **fitted: object) -> StageModel:
    return StageModel(list(networks), [fitted for _ in networks] or [fitted], [{} for _ in networks], ["" for _ in networks])


def scan(shape=(120, 80, 80), spacing=2.0) -> Volume:
    """A bright column (the spine) with one side rib at the height z = 120 mm."""
    array = np.full(shape, -900, np.int16)
    array[:, 36:44, 36:44] = 600
    array[58:62, 36:40, 44:70] = 600
    return Volume(array, ImageGrid(shape, (spacing,) * 3, (0.0, 0.0, 0.0), np.eye(3)))


def test_crops_lie_around_their_centres_and_air_is_beyond_the_scan():
    volume = to_coarse_grid(scan(), PLAN)
    assert volume.spacing == (SPACING_MM,) * 3
    middle = cut_crops(volume, np.array([[79.0, 79.0, 119.0]]), PLAN)
    assert middle.shape == (1, len(PLAN.data.windows_hu), *CROP)
    bright = np.argwhere(middle[0, 0] > 0.9).mean(0)
    assert np.abs(bright[:2] - (np.array(CROP[:2]) - 1) / 2).max() < 1.5 and bright[2] > (CROP[2] - 1) / 2   # the rib is on one side
    outside = cut_crops(volume, np.array([[79.0, 79.0, -500.0]]), PLAN)
    assert outside.max() == 0


def test_only_the_surroundings_are_resampled_and_nothing_else_changes():
    centres = np.array([[79.0, 79.0, 60.0], [79.0, 79.0, 90.0]])
    whole, part = to_coarse_grid(scan((400, 80, 80)), PLAN), to_coarse_grid(scan((400, 80, 80)), PLAN, centres)
    assert part.array.shape[0] < whole.array.shape[0] / 2
    assert np.abs(cut_crops(whole, centres, PLAN) - cut_crops(part, centres, PLAN)).mean() < 0.03


def test_orientation_of_the_scan_does_not_matter():
    centres = np.array([[70.0, 80.0, 119.0]])
    torch.manual_seed(0)
    own = model(AppearanceNetwork(2, (8, 8, 8, 8)).eval())
    straight = log_probabilities(scan(), centres, own, PLAN, CPU)
    turned = log_probabilities(scan().reoriented("RAI"), centres, own, PLAN, CPU)
    assert straight.shape == (1, NUM_LEVELS + 1)
    np.testing.assert_allclose(np.exp(straight).sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(straight, turned, atol=0.02)
    assert log_probabilities(scan(), np.zeros((0, 3)), own, PLAN, CPU).shape == (0, NUM_LEVELS + 1)


def with_batch(plan: StagePlan, size: int) -> StagePlan:
    return replace(plan, run=replace(plan.run, batch_size=size))


def test_batches_hold_levels_equally_and_places_off_the_spine(tiny):
    plan = with_batch(load_plans(tiny / "SpineCLUEPlans.json").stage("appearance"), 40)
    folder = tiny / plan.data_fingerprint
    maker = AppearanceBatches(folder, PreprocessedDataset(folder).cases, plan, seed=5)
    batch = maker(3)
    again = AppearanceBatches(folder, PreprocessedDataset(folder).cases, plan, seed=5)(3)
    assert torch.equal(batch["image"], again["image"]) and batch["image"].shape == (40, 2, *CROP)
    counts = torch.bincount(batch["level"], minlength=NUM_LEVELS + 1)
    assert counts[NOT_A_VERTEBRA] > 0 and counts[:LEVEL_INDEX["L1"]].sum() == 0
    assert counts[LEVEL_INDEX["L1"]:NUM_LEVELS - 1].max() <= 10
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1


def test_beyond_the_ends_of_the_spine_lie_skull_and_sacrum_and_an_end_of_the_field_is_none():
    c1, c2 = [10.0, 20.0, 300.0], [10.0, 24.0, 280.0]
    l4, l5 = [12.0, 30.0, 60.0], [12.0, 36.0, 30.0]
    everything = beyond_ends([24, 1, 2, 23], np.array([l5, c1, c2, l4]))               # in any order
    np.testing.assert_allclose(everything, [[10.0, 16.0, 320.0], [12.0, 42.0, 0.0]])
    np.testing.assert_allclose(beyond_ends([24, 25], np.array([l4, l5])), [[12.0, 42.0, 0.0]])    # L6 ends the spine, too
    assert beyond_ends([2, 3], np.array([c1, c2])) == beyond_ends([22, 23], np.array([l4, l5])) == beyond_ends([24], np.array([l5])) == []


def test_places_beyond_the_ends_are_taught_as_no_vertebra(tiny, monkeypatch):
    plan = with_batch(load_plans(tiny / "SpineCLUEPlans.json").stage("appearance"), 40)
    folder = tiny / plan.data_fingerprint
    data, looked = PreprocessedDataset(folder), []
    monkeypatch.setattr(appearance_data, "beyond_ends", lambda labels, centres: [centres[np.argmin(centres[:, 2])] - (0.0, 0.0, 22.0)])
    monkeypatch.setattr(appearance_data, "cut_crops", lambda scan, centres, _: looked.append(centres[0]) or cut_crops(scan, centres, plan))
    maker = AppearanceBatches(folder, data.cases, plan, seed=5, augment=False)
    levels = torch.cat([maker(i)["level"] for i in range(4)])
    own = {case: ImageGrid.from_json(data.properties(case)["geometry"]).index_to_world(
        np.array([v["body_centre"] for v in data.properties(case)["vertebrae"].values()])) for case in data.cases}
    off = [place for place, level in zip(looked, levels, strict=True) if level == NOT_A_VERTEBRA]
    near = [min(np.linalg.norm(centres - place, axis=1).min() for centres in own.values()) for place in off]
    assert sum(15.0 < n < FALSE_DISTANCE_MM for n in near) > len(off) / 5   # nearer than a random place may be


def test_with_landmarks_the_place_below_is_taught_as_sacrum(tiny, monkeypatch):
    plan = with_batch(load_plans(tiny / "SpineCLUEPlans.json").stage("appearance"), 40)
    plan = replace(plan, network=replace(plan.network, landmarks=True))
    monkeypatch.setattr(appearance_data, "beyond_ends", lambda labels, centres: [centres[np.argmin(centres[:, 2])] - (0.0, 0.0, 22.0)])
    folder = tiny / plan.data_fingerprint
    maker = AppearanceBatches(folder, PreprocessedDataset(folder).cases, plan, seed=5, augment=False)
    levels = torch.cat([maker(i)["level"] for i in range(4)])
    assert (levels == SACRUM).any() and (levels == NOT_A_VERTEBRA).any() and not (levels == SKULL).any()


def test_landmarks_follow_from_the_next_detection_or_the_place_beyond():
    rows = np.full((3, NUM_LEVELS + 3), 0.01)
    rows[2, SACRUM], rows[0, SKULL] = 0.7, 0.6
    found = follow(rows, {"below": np.eye(NUM_LEVELS + 3)[SACRUM]})
    np.testing.assert_allclose(found[:, 0], [0.01, 0.7, 1.0])
    assert np.isnan(found[0, 1]) and found[1, 1] == 0.6


def test_a_place_beyond_the_scan_is_not_asked_for():
    scan = Volume(np.zeros((60, 40, 40), np.int16), ImageGrid((60, 40, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3)))
    assert set(beyond(np.array([[20.0, 20.0, 40.0], [20.0, 20.0, 25.0]]), scan)) == {"below"}
    assert beyond(np.array([[20.0, 20.0, 40.0]]), scan) == {}


def test_augmentation_cuts_ends_off_but_never_the_middle():
    images = torch.ones(60, 1, *CROP)
    found = augment(images, np.random.default_rng(0), SPACING_MM)
    rows = found.amax(dim=(1, 3, 4)) > 0.3
    assert rows[:, CROP[0] // 2].all() and not rows.all()


def test_trained_like_any_stage_and_predicts_from_its_checkpoint(tiny, tmp_path):
    folder, summary = train(DATASET, "appearance", 0, device="cpu")
    assert summary["id_rate_single"] == summary["metric_per_case"][0]["right"] / summary["metric_per_case"][0]["vertebrae"]
    own, plans = load_stage(folder / "checkpoint_final.pth", "appearance", CPU)
    plan = plans.stage("appearance")
    data = PreprocessedDataset(tiny / plan.data_fingerprint)
    case = data.cases[0]
    grid = ImageGrid.from_json(data.properties(case)["geometry"])
    volume = Volume(np.asarray(data.image(case)[:]), grid)
    centres = grid.index_to_world(np.array([v["body_centre"] for v in data.properties(case)["vertebrae"].values()]))
    rows = log_probabilities(volume, centres, own, plan, CPU)
    assert np.isfinite(rows).all() and own.fitted[0]["temperature"] > 0
    shared = write_shipped_stage(folder / "checkpoint_final.pth", tmp_path / "appearance.pth")   # half precision
    assert shared.stat().st_size < 1.5e6
    again, _ = load_stage(shared, "appearance", CPU)
    np.testing.assert_allclose(np.exp(log_probabilities(volume, centres, again, plan, CPU)), np.exp(rows), atol=0.01)
    with pytest.raises(InputError, match="is of stage 'geometry', expected 'appearance'|no stage 'appearance'"):
        load_stage(weights_folder() / "geometry.pth", "appearance", CPU)


@pytest.mark.parametrize("every", [False, True])
def test_validation_cases_without_a_regular_vertebra_do_not_stop_it(tiny, tmp_path, monkeypatch, every):
    plans = load_plans(tiny / "SpineCLUEPlans.json")
    data = PreprocessedDataset(tiny / plans.stage("appearance").data_fingerprint)
    empty = data.cases[-2:] if every else data.cases[-1:]
    properties = PreprocessedDataset.properties
    monkeypatch.setattr(PreprocessedDataset, "properties", lambda self, case: properties(self, case) | (
        {"vertebrae": {}} if case in empty else {}))
    run = AppearanceTrainer(plans, 0, data, data.cases[:-2], data.cases[-2:], tmp_path, torch.device("cpu"), workers=0)
    assert run.batch_cases(training=False) == (run.train_cases if every else run.val_cases)
    assert np.isfinite(run._validate()["loss"])
    run.on_train_end()
    judged = [row["case"] for row in run.perform_validation()["metric_per_case"]]
    assert judged == (run.train_cases if every else run.val_cases[:1])
    with pytest.raises(InputError, match="shows a regular vertebra"):
        AppearanceBatches(data.folder, empty, run.plan, seed=0)(0)


def test_it_learns_to_tell_the_ends_of_a_column_apart():
    """Levels by what is near: places at the upper end against places at the lower end of the same column."""
    torch.manual_seed(1)
    volume, generator = to_coarse_grid(scan((240, 80, 80)), PLAN), np.random.default_rng(2)
    places = np.stack([np.full(24, 79.0), np.full(24, 79.0), np.where(np.arange(24) % 2, 40.0, 430.0)], axis=1)
    places[:, 2] += generator.uniform(-15, 15, 24)
    images, levels = torch.from_numpy(cut_crops(volume, places, PLAN)), torch.where(torch.arange(24) % 2 == 1, 23, 0)
    network = AppearanceNetwork(2, (8, 8, 8, 8)).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), levels).backward()
        optimizer.step()
    found = log_probabilities(scan((240, 80, 80)), places, model(network.eval()), PLAN, CPU)
    assert (found.argmax(1) == levels.numpy()).mean() > 0.9


def evidence(shape: np.ndarray, geometry: np.ndarray | None = None, appearance: np.ndarray | None = None) -> dict[str, Evidence]:
    given = {"shape": shape_logs(shape), "geometry": geometry, "appearance": appearance}
    return {name: Evidence(logs) for name, logs in given.items() if logs is not None}


def test_a_classifier_that_is_not_enabled_changes_nothing():
    generator = np.random.default_rng(0)
    shape = generator.dirichlet(np.ones(NUM_LEVELS), 4)
    geometry, appearance = (np.log(generator.dirichlet(np.ones(NUM_LEVELS + 1), 4)) for _ in range(2))
    alone, variants = combine_evidence(evidence(shape), {})
    assert variants is None
    np.testing.assert_allclose(alone, shape_logs(shape) - np.logaddexp.reduce(shape_logs(shape), axis=1, keepdims=True))
    np.testing.assert_allclose(combine_evidence(evidence(shape, geometry, appearance), {}, ("shape",))[0], alone)
    np.testing.assert_allclose(combine_evidence(evidence(shape, None, appearance), {"appearance": 0.0})[0], alone)
    both, _ = combine_evidence(evidence(shape, None, appearance), {"appearance": 0.5})
    by_hand = shape_logs(shape) + 0.5 * appearance
    np.testing.assert_allclose(both, by_hand - np.logaddexp.reduce(by_hand, axis=1, keepdims=True))


def test_a_classifier_of_another_package_counts_unless_the_user_narrows_them():
    generator = np.random.default_rng(0)
    shape = generator.dirichlet(np.ones(NUM_LEVELS), 4)
    texture = np.log(generator.dirichlet(np.ones(NUM_LEVELS + 1), 4))
    both = evidence(shape) | {"texture": Evidence(texture)}
    by_hand = shape_logs(shape) + 0.5 * texture
    np.testing.assert_allclose(combine_evidence(both, {"texture": 0.5})[0],
                               by_hand - np.logaddexp.reduce(by_hand, axis=1, keepdims=True))
    np.testing.assert_allclose(combine_evidence(both, {}, ("shape",))[0], combine_evidence(evidence(shape), {})[0])


def test_the_papers_plan_uses_the_shape_alone():
    weights = SpineCLUEPaperPlanner("raw", fingerprint()).plan().stage("identify").run.classifier_weights
    assert weights == {"shape": 1.0, "geometry": 0.0, "appearance": 0.0}
    generator = np.random.default_rng(0)
    shape = generator.dirichlet(np.ones(NUM_LEVELS), 4)
    geometry, appearance = (np.log(generator.dirichlet(np.ones(NUM_LEVELS + 1), 4)) for _ in range(2))
    alone = combine_evidence(evidence(shape), {})[0]
    np.testing.assert_allclose(combine_evidence(evidence(shape, geometry, appearance), weights)[0], alone)


def test_variants_come_from_the_classifier_that_knows_them():
    """An L6 that geometry is sure of reaches the decoder; what shape says of L5 is where its part of L6 starts."""
    generator = np.random.default_rng(3)
    shape = generator.dirichlet(np.ones(NUM_LEVELS), 3)
    logs = np.log(generator.dirichlet(np.ones(NUM_LEVELS + 1), 3))
    l6 = np.array([-0.1, -5.0, -7.0])
    given = evidence(shape) | {"geometry": Evidence(logs, np.stack([np.full(3, np.nan), l6], axis=1))}
    rows, variants = combine_evidence(given, {"geometry": 0.5})
    total = shape_logs(shape) + 0.5 * logs
    norm = np.logaddexp.reduce(total, axis=1)
    assert np.isnan(variants[:, 0]).all()
    np.testing.assert_allclose(variants[:, 1], shape_logs(shape)[:, LEVEL_INDEX["L5"]] + 0.5 * l6 - norm)
    np.testing.assert_allclose(rows, total - norm[:, None])


def test_a_fitted_weight_is_stronger_than_the_plans(monkeypatch):
    planned, silent = (planner("raw", fingerprint()).plan() for planner in (SpineCLUEPlanner, SpineCLUEPaperPlanner))
    vertebrae = tuple(Vertebra((0.0, 0.0, -30.0 * i), (30.0,) * 3, 1.0, body_centre=(0.0, 0.0, -30.0 * i)) for i in range(3))
    rows = np.log(np.random.default_rng(0).dirichlet(np.ones(NUM_LEVELS + 1), 3))
    rows[2, LEVEL_INDEX["L3"]] = 8.0                          # the last one is all but surely lumbar
    rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
    monkeypatch.setattr(appearance_predictor, "class_logs", lambda *_: rows)

    def weight_used(plans, weight: dict[str, float] | None) -> np.ndarray:
        fitted = {} if weight is None else {"weight": weight}
        found = predict(Findings(scan(), vertebrae), model(**fitted), Context(plans, CPU, Options(), {}))
        if "appearance" not in found.evidence:
            return np.zeros(3)
        own = found.evidence["appearance"]
        own_weight = plans.stage("identify").run.classifier_weights["appearance"] if own.weight is None else own.weight
        return own_weight * own.logs[:, 0] / rows[:, 0]

    np.testing.assert_allclose(weight_used(planned, None), START["appearance"])
    everywhere = dict.fromkeys(("cervical", "thoracic", "lumbar", "none"), 0.3)
    np.testing.assert_allclose(weight_used(planned, everywhere), 0.3)
    np.testing.assert_allclose(weight_used(silent, everywhere), 0.0)
    by_region = weight_used(planned, {"cervical": 0.2, "thoracic": 0.2, "lumbar": 0.6, "none": 0.2})
    lumbar = np.exp(rows[:, [LEVEL_INDEX[f"L{k}"] for k in range(1, 6)]]).sum(1)
    np.testing.assert_allclose(by_region, 0.2 + 0.4 * lumbar)
    assert by_region[2] > 0.58 and by_region[:2].max() < 0.5
