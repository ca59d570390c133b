"""The real exam's pure parts: scoring against points, windows with known answers, and changes that must keep every world point."""
import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks import real_exam, real_windows
from benchmarks.real_cases import Point, Scan
from benchmarks.real_scoring import Predicted, compare, false_vertebrae, name_at, score, shows_landmark

NAMES = ("T8", "T9", "T10", "T11", "T12", "L1", "L2")
LABEL = {"T8": 15, "T9": 16, "T10": 17, "T11": 18, "T12": 19, "L1": 20, "L2": 21, "L3": 22}
STEP = 30.0                        # mm between vertebrae


def spine():
    """A scan 80 x 90 x 240 mm of 2 mm voxels whose value is 1000 in a 12 mm cube around each point, and the points."""
    image = sitk.Image([40, 45, 120], sitk.sitkInt16)
    image.SetSpacing((2.0, 2.0, 2.0))
    image.SetOrigin((-40.0, 10.0, -500.0))
    array = np.full((120, 45, 40), -1000, np.int16)
    points = []
    for i, name in enumerate(NAMES):
        z = 105 - i * 15
        array[z - 3:z + 4, 17:24, 17:24] = 1000
        points.append(Point(name, tuple(image.TransformIndexToPhysicalPoint((20, 20, z)))))
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(image)
    return result, tuple(points)


def labels_of(image, points, names):
    array = np.zeros(image.GetSize()[::-1], np.uint8)
    for point, name in zip(points, names, strict=True):
        x, y, z = image.TransformPhysicalPointToIndex(point.place)
        array[z - 2:z + 3, y - 2:y + 3, x - 2:x + 3] = LABEL[name]
    return array


def predictions(points, names):
    return [Predicted(name, point.place, 1.0) for point, name in zip(points, names, strict=True)]


def test_a_label_within_6_mm_is_found_and_beyond_it_is_not():
    image, points = spine()
    labels = np.zeros(image.GetSize()[::-1], np.uint8)
    x, y, z = image.TransformPhysicalPointToIndex(points[0].place)
    labels[z, y, x + 3] = 15                                  # 6 mm
    assert name_at(labels, image, points[0].place) == "T8"
    labels[:] = 0
    labels[z, y, x + 4] = 15                                  # 8 mm
    assert name_at(labels, image, points[0].place) is None


def test_the_commonest_label_within_4_mm_names_a_point():
    image, points = spine()
    labels = np.zeros(image.GetSize()[::-1], np.uint8)
    x, y, z = image.TransformPhysicalPointToIndex(points[0].place)
    labels[z + 2:z + 4] = 16                                  # many voxels, most of them farther than 4 mm
    labels[z - 1:z + 2, y - 1:y + 2, x - 1:x + 2] = 15
    assert name_at(labels, image, points[0].place) == "T8"


def test_voxels_coarser_than_the_radius_count_where_the_point_lies():
    image = sitk.Image([5, 5, 5], sitk.sitkInt16)
    image.SetSpacing((9.0, 9.0, 20.0))
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[2, 2, 2] = 20
    assert name_at(labels, image, (18.0, 18.0, 49.0)) == "L1"
    assert name_at(labels, image, (500.0, 0.0, 0.0)) is None


def test_a_right_prediction_is_all_right():
    image, points = spine()
    labels = labels_of(image, points, NAMES)
    names = [name_at(labels, image, p.place) for p in points]
    figures = score(predictions(points, NAMES), True, points, names, [True] * 7)
    assert figures["all_right"] and figures["found"] == figures["named"] == 7
    assert not figures["anchored_wrong"] and figures["anchored"] and figures["landmark"]


def test_names_one_off_are_anchored_but_wrong_only_when_anchored():
    _, points = spine()
    shifted = ["T9", "T10", "T11", "T12", "L1", "L2", "L3"]
    figures = score(predictions(points, shifted), True, points, shifted, [True] * 7)
    assert figures["named"] == 0 and figures["found"] == 7 and figures["anchored_wrong"] and len(figures["wrong"]) == 7
    assert not figures["false"]
    assert not score(predictions(points, shifted), False, points, shifted, [True] * 7)["anchored_wrong"]


