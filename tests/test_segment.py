"""Stage 2: crops with a heat map, contested voxels, one body per vertebra; never a float volume of the whole scan."""
from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic import ThresholdSegmenter, hu_volume
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spineclue_v2.adapters import dice_and_cross_entropy, segmentation_transforms
from spineclue_v2.anatomy.known import Known, Pin
from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.plans.data import Data
from spineclue_v2.plans.plans import StagePlan
from spineclue_v2.preprocessing.crops import crop_start
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.segment.crops import crop_channels
from spineclue_v2.stages.segment.data import CropBatches
from spineclue_v2.stages.segment.heatmap import heatmap
from spineclue_v2.stages.segment.network import build_network, foreground_probability
from spineclue_v2.stages.segment.plan import SegmentNetwork, SegmentRun
from spineclue_v2.stages.segment.predictor import resolve_ownership, segment
from spineclue_v2.stages.segment.spine import pinned
from spineclue_v2.stages.segment.trainer import dice

CPU = torch.device("cpu")
PLAN = StagePlan(Data(2.0), SegmentNetwork("ResEnc", (24, 32, 32), (4, 8), (1, 1), 6.0),
                 SegmentRun(2, 1, 1, 1e-3, 1e-4, inference_batch=4, centre_jitter_mm=8.0, min_volume_ml=0.5, overlap_dice=0.3))


def test_the_heat_map_is_a_gaussian_at_the_centre():
    heat = heatmap((9, 11, 13), np.array([4.0, 5.0, 6.0]), 2.0)
    assert heat.shape == (9, 11, 13) and heat.dtype == np.float32
    assert heat[4, 5, 6] == 1.0 == heat.max()
    assert heat[6, 5, 6] == pytest.approx(np.exp(-0.5))
    assert heat[4, 5 + 3, 6 + 4] == pytest.approx(np.exp(-0.5 * 25 / 4), rel=1e-5)
    between = heatmap((9, 9, 9), np.array([4.5, 4, 4]), 2.0)
    assert between[4, 4, 4] == between[5, 4, 4] == pytest.approx(np.exp(-0.5 * 0.25 / 4))


@given(centre=st.tuples(*[st.floats(-30, 130)] * 3), size=st.tuples(*[st.integers(4, 40)] * 3))
@settings(max_examples=50, deadline=None)
def test_crops_hold_their_centre_in_the_middle(centre, size):
    start = crop_start(np.array(centre), size)
    middle = start + (np.array(size) - 1) / 2
    assert (np.abs(middle - centre) <= 0.5 + 1e-9).all()


def test_crop_channels_are_windows_and_heat_map_with_air_outside():
    image = np.full((30, 30, 30), 600, np.int16)
    crop = crop_channels(image, np.array([2.0, 15.0, 15.0]), (16, 16, 16), ((-200.0, 400.0), (-100.0, 1300.0)), -1024, 3.0)
    assert crop.shape == (3, 16, 16, 16) and crop.dtype == np.float32
    assert (crop[0, 6:] == 1).all() and crop[1, 6:] == pytest.approx(0.5)
    assert (crop[:2, :5] == 0).all()  # beyond the scan: air
    peak = np.unravel_index(crop[2].argmax(), (16, 16, 16))
    np.testing.assert_array_equal(np.array(peak) + crop_start(np.array([2.0, 15.0, 15.0]), (16, 16, 16)), [2, 15, 15])


