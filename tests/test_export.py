"""Results as files: masks back on the scan's own grid, VerSe's centroid files, the record, colour tables, the picture."""
from __future__ import annotations

import json
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from spineclue_v2 import anatomy
from spineclue_v2.anatomy.vertebra import Vertebra, on_the_masks_side
from spineclue_v2.errors import InputError
from spineclue_v2.export.case_files import export_case
from spineclue_v2.export.case_record import case_record
from spineclue_v2.export.label_map import label_map
from spineclue_v2.imageio.centroids import read_ctd, write_ctd
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_labels, resample_grid
from spineclue_v2.results import SpineResult

VERSE = Path(__file__).parents[1].parent / "shared" / "data" / "ct" / "verse"


def geometry(shape=(40, 44, 48), spacing=(1.0, 1.0, 1.0), tilt=(0.0, 0.0, 0.0), axes=(0, 1, 2), flips=(1, 1, 1),
             origin=(-20.0, 5.0, 100.0)) -> ImageGrid:
    """A grid with permuted, flipped and tilted axes; tilts in degrees about x, y, z."""
    direction = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() @ (np.eye(3)[:, list(axes)] * np.array(flips))
    return ImageGrid(tuple(shape), tuple(spacing), tuple(origin), direction)


geometries = st.builds(
    geometry, shape=st.tuples(*[st.integers(24, 40)] * 3), spacing=st.tuples(*[st.floats(0.6, 2.0)] * 3),
    tilt=st.tuples(*[st.floats(-15, 15)] * 3), axes=st.permutations([0, 1, 2]), flips=st.tuples(*[st.sampled_from([-1, 1])] * 3))


def vertebra(mask: np.ndarray, start=(0, 0, 0), level: str | None = "L1", **fields) -> Vertebra:
    return Vertebra((0.0, 0.0, 0.0), (30.0, 40.0, 50.0), 0.9, mask=mask, mask_start=tuple(start), level=level, **fields)


def cropped(mask: np.ndarray, level: str) -> Vertebra:
    """A vertebra from a full mask: its tight crop and where it starts."""
    index = np.argwhere(mask)
    low, high = index.min(axis=0), index.max(axis=0) + 1
    return vertebra(mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], low, level)


def ball(grid: ImageGrid, centre: np.ndarray, radius: float) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    return np.linalg.norm(grid.index_to_world(index) - centre, axis=-1) <= radius


# -- label map -------------------------------------------------------------------------------------------------------------------
def test_on_the_same_grid_masks_come_back_voxel_by_voxel():
    rng = np.random.default_rng(0)
    grid = geometry(tilt=(5, -8, 11), axes=(2, 0, 1), flips=(1, -1, 1), spacing=(2.0, 0.7, 0.7))
    first = rng.random(grid.shape) > 0.7
    second = (rng.random(grid.shape) > 0.7) & ~first
    labels = label_map([cropped(first, "T12"), cropped(second, "L1")], grid, grid)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, 19 * first + 20 * second)


@settings(max_examples=20, deadline=None)
@given(geometries, st.floats(0.8, 1.3))
def test_a_ball_lands_where_it_lies_in_the_world(scan, model_spacing):
    """Network space is the scan reoriented and resampled: the ball's label map must be the ball drawn on the scan's own grid."""
    oriented = Volume(np.zeros(scan.shape, dtype=np.uint8), scan).reoriented("LPS").geometry
    model = resample_grid(oriented, (model_spacing,) * 3)
    centre = scan.index_to_world((np.array(scan.shape) - 1) / 2)
    radius = 0.35 * min(np.array(scan.shape) * scan.spacing)
    expected = ball(scan, centre, radius)
    found = label_map([cropped(ball(model, centre, radius), "L3")], model, scan) == 22
    lost = 0.4 * model_spacing / radius      # surface voxels: of a small ball in coarse voxels a larger part
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 1 - lost
    here, there = scan.index_to_world(np.argwhere(found).mean(axis=0)), scan.index_to_world(np.argwhere(expected).mean(axis=0))
    assert np.linalg.norm(here - there) < 0.5


