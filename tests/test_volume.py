"""Volumes keep their place in the patient, whatever is done to them and in whatever format they are stored."""
from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from spineclue_v2.anatomy.label_boxes import label_boxes
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_labels, read_volume, write_volume

ORIENTATIONS = ["".join(sides) for axes in itertools.permutations(("LR", "PA", "SI")) for sides in itertools.product(*axes)]
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rotation(angles) -> np.ndarray:
    """Rotation by Euler angles (radians) about x, y, z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        one, two = [i for i in range(3) if i != axis]
        step = np.eye(3)
        step[one, one] = step[two, two] = np.cos(angle)
        step[one, two], step[two, one] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ step
    return matrix


@st.composite
def geometries(draw, tilt: float = 0.6) -> ImageGrid:
    """Anisotropic grids in any of the 48 orientations (mirrored ones too), tilted by up to `tilt` radians."""
    shape = draw(st.tuples(*[st.integers(2, 7)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.3, 8.0)] * 3))
    origin = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    angles = draw(st.tuples(*[st.floats(-tilt, tilt)] * 3))
    order, signs = draw(st.permutations(range(3))), draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    return ImageGrid(shape, spacing, origin, rotation(angles)[:, order] * np.array(signs))


def volume_on(geometry: ImageGrid) -> Volume:
    return Volume(np.arange(np.prod(geometry.shape), dtype=np.int16).reshape(geometry.shape), geometry)


@few
@given(geometries(), st.lists(st.tuples(*[st.floats(-50, 50)] * 3), min_size=1, max_size=5))
def test_index_to_world_and_back(geometry, indices):
    indices = np.array(indices)
    assert np.allclose(geometry.world_to_index(geometry.index_to_world(indices)), indices, atol=1e-6)


@few
@given(geometries(), st.tuples(*[st.integers(0, 6)] * 3))
def test_index_to_world_agrees_with_itk(geometry, index):
    image = volume_on(geometry).to_sitk()
    expected = image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index[::-1]])
    assert np.allclose(geometry.index_to_world(index), expected, atol=1e-6)


@few
@given(geometries(tilt=0.35), st.sampled_from(ORIENTATIONS))
def test_reorienting_moves_no_voxel_in_the_patient(geometry, orientation):
    volume = volume_on(geometry)
    turned = volume.reoriented(orientation)
    assert turned.geometry.orientation == orientation
    # Every value is still at the world point where it was.
    for value in (0, volume.array.size // 2, volume.array.size - 1):
        before = geometry.index_to_world(np.argwhere(volume.array == value)[0])
        after = turned.geometry.index_to_world(np.argwhere(turned.array == value)[0])
        assert np.allclose(before, after, atol=1e-6)


@few
@given(geometries(tilt=0.35), st.sampled_from(ORIENTATIONS))
def test_reorienting_there_and_back_is_the_identity(geometry, orientation):
    volume = volume_on(geometry)
    back = volume.reoriented(orientation).reoriented(geometry.orientation)
    assert np.array_equal(back.array, volume.array)
    assert back.geometry.same_grid(geometry, tolerance=1e-6)


@few
@given(geometries(tilt=0.35), st.sampled_from(ORIENTATIONS))
def test_reorienting_agrees_with_itk(geometry, orientation):
    # ITK refuses grids whose axes are mirrored as a whole.
    assume(np.linalg.det(geometry.direction) > 0)
    volume = volume_on(geometry)
    expected = Volume.from_sitk(sitk.DICOMOrient(volume.to_sitk(), orientation))
    assume(expected.geometry.orientation == orientation)
    turned = volume.reoriented(orientation)
    assert np.array_equal(turned.array, expected.array)
    assert turned.geometry.same_grid(expected.geometry, tolerance=1e-6)


def test_orientation_is_the_best_assignment_as_a_whole():
    # The first axis leans slightly more to the feet than backwards, but the second one needs that side more.
    direction = np.array([[-0.23, 0.52, -0.82], [0.68, -0.52, -0.52], [-0.69, -0.68, -0.23]])
    assert ImageGrid((5, 5, 5), (1, 1, 1), (0, 0, 0), direction).orientation == "PIR"


@pytest.mark.parametrize("letters", ["LLS", "LP", "XPS", ""])
def test_orientations_that_name_no_three_axes_are_refused(letters):
    with pytest.raises(ValueError, match="orientation|sides"):
        volume_on(ImageGrid((5, 5, 5), (1, 1, 1), (0, 0, 0), np.eye(3))).reoriented(letters)


@few
@given(geometries(), st.tuples(*[st.floats(0.4, 6.0)] * 3))
@example(ImageGrid((6, 6, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3)), (2.0, 3.0, 1.0))
def test_resampling_keeps_the_field_of_view(geometry, spacing):
    volume = volume_on(geometry).resampled(spacing)
    new, faces = volume.geometry, np.array([-0.5, -0.5, -0.5])
    assert new.spacing == pytest.approx(spacing)
    # The faces of the first voxels coincide; the last ones differ by less than half a new voxel, or one where one is left.
    assert np.allclose(new.index_to_world(faces), geometry.index_to_world(faces), atol=1e-5)
    for had, has, step in zip(geometry.extent_mm, new.extent_mm, spacing, strict=True):
        assert abs(has - had) <= step / 2 + 1e-6 or has == pytest.approx(step)


@few
@given(geometries(tilt=0.2), st.tuples(*[st.floats(0.4, 6.0)] * 3))
def test_resampled_labels_are_labels_that_were_there(geometry, spacing):
    labels = Volume((volume_on(geometry).array % 5).astype(np.uint8), geometry)
    resampled = labels.resampled(spacing, labels=True)
    assert resampled.array.dtype == np.uint8
    assert set(np.unique(resampled.array)) <= set(np.unique(labels.array))


def test_resampling_a_ramp_gives_the_ramp():
    # A linear function of the world coordinate survives averaging and linear interpolation exactly, edges apart.
    geometry = ImageGrid((40, 30, 30), (1.0, 0.7, 1.3), (3.0, -8.0, 50.0), rotation((0.2, -0.1, 0.3)))
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), axis=-1)
    ramp = Volume((geometry.index_to_world(grid) @ [1.0, 2.0, -1.5]).astype(np.float32), geometry)
    for spacing in ((0.8, 0.8, 0.8), (2.5, 2.5, 2.5), (1.0, 1.4, 3.9)):
        result = ramp.resampled(spacing)
        grid = np.stack(np.meshgrid(*[np.arange(n) for n in result.geometry.shape], indexing="ij"), axis=-1)
        expected = result.geometry.index_to_world(grid) @ [1.0, 2.0, -1.5]
        inside = (slice(2, -2),) * 3
        assert np.allclose(result.array[inside], expected[inside], atol=1e-2)


def test_resampling_invents_no_air_at_the_edges():
    geometry = ImageGrid((9, 9, 9), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    bone = Volume(np.full(geometry.shape, 300, np.int16), geometry)
    for spacing in ((0.7, 0.7, 0.7), (2.0, 2.0, 2.0), (4.0, 4.0, 4.0)):
        assert (bone.resampled(spacing).array == 300).all()


@few
@given(geometries(), st.data())
def test_a_crop_stays_where_it_was(geometry, data):
    start = [data.draw(st.integers(0, n - 1)) for n in geometry.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, geometry.shape, strict=True)]
    volume = volume_on(geometry)
    crop = volume.cropped(start, stop)
    assert crop.array[0, 0, 0] == volume.array[tuple(start)]
    assert np.allclose(crop.geometry.index_to_world((0, 0, 0)), geometry.index_to_world(start))
    assert crop.array.shape == crop.geometry.shape


@pytest.mark.parametrize("start, stop", [((-1, 0, 0), (3, 3, 3)), ((0, 0, 0), (9, 3, 3)), ((2, 0, 0), (2, 3, 3))])
def test_a_crop_that_leaves_the_volume_is_refused(start, stop):
    with pytest.raises(ValueError, match="leaves the volume"):
        volume_on(ImageGrid((5, 5, 5), (1, 1, 1), (0, 0, 0), np.eye(3))).cropped(start, stop)


@few
@given(geometries())
def test_geometry_survives_json(geometry):
    again = ImageGrid.from_json(json.loads(json.dumps(geometry.to_json())))
    assert again == geometry and hash(again) == hash(geometry)
    assert again != replace(geometry, origin=(geometry.origin[0] + 1, *geometry.origin[1:]))
    assert again.orientation == geometry.orientation


@settings(few, max_examples=25)
@given(geometry=geometries(), ending=st.sampled_from((".nii.gz", ".nii", ".nrrd", ".mha")))
def test_every_format_keeps_voxels_and_grid(tmp_path, geometry, ending):
    geometry = ImageGrid(tuple(n + 4 for n in geometry.shape), geometry.spacing, geometry.origin, geometry.direction)
    volume = volume_on(geometry)
    write_volume(volume, tmp_path / f"scan{ending}")
    again = read_volume(tmp_path / f"scan{ending}")
    assert again.array.dtype == np.int16
    assert np.array_equal(again.array, volume.array)
    assert again.geometry.same_grid(geometry, tolerance=1e-2)
    assert [p.name for p in tmp_path.iterdir()] == [f"scan{ending}"]
    (tmp_path / f"scan{ending}").unlink()


@settings(few, max_examples=15)
@given(geometry=geometries(), ending=st.sampled_from((".nii.gz", ".nrrd", ".mha")))
def test_a_result_comes_back_on_the_very_grid_of_its_input(tmp_path, geometry, ending):
    geometry = ImageGrid(tuple(n + 4 for n in geometry.shape), geometry.spacing, geometry.origin, geometry.direction)
    write_volume(volume_on(geometry), tmp_path / f"scan{ending}")
    scan = read_volume(tmp_path / f"scan{ending}")
    labels = Volume((scan.array % 3).astype(np.uint8), scan.geometry)
    write_volume(labels, tmp_path / "result.nii.gz")
    result = read_labels(tmp_path / "result.nii.gz")
    assert result.array.dtype == np.uint8
    assert np.array_equal(result.array, labels.array)
    assert result.geometry.same_grid(scan.geometry, tolerance=1e-2)


def test_nifti_scaling_is_applied(tmp_path):
    import nibabel

    stored = np.random.default_rng(0).integers(0, 3000, (6, 7, 8)).astype(np.uint16)
    for slope, intercept, dtype in ((1.0, -1024.0, np.int16), (0.5, -1000.0, np.float32)):
        image = nibabel.Nifti1Image(stored, np.eye(4))
        image.header.set_slope_inter(slope, intercept)
        nibabel.save(image, tmp_path / "scaled.nii.gz")
        volume = read_volume(tmp_path / "scaled.nii.gz")
        assert volume.array.dtype == dtype
        assert np.allclose(volume.array, stored.T * slope + intercept)


def test_big_endian_and_renamed_nifti(tmp_path):
    import nibabel

    values = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(">i2")
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4), nibabel.Nifti1Header(endianness=">")), tmp_path / "plain.nii")
    (tmp_path / "plain.nii").rename(tmp_path / "plain.nii.gz")  # not packed, whatever its name says
    assert np.array_equal(read_volume(tmp_path / "plain.nii.gz").array, values.T)


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<u2"])
def test_reading_a_nifti_file_needs_no_second_copy_of_the_scan(tmp_path, kind):
    import tracemalloc

    import nibabel

    stored = np.arange(2000, dtype=kind)[np.random.default_rng(0).integers(0, 2000, (96, 128, 160))]
    header = nibabel.Nifti1Header(endianness=kind[0])
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    header.set_slope_inter(1, -1024)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + bytes(4) + stored.tobytes(order="F"))
    read_volume(path)                                     # imports
    tracemalloc.start()
    try:
        found = read_volume(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.array.dtype == np.int16 and np.array_equal(found.array, stored.T.astype(int) - 1024)
    assert peak < 1.4 * found.array.nbytes


@pytest.mark.parametrize("turn", [lambda a: a, lambda a: a[::-1, :, ::-1], lambda a: a.transpose(2, 0, 1)[:, ::-1]])
def test_boxes_of_labels_in_a_view_of_other_axes(turn):
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:3, 2:6, 0:4], labels[5, 6, 7] = 3, 200
    view = turn(labels)
    found = label_boxes(view)
    assert sorted(found) == [3, 200]
    for value, box in found.items():
        where = np.argwhere(view == value)
        assert [(s.start, s.stop) for s in box] == [(int(a), int(b) + 1) for a, b in zip(where.min(0), where.max(0), strict=True)]


def test_a_scan_whose_modality_was_looked_at_is_read_once(tmp_path, monkeypatch):
    from spineclue_v2.imageio import reading
    from spineclue_v2.imageio.modality import modality_of_path

    array = np.random.default_rng(0).integers(-1000, 1000, (8, 9, 10)).astype(np.int16)
    write_volume(Volume(array, ImageGrid(array.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))), tmp_path / "a.nii.gz")
    calls, read = [], reading.read_nifti
    monkeypatch.setattr(reading, "read_nifti", lambda path: (calls.append(path), read(path))[1])
    modality_of_path(tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array, array) and len(calls) == 1
    read_volume(tmp_path / "a.nii.gz")                    # nothing is kept any longer
    modality_of_path(tmp_path / "a.nii.gz")
    write_volume(Volume(array + np.int16(1), ImageGrid(array.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))), tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array, array + 1) and len(calls) == 4
