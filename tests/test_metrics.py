"""Known answers of every figure in the evaluation (definitions: documentation of spineclue_v2.evaluation.metrics)."""
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2 import anatomy
from spineclue_v2.evaluation import calibration, metrics
from spineclue_v2.evaluation.case import evaluate_case, instances_of, mask_centroids
from spineclue_v2.evaluation.label_overlap import label_means, label_overlap
from spineclue_v2.evaluation.matching import count_overlaps, match_by_centroid, match_by_dice
from spineclue_v2.evaluation.pooling import pool
from spineclue_v2.evaluation.surface import surface_distances
from spineclue_v2.imageio.volume import ImageGrid, Volume

NINE = [f"T{i}" for i in range(4, 13)]
CERVICAL = [f"C{i}" for i in range(1, 8)]


def column(names: list[str], spacing: float, offset: float = 0.0) -> dict[int, tuple[float, float, float]]:
    """Vertebrae `spacing` mm apart in cranio-caudal order, moved by `offset` mm to the side."""
    return {anatomy.LABEL_OF_NAME[name]: (offset, 0.0, -spacing * i) for i, name in enumerate(names)}


def shifted(points: dict[int, tuple[float, float, float]], by: int) -> dict[int, tuple[float, float, float]]:
    return {label + by: point for label, point in points.items()}


# -- VerSe's id.rate -------------------------------------------------------------------------------------------------------------
def test_verse_id_rate_perfect():
    assert metrics.verse_id_rate(column(NINE, 25), column(NINE, 25)) == 1.0


def test_verse_id_rate_of_a_whole_scan_shifted_by_one():
    thoracic = column(NINE[:-1], 30)
    assert metrics.verse_id_rate(thoracic, shifted(thoracic, 1)) == 0.0
    cervical = column(CERVICAL, 14)
    assert metrics.verse_id_rate(cervical, shifted(cervical, 1)) == pytest.approx(1 / 7)


def test_verse_id_rate_missed_and_surplus():
    truth = column(NINE, 25)
    found = {label: point for i, (label, point) in enumerate(truth.items()) if i % 3}
    assert metrics.verse_id_rate(truth, found) == pytest.approx(6 / 9)
    surplus = truth | {20: (0.0, 0.0, -225.0), 21: (0.0, 0.0, -250.0), 1: (0.0, 0.0, 60.0)}
    assert metrics.verse_id_rate(truth, surplus) == 1.0


@pytest.mark.parametrize(("offset", "expected"), [(20.0, 1.0), (21.0, 0.0)])
def test_verse_id_rate_at_the_distance_limit(offset, expected):
    assert metrics.verse_id_rate(column(NINE, 45), column(NINE, 45, offset)) == expected


@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1), st.floats(-500, 500))
def test_exactly_twenty_millimetres_is_a_hit_in_any_direction(direction, where):
    step = 20 * np.array(direction) / np.linalg.norm(direction)
    point = np.array([where, -where, where])
    assert metrics.verse_id_rate({20: point}, {20: point + step}) == 1.0


def test_verse_id_rate_t13_where_t12_is_true():
    truth = column(NINE, 25)
    found = {28 if label == 19 else label: point for label, point in truth.items()}
    assert metrics.verse_id_rate(truth, found) == pytest.approx(8 / 9)


def test_verse_id_rate_of_nothing():
    assert metrics.verse_id_rate(column(NINE, 25), {}) == 0.0
    assert math.isnan(metrics.verse_id_rate({}, column(NINE, 25)))


# -- SpineCLUE's ID-rate and MSE -------------------------------------------------------------------------------------------------
def test_identification_rate_counts_missed_vertebrae_as_wrong():
    assert metrics.identification_rate(["T12", "L1", "L2", "L3"], ["T12", "L1", None, "L2"]) == 0.5
    assert metrics.identification_rate(NINE, NINE) == 1.0
    assert math.isnan(metrics.identification_rate([], []))


def test_mse_is_over_matched_vertebrae():
    assert metrics.level_mse(["T12", "L1", "L2", "L3"], ["T12", "L2", None, "L1"]) == pytest.approx((0 + 1 + 4) / 3)
    assert math.isnan(metrics.level_mse(["L1"], [None]))