def test_points_outside_a_window_and_those_not_asked_for_do_not_count():
    _, points = spine()
    points = (*points[:-1], Point("L2", points[-1].place, required=False))
    names = [None, *NAMES[1:-1], None]
    figures = score(predictions(points[1:-1], NAMES[1:-1]), True, points, names, [False, *[True] * 6])
    assert (figures["points"], figures["found"], figures["all_right"]) == (5, 5, True)


def test_unknown_levels_are_found_but_never_named():
    _, points = spine()
    points = tuple(Point(None, p.place) for p in points)
    figures = score(predictions(points, NAMES), True, points, NAMES, [True] * 7)
    assert (figures["found"], figures["levelled"], figures["anchored_wrong"]) == (7, 0, False)


@pytest.mark.parametrize("place, false", [((0, 0, 30.0), False),       # one step above the row: cut by the border, not marked
                                          ((0, 0, 100.0), True), ((60.0, 0, -60.0), True), ((0, 0, -215.0), False)])
def test_false_vertebrae_are_those_that_do_not_continue_the_row(place, false):
    points = [Point(name, (0.0, 0.0, -STEP * i)) for i, name in enumerate(NAMES)]
    extra = Predicted("C3", place, 0.9)
    assert false_vertebrae([*predictions(points, NAMES), extra], points, NAMES) == (["C3"] if false else [])


def test_nothing_continues_below_l5_or_above_c1():
    lumbar = [Point(f"L{i}", (0.0, 0.0, -STEP * i)) for i in range(3, 6)]
    assert false_vertebrae([Predicted("L6", (0, 0, -180.0), 1.0)], lumbar, ["L3", "L4", "L5"]) == ["L6"]
    cervical = [Point(f"C{i}", (0.0, 0.0, -15.0 * i)) for i in range(1, 4)]
    assert false_vertebrae([Predicted("C1", (0, 0, 0.0), 1.0)], cervical, ["C2", "C3", "C4"]) == ["C1"]


def test_losses_of_height_leave_out_known_fractures():
    _, points = spine()
    rows = [Predicted(p.name, p.place, 1.0, 0.3) for p in points]
    figures = score(rows, True, points, NAMES, [True] * 7, frozenset({"T12"}))
    assert figures["heights"] == 6 and "T12" not in figures["heights_lost"] and len(figures["heights_lost"]) == 6


def test_landmarks():
    assert shows_landmark(["C2", "C3"]) and shows_landmark(["T12", "L1"]) and shows_landmark(["L5", "S1"]) and shows_landmark(["C7", "T1"])
    assert not shows_landmark(["T4", "T5", "T6"]) and not shows_landmark(["L1", "L2", "L5"]) and not shows_landmark(["T1", "T2"])


def test_contradiction_compares_names_at_the_same_place():
    base = [Predicted("T8", (0, 0, 0), 1.0), Predicted("T9", (0, 0, -30), 1.0)]
    other = [Predicted("T8", (0, 3, -28), 1.0), Predicted("T9", (0, 0, -60), 1.0)]
    assert compare(base, other) == {"shared": 1, "differ": 1, "new": 1}


@pytest.mark.parametrize("kind", [*real_windows.WINDOWS, *real_windows.TRIVIAL])
def test_points_still_lie_on_their_bodies_and_the_way_back_leads_to_the_scan(kind):
    image, points = spine()
    made = next(m for i in range(30) if (m := real_windows.make(image, points, kind, f"case {i}")) is not None)
    array = sitk.GetArrayFromImage(made.image)
    assert sum(made.inside) >= 3
    for point, first, inside in zip(made.points, points, made.inside, strict=True):
        back = (made.back @ [*point.place, 1.0])[:3]
        np.testing.assert_allclose(back, first.place, atol=1e-3)
        if inside:
            index = made.image.TransformPhysicalPointToIndex(point.place)
            assert array[index[::-1]] > 600, kind