def test_training_crops_are_jittered_and_functions_of_seed_and_index(tiny):
    from spineclue_v2.dataset.preprocessed import PreprocessedDataset

    plan = load_plans(tiny / "SpineCLUEPlans.json").stage("segment")
    dataset = PreprocessedDataset(tiny / plan.data_fingerprint)
    jitter = 2.0
    maker = CropBatches(dataset.folder, dataset.cases, plan.data.windows_hu, plan.data.hu_min, plan.network.crop_size, 1.5, jitter, 8, 3,
                        augment=False)
    batch = maker(0)
    assert torch.equal(batch["image"], CropBatches(**{k: getattr(maker, k) for k in maker.__dataclass_fields__})(0)["image"])
    assert not torch.equal(batch["image"], maker(1)["image"])
    away = []
    for image, target in zip(batch["image"], batch["target"], strict=True):
        inside = torch.nonzero(target[0]).float()
        middle = (inside.min(0).values + inside.max(0).values) / 2
        peak = torch.tensor(np.unravel_index(int(image[-1].argmax()), image.shape[1:])).float()
        away.append(float((peak - middle).norm()))
    assert max(away) <= jitter + 1.8  # the peak is a voxel, and a vertebra may be cut at the crop's border
    assert max(away) > 0.5


def augmented(ct: np.ndarray, heat: np.ndarray, mask: np.ndarray, seed: int) -> dict[str, torch.Tensor]:
    np.random.seed(seed)
    torch.manual_seed(seed)
    transform = segmentation_transforms((20, 24, 24), heatmap_channel=2)
    image = torch.from_numpy(np.concatenate([ct, heat[None]]).astype(np.float32))
    return transform(image=image, segmentation=torch.from_numpy(mask[None].astype(np.int16)))


def test_the_heat_map_bends_with_the_image_but_keeps_its_values():
    size = (24, 29, 29)
    rng = np.random.default_rng(0)
    heat = heatmap(size, np.array([11.0, 14.0, 14.0]), 5.0)
    changed = 0
    for seed in range(25):
        ct = np.stack([heat, rng.random(size)])  # the first CT channel starts out as a copy of the heat map
        result = augmented(ct, heat, heat > 0.5, seed)
        image, mask = result["image"].numpy(), result["segmentation"][0].numpy() > 0
        assert image.shape == (3, 20, 24, 24)
        assert image[2].min() >= 0 and image[2].max() <= 1 + 1e-5
        assert 2 * ((image[2] > 0.5) & mask).sum() / ((image[2] > 0.5).sum() + mask.sum()) > 0.88
        changed += float(np.abs(image[0] - image[2]).max()) > 0.05
    assert 10 < changed <= 25  # the intensity transforms did touch the copy


def test_augmentation_mirrors_left_and_right_only():
    size = (24, 29, 29)
    ct = np.zeros((2, *size))
    mask = np.zeros(size, bool)
    mask[13:20, 16:23, 16:23] = True  # above, behind and left of the middle
    sides = np.array([[s.mean() for s in np.nonzero(augmented(ct, np.zeros(size), mask, seed)["segmentation"][0].numpy())]
                      for seed in range(25)])
    assert (sides[:, 0] > 9.5).all() and (sides[:, 1] > 11.5).all()
    assert (sides[:, 2] > 11.5).any() and (sides[:, 2] < 11.5).any()


def crops(draw_shape: tuple[int, int, int] = (4, 5, 6)) -> st.SearchStrategy[list[np.ndarray]]:
    # Few values, so that ties happen.
    values = st.sampled_from([0.0, 0.25, 0.5, 0.625, 0.75, 1.0])
    return st.lists(arrays(np.float16, draw_shape, elements=values.map(np.float16)), min_size=2, max_size=4)


@given(probabilities=crops(), data=st.data())
@settings(max_examples=50, deadline=None)
def test_ownership_is_the_highest_probability_whatever_the_order(probabilities, data):
    count = len(probabilities)
    starts = np.array(data.draw(st.lists(st.tuples(*[st.integers(-2, 4)] * 3), min_size=count, max_size=count, unique=True)))
    masks = resolve_ownership(probabilities, starts)
    canvas = np.zeros((count, 16, 16, 16))
    owned = np.zeros((count, 16, 16, 16), bool)
    for i, (p, m, s) in enumerate(zip(probabilities, masks, starts + 4, strict=True)):
        box = tuple(slice(a, a + n) for a, n in zip(s, p.shape, strict=True))
        canvas[(i, *box)], owned[(i, *box)] = p, m
    assert owned.sum(0).max() <= 1
    assert (owned.any(0) == (canvas > 0.5).any(0)).all()  # what is claimed has an owner
    assert (canvas[owned] == np.broadcast_to(canvas.max(0), canvas.shape)[owned]).all()
    order = data.draw(st.permutations(range(count)))
    other = resolve_ownership([probabilities[i] for i in order], starts[order])
    for place, i in enumerate(order):
        np.testing.assert_array_equal(other[place], masks[i])