@pytest.mark.parametrize(("true", "predicted", "squared"), [
    ("T12", "T13", 1), ("T13", "T12", 1), ("T13", "L1", 1), ("L1", "T13", 1), ("L5", "L6", 1), ("L6", "L4", 4),
    ("C1", "L5", 529)])
def test_mse_of_variants(true, predicted, squared):
    assert metrics.level_mse([true], [predicted]) == squared


@given(st.sampled_from(anatomy.ANATOMICAL_ORDER), st.sampled_from(anatomy.ANATOMICAL_ORDER))
def test_only_the_right_level_has_no_error(true, predicted):
    assert (metrics.level_error(true, predicted) == 0) == (true == predicted)
    assert metrics.level_error(true, predicted) == -metrics.level_error(predicted, true)


def test_confusion_matrix_places():
    counts = metrics.confusion_matrix(["C1", "T12", "T12", "L5", "T13", "L1"], ["C1", "L1", "L1", None, "T12", "T13"])
    assert counts.shape == (24, 24) and counts.sum() == 3
    assert counts[0, 0] == 1 and counts[18, 19] == 2


def test_all_right_needs_every_vertebra():
    assert metrics.all_right(["L1", "L2"], ["L1", "L2"])
    assert not metrics.all_right(["L1", "L2"], ["L1", None])
    assert not metrics.all_right(["L1", "L2"], ["L1", "L3"])


def test_detection_rates():
    assert metrics.detection(8, 2, 0) == {"precision": 0.8, "recall": 1.0, "f1": pytest.approx(16 / 18)}
    assert math.isnan(metrics.detection(0, 0, 0)["f1"])


@pytest.mark.parametrize(("true", "predicted", "surplus", "expected"), [
    (["T12", "T13", "L1"], ["T12", "T13", "L1"], [], ("hit", "absent", "absent")),
    (["T12", "T13", "L1"], ["T12", "L1", "L2"], [], ("missed", "absent", "absent")),
    (["T11", "T12", "T13"], ["T12", "T13", "L1"], [], ("wrong place", "absent", "absent")),
    (["T12", "L1"], ["T13", "L1"], [], ("false alarm", "absent", "absent")),
    (["L5", "L6"], ["L5", "L6"], [], ("absent", "hit", "absent")),
    (["L4", "L5"], ["L4", "L5"], ["L6"], ("absent", "false alarm", "absent")),
    (["T10", "T11", "L1"], ["T10", "T11", "L1"], [], ("absent", "absent", "hit")),
    (["T10", "T11", "L1"], ["T11", "T12", "L1"], [], ("absent", "absent", "missed")),
    (["T11", "T12", "L1"], ["T10", "T11", "L1"], [], ("absent", "absent", "false alarm")),
    (["T11", "T12", "L1"], ["T11", None, "L1"], [], ("absent", "absent", "absent")),
])
def test_anomalies(true, predicted, surplus, expected):
    assert tuple(metrics.anomalies(true, predicted, surplus).values()) == expected


# -- matching --------------------------------------------------------------------------------------------------------------------
def test_matching_by_dice_is_the_best_one_to_one_assignment():
    # Greedy would take 0.6 first and leave the second row with nothing.
    assert match_by_dice([[0.6, 0.5], [0.55, 0.0]]) == [(0, 1), (1, 0)]
    assert match_by_dice([[0.0, 0.0], [0.0, 0.3]]) == [(1, 1)]
    assert match_by_dice(np.zeros((0, 3))) == []


def test_matching_by_centroid_prefers_more_pairs_and_stops_at_twenty():
    assert match_by_centroid([[0, 0, 0], [0, 0, 18]], [[0, 0, 15], [0, 0, 33]]) == [(0, 0), (1, 1)]
    assert match_by_centroid([[0, 0, 0]], [[0, 0, 20]]) == [(0, 0)]
    assert match_by_centroid([[0, 0, 0]], [[0, 0, 20.1]]) == []


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_overlap_counts_equal_plain_comparison(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 5, (4, 5, 6)), rng.choice([0, 2, 7, 9], (4, 5, 6))
    overlaps = count_overlaps(first, second)
    for r, a in enumerate(overlaps.reference_ids):
        for p, b in enumerate(overlaps.prediction_ids):
            expected = 2 * ((first == a) & (second == b)).sum() / ((first == a).sum() + (second == b).sum())
            assert overlaps.dice[r, p] == pytest.approx(expected)


