"""Known answers of the MR stages' parts: attention, CutMix, pseudo labels, networks, names, preprocessing."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.anatomy.structures import DISCS, LABELS, canonical, canonical_values, in_order, kind
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import ImageGrid, Volume
from spineclue_v2.plans.data import MRData
from spineclue_v2.preprocessing.mr import normalise, to_mr_space
from spineclue_v2.stages.mr.attention import ChannelAttention, CrossTriAttention, SliceAttention, SpatialAttention
from spineclue_v2.stages.mr.cps import cross_supervision, pseudo_labels, ramp
from spineclue_v2.stages.mr.cutmix import box_mask, mix
from spineclue_v2.stages.mr.data import inside, other_discs
from spineclue_v2.stages.mr.network import HybridNetwork, PixelHead, TwoBranches
from spineclue_v2.stages.mr.plan import Hybrid2DNetwork, Hybrid3DNetwork
from spineclue_v2.stages.mr.predictor import predict_3d
from spineclue_v2.stages.mr.soft_labels import labels_of_pixels
from spineclue_v2.stages.mr.trainer import batch_dice, dice_per_class, summarise_dice

FLAT = Hybrid2DNetwork("tu-resnet10t", 8, (1, 2, 3), "detail", 2, (32, 32), 0.1)
DEEP = Hybrid3DNetwork((3, 32, 32), (16, 16), 4, (1, 1, 1, 1), 1, 8, (1, 2, 3), 0.0, "detail", True, True, True, 4, 1)


def kinds(classes: int) -> torch.Tensor:
    """Of a background, one body and discs."""
    return torch.arange(classes).clamp(max=2)


def features(channels: int, slices: int = 3, rows: int = 4, columns: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, slices, rows, columns, generator=torch.Generator().manual_seed(seed))


# ---- attention --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7), (12, 6, 4)])
def test_with_gains_at_zero_attention_is_plain_concatenation(shape: tuple[int, int, int], stride: int) -> None:
    f_3d, f_2d = features(8, *shape), features(4, *shape, seed=1)
    assert torch.equal(CrossTriAttention(8, 4, 2, stride)(f_3d, f_2d), torch.cat([f_3d, f_2d], 1))


def test_equal_queries_give_every_position_its_slices_mean() -> None:
    block, f_3d, f_2d = SpatialAttention(8, 4, 2), features(8), features(4, seed=1)
    with torch.no_grad():
        block.query.weight.zero_()
        block.query.bias.zero_()
        block.value.weight.copy_(torch.eye(8)[:, :, None, None, None])
        block.value.bias.zero_()
        block.gain.fill_(0.5)
        expected = f_3d + 0.5 * f_3d.mean((3, 4), keepdim=True)
        assert torch.allclose(block(f_3d, f_2d), expected, atol=1e-5)


def test_spatial_attention_is_softmax_of_scaled_products() -> None:
    block, f_3d, f_2d = SpatialAttention(4, 3, 2), features(4, 2, 2, 3), features(3, 2, 2, 3, seed=1)
    with torch.no_grad():
        block.gain.fill_(1.0)
        query, key, value = (t.transpose(1, 2).flatten(3) for t in (block.query(f_2d), block.key(f_2d), block.value(f_3d)))
        weights = (query.transpose(2, 3) @ key / 2 ** 0.5).softmax(-1)
        mixed = (value @ weights.transpose(2, 3)).reshape(2, 2, 4, 2, 3).transpose(1, 2)
        assert torch.allclose(block(f_3d, f_2d), f_3d + mixed, atol=1e-5)


def test_slice_attention_prefers_the_slice_that_differs_most() -> None:
    block = SliceAttention()
    block.gain.data.fill_(1.0)
    f_3d = torch.zeros(1, 1, 3, 1, 4)
    f_3d[0, 0, 0], f_3d[0, 0, 1], f_3d[0, 0, 2] = 20.0, 20.0, -20.0    # energies +400 and -400: the softmax is hard
    f_2d = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1, 1).expand(1, 1, 3, 1, 4)
    found = block(f_2d, f_3d)[0, 0, :, 0, 0]
    assert found.tolist() == pytest.approx([1 + 4, 2 + 4, 4 + 1.5])     # the third takes the mean of the first two


def test_channel_attention_by_hand() -> None:
    block, x = ChannelAttention(), features(3, 1, 2, 2)
    block.gain.data.fill_(2.0)
    rows = x.flatten(2)
    energy = rows @ rows.transpose(1, 2) / 4
    expected = x + 2 * ((energy.amax(2, keepdim=True) - energy).softmax(2) @ rows).reshape(x.shape)
    assert torch.allclose(block(x), expected, atol=1e-5)


# ---- CutMix and cross pseudo supervision --------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.integers(4, 80), st.integers(4, 80), st.integers(1, 4), st.integers(0, 10_000))
def test_boxes_take_no_more_than_their_share(rows: int, columns: int, boxes: int, seed: int) -> None:
    mask = box_mask((rows, columns), boxes, (0.25, 0.5), np.random.default_rng(seed))
    rounding = boxes * (rows + columns) / (rows * columns)
    assert mask.shape == (rows, columns) and 0 < mask.mean() <= 0.5 + rounding


def test_one_box_takes_the_drawn_share() -> None:
    shares = [box_mask((200, 160), 1, (0.3, 0.3), np.random.default_rng(seed)).mean() for seed in range(50)]
    assert np.allclose(shares, 0.3, atol=0.01)


def test_mix_takes_the_second_inside() -> None:
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0, 1] = True
    assert mix(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2), mask)[0].sum((1, 2)).tolist() == [1, 1, 1]
    assert mix(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2), mask)[0, 0, 0, 1] == 1


def test_pseudo_labels_are_mixed_like_the_images_and_carry_no_gradient() -> None:
    first = torch.zeros(1, 3, 2, 2, requires_grad=True)
    second = torch.zeros(1, 3, 2, 2)
    first.data[:, 1], second[:, 2] = 5.0, 5.0
    mask = torch.tensor([[[True, False], [False, True]]])
    labels = pseudo_labels(first, second, mask)
    assert labels.tolist() == [[[2, 1], [1, 2]]] and not labels.requires_grad


def test_cross_supervision_by_hand() -> None:
    a, b = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    expected = -(a.log_softmax(1)[0, 0] + b.log_softmax(1)[0, 1])       # a learns b's label 0, b learns a's label 1
    assert cross_supervision(a, b, torch.tensor([1]), torch.tensor([0])).item() == pytest.approx(expected.item())


def test_each_branch_learns_only_from_the_other() -> None:
    branches = TwoBranches(FLAT, kinds(4))
    image = torch.randn(2, 3, 32, 32)
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    with torch.no_grad():
        silent = branches.b(image)
    cross_supervision(branches.a(image), silent, labels, labels).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in branches.a.parameters())
    assert all(p.grad is None for p in branches.b.parameters())
    assert not torch.equal(branches.a.head.project.weight, branches.b.head.project.weight)


def test_ramp_rises_to_one() -> None:
    assert [ramp(epoch, 4) for epoch in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0] and ramp(0, 0) == 1.0


# ---- networks ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("edit", [{}, {"attention": False}, {"use_2d": False}, {"attention_stride": 2}])
def test_the_3d_network_gives_logits_of_the_patch_and_leaves_the_branches_alone(edit: dict[str, object]) -> None:
    network = HybridNetwork(replace(DEEP, **edit), FLAT, kinds(5)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items() if name.startswith("branches.")}
    logits = network(torch.randn(1, 5, 64, 64))
    assert logits.shape == (1, 5, 3, 32, 32)
    logits.square().mean().backward()
    learned = {name for name, p in network.named_parameters() if p.grad is not None}
    assert not any(name.startswith("branches.") for name in learned) and "deeplab.stem.0.weight" in learned
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())   # batch statistics too


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 9), st.sampled_from([32, 64]), st.sampled_from([32, 64]))
def test_any_patch_size_and_number_of_slices(slices: int, rows: int, columns: int) -> None:
    network = HybridNetwork(DEEP, FLAT, kinds(3)).eval()
    with torch.no_grad():
        assert network(torch.randn(1, slices + 2, rows + 32, columns + 32)).shape == (1, 3, slices, rows, columns)


def test_with_gains_at_zero_the_full_network_is_the_one_without_attention() -> None:
    full = HybridNetwork(DEEP, FLAT, kinds(3)).eval()
    plain = HybridNetwork(replace(DEEP, attention=False), FLAT, kinds(3)).eval()
    plain.load_state_dict({name: tensor for name, tensor in full.state_dict().items() if not name.startswith("attention.")})
    image = torch.randn(1, 5, 64, 64)
    with torch.no_grad():
        assert torch.allclose(full(image), plain(image), atol=1e-5)


def test_the_hybrid_starts_as_the_2d_answer_and_may_leave_it() -> None:
    image = torch.randn(1, 5, 64, 64, generator=torch.Generator().manual_seed(4))
    for residual in (True, False):
        network = HybridNetwork(replace(DEEP, residual=residual), FLAT, kinds(4)).eval()
        with torch.no_grad():
            found, (_, prior) = network(image).softmax(1), network.look(image)
            wanted = torch.nn.functional.interpolate(prior[..., 8:24, 8:24], size=found.shape[2:], mode="trilinear", align_corners=False)
        assert torch.allclose(found, wanted, atol=2e-3) is residual
    network = HybridNetwork(DEEP, FLAT, kinds(4)).train()
    network(image).softmax(1)[:, 1].mean().backward()
    assert network.head.names.weight.grad.abs().sum() > 0 and network.head.decide[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("bright", [True, False])
def test_the_3d_network_looks_where_the_branches_see_something(bright: bool) -> None:
    image, asked = np.zeros((13, 256, 256), np.float32), []
    if bright:
        image[4:7, 120:150, 60:84] = 1.0

    def branches(stacks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = stacks[:, 1]
        return torch.zeros(len(seen), 2, *(n // 4 for n in seen.shape[1:])), torch.stack([1 - seen, seen], 1)

    def refine(patch: torch.Tensor, prior: torch.Tensor, looked: torch.Tensor) -> torch.Tensor:
        asked.append(float(patch.max()))
        return torch.stack([1 - patch, patch], 1) * 40 - 20

    plan = SimpleNamespace(network=SimpleNamespace(patch_size=(8, 64, 64), crop_size=(64, 64), in_plane_factor=2),
                           run=SimpleNamespace(overlap=0.25, inference_batch=4))
    network = SimpleNamespace(num_classes=2, branches=branches, refine=refine)
    found = predict_3d(image, [network], SimpleNamespace(stage=lambda name: plan), torch.device("cpu"))
    np.testing.assert_allclose(found[1], image, atol=1e-6)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)
    assert len(asked) <= (4 if bright else 1)             # 50 to look at the whole


def test_the_head_of_light_networks_sees_single_pixels() -> None:
    torch.manual_seed(0)
    features, image = torch.randn(1, 16, 8, 8), torch.randn(1, 3, 32, 32)
    other = image.clone()
    other[0, :, 9, 10] += 3.0
    with torch.no_grad():
        for kind in ("detail", "bilinear"):
            head = PixelHead(16, kinds(5), kind, 3)
            change = (head(features, image) - head(features, other)).abs().amax((0, 1))
            assert change.shape == (32, 32)
            assert (change[8:11, 9:12].min() > 10 * change[20:].max()) if kind == "detail" else not change.any()


def test_edges_of_light_networks_are_those_of_kinds() -> None:
    """Every disc has the same full-resolution part: a name follows from the features alone."""
    torch.manual_seed(0)
    features, head = torch.randn(1, 16, 8, 8), PixelHead(16, torch.tensor([0, 1, 1, 2, 2]), "detail", 3)
    with torch.no_grad():
        first, second = (head(features, torch.randn(1, 3, 32, 32))[0] for _ in range(2))
    assert (first - second).abs().max() > 1e-3
    for one, other in ((1, 2), (3, 4)):
        assert torch.allclose(first[one] - first[other], second[one] - second[other], atol=1e-5)


def test_discs_get_another_signal_and_nothing_else_does() -> None:
    labels = torch.zeros(2, 24, 24, dtype=torch.int16)
    labels[:, 2:9, 4:20], labels[:, 9:15, 4:20], labels[:, 18:23, 4:20] = 1, 2, 3
    image, discs = torch.randn(2, 24, 24), torch.tensor([False, False, True, True])
    changes = torch.stack([other_discs(image, labels, discs, 0.7, np.random.default_rng(k)) - image for k in range(200)])
    assert not changes[..., labels < 2].any()
    middles = changes[:, 0, [11, 20], 12]
    assert (middles.std(0) - 0.7).abs().max() < 0.1 and abs(float(torch.corrcoef(middles.T)[0, 1]) - 0.5) < 0.2
    assert (changes[:, 0, 9, 4].abs() < 0.5 * changes[:, 0, 11, 12].abs()).all()     # less at its border
    assert torch.equal(other_discs(image, labels, discs, 0.0, np.random.default_rng(0)), image)


def test_networks_of_slices_keep_channels_last() -> None:
    """Convolutions in half precision run a third faster so; a copy of trained weights into them must not undo it."""
    from test_hybrid_planning import fingerprint

    from spineclue_v2.inference.model import build_network
    from spineclue_v2.planning.mr_planner import SSHSNetPlanner

    plan = SSHSNetPlanner(".", fingerprint(), 1, "cpu").plan()
    network = build_network("hybrid_2d", plan)
    network.load_state_dict({name: tensor.clone() for name, tensor in build_network("hybrid_2d", plan).state_dict().items()})
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.ndim == 4)


def test_a_scan_smaller_than_a_crop_is_seen_where_training_had_it() -> None:
    """In the middle: lying in a corner of the window it was named by wrong places (VB Dice of dev phantoms 0.53 instead of 0.75)."""
    from types import SimpleNamespace

    from spineclue_v2.stages.mr.predictor import predict_2d

    torch.manual_seed(2)
    network = TwoBranches(FLAT, kinds(4)).eval()
    image = np.random.default_rng(0).normal(size=(1, 40, 48)).astype(np.float32)
    plan = SimpleNamespace(network=FLAT, run=SimpleNamespace(inference_batch=2, overlap=0.25))
    found = predict_2d(image, [network], plan, torch.device("cpu"))
    middle = torch.zeros(3, 64, 64)
    middle[1, 12:52, 8:56] = torch.from_numpy(image[0])
    with torch.no_grad():
        _, share = network(torch.nn.functional.avg_pool2d(middle, 2)[None])
        wanted = torch.nn.functional.interpolate(share, scale_factor=2, mode="bilinear", align_corners=False)[0, :, 12:52, 8:56]
    assert found.shape == (4, 1, 40, 48) and np.allclose(found[:, 0], wanted, atol=2e-2)


def test_a_patch_is_answered_where_its_corner_lies() -> None:
    network = HybridNetwork(replace(DEEP, residual=False), FLAT, kinds(3)).eval()
    wide = torch.randn(1, 5, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        middle, upper = network(wide), network(wide, torch.tensor([[0, 16]]))
        assert torch.equal(network(wide, torch.tensor([[16, 16]])), middle) and not torch.equal(upper, middle)
        features, prior = network.look(wide)
        assert torch.allclose(upper, network.refine(wide[:, 1:-1, :32, 16:48], prior[..., :16, 8:24], features[..., :4, 2:6]), atol=1e-5)


def test_context_of_a_patch_stays_in_the_scan_and_labels_lie_on_the_image(tmp_path: Path) -> None:
    """A context that reached beyond the scan by half its length gave priors of training that no scan has (score 0.2 instead of 0.7)."""
    from spineclue_v2.imageio.volume import write_volume
    from spineclue_v2.preprocessing.mr import preprocess_mr_case
    from spineclue_v2.stages.mr.data import PatchBatches

    data = MRData((4.0, 1.0, 1.0), "PIL", (0.0, 100.0), ("L5",), (24,))
    grid = ImageGrid((6, 96, 80), (4.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.array([[0, 0, 1.0], [1.0, 0, 0], [0, -1.0, 0]]))
    rows = np.broadcast_to(np.arange(96)[:, None], grid.shape)
    write_volume(Volume((rows + 10).astype(np.int16), grid), tmp_path / "image.nii.gz")
    write_volume(Volume((rows >= 60).astype(np.uint8), grid), tmp_path / "label.nii.gz")
    preprocess_mr_case(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", tmp_path / "made", "a", data, {1: 1})
    make = PatchBatches(tmp_path / "made", ["a"], 3, 0.0, (1.0, 1.0), torch.zeros(2, dtype=torch.bool), 0.0, False, (3, 32, 32),
                        (16, 16), 8, 2, 0.5)
    seen = set()
    for number in range(12):
        batch = make(number)
        for image, corner, target in zip(batch["image"], batch["corner"].tolist(), batch["target"], strict=True):
            seen.add(corner[0])
            lines = image[2, :, 32]
            assert image.shape == (5, 64, 64) and (lines.diff() > 0).sum() >= 59     # at most half a step beyond the scan
            patch = image[1:-1, corner[0]:corner[0] + 32, corner[1]:corner[1] + 32]
            edge = (60 - rows.mean()) / rows.std()
            inside_scan = patch != 0
            assert torch.equal((patch > edge - 1e-2) & inside_scan, (target[0] == 1) & inside_scan)
    assert min(seen) == 0 and max(seen) == 32 and all(c % 8 == 0 for c in seen)


# ---- data, figures, names -----------------------------------------------------------------------------------------------------
def test_pixels_take_the_class_with_most_voxels() -> None:
    labels = torch.tensor([[[1, 1, 0, 0], [1, 2, 0, 3]]])
    assert labels_of_pixels(labels, 2, 4).tolist() == [[[1, 0]]]


def test_crops_stay_inside_where_they_fit() -> None:
    assert inside(np.array([-3, 9]), (4, 4), (10, 10)).tolist() == [0, 6]
    assert inside(np.array([5]), (8,), (4,)).tolist() == [-2]


def test_dice_by_hand() -> None:
    target, found = np.array([[[1, 1, 2, 0]]]), np.array([[[1, 0, 2, 2]]])
    rows = dice_per_class(found, target, ("L5", "L5/S", "S"))
    assert rows == {"L5": pytest.approx(2 / 3), "L5/S": pytest.approx(2 / 3)}
    summary = summarise_dice([rows, {"L5": 1.0}])
    assert summary["VB"] == pytest.approx((2 / 3 + 1) / 2) and summary["IVD"] == pytest.approx(2 / 3)
    assert batch_dice(torch.from_numpy(found), torch.from_numpy(target), 4) == pytest.approx(2 / 3)


def test_normalisation_by_hand() -> None:
    array = np.array([0.0, 1.0, 3.0, 99.0], np.float32)
    found = normalise(array, np.array([False, True, True, False]), (0.0, 100.0))
    assert found.tolist() == [0.0, -1.0, 1.0, 0.0]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["LPS", "RAS", "PIL", "ASR"]), st.floats(0.8, 6.0), st.integers(4, 12))
def test_model_space_does_not_depend_on_orientation_and_keeps_the_slices(orientation: str, slice_mm: float, slices: int) -> None:
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("L5",), (24,))
    array = np.random.default_rng(3).integers(1, 900, (24, 20, slices)).astype(np.int16)
    scan = Volume(array, ImageGrid(array.shape, (1.5, 1.5, slice_mm), (0.0, 0.0, 0.0), np.eye(3)))
    first, other = to_mr_space(scan, data), to_mr_space(scan.reoriented(orientation), data)
    assert np.allclose(first.array, other.array, atol=1e-4)
    together = max(1, round(4.0 / slice_mm))
    # Half a slice too many or too few is rounded either way: 5 slices in pairs are 2 or 3.
    assert abs(first.array.shape[0] - slices / together) <= 0.5 and first.geometry.orientation == "PIL"


def test_names_are_recognised_however_written() -> None:
    assert [canonical(n) for n in ("vertebrae_L5", "sacrum", "S1", "disc_L5_S1", "L5-S", "T12/L1", "IVD L4-L5", "canal")] == \
        ["L5", "S", "S", "L5/S", "L5/S", "T12/L1", "L4/L5", "canal"]
    assert [kind(n) for n in ("S", "T13", "L5/S", "canal")] == ["body", "body", "disc", "other"]
    assert in_order(["L5/S", "canal", "L4", "S", "L4/L5", "L5"]) == ["S", "L5", "L4", "L5/S", "L4/L5", "canal"]
    assert sorted(LABELS.values()) == list(range(29 + len(DISCS)))
    with pytest.raises(InputError, match="two labels mean the structure L5/S"):
        canonical_values({"background": 0, "L5/S": 1, "disc_L5_S1": 2})


def test_unknown_encoder_is_said_in_one_sentence() -> None:
    with pytest.raises(InputError, match="resnet999.*cannot be built"):
        TwoBranches(replace(FLAT, encoder="resnet999"), kinds(3))