def located(index: tuple[float, float, float], score: float = 0.9, plan: StagePlan = PLAN) -> Vertebra:
    """A vertebra found at `index` (z, y, x) of a volume whose origin is 0."""
    z, y, x = (plan.data.spacing_mm * i for i in index)
    return Vertebra((x, y, z), (20.0, 40.0, 40.0), score)


def scan(*blocks: tuple[int, int, int], shape: tuple[int, int, int] = (60, 44, 44), hu: int = 400) -> np.ndarray:
    """Tissue with bright blocks of 8 x 14 x 16 voxels that start at the given indices."""
    array = np.full(shape, 40, np.int16)
    for z, y, x in blocks:
        array[z:z + 8, y:y + 14, x:x + 16] = hu
    return array


def test_every_located_vertebra_gets_its_own_mask_and_measures():
    array = scan((10, 12, 14), (24, 12, 14))
    found = segment(hu_volume(array, PLAN), [located((28, 19, 22)), located((12, 17, 20))], [ThresholdSegmenter()], PLAN, CPU)
    assert [v.mask_start for v in found] == [(24, 12, 14), (10, 12, 14)]
    for vertebra, low in zip(found, (24, 10), strict=True):
        assert vertebra.mask.shape == (8, 14, 16) and vertebra.mask.dtype == bool and vertebra.mask.all()
        assert vertebra.mask_centroid == pytest.approx((2 * 21.5, 2 * 18.5, 2 * (low + 3.5)))
        assert vertebra.volume_ml == pytest.approx(8 * 14 * 16 * 8 / 1000)
        assert vertebra.extent == (16.0, 28.0, 32.0)
        assert not vertebra.touches_border
        assert np.linalg.norm(np.subtract(vertebra.body_centre, vertebra.mask_centroid)) < 10


def test_a_centre_far_off_is_corrected_by_a_second_look():
    class Clipping(ThresholdSegmenter):
        """Sees nothing near the border of its crop."""

        def forward(self, batch):
            logits = super().forward(batch)
            logits[:, 1, :4], logits[:, 0, :4] = -4.0, 4.0
            return logits

    array = scan((20, 12, 14))
    network = Clipping()
    found = segment(hu_volume(array, PLAN), [located((33, 18.5, 21.5))], [network], PLAN, CPU)  # the crop begins at row 21
    assert network.calls == 2
    assert found[0].mask_start == (20, 12, 14) and found[0].mask.shape == (8, 14, 16)


def test_a_vertebra_located_twice_is_kept_once():
    array = scan((10, 12, 14), (24, 12, 14))
    twice = [located((28, 19, 22), 0.4), located((27, 18, 20), 0.9), located((13, 18, 21))]
    found = segment(hu_volume(array, PLAN), twice, [ThresholdSegmenter()], PLAN, CPU)
    assert [v.score for v in found] == [0.9, 0.9] and [v.mask_start[0] for v in found] == [24, 10]


class Reaching(torch.nn.Module):
    """Bone up to so many slices above and below the heat map's peak, the surer the nearer: (reach, strength) of each crop in turn."""

    def __init__(self, *reaches: tuple[float, float]) -> None:
        super().__init__()
        self.reaches, self.seen = reaches, 0

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        logits = torch.full((len(crops), 2, *crops.shape[2:]), -4.0)
        for i in range(len(crops)):
            reach, strength = self.reaches[self.seen % len(self.reaches)]
            self.seen += 1
            peak = int(crops[i, -1].flatten(1).amax(1).argmax())
            away = (torch.arange(crops.shape[2]) - peak).abs()[:, None, None]
            logits[i, 1] = torch.where(crops[i, 1] > 0.25, strength * (reach - away), torch.tensor(-4.0))
        logits[:, 0] = -logits[:, 1]
        return logits