# -- surfaces --------------------------------------------------------------------------------------------------------------------
def test_surface_distances_of_a_shifted_box_on_an_anisotropic_grid():
    first = np.zeros((12, 20, 20), dtype=bool)
    second = first.copy()
    first[3:7, 5:15, 5:15] = second[5:9, 5:15, 5:15] = True
    found = surface_distances(first, second, (3.0, 1.0, 1.0))
    assert found["hd_mm"] == pytest.approx(6.0)  # two slices of 3 mm
    same = surface_distances(first, first, (3.0, 1.0, 1.0))
    assert same == {"hd_mm": 0.0, "hd95_mm": 0.0, "nsd": 1.0}


def test_nsd_and_hd95_of_an_outlier():
    first = np.zeros((30, 30, 60), dtype=bool)
    first[5:25, 5:25, 5:25] = True
    second = first.copy()
    second[15, 15, 50] = True  # one stray voxel 26 voxels from the box
    found = surface_distances(first, second, (0.5, 0.5, 0.5))
    surface = 20**3 - 18**3
    assert found["hd_mm"] == pytest.approx(13.0)
    assert found["hd95_mm"] == 0.0
    assert found["nsd"] == pytest.approx((2 * surface) / (2 * surface + 1))


def test_nsd_at_one_millimetre_tells_one_from_two():
    first = np.zeros((6, 20, 20), dtype=bool)
    first[3, 4:12, 4:12] = True
    for shift, expected in ((1, 1.0), (2, 0.0)):
        moved = np.roll(first, shift, axis=0)
        assert surface_distances(first, moved, (1.0, 1.0, 1.0))["nsd"] == expected


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_surface_distances_agree_with_distance_transforms(seed):
    from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

    rng = np.random.default_rng(seed)
    spacing = rng.uniform(0.4, 3.0, 3)
    masks = [gaussian_filter(rng.normal(size=(14, 16, 18)), 2) > 0.02 for _ in range(2)]
    edges = [mask & ~binary_erosion(mask) for mask in masks]
    there = distance_transform_edt(~edges[1], sampling=spacing)[edges[0]]
    back = distance_transform_edt(~edges[0], sampling=spacing)[edges[1]]
    found = surface_distances(*masks, spacing)
    assert found["hd_mm"] == pytest.approx(max(there.max(), back.max()))
    assert found["hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert found["nsd"] == pytest.approx(((there <= 1).sum() + (back <= 1).sum()) / (len(there) + len(back)))


def test_an_empty_mask_has_no_distance():
    found = surface_distances(np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool), (1, 1, 1))
    assert math.isnan(found["hd_mm"]) and math.isnan(found["hd95_mm"]) and found["nsd"] == 0.0


# -- calibration -----------------------------------------------------------------------------------------------------------------
def test_calibration_error_known_answers():
    assert calibration.expected_calibration_error([0.75] * 4, [1, 1, 1, 0]) == pytest.approx(0.0)
    assert calibration.expected_calibration_error([1.0] * 4, [1, 1, 0, 0]) == pytest.approx(0.5)
    # Two bins: |1 - 0.9| * 2/4 + |0 - 0.3| * 2/4
    assert calibration.expected_calibration_error([0.9, 0.9, 0.3, 0.3], [1, 1, 0, 0], bins=10) == pytest.approx(0.2)
    assert math.isnan(calibration.expected_calibration_error([], []))


def test_risk_coverage_known_answers():
    curve = calibration.risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 1, 0])
    assert curve["coverage"] == [0.25, 0.5, 0.75, 1.0]
    assert curve["risk"] == [0, 0, 0, 0.25]
    assert curve["aurc"] == pytest.approx(0.0625)
    assert curve["risk_at"] == {"0.5": 0.0, "0.8": 0.25, "0.9": 0.25, "0.95": 0.25, "1": 0.25}
    worst = calibration.risk_coverage([0.9, 0.8, 0.7, 0.6], [0, 1, 1, 1])
    assert worst["risk"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_equal_confidences_are_answered_together():
    assert calibration.risk_coverage([0.5, 0.5, 0.5], [0, 1, 1]) == calibration.risk_coverage([0.5, 0.5, 0.5], [1, 1, 0])


def test_anchoring_table():
    found = calibration.anchoring([True, True, True, False, False], [True, True, False, False, True])
    assert (found["coverage"], found["risk"], found["flagged_of_wrong"]) == (0.6, pytest.approx(1 / 3), 0.5)


# -- whole scans -----------------------------------------------------------------------------------------------------------------
GRID = ImageGrid((80, 24, 24), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))


