"""What the MR planners decide, and that the paper's numbers are the paper's."""
from __future__ import annotations

from typing import Any

import pytest

from spineclue_v2.errors import InputError
from spineclue_v2.planning.mr_planner import SSHSNetPaperPlanner, SSHSNetPlanner
from spineclue_v2.planning.planner import SpineCLUEPlanner, find_planner
from spineclue_v2.stages.plan_files import plans_from_json


def fingerprint(**facts: Any) -> dict[str, Any]:
    structures = {"S": {"value": 7}, "L5": {"value": 1}, "L5/S": {"value": 9}}
    return {"dataset_name": "Dataset601_Any", "dataset_hash": "0", "mr": {
        "num_cases": 20, "num_unlabelled": 5, "slice_mm_p50": 4.4, "in_plane_mm_p50": 0.345, "slices_p50": 15.0,
        "fov_mm_p95": [300.0, 280.0], "structures": structures} | facts}


def test_the_papers_numbers() -> None:
    plan = SSHSNetPaperPlanner(".", fingerprint(), 32, "cuda").plan()
    flat, deep = plan.stage("hybrid_2d"), plan.stage("hybrid_3d")
    assert flat.data.spacing_mm == (4.4, 0.345, 0.345) and flat.data.percentiles == (0.5, 99.5) and flat.network.in_plane_factor == 2
    assert (flat.network.encoder, flat.network.decoder_channels, flat.network.atrous_rates, flat.network.crop_size, flat.network.head) == (
        "se_resnext50_32x4d", 256, (12, 24, 36), (512, 256), "bilinear")
    assert flat.network.dropout == 0.5
    run = flat.run
    assert (run.batch_size, run.unlabelled_batch_size, run.epochs, run.initial_lr, run.lr_drop_epochs) == (8, 8, 1000, 1e-3, (50, 400))
    assert (run.cps_weight, run.cps_ramp_epochs, run.cutmix_boxes, run.cutmix_area, run.rotation_deg) == (1.0, 0, 3, (0.25, 0.5), 45.0)
    assert (deep.network.patch_size, deep.network.width, deep.network.blocks, deep.network.groups) == ((12, 192, 192), 64, (3, 4, 6, 3), 32)
    assert (deep.network.decoder_channels, deep.network.atrous_rates, deep.network.dropout) == (256, (12, 24, 36), 0.5)
    assert (deep.run.batch_size, deep.run.epochs, deep.run.initial_lr, deep.run.lr_drop_epochs) == (4, 150, 1e-3, (25, 100))
    assert run.scaling == deep.run.scaling == (0.8,
    1.2) and run.tissue_class_weight == deep.run.tissue_class_weight == 0.0 and not run.soft_labels
    assert deep.run.class_centred_fraction == 1.0 and plan.plans_name == "SSHSNetPaperPlans"


@pytest.mark.parametrize(("device", "gb"), [("cpu", 1), ("cuda", 8), ("cuda", 40)])
@pytest.mark.parametrize("facts", [{}, {"fov_mm_p95": [150.0, 100.0]}, {"slices_p50": 5.0}, {"slice_mm_p50": 1.0, "in_plane_mm_p50": 1.0}])
def test_grids_of_2d_and_3d_meet_on_every_class_of_machine(device: str, gb: float, facts: dict[str, Any]) -> None:
    plan = SSHSNetPlanner(".", fingerprint(**facts), gb, device).plan()
    flat, deep = plan.stage("hybrid_2d").network, plan.stage("hybrid_3d").network
    for patch, context in zip(deep.patch_size[1:], deep.context, strict=True):
        assert patch % 16 == 0 and context % (4 * flat.in_plane_factor) == 0 and (patch + 2 * context) % (16 * flat.in_plane_factor) == 0
    assert deep.patch_size[0] <= fingerprint(**facts)["mr"]["slices_p50"]
    assert plan.stage("hybrid_2d").data_fingerprint == plan.stage("hybrid_3d").data_fingerprint
    assert plans_from_json(plan.to_json()) == plan


def test_a_crop_shows_enough_spine_to_name_it() -> None:
    laptop = SSHSNetPlanner(".", fingerprint(), 1, "cpu").plan().stage("hybrid_2d")
    shown = laptop.network.crop_size[0] * laptop.network.in_plane_factor * laptop.data.spacing_mm[1]
    assert shown == pytest.approx(288, abs=0.5)     # a lumbar scan with its sacrum, from which levels are counted
    large = SSHSNetPlanner(".", fingerprint(), 40, "cuda").plan().stage("hybrid_2d")
    assert large.data.spacing_mm == (4.4, 0.345, 0.345)


def test_thin_slices_are_averaged_and_nothing_unlabelled_means_supervised() -> None:
    plan = SSHSNetPlanner(".", fingerprint(slice_mm_p50=0.9, num_unlabelled=0), 1, "cpu").plan()
    assert plan.stage("hybrid_2d").data.spacing_mm[0] == 3.0 and plan.stage("hybrid_2d").run.unlabelled_batch_size == 0
    assert plan.stage("hybrid_2d").data.label_values == (7, 1, 9)


def test_planners_are_found_by_name_and_refuse_ct() -> None:
    assert find_planner("SSHSNetPaperPlanner") is SSHSNetPaperPlanner
    with pytest.raises(InputError, match="plans MR datasets"):
        SSHSNetPlanner(".", {"spine": {}})
    with pytest.raises(InputError, match="plans CT datasets.*leave -pl out"):
        SpineCLUEPlanner(".", fingerprint(), 1, "cpu")


@pytest.mark.parametrize("stage", ["hybrid_2d", "hybrid_3d"])
def test_the_papers_size_builds_and_a_step_has_the_right_shapes(stage: str) -> None:
    """On torch's meta device: every layer at the paper's size and batch, forwards and backwards, without its arithmetic."""
    import torch

    from spineclue_v2.inference.model import build_network

    plan = SSHSNetPaperPlanner(".", fingerprint(), 32, "cuda").plan()
    network_plan, run = plan.stage(stage).network, plan.stage(stage).run
    with torch.device("meta"):
        network = build_network(stage, plan).train()
        if stage == "hybrid_2d":
            logits = network.a(torch.empty(run.batch_size + run.unlabelled_batch_size, 3, *network_plan.crop_size))
            assert logits.shape == (16, 4, 512, 256)
        else:
            slices, rows, columns = network_plan.patch_size
            logits = network(torch.empty(run.batch_size, slices + 2, rows + 128, columns + 128))
            assert logits.shape == (4, 4, 12, 192, 192)
        logits.sum().backward()
    learned = network.a if stage == "hybrid_2d" else network.deeplab
    assert all(p.grad is not None and p.grad.shape == p.shape for p in learned.parameters())