def test_of_two_masks_that_each_hold_a_part_of_the_other_vertebra_both_are_kept():
    plan = replace(PLAN, run=replace(PLAN.run, overlap_dice=0.6))
    array = scan((10, 12, 14), (18, 12, 14))                                       # one column of bone, Dice of the two masks about 0.4
    pair = [located((22, 18.5, 21.5), 0.9), located((14, 18.5, 21.5), 0.4)]
    found = segment(hu_volume(array, plan), pair, [Reaching((6.5, 1.0), (6.5, 1.0))], plan, CPU)
    assert [v.score for v in found] == [0.9, 0.4]
    assert [(v.mask_start[0], v.mask.shape[0]) for v in found] == [(18, 8), (10, 8)]


def test_a_mask_that_mostly_belongs_to_its_neighbours_is_no_vertebra():
    plan = replace(PLAN, run=replace(PLAN.run, overlap_dice=0.9, min_volume_ml=0.1))
    array = scan((10, 12, 14), (18, 12, 14))
    row = [located((22, 18.5, 21.5), 0.4), located((18, 18.5, 21.5), 0.9), located((14, 18.5, 21.5), 0.4)]
    found = segment(hu_volume(array, plan), row, [Reaching((4.5, 1.0), (3.5, 0.1), (2.5, 1.0))], plan, CPU)
    assert [(v.mask_start[0], v.mask.shape[0]) for v in found] == [(18, 8), (12, 5)]   # one slice of seven was left of the middle one


def test_a_splinter_of_a_mask_is_no_vertebra():
    plan = replace(PLAN, run=replace(PLAN.run, overlap_dice=0.9, min_volume_ml=0.1))
    array = scan((10, 12, 14))                                                     # one vertebra, located in its middle and above it
    pair = [located((17, 18.5, 21.5), 0.9), located((13, 18.5, 21.5), 0.4)]
    found = segment(hu_volume(array, plan), pair, [Reaching((1.5, 1.0), (3.5, 1.0))], plan, CPU)
    assert [(v.mask_start[0], v.mask.shape[0], v.score) for v in found] == [(10, 7, 0.4)]


@pytest.mark.parametrize("centres, reach, kept", [
    ((22, 14), 4.5, [(18, 8, 0.0), (10, 8, 0.0)]),     # each of the two has its own mask now
    ((23, 12), 2.5, [(10, 16, 0.9)]),                  # together they leave too much of it
    ((19, 17), 7.5, [(10, 16, 0.9)]),                  # both are the same again
])
def test_a_mask_of_two_vertebrae_goes_where_each_is_found_beside_it(centres, reach, kept):
    def missed(found: list[Vertebra], tried: list[Vertebra]) -> list[Vertebra]:
        return [] if tried else [located((z, 18.5, 21.5), 0.0) for z in centres]

    array = scan((10, 12, 14), (18, 12, 14))
    found = segment(hu_volume(array, PLAN), [located((18, 18.5, 21.5))], [Reaching((8.5, 1.0), (reach, 1.0), (reach, 1.0))], PLAN, CPU,
                    missed=missed)
    assert [(v.mask_start[0], v.mask.shape[0], v.score) for v in found] == kept


def test_a_located_vertebra_does_not_go_for_two_located_pieces_of_it():
    array = scan((10, 12, 14), (18, 12, 14))
    three = [located((18, 18.5, 21.5), 0.9), located((22, 18.5, 21.5), 0.4), located((14, 18.5, 21.5), 0.4)]
    found = segment(hu_volume(array, PLAN), three, [Reaching((8.5, 1.0), (4.5, 1.0), (4.5, 1.0))], PLAN, CPU)
    assert [(v.mask_start[0], v.mask.shape[0], v.score) for v in found] == [(10, 16, 0.9)]