@pytest.mark.parametrize("kind", [*real_windows.WINDOWS, *real_windows.TRIVIAL])
def test_a_case_depends_on_its_name_alone(kind):
    image, points = spine()
    first, again = (real_windows.make(image, points, kind, "case 7") for _ in range(2))
    assert (first is None) == (again is None)
    if first is not None:
        np.testing.assert_array_equal(sitk.GetArrayFromImage(first.image), sitk.GetArrayFromImage(again.image))
        assert first.points == again.points


def test_parts_hold_3_to_12_vertebrae_and_ask_only_for_whole_ones():
    image, points = spine()
    for i in range(20):
        made = real_windows.make(image, points, "part", f"part {i}")
        asked = [p for p, inside in zip(made.points, made.inside, strict=True) if inside and p.required]
        height = made.image.GetSize()[2] * 2.0
        assert 3 <= len(asked) <= 6 and height < 240
        for point in asked:                          # the 12 mm cube lies whole inside
            z = made.image.TransformPhysicalPointToIndex(point.place)[2]
            assert 3 <= z <= made.image.GetSize()[2] - 4


def test_averaging_keeps_means_and_positions():
    image, points = spine()
    made = real_windows.averaged(real_windows.Made(image, points, (True,) * 7), 2, 5.0)
    before, after = sitk.GetArrayFromImage(image).astype(float), sitk.GetArrayFromImage(made.image).astype(float)
    assert made.image.GetSpacing()[2] == 5.0 and made.image.GetSize() == (40, 45, 48)
    np.testing.assert_allclose(after[0], (before[0] * 2 + before[1] * 2 + before[2]) / 5, atol=0.5)
    np.testing.assert_allclose(after.mean(), before.mean(), atol=0.5)


def test_noise_and_slabs_are_as_strong_and_wide_as_they_say():
    image, points = spine()
    whole = real_windows.Made(image, points, (True,) * 7)
    noisy = sitk.GetArrayFromImage(real_windows.noise(whole, real_windows.seeded("a")).image).astype(float)
    difference = (noisy - sitk.GetArrayFromImage(image))[sitk.GetArrayFromImage(image) > 0]      # air is cut off at -1024
    assert 18 < difference.std() < 72
    found = [m for i in range(40) if (m := real_windows.slab(whole, real_windows.seeded(f"slab {i}"))) is not None]
    assert found and all(40 <= min(m.image.GetSize()[0] * 2, m.image.GetSize()[1] * 2) <= 81 for m in found)


def cases():
    scans = [Scan(f"by_eye/{name}.nii.gz", None, (Point("L1", (0, 0, 0)),)) for name in "abc"]
    return real_exam.list_cases([*scans, Scan("negative/d.nii.gz", None, ())], ("whole", "windows", "trivial"))


def test_names_of_cases_are_unique_and_negatives_are_whole_scans_alone():
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("d.")] == ["d.whole.0"]


def test_a_smaller_sample_is_part_of_a_larger_one_and_takes_all_kinds():
    small, large = ({case.name for case in real_exam.sampled(cases(), number)} for number in (20, 60))
    assert small < large and len(small) == 20
    assert {name.split(".")[1] for name in small} == {case.kind.replace(" ", "_") for case in cases()}


def test_folds_are_found_by_path_short_name_or_patient():
    scan = Scan("by_eye/taichi_lumbar_cor.nii.gz", None, ())
    for key in ("by_eye/taichi_lumbar_cor.nii.gz", "taichi_lumbar_cor", "taichi"):
        assert real_exam.fold_of(scan, {"other": 1, key: 3}) == "3"
    assert real_exam.fold_of(scan, {"other": 1, "another": 2}) == "1"