def blocks(names: list[str | None], moved: int = 0, geometry: ImageGrid = GRID) -> Volume:
    """Boxes of 8 x 10 x 10 voxels, 12 voxels apart, the first name on top (highest z), each moved by `moved` along x."""
    array = np.zeros(geometry.shape, dtype=np.uint8)
    for i, name in enumerate(names):
        if name is not None:
            top = 74 - 12 * i
            array[top - 8:top, 6:16, 6 + moved:16 + moved] = anatomy.LABEL_OF_NAME[name]
    return Volume(array, geometry)


def test_a_shifted_scan_has_full_dice_but_no_right_level():
    names = ["T11", "T12", "L1", "L2", "L3"]
    figures = pool([evaluate_case(blocks(names), blocks(["T12", "L1", "L2", "L3", "L4"]))])
    assert figures["id_rate"] == 0.0 and figures["mse"] == 1.0 and figures["all_right_rate"] == 0.0
    assert figures["dice"] == 1.0 and figures["detection"]["f1"] == 1.0
    assert figures["dice_same_label"] == 0.0 and figures["dice_same_label_mean_over_scans"] == 0.0


def test_missed_vertebrae_count_zero():
    figures = pool([evaluate_case(blocks(["L1", "L2", "L3", "L4"]), blocks(["L1", None, "L3", None], moved=0))])
    assert figures["id_rate"] == 0.5 and figures["dice"] == 0.5 and figures["nsd_1mm"] == 0.5
    assert figures["hd_mm"] == 0.0  # over the matched ones
    assert figures["verse_misses"] == 2 and figures["detection"]["recall"] == 0.5


def test_pairs_under_half_dice_are_counted_and_are_no_detection():
    case = evaluate_case(blocks(["L1", "L2"]), blocks(["L1", "L2"], moved=7))  # Dice 0.3
    assert case["counts"]["weak_pairs"] == 2 and case["counts"]["detected"] == 0
    assert case["counts"]["missed"] == 2 and case["counts"]["false_positives"] == 2
    assert pool([case])["id_rate"] == 1.0


def test_a_prediction_cut_by_the_border_is_neither_hit_nor_false_positive():
    truth, guess = blocks(["L1", "L2"]), blocks(["L1", "L2"])
    guess.array[76:80, 6:16, 6:16] = anatomy.LABEL_OF_NAME["T12"]  # reaches the top slice
    figures = pool([evaluate_case(truth, guess)])
    assert figures["detection"]["precision"] == 1.0 and figures["detection"]["ignored_at_border"] == 1
    guess.array[79] = 0  # the same vertebra, no longer touching the border
    figures = pool([evaluate_case(truth, guess)])
    assert figures["detection"]["false_positives"] == 1 and figures["detection"]["precision"] == pytest.approx(2 / 3)
    assert figures["all_right_rate"] == 1.0 and figures["all_right_rate_without_false_positives"] == 0.0


def test_no_prediction_at_all():
    figures = pool([evaluate_case(blocks(["L1", "L2"]), None)])
    assert figures["id_rate"] == 0.0 and figures["dice"] == 0.0 and math.isnan(figures["mse"])
    assert figures["verse_id_rate"] == 0.0 and figures["detection"]["missed"] == 2


def test_a_scan_without_vertebrae():
    nothing = blocks([])
    figures = pool([evaluate_case(nothing, nothing)])
    assert figures["scans"] == 1 and figures["vertebrae"] == 0 and figures["detection"]["false_positives"] == 0
    assert pool([evaluate_case(nothing, blocks(["L3"]))])["detection"]["false_positives"] == 1


def test_figures_do_not_depend_on_the_orientation_of_the_files():
    truth, guess = blocks(["T12", "L1", "L2"]), blocks(["T12", "L1", "L3"], moved=2)
    straight = evaluate_case(truth, guess)
    turned = evaluate_case(truth.reoriented("PIR"), guess.reoriented("RAS"))
    assert pool([turned])["id_rate"] == pool([straight])["id_rate"] == pytest.approx(2 / 3)
    assert turned["vertebrae"][0]["hd95_mm"] == pytest.approx(straight["vertebrae"][0]["hd95_mm"])