def test_what_seems_to_be_missed_is_looked_at_alone_and_settled_with_the_rest():
    class Counting(ThresholdSegmenter):
        crops = 0

        def forward(self, batch):
            self.crops += len(batch)
            return super().forward(batch)

    array = scan((10, 12, 14), (24, 12, 14), (38, 12, 14))
    network, asked = Counting(), []

    def missed(found: list[Vertebra], tried: list[Vertebra]) -> list[Vertebra]:
        asked.append(([v.mask_start[0] for v in found], len(tried)))
        places = [(27, 19, 22), (13, 19, 22)] if not tried else [(41, 19, 22)]     # one that was missed, the others found already
        return [located(place, 0.0) for place in places]

    ends = [located((41, 19, 22), 0.9), located((13, 19, 22), 0.9)]
    found = segment(hu_volume(array, PLAN), ends, [network], PLAN, CPU, missed=missed)
    assert [(v.mask_start[0], v.score) for v in found] == [(38, 0.9), (10, 0.9), (24, 0.0)]
    # The ends once, two candidates once; they gave a vertebra, so there was a third look, which gave none and was the last.
    assert asked == [([38, 10], 0), ([38, 10, 24], 2)] and network.crops == 5


def test_places_that_the_user_gives_are_looked_at():
    """A pin where localize found nothing leads to a vertebra there; one in a vertebra that was found changes nothing."""
    volume, there = hu_volume(scan((10, 12, 14), (24, 12, 14)), PLAN), located((13, 19, 22), 0.9)
    point = tuple(float(c) for c in volume.geometry.index_to_world(np.array((27.0, 19.0, 22.0))))
    for pin in (Pin("L5", "L5", point), Pin("L5", "L5", (22.0, 19.0, 27.0), voxel=True)):
        found = segment(volume, [there, *pinned(Known((pin,)), volume.geometry, [there])], [ThresholdSegmenter()], PLAN, CPU)
        assert [(v.mask_start[0], v.score) for v in found] == [(10, 0.9), (24, 0.0)]
    seen = pinned(Known((Pin("L5", "L5", there.box_centre), Pin("lowest=L4", "L4", position=-1))), volume.geometry, [])
    found = segment(volume, [there, *seen], [ThresholdSegmenter()], PLAN, CPU)
    assert len(seen) == 1 and [(v.mask_start[0], v.score) for v in found] == [(10, 0.9)]


def test_one_body_without_holes():
    class Speckled(ThresholdSegmenter):
        """Adds an island and punches a hole."""

        def forward(self, batch):
            logits = super().forward(batch)
            for place, value in (((slice(1, 3), slice(1, 3), slice(1, 3)), 4.0), ((12, 16, 16), -4.0)):
                logits[(slice(None), 1, *place)], logits[(slice(None), 0, *place)] = value, -value
            return logits

    found = segment(hu_volume(scan((20, 12, 14)), PLAN), [located((23.5, 18.5, 21.5))], [Speckled()], PLAN, CPU)
    assert found[0].mask.shape == (8, 14, 16) and found[0].mask.all()


def test_masks_at_the_border_say_so_and_crumbs_are_no_vertebra():
    array = scan((0, 12, 14), (52, 12, 28))
    found = segment(hu_volume(array, PLAN), [located((55, 18, 35)), located((3, 18, 21))], [ThresholdSegmenter()], PLAN, CPU)
    assert [v.touches_border for v in found] == [True, True]
    array = np.full((60, 44, 44), 40, np.int16)
    array[20:23, 15:18, 15:18] = 400  # 0.2 ml
    assert segment(hu_volume(array, PLAN), [located((21, 16, 16))], [ThresholdSegmenter()], PLAN, CPU) == []
    assert segment(hu_volume(array, PLAN), [located((50, 16, 16))], [ThresholdSegmenter(0.9)], PLAN, CPU) == []
    assert segment(hu_volume(array, PLAN), [], [ThresholdSegmenter()], PLAN, CPU) == []