@settings(max_examples=15, deadline=None)
@given(geometries, st.integers(0, 2**32 - 1))
def test_values_equal_plain_linear_interpolation(scan, seed):
    from scipy.ndimage import map_coordinates

    oriented = Volume(np.zeros(scan.shape, dtype=np.uint8), scan).reoriented("LPS").geometry
    model = resample_grid(oriented, (1.5, 1.1, 0.9))
    mask = np.random.default_rng(seed).random((8, 9, 10)) > 0.3
    start = (np.array(model.shape) - mask.shape) // 2
    index = np.stack(np.meshgrid(*[np.arange(n) for n in scan.shape], indexing="ij"), axis=-1)
    place = model.world_to_index(scan.index_to_world(index)) - start
    expected = map_coordinates(mask.astype(float), np.moveaxis(place, -1, 0), order=1, mode="grid-constant")
    found = label_map([vertebra(mask, start)], model, scan) == 20
    decided = np.abs(expected - 0.5) > 0.01  # 8 bit ownership may tip what lies on the threshold
    assert np.array_equal(found[decided], (expected >= 0.5)[decided])


def test_the_probability_places_the_surface_between_voxels():
    scan = geometry(shape=(60, 60, 60), spacing=(0.5, 0.5, 0.5))
    model = resample_grid(scan, (2.0, 2.0, 2.0))
    centre = scan.index_to_world((np.array(scan.shape) - 1) / 2)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in model.shape], indexing="ij"), axis=-1)
    soft = np.clip(0.5 + (9.3 - np.linalg.norm(model.index_to_world(index) - centre, axis=-1)) / 4, 0, 1)  # a blurred ball, radius 9.3 mm
    hard = cropped(soft >= 0.5, "L3")
    box = tuple(slice(a, a + n) for a, n in zip(hard.mask_start, hard.mask.shape, strict=True))
    expected, dice = ball(scan, centre, 9.3), []
    for drawn in (hard, replace(hard, mask_probability=on_the_masks_side(soft[box], hard.mask))):
        found = label_map([drawn], model, scan) == 22
        dice.append(2 * (found & expected).sum() / (found.sum() + expected.sum()))
    assert dice[0] < 0.97 < 0.985 < dice[1]


@pytest.mark.parametrize("seed", range(3))
def test_a_voxel_that_the_mask_lost_stays_lost_whatever_its_probability(seed):
    rng = np.random.default_rng(seed)
    grid = geometry()
    mask = rng.random((6, 7, 8)) > 0.5
    stored = on_the_masks_side(rng.random(mask.shape), mask)
    assert np.array_equal(stored >= 128, mask)
    assert np.array_equal(label_map([vertebra(mask, (5, 5, 5), mask_probability=stored)], grid, grid)[5:11, 5:12, 5:13] == 20, mask)


def test_axes_that_are_not_parallel_to_model_space():
    scan, model = geometry(tilt=(0, 0, 25)), geometry(shape=(48, 60, 60), origin=(-30.0, -5.0, 98.0))
    centre = scan.index_to_world((np.array(scan.shape) - 1) / 2)
    expected = ball(scan, centre, 9.0)
    found = label_map([cropped(ball(model, centre, 9.0), "C2")], model, scan) == 2
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.97


def test_a_voxel_claimed_twice_belongs_to_the_higher_value():
    grid = geometry(shape=(4, 4, 6))
    first, second = np.full((4, 4, 4), 0.6, dtype=np.float32), np.full((4, 4, 4), 0.9, dtype=np.float32)
    pair = [vertebra(first, (0, 0, 0), "L1"), vertebra(second, (0, 0, 2), "L2")]
    for order in (pair, pair[::-1]):
        labels = label_map(order, grid, grid)
        assert (labels[..., :2] == 20).all() and (labels[..., 2:] == 21).all()


def test_a_mask_at_the_border_of_model_space_reaches_the_border_of_a_finer_scan():
    scan = geometry(shape=(40, 40, 40), spacing=(0.5, 0.5, 0.5))
    model = resample_grid(scan, (2.0, 2.0, 2.0))
    labels = label_map([vertebra(np.ones(model.shape, dtype=bool))], model, scan)
    assert (labels == 20).all()


def test_vertebrae_without_level_or_outside_the_scan_leave_no_trace():
    grid = geometry()
    mask = np.ones((3, 3, 3), dtype=bool)
    far = geometry(origin=(500.0, 500.0, 500.0))
    assert not label_map([vertebra(mask, level=None), Vertebra((0, 0, 0), (1, 1, 1), 1.0, level="L1")], grid, grid).any()
    assert not label_map([vertebra(mask)], far, grid).any()


def test_no_float_volume_of_the_whole_scan():
    """A scan of 27 million voxels: its label map takes 27 MB, one float volume would add 108."""
    scan, model = geometry(shape=(300, 300, 300), spacing=(0.5,) * 3), geometry(shape=(150, 150, 150), spacing=(1.0,) * 3)
    vertebrae = [vertebra(np.ones((30, 30, 30), dtype=bool), (20 + 32 * i, 60, 60), f"L{i + 1}") for i in range(3)]
    tracemalloc.start()
    labels = label_map(vertebrae, model, scan)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(labels)) == 4
    assert peak < 45e6