def test_sacrum_is_no_vertebra():
    truth = blocks(["L4", "L5"])
    truth.array[2:10, 6:16, 6:16] = anatomy.LABEL_OF_NAME["sacrum"]
    assert list(mask_centroids(truth)) == [23, 24]
    assert evaluate_case(truth, blocks(["L4", "L5"]))["counts"]["reference"] == 2


def test_a_level_given_twice_is_two_vertebrae_when_the_record_says_so():
    guess = blocks(["L1", "L1", "L3"])
    centres = [guess.geometry.index_to_world([70 - 12 * i, 11, 11]).tolist() for i in range(3)]
    record = {"vertebrae": [{"label": anatomy.LABEL_OF_NAME[name], "level": name, "confidence": sure, "body_centre_mm": centre}
                            for name, sure, centre in zip(("L1", "L1", "L3"), (0.9, 0.4, 0.8), centres, strict=True)]}
    assert len(instances_of(guess).names) == 2 and len(instances_of(guess, record).names) == 3
    case = evaluate_case(blocks(["L1", "L2", "L3"]), guess, record)
    assert [row["predicted"] for row in case["vertebrae"]] == ["L1", "L1", "L3"]
    assert [row["confidence"] for row in case["vertebrae"]] == [0.9, 0.4, 0.8]
    assert [row["dice"] for row in case["vertebrae"]] == [1.0, 1.0, 1.0]


def test_confidences_and_anchoring_come_from_the_record():
    def record(confidence: float, anchored: bool) -> dict:
        vertebrae = [{"level": name, "label": anatomy.LABEL_OF_NAME[name], "confidence": confidence, "body_centre_mm": None}
                     for name in ("L1", "L2", "L3", "L4")]
        return {"numbering_anchored": anchored, "vertebrae": vertebrae}
    right = evaluate_case(blocks(["L1", "L2"]), blocks(["L1", "L2"]), record(1.0, True))
    wrong = evaluate_case(blocks(["L1", "L2"]), blocks(["L3", "L4"]), record(0.5, False))
    found = pool([right, wrong])["calibration"]
    assert found["vertebrae"] == 4 and found["ece"] == pytest.approx(0.25)
    assert found["numbering_anchored"]["anchored_right"] == 1 and found["numbering_anchored"]["not_anchored_wrong"] == 1


def test_rates_pool_vertebrae_not_scans():
    cases = [evaluate_case(blocks(["L1"]), blocks(["L1"])), evaluate_case(blocks(["C3", "C4", "C5"]), blocks(["C4", "C5", "C6"]))]
    figures = pool(cases)
    assert figures["id_rate"] == 0.25 and figures["all_right_rate"] == 0.5
    assert figures["regions"]["lumbar"]["id_rate"] == 1.0 and figures["regions"]["cervical"]["id_rate"] == 0.0
    assert figures["regions"]["thoracic"]["vertebrae"] == 0
    assert list(figures["levels"]) == ["C3", "C4", "C5", "L1"]


# -- nnU-Net's figures -----------------------------------------------------------------------------------------------------------
def test_label_overlap_equals_nnunet():
    evaluate_predictions = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions")
    rng = np.random.default_rng(3)
    reference, prediction = rng.integers(0, 4, (5, 6, 7)), rng.integers(0, 4, (5, 6, 7))
    for ignore in (None, 3):
        found = label_overlap(reference, prediction, [0, 1, 2], ignore)
        for label in (0, 1, 2):
            mask = None if ignore is None else reference == ignore
            tp, fp, fn, tn = evaluate_predictions.compute_tp_fp_fn_tn(reference == label, prediction == label, mask)
            assert (found[label]["TP"], found[label]["FP"], found[label]["FN"], found[label]["TN"]) == (tp, fp, fn, tn)
            assert found[label]["Dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_label_means_leave_out_what_is_absent():
    cases = [label_overlap(np.array([[[1, 1, 0]]]), np.array([[[1, 0, 0]]]), [1, 2]),
             label_overlap(np.array([[[2, 1, 1]]]), np.array([[[2, 1, 1]]]), [1, 2])]
    found = label_means(cases, [1, 2])
    assert math.isnan(cases[0][2]["Dice"]) and found["mean"]["2"]["Dice"] == 1.0
    assert found["foreground_mean"]["Dice"] == pytest.approx(((2 / 3 + 1) / 2 + 1) / 2)
