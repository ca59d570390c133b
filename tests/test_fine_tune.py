"""Plans that start from weights: these fit, and the training follows the number of cases; all stages in a row."""
from __future__ import annotations

from pathlib import Path

import pytest
from example_fingerprint import fingerprint
from tiny_dataset import DATASET

from spineclue_v2.cli import _common
from spineclue_v2.cross_validation.train_all import stages_to_train
from spineclue_v2.errors import InputError
from spineclue_v2.planning import memory
from spineclue_v2.planning.fine_tune import FineTunePlanner, source_plans
from spineclue_v2.planning.planner import SpineCLUEPlanner
from spineclue_v2.stages.registry import stage_of
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.utilities import paths
from spineclue_v2.utilities.files import write_json


def planned(cases: int = 12, gb: float = 2, device: str = "cpu", **what) -> tuple:
    content = fingerprint(cases=cases, **what)
    return FineTunePlanner("raw", content, gb, device).plan(), SpineCLUEPlanner("raw", content, gb, device).plan()


def test_every_tensor_of_the_shipped_weights_fits():
    plans, _ = planned(spacing=(20.0, 30.0, 45.0))
    for stage in source_plans("shipped").stages:
        network = stage_of(stage).build_network(plans)
        shipped = Checkpoint.load(paths.weights_folder() / f"{stage}.pth").network
        assert {name: tensor.shape for name, tensor in network.state_dict().items()} == {
            name: tensor.shape for name, tensor in shipped.items()}, stage


def test_spacing_and_networks_stay_and_crops_grow_where_vertebrae_are_larger():
    plans, _ = planned()
    kept = source_plans("shipped")
    for stage, plan in kept.stages.items():
        assert plans.stages[stage].data == plan.data
    size = kept.stage("segment").network.crop_size
    content = fingerprint()
    for level in content["spine"]["levels"].values():
        level["extent_mm"]["lr"] = {name: 2.5 * value for name, value in level["extent_mm"]["lr"].items()}
    larger = FineTunePlanner("raw", content, 2, "cpu").plan().stage("segment")
    assert larger.network.crop_size[2] > size[2] and "larger than that of shipped" in larger.reasons["network.crop_size"]["rule"]
    assert larger.network.features == kept.stage("segment").network.features


def test_rates_lengths_and_frozen_parts_follow_the_number_of_cases():
    (few, new), (many, _) = planned(10), planned(60)
    assert few.stage("segment").run.initial_lr == pytest.approx(0.1 * new.stage("segment").run.initial_lr)
    assert few.stage("segment").run.epochs == round(0.4 * new.stage("segment").run.epochs)
    assert many.stage("segment").run.epochs == new.stage("segment").run.epochs
    assert few.stage("identify").run.freeze_backbone and few.stage("identify").run.contrastive_epochs == 0
    assert not many.stage("identify").run.freeze_backbone and many.stage("identify").run.contrastive_epochs > 0
    assert few.stage("segment").reasons["run.epochs"]["from"]["cases"] == 10


def test_it_is_planned_for_ct_only():
    with pytest.raises(InputError, match="weights of 'shipped' were made for CT"):
        planned(channel="T1")


@pytest.mark.parametrize("gb", [1, 1.5, 3, 8])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_plan_needs_more_memory_than_was_asked_for(gb, device):
    """By the planner's own estimate, which counts what autograd keeps (seen: 1.08 of 1 GB)."""
    for plans in planned(gb=gb, device=device):
        for stage, plan in plans.stages.items():
            step = memory.stage_bytes(stage, plan, memory.MIXED if device == "cuda" else memory.FLOAT)
            assert step is None or step <= gb * 1e9, (stage, step)


def test_all_trains_the_stages_in_order_and_goes_on_where_it_stopped(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("spineclue_results", str(tmp_path))
    done = []

    def train(dataset, stage, fold, **how):
        done.append((stage, how["resume"], how["pretrained_weights"]))
        folder = tmp_path / DATASET / f"{stage.capitalize()}Trainer__SpineCLUEPlans__{stage}" / "fold_0"
        if len(done) == 4:
            folder.mkdir(parents=True)
            (folder / "checkpoint_latest.pth").touch()
            raise KeyboardInterrupt
        write_json(folder / "validation" / "summary.json", {})
        (folder / "checkpoint_final.pth").touch()
        return folder, {"f1": 1.0}

    monkeypatch.setattr("spineclue_v2.cross_validation.run_training.train", train)
    assert _common.main("train", [DATASET, "all", "0", "-pretrained_weights", "shipped"]) == _common.INTERRUPTED
    assert "Interrupted in appearance, fold 0" in (said := capsys.readouterr()).err and "--c" in said.err
    assert done == [(stage, False, "shipped") for stage in ("localize", "centres", "segment", "appearance")]
    assert "Stage 3 of 7: segment" in said.out
    done.clear()
    done += [None, None, None, None]
    assert _common.main("train", [DATASET, "all", "0", "--c"]) == 0
    assert done[4:] == [("appearance", True, None), ("ribs", False, None), ("geometry", False, None), ("identify", False, None)]


def test_what_belongs_to_one_stage_is_refused_for_all(tiny):
    with pytest.raises(InputError, match="-tr SegmentTrainer trains one stage"):
        stages_to_train(DATASET, 0, "SpineCLUEPlans", "SegmentTrainer")
    with pytest.raises(InputError, match="is a checkpoint of one stage"):
        stages_to_train(DATASET, 0, "SpineCLUEPlans", None, str(Path("x.pth")))
