"""The synthetic spine: what a case promises, known geometry, and the raw dataset it is written as."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.anatomy import LABEL_OF_NAME, ORDER_INDEX
from spineclue_v2.errors import InputError
from spineclue_v2.phantom import parse_pathology, pathology, sample, sampling, shapes, spine, tables
from spineclue_v2.phantom.primitives import Points, capsule, ellipsoid

LUMBAR = {"first": "L2", "last": "L4", "spacing": 2.0, "variant": None, "wide": False, "fractures": {}, "screws": 0, "cement": 0}
LUMBAR |= {"oblique": 0, "streaks": 0, "dish": 0}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Many small tensors: a second thread costs more than it brings, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lumbar():
    return sample(9001, **LUMBAR)


def test_case_keeps_its_promises(lumbar):
    assert lumbar.ct.dtype == np.int16 and lumbar.labels.dtype == np.uint8
    assert lumbar.ct.shape == lumbar.labels.shape and lumbar.spacing == (2.0, 2.0, 2.0)
    found = {int(v) for v in np.unique(lumbar.labels)} - {0}
    assert {21, 22, 23} <= found == {LABEL_OF_NAME[n] for n in lumbar.centroids}
    assert not set(lumbar.partial) & set(lumbar.centroids)
    assert set(lumbar.grades) == set(lumbar.centroids)


def test_centroids_lie_where_the_labels_are(lumbar):
    for name, centre in lumbar.centroids.items():
        voxels = np.argwhere(lumbar.labels == LABEL_OF_NAME[name])
        assert np.allclose(voxels.mean(0)[::-1] * 2.0, centre["mask"], atol=1e-3)
        index = tuple(int(round(c / 2.0)) for c in centre["body"][::-1])
        assert lumbar.labels[index] == LABEL_OF_NAME[name]
        assert centre["mask"][1] > centre["body"][1] + 5  # the arch draws the mask's centroid back


def test_same_seed_same_case_and_no_global_state(lumbar):
    torch.manual_seed(5)
    np.random.seed(5)
    again = sample(9001, **LUMBAR)
    assert np.array_equal(again.ct, lumbar.ct) and np.array_equal(again.labels, lumbar.labels)
    other = sample(9002, **LUMBAR)
    assert other.ct.shape != lumbar.ct.shape or not np.array_equal(other.ct, lumbar.ct)


def test_vertebrae_descend_and_do_not_touch(lumbar):
    names = sorted(lumbar.centroids, key=ORDER_INDEX.get)
    heights = [lumbar.centroids[n]["body"][2] for n in names]
    assert all(a > b + 20 for a, b in zip(heights, heights[1:], strict=False))
    fine = sample(9003, **(LUMBAR | {"spacing": 1.0}))
    for axis in range(3):
        a, b = np.moveaxis(fine.labels, axis, 0)[:-1], np.moveaxis(fine.labels, axis, 0)[1:]
        assert np.mean((a != b) & (a > 0) & (b > 0)) < 2e-5


def test_bone_is_denser_than_what_surrounds_it(lumbar):
    inside = lumbar.ct[lumbar.labels > 0].mean()
    assert inside > 150 and lumbar.ct[lumbar.labels == 0].mean() < 60
    assert lumbar.ct.min() >= -1024 and lumbar.ct.max() <= 3071


@pytest.mark.parametrize("variant, present, absent", [("T13", "T13", "L6"), ("L6", "L6", "T13"), ("no_T12", "T11", "T12")])
def test_variants_number_the_levels(variant, present, absent):
    case = sample(9010, first="T11", last="L5" if variant != "L6" else "L6", variant=variant, spacing=3.0, wide=False)
    assert present in case.centroids and absent not in case.centroids


def test_a_vertebra_cut_by_the_border_is_not_labelled():
    case = sample(9020, first="L3", last="L4", spacing=3.0, margin=15, variant=None, wide=False)
    assert case.partial and not {LABEL_OF_NAME[n] for n in case.partial} & set(np.unique(case.labels))
    shown = sample(9020, first="L3", last="L4", spacing=3.0, margin=15, variant=None, wide=False, cut_share=0.0)
    np.testing.assert_array_equal(shown.ct, case.ct)
    assert {LABEL_OF_NAME["L2"], LABEL_OF_NAME["L5"]} <= set(np.unique(shown.labels))


def test_fracture_lowers_the_body_by_its_grade():
    for grade, (low, high) in {1: (0.20, 0.25), 2: (0.25, 0.40), 3: (0.40, 0.61)}.items():
        for kind in ("wedge", "biconcave", "crush"):
            p = shapes.template("L1")
            ha, hp = p["ha"], p["hp"]
            spine.fracture(np.random.default_rng(grade), p, grade, kind)
            middle = (p["ha"] + p["hp"]) / 2 * (1 - p["hm_loss"])
            loss = max(1 - p["ha"] / ha, 1 - p["hp"] / hp, 1 - middle / ((ha + hp) / 2))
            assert low <= loss <= high


def test_fractured_case_reports_the_grade():
    case = sample(9030, **(LUMBAR | {"fractures": {"L3": (3, "crush")}, "spacing": 3.0}))
    assert case.grades["L3"] == 3 and case.grades["L2"] == 0


def test_limb_has_no_vertebra():
    case = sample(9040, spine=False, spacing=3.0)
    assert not case.labels.any() and case.centroids == {} and case.ct.max() > 500


@pytest.mark.parametrize(
    "name, low, high", [("C1", 7, 13), ("C4", 7, 12), ("T6", 18, 26), ("T12", 36, 45), ("L3", 50, 64), ("L5", 53, 67)]
)
def test_template_volumes_match_measured_ones(name, low, high):
    p = shapes.template(name)
    q, _ = shapes.local_points(name, p)
    inside = (shapes.half_distance(name, p, q) < 0).float()
    inside[..., 0] *= 0.5
    assert low < 2 * float(inside.sum()) / 1000 < high
    edges = [inside[0], inside[-1], inside[:, 0], inside[:, -1], inside[..., -1]]
    assert not any(e.any() for e in edges)  # the local box holds the whole vertebra


def _point(x, y, z):
    return Points(*(torch.tensor(float(v)) for v in (x, y, z)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=9, max_size=9), st.floats(1, 10))
def test_capsule_is_the_distance_to_its_segment(values, radius):
    p, a, b = np.array(values).reshape(3, 3)
    t = np.clip(np.dot(p - a, b - a) / max(np.dot(b - a, b - a), 1e-6), 0, 1)
    expected = np.linalg.norm(p - a - t * (b - a)) - radius
    assert math.isclose(float(capsule(_point(*p), a, b, radius)), expected, abs_tol=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.floats(2, 9))
def test_ellipsoid_of_equal_radii_is_a_sphere(x, y, z, r):
    d = float(ellipsoid(_point(x + 10, y, z), (10, 0, 0), (r, r, r)))
    assert math.isclose(d, math.sqrt(x * x + y * y + z * z) - r, abs_tol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_rotation_is_orthonormal(pitch, roll, yaw):
    m = spine.rotation(pitch, roll, yaw)
    assert np.allclose(m @ m.T, np.eye(3), atol=1e-9) and math.isclose(np.linalg.det(m), 1, abs_tol=1e-9)


def test_fields_of_view_follow_the_table():
    rng = np.random.default_rng(0)
    drawn = [spine.draw_fov(rng) for _ in range(4000)]
    total = sum(row[2] for row in tables.FOV)
    for first, last, count in tables.FOV[:4]:
        assert abs(drawn.count((first, last)) / 4000 - count / total) < 0.02


@pytest.mark.parametrize(
    "what",
    [
        {"spacing": 0},
        {"variant": "T14"},
        {"kernel": "sharp"},
        {"colour": 1},
        {"first": "L4", "last": "L2"},
        {"fractures": {"L3": (4, "wedge")}, "first": "L2", "last": "L4"},
    ],
)
def test_bad_switches_are_one_sentence(what):
    with pytest.raises(InputError):
        sample(9050, **({"variant": None, "first": "L2", "last": "L4"} | what))


def test_raw_dataset(tmp_path: Path):
    sitk = pytest.importorskip("SimpleITK")
    from spineclue_v2.dataset_conversion import phantom

    folder = tmp_path / "Dataset500_SpinePhantom"
    names = phantom.convert(folder, 2, 1, 1, **(LUMBAR | {"spacing": 3.0}))
    image = sitk.ReadImage(str(folder / "imagesTr" / f"{names[0]}_0000.nii.gz"))
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{names[0]}.nii.gz")))
    assert image.GetSpacing() == (3.0, 3.0, 3.0)
    content = json.loads((folder / "dataset.json").read_text())
    assert content["numTraining"] == 2 and content["labels"]["L5"] == 24 and content["file_ending"] == ".nii.gz"
    header, *points = json.loads((folder / "centroidsTr" / f"{names[0]}_ctd.json").read_text())
    assert header == {"direction": ["P", "I", "R"]}
    oriented = sitk.DICOMOrient(sitk.ReadImage(str(folder / "labelsTr" / f"{names[0]}.nii.gz")), "PIR")
    pir = sitk.GetArrayFromImage(oriented).transpose(2, 1, 0)
    assert (pir > 0).sum() == (labels > 0).sum() and len(points) >= 3
    for point in points:
        centre = np.argwhere(pir == point["label"]).mean(0)
        assert np.allclose(centre, [point["X"], point["Y"], point["Z"]], atol=1e-3)
    image_path = folder / "imagesTr" / f"{names[1]}_0000.nii.gz"
    before = image_path.stat().st_mtime_ns
    image_path.with_name(f"{names[0]}_0000.nii.gz").unlink()
    phantom.convert(folder, 2, 1, 1, **(LUMBAR | {"spacing": 3.0}))
    assert image_path.stat().st_mtime_ns == before and (folder / "imagesTr" / f"{names[0]}_0000.nii.gz").is_file()
    assert not list(folder.rglob(".part_*"))
    with pytest.raises(InputError, match="another seed"):
        phantom.convert(folder, 2, 2, 1, **(LUMBAR | {"spacing": 3.0}))


def test_pathology_is_read_from_text():
    assert parse_pathology("scoliosis=50,screws,fracture=L1:3:crush,fracture=T12:1,T13") == {
        "cobb": 50.0,
        "screws": 4,
        "fractures": {"L1": (3, "crush"), "T12": (1, "wedge")},
        "variant": "T13",
    }
    assert parse_pathology("") == {} and parse_pathology("negative") == {"spine": False}


@pytest.mark.parametrize("text", ["scoliosys", "screws=many", "screws=-1", "fracture=L1:x", "motion=nan"])
def test_a_wrong_pathology_is_one_sentence(text):
    with pytest.raises(InputError):
        parse_pathology(text)


def test_screws_are_metal_and_streak(lumbar):
    case = sample(9001, **(LUMBAR | {"screws": 2}))
    assert np.array_equal(case.labels, lumbar.labels) and len(case.meta["screws"]) == 2
    assert (case.ct >= 2900).sum() > 20 > (lumbar.ct >= 2900).sum()
    changed = np.abs(case.ct.astype(int) - lumbar.ct) > 40
    assert changed[lumbar.labels == 0].sum() > 500  # rays reach outside the bone


def test_motion_moves_image_labels_and_centres_together(lumbar):
    case = sample(9001, **(LUMBAR | {"motion": 6}))
    assert not np.array_equal(case.labels, lumbar.labels)
    for name, centre in case.centroids.items():
        index = tuple(int(round(c / 2.0)) for c in centre["body"][::-1])
        assert case.labels[index] == LABEL_OF_NAME[name]
    assert abs(case.ct[case.labels > 0].mean() - lumbar.ct[lumbar.labels > 0].mean()) < 25


def test_scoliosis_reaches_its_angle():
    subject = spine.draw_subject(np.random.default_rng(3), None, 50.0, {}, 0.0)
    centres = np.array([v.centre for v in subject.placed[7:]])
    steps = np.diff(centres, axis=0)
    angle = np.degrees(np.arctan2(steps[:, 0], -steps[:, 2]))
    assert 35 < np.ptp(angle) < 75
    turns = [abs(np.degrees(np.arctan2(v.rotation[1, 0], v.rotation[0, 0]))) for v in subject.placed]
    assert max(turns) > 10  # axial rotation goes with it


def test_short_field_and_thick_slices():
    case = sample(9060, short=2, thick=4.0, wide=False, variant=None)
    assert case.spacing[0] == 4.0 and 1 <= len(case.centroids) <= 4


def test_regions_split_the_labels():
    case = sample(9061, **(LUMBAR | {"regions": True, "spacing": 3.0}))
    assert np.array_equal(np.isin(case.regions, (1, 2)), case.labels > 0)
    share = (case.regions == 1).sum() / (case.labels > 0).sum()
    assert 0.45 < share < 0.8 and (case.regions == 3).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_remapping_keeps_the_order_of_tissues(seed, strength):
    values = torch.arange(-1024, 3072, 7).float()
    mapped = pathology.remap(values, strength, np.random.default_rng(seed))
    assert (mapped.diff() >= 0).all() and float(mapped[0]) == -1024
    if strength == 0:
        assert torch.allclose(mapped, values, atol=1)


def test_default_distribution_holds_the_rarer_kinds_as_often_as_stated():
    drawn = [sampling._draw_shares(seed, {}) for seed in range(4000)]
    for name, share in sampling.SHARES.items():
        key, rare = ("spine", False) if name == "limb" else (name, True)
        found = np.mean([bool(o[key]) == rare for o in drawn])
        assert abs(found - share) < 0.015, name
    thick = [o["thick"] for o in drawn if o["thick"]]
    assert min(thick) >= 3 and max(thick) <= 5
    asked = [sampling._draw_shares(seed, {"first": "L1"}) for seed in range(300)]
    assert all(o["spine"] and not o["tight"] and not o["thick"] for o in asked)  # who asks for a field gets it


def test_a_limb_only_where_nothing_is_asked_of_the_spine():
    seed = next(s for s in range(1000) if not sampling._draw_shares(s, {})["spine"])
    assert sample(seed, noise=5).centroids == {}
    assert sample(seed, **LUMBAR).centroids
    assert sample(seed, spine=False, spacing=3.0).meta["spine"] is False


def test_tight_crop_leaves_little_round_the_vertebrae():
    case = sample(9070, tight=True, variant=None, fractures={}, screws=0, cement=0)
    assert 0.85 < case.spacing[0] == case.spacing[1] == case.spacing[2] < 1.6 and 1 <= len(case.centroids) <= 5
    z, _, x = (np.ptp(i) for i in np.nonzero(case.labels))
    assert case.ct.shape[2] * case.spacing[2] < x * case.spacing[2] + 45


@settings(max_examples=4, deadline=None)
@given(st.floats(4, 25), st.integers(0, 1000))
def test_a_turned_grid_keeps_body_and_world_together(degrees, seed):
    """In world coordinates the spine of a turned grid runs as that of the straight one: only the voxels are turned."""
    still = {"margin": 12.0, "oblique": 0} | LUMBAR | {"spacing": 4.0, "cobb": 0.0}
    straight, turned = (sample(seed, **(still | {"oblique": d})) for d in (0.0, degrees))
    angle = math.degrees(math.acos(min(1, (np.trace(turned.direction) - 1) / 2)))
    assert math.isclose(angle, degrees, abs_tol=1e-6) and np.array_equal(straight.direction, np.eye(3))
    common = sorted(set(straight.centroids) & set(turned.centroids), key=ORDER_INDEX.get)
    lines = [np.diff([c.centroids[n]["body"] for n in common], axis=0) for c in (straight, turned)]
    assert len(common) >= 2 and np.allclose(*lines, atol=1e-6)
    for name in common:  # and the body's centre lies in its label, on the turned grid too
        index = np.rint((np.array(turned.centroids[name]["body"]) @ turned.direction)[::-1] / 4.0).astype(int)
        assert turned.labels[tuple(index)] == LABEL_OF_NAME[name]


def test_streaks_lie_in_shoulders_and_hips():
    ct = torch.full((60, 40, 40), 50.0)
    levels = np.linspace(26, 3, 60)
    noisy = pathology.add_streaks(ct, levels, [2.0, 2.0, 2.0], 1.0, torch.Generator().manual_seed(0)) - 50
    spread = noisy.std((1, 2))
    hip, loin, shoulder = (float(spread[np.abs(levels - k).argmin()]) for k in (25, 18, 7))
    assert hip > 30 and shoulder > 50 and loin < 5
    along = (noisy[2, :, 1:] - noisy[2, :, :-1]).std() / (noisy[2, 1:] - noisy[2, :-1]).std()
    assert along < 0.5  # they run from left to right


def test_dish_bridges_discs_in_front():
    what = {"first": "T8", "last": "T9", "spacing": 1.5, "margin": 10.0, "variant": None, "wide": False, "fractures": {}, "oblique": 0,
            "screws": 0, "cement": 0, "streaks": 0, "osteophytes": 0}  # fmt: skip
    plain, bridged = (sample(9080, dish=d, **what) for d in (0.0, 1.0))
    assert np.array_equal(plain.labels, bridged.labels)
    more = (bridged.ct.astype(int) - plain.ct > 250) & (plain.labels == 0)
    places = np.argwhere(more).mean(0) * 1.5
    assert more.sum() > 150 and places[1] < np.mean([c["body"][1] for c in plain.centroids.values()]) - 8


@pytest.mark.parametrize("switch", ["cement", "lesions", "contrast", "osteophytes", "randomise"])
def test_switches_change_the_scan_and_leave_its_names(switch, lumbar):
    case = sample(9001, **(LUMBAR | {switch: {"contrast": 400, "lesions": 3}.get(switch, 1)}))
    assert set(case.centroids) == set(lumbar.centroids)
    assert case.ct.shape != lumbar.ct.shape or (np.abs(case.ct.astype(int) - lumbar.ct) > 30).mean() > 2e-4


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "SAL"])
def test_written_orders_of_voxels_tell_the_same_case(orientation, tmp_path):
    from spineclue_v2.dataset_conversion.phantom import ORIENTATIONS, write_case
    from spineclue_v2.imageio.centroids import read_ctd
    from spineclue_v2.imageio.volume import read_labels, read_volume

    assert orientation in ORIENTATIONS and math.isclose(sum(ORIENTATIONS.values()), 1)
    case = sample(9090, **(LUMBAR | {"spacing": 4.0, "oblique": 9.0}))
    write_case(tmp_path, "case", case, orientation)
    labels = read_labels(tmp_path / "labelsTr" / "case.nii.gz")
    assert labels.geometry.orientation == orientation
    centres = read_ctd(tmp_path / "centroidsTr" / "case_ctd.json", labels.geometry)
    for name, centre in case.centroids.items():
        assert np.allclose(centres[LABEL_OF_NAME[name]], centre["mask"], atol=1e-2)
    back = read_volume(tmp_path / "imagesTr" / "case_0000.nii.gz").reoriented("LPS")
    assert np.array_equal(back.array, case.ct) and np.array_equal(labels.reoriented("LPS").array, case.labels)


def test_padding_goes_round_the_same_case(lumbar):
    case = sample(9001, **(LUMBAR | {"padding": 20}))
    rims, value = np.array(case.meta["padding"]["voxels"]), case.meta["padding"]["value"]
    inner = tuple(slice(a, n - b) for (a, b), n in zip(rims, case.ct.shape, strict=True))
    assert rims.sum() > 0 and np.array_equal(case.ct[inner], lumbar.ct) and np.array_equal(case.labels[inner], lumbar.labels)
    around = np.ones(case.ct.shape, bool)
    around[inner] = False
    assert (case.ct[around] == value).all() and not case.labels[around].any()
    for name, centre in case.centroids.items():
        assert np.allclose(np.argwhere(case.labels == LABEL_OF_NAME[name]).mean(0)[::-1] * 2.0, centre["mask"], atol=1e-3)
    with pytest.raises(InputError):
        sample(9001, **(LUMBAR | {"padding": 500}))