def test_the_probabilities_of_all_folds_are_averaged():
    array = scan((20, 12, 14))
    array[24:28, 12:26, 14:30] = 300  # the upper half is dim: the second fold does not believe in it
    volume, vertebra = hu_volume(array, PLAN), [located((23.5, 18.5, 21.5))]
    sharp, blind = ThresholdSegmenter(), ThresholdSegmenter(0.3)
    assert segment(volume, vertebra, [sharp], PLAN, CPU)[0].mask.shape == (8, 14, 16)
    assert segment(volume, vertebra, [blind], PLAN, CPU)[0].mask.shape == (4, 14, 16)
    assert segment(volume, vertebra, [sharp, sharp, blind], PLAN, CPU)[0].mask.shape == (8, 14, 16)
    assert segment(volume, vertebra, [sharp, blind, blind], PLAN, CPU)[0].mask.shape == (4, 14, 16)


def test_mirroring_averages_with_the_left_right_mirror_image():
    class LeftSided(torch.nn.Module):
        """Believes in the left half of any crop, a little."""

        def forward(self, batch):
            logits = torch.zeros(len(batch), 2, *batch.shape[2:])
            logits[:, 1, 8:16, 10:20, 16:24] = 3.0
            logits[:, 1, 8:16, 10:20, 8:16] = -1.0
            return logits

    volume, vertebra = hu_volume(scan(), PLAN), [located((30, 20, 20))]
    plain = segment(volume, vertebra, [LeftSided()], PLAN, CPU)[0]
    mirrored = segment(volume, vertebra, [LeftSided()], PLAN, CPU, mirror=True)[0]
    assert plain.mask.shape[2] == 8 and mirrored.mask.shape[2] == 16


def test_no_float_volume_of_the_whole_scan_is_made():
    array = np.full((200, 160, 160), 40, np.int16)
    array[100:108, 60:74, 60:76] = 400
    volume, vertebra = hu_volume(array, PLAN), [located((103.5, 66.5, 67.5))]
    tracemalloc.start()
    try:
        found = segment(volume, vertebra, [ThresholdSegmenter()], PLAN, CPU)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[0].mask_start == (100, 60, 60)
    assert peak < array.size  # bytes: not even one per voxel


def test_the_network_gives_two_classes_per_voxel_and_learns():
    torch.manual_seed(0)
    network = build_network(PLAN.network, 2)
    image, target = torch.rand(1, 3, 24, 32, 32), torch.zeros(1, 1, 24, 32, 32)
    target[..., 8:16, 8:24, 8:24] = 1
    image[:, 1] += target[:, 0]
    optimizer, criterion, losses = torch.optim.Adam(network.parameters(), 1e-2), dice_and_cross_entropy(), []
    for _ in range(8):
        logits = network(image)
        loss = criterion(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert logits.shape == (1, 2, 24, 32, 32)
    assert losses[-1] < losses[0] - 0.2
    probability = foreground_probability(logits.detach())
    np.testing.assert_allclose(probability, logits.detach().softmax(1)[:, 1], atol=1e-6)


def test_an_unknown_architecture_is_refused():
    from spineclue_v2.errors import InputError

    with pytest.raises(InputError, match="NoSuchNet"):
        build_network(replace(PLAN.network, architecture="NoSuchNet"), 2)


def test_dice_of_single_vertebrae():
    full, empty = torch.ones(1, 2, 2, 2, dtype=torch.bool), torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    half = full.clone()
    half[:, 0] = False
    assert dice(torch.cat([full, half, empty, full]), torch.cat([full, full, empty, empty])).tolist() == pytest.approx([1, 2 / 3, 1, 0])