# -- VerSe's centroid files ------------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(geometries, st.lists(st.tuples(*[st.floats(-80, 80)] * 3), min_size=1, max_size=5))
def test_centroids_survive_the_round_trip_on_any_grid(tmp_path_factory, grid, points):
    path = tmp_path_factory.mktemp("ctd") / "a_ctd.json"
    write_ctd(path, [vertebra(None, level=f"L{i + 1}", body_centre=point) for i, point in enumerate(points)], grid)
    found = read_ctd(path, grid)
    assert list(found) == [20 + i for i in range(len(points))]
    np.testing.assert_allclose(np.array(list(found.values())), points, atol=0.002 * max(grid.spacing))


@settings(max_examples=20, deadline=None)
@given(geometries, st.integers(0, 2**32 - 1))
def test_centroid_voxels_are_those_of_the_image_reoriented_to_pir(grid, seed):
    """Checked with nibabel, whose orientation codes VerSe's own tools use."""
    nib = pytest.importorskip("nibabel")
    voxel = np.array([np.random.default_rng(seed).integers(0, n) for n in grid.shape])
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[tuple(voxel)] = 1
    affine = np.eye(4)
    affine[:3, :3] = grid.direction * np.array(grid.spacing[::-1])
    affine[:3, 3] = grid.origin
    image = nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(("P", "I", "R")))
    expected = np.argwhere(np.asarray(image.as_reoriented(turn).dataobj))[0]

    from spineclue_v2.imageio.centroids import to_voxels

    np.testing.assert_allclose(to_voxels(grid.index_to_world(voxel), grid, "PIR"), expected, atol=1e-6)


def test_centroid_files_of_other_tools_are_read(tmp_path):
    grid = geometry(shape=(10, 20, 30), spacing=(3.0, 2.0, 1.0), origin=(0.0, 0.0, 0.0))  # index axes x, y, z run towards L, P, S
    path = tmp_path / "a_ctd.json"
    path.write_text('[{"direction": ["R", "A", "S"]}, {"label": 5, "X": 29, "Y": 18, "Z": 2},'
                    ' {"label": 6, "X": NaN, "Y": 1, "Z": 1}]')
    found = read_ctd(path, grid)
    assert list(found) == [5]
    np.testing.assert_allclose(found[5], [0.0, 2.0, 6.0])


@pytest.mark.parametrize("text", ["[]", "{}", '[{"label": 3}]', '[{"direction": ["P", "A", "R"]}]',
                                  '[{"direction": ["P", "I", "R"]}, 3]',
                                  '[{"direction": ["P", "I", "R"]}, {"label": 3, "X": 1}]'])
def test_other_json_is_no_centroid_file(tmp_path, text):
    path = tmp_path / "a_ctd.json"
    path.write_text(text)
    with pytest.raises(InputError, match="a_ctd.json"):
        read_ctd(path, geometry())


@pytest.mark.skipif(not VERSE.is_dir(), reason="no VerSe masks beside the repository")
def test_directions_of_a_real_scan():
    """In PIR voxels a lumbar spine goes down along Y, and its vertebrae keep their place from right to left."""
    from spineclue_v2.evaluation.case import mask_centroids
    from spineclue_v2.imageio.centroids import to_voxels

    labels = read_labels(VERSE / "sub-verse008_seg-vert_msk.nii.gz")
    voxels = np.array([to_voxels(point, labels.geometry, "PIR") for _, point in sorted(mask_centroids(labels).items())])
    assert (np.diff(voxels[:, 1]) > 20).all() and np.ptp(voxels[:, 2]) < 10


# -- record and files ------------------------------------------------------------------------------------------------------------
def result() -> tuple[SpineResult, ImageGrid]:
    grid = geometry(shape=(60, 40, 40), tilt=(0, 4, 0))
    probabilities = np.zeros(24)
    probabilities[19], probabilities[20] = 0.75, 0.25
    vertebrae = tuple(
        vertebra(np.ones((10, 12, 14), dtype=bool), (38 - 14 * i, 10, 10), name, volume_ml=1.68, confidence=0.8, uncertainty=0.56,
                 probabilities=probabilities, body_centre=tuple(grid.index_to_world([43 - 14 * i, 15, 17])), touches_border=i > 1)
        for i, name in enumerate(("T13", "L1", "L6")))
    return SpineResult(vertebrae, False, margin=1.25, seconds={"localize": 0.51234}, notes=("Slices are thick.",), grid=grid,
                       mask_grid=grid), grid


def test_a_case_is_three_files_and_two_tables(tmp_path):
    found, grid = result()
    paths = export_case(found, tmp_path / "out", "case7", {"name": "plans", "model": "abc"})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "case7.json", "case7.nii.gz", "case7_ctd.json", "labels_itksnap.txt", "labels_slicer.ctbl"]
    labels = read_labels(paths["labels"])
    assert labels.geometry.same_grid(grid, tolerance=1e-3) and set(np.unique(labels.array)) == {0, 28, 20, 25}
    record = json.loads(paths["record"].read_text())
    assert record["status"] == "ok" and record["numbering_anchored"] is False
    assert record["plans"] == {"name": "plans", "model": "abc"}
    assert {"python", "numpy"} <= set(record["versions"]) and record["seconds"] == {"localize": 0.512}
    first = record["vertebrae"][0]
    assert (first["level"], first["label"], first["confidence"], first["extent_mm"]) == ("T13", 28, 0.8, [30.0, 40.0, 50.0])
    assert first["probabilities"]["L1"] == 0.75 and list(first["probabilities"]) == list(anatomy.LEVELS)
    assert record["vertebrae"][2]["touches_border"] is True
    centres = read_ctd(paths["centroids"], labels.geometry)
    for entry in record["vertebrae"]:
        np.testing.assert_allclose(centres[entry["label"]], entry["body_centre_mm"], atol=0.01)
        inside = np.round(labels.geometry.world_to_index(entry["body_centre_mm"])).astype(int)
        assert labels.array[tuple(inside)] == entry["label"]


def test_no_spine_is_a_valid_empty_result(tmp_path):
    grid = geometry()
    paths = export_case(SpineResult((), True, grid=grid, mask_grid=grid), tmp_path, "leg")
    record = json.loads(paths["record"].read_text())
    assert record["status"] == "no vertebra found" and record["vertebrae"] == []
    assert record["numbering_anchored"] is False  # what is not there anchors nothing
    assert not read_labels(paths["labels"]).array.any() and read_ctd(paths["centroids"], grid) == {}


@pytest.mark.parametrize("margin", [float("inf"), float("nan"), None])
def test_a_number_that_is_not_finite_is_null(tmp_path, margin):
    whole, grid = result()
    paths = export_case(replace(whole, margin=margin), tmp_path, "case")
    assert json.loads(paths["record"].read_text(), parse_constant=pytest.fail)["margin"] is None


def test_stages_that_did_not_run_leave_null():
    record = case_record(SpineResult((Vertebra((0, 0, 0), (1, 2, 3), 0.5),), True))
    entry = record["vertebrae"][0]
    assert entry["level"] is entry["label"] is entry["confidence"] is entry["body_centre_mm"] is entry["probabilities"] is None


def test_a_level_given_twice_keeps_both_in_the_file_and_the_surer_one_when_read(tmp_path):
    grid = geometry()
    write_ctd(tmp_path / "a_ctd.json", [vertebra(None, body_centre=(0.0, 0.0, 0.0), confidence=0.3),
                                        vertebra(None, body_centre=(5.0, 5.0, 5.0), confidence=0.6)], grid)
    assert len(json.loads((tmp_path / "a_ctd.json").read_text())) == 3
    np.testing.assert_allclose(read_ctd(tmp_path / "a_ctd.json", grid)[20], [5, 5, 5], atol=0.01)


def test_colour_tables_name_every_label(tmp_path):
    found, grid = result()
    export_case(found, tmp_path, "a")
    slicer = [line.split() for line in (tmp_path / "labels_slicer.ctbl").read_text().splitlines() if not line.startswith("#")]
    assert {int(row[0]): row[1] for row in slicer} == {0: "background"} | anatomy.NAME_OF_LABEL
    assert all(len(row) == 6 and all(0 <= int(v) <= 255 for v in row[2:]) for row in slicer)
    snap = [re.fullmatch(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"(.*)"', line)
            for line in (tmp_path / "labels_itksnap.txt").read_text().splitlines() if not line.startswith("#")]
    assert {int(row[1]): row[8] for row in snap} == {0: "Clear Label"} | anatomy.NAME_OF_LABEL
    assert tuple(int(v) for v in snap[20].group(2, 3, 4)) == anatomy.colour("L1")


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path):
    found, grid = result()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        export_case(found, tmp_path / "file", "a")
