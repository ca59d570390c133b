"""Scans in memory: paths, SimpleITK and nibabel images, volumes and arrays of the same scan are the same voxels on the same grid."""
from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from blocks import spine
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.errors import InputError
from spineclue_v2.imageio.convert import to_volume
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_volume, write_volume


def volume_of(orientation: str, spacing: tuple[float, float, float], turn: np.ndarray, origin: tuple[float, float, float]) -> Volume:
    array = np.random.default_rng(3).integers(-1000, 2000, (7, 8, 9)).astype(np.int16)
    grid = ImageGrid(array.shape, spacing, origin, np.eye(3)).reoriented(orientation)[0]
    return Volume(array.reshape(grid.shape), replace(grid, direction=turn @ grid.direction))


def turned(x: float, y: float, z: float) -> np.ndarray:
    """Rotation by three angles (degrees) around the patient's axes."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians((x, y, z))):
        a, b = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        result = step @ result
    return result


def identical(a: Volume, b: Volume) -> bool:
    return a.geometry == b.geometry and a.array.dtype == b.array.dtype and np.array_equal(a.array, b.array)


ORIENTATIONS = st.permutations(["LR", "PA", "SI"]).flatmap(lambda axes: st.tuples(*(st.sampled_from(axis) for axis in axes))).map("".join)
ANGLES = st.tuples(*[st.floats(-40, 40)] * 3)


@given(orientation=ORIENTATIONS, angles=ANGLES, spacing=st.tuples(*[st.floats(0.3, 6)] * 3), origin=st.tuples(*[st.floats(-300, 300)] * 3),
       ending=st.sampled_from((".nii.gz", ".nrrd")))
@settings(max_examples=40, deadline=None)
def test_the_same_file_is_the_same_scan_whoever_reads_it(tmp_path_factory, orientation, angles, spacing, origin, ending):
    """Path, SimpleITK, nibabel and Volume: voxels to the last bit and the same grid, oblique axes in any order included."""
    path = tmp_path_factory.mktemp("scan") / f"a{ending}"
    write_volume(volume_of(orientation, spacing, turned(*angles), origin), path)
    wanted = to_volume(path)
    by_itk = to_volume(sitk.ReadImage(str(path)))
    assert identical(to_volume(str(path)), wanted)
    # ITK puts the grid of a NIfTI file together from other fields of its header: equal but for their rounding.
    assert np.array_equal(by_itk.array, wanted.array) and by_itk.geometry.same_grid(wanted.geometry, 1e-3 if ending == ".nii.gz" else 1e-9)
    assert to_volume(read_volume(path)).array is not None and identical(to_volume(read_volume(path)), wanted)
    if ending == ".nii.gz":
        image = nibabel.load(path)
        assert identical(to_volume(image), wanted)
        by_affine = to_volume(np.asanyarray(image.dataobj), affine=image.affine)
        assert np.array_equal(by_affine.array, wanted.array) and by_affine.geometry.same_grid(wanted.geometry, tolerance=1e-3)
        assert by_affine.geometry.orientation == wanted.geometry.orientation


@given(orientation=ORIENTATIONS, angles=st.sampled_from([(0, 0, 0), (90, 0, 0), (0, 0, -90)]),
       eighths=st.tuples(*[st.integers(3, 40)] * 3), origin=st.tuples(*[st.integers(-300, 300)] * 3))
@settings(max_examples=20, deadline=None)
def test_an_array_with_an_exact_affine_is_the_file_to_the_last_bit(tmp_path_factory, orientation, angles, eighths, origin):
    path = tmp_path_factory.mktemp("scan") / "a.nii.gz"
    spacing = (eighths[0] / 8, eighths[1] / 8, eighths[2] / 8)
    write_volume(volume_of(orientation, spacing, np.round(turned(*angles)), tuple(map(float, origin))), path)
    image, wanted = nibabel.load(path), read_volume(path)
    found = to_volume(np.asanyarray(image.dataobj), affine=image.affine)
    assert np.array_equal(found.array, wanted.array)
    assert (found.geometry.spacing, found.geometry.origin) == (wanted.geometry.spacing, wanted.geometry.origin)
    assert np.array_equal(found.geometry.direction, wanted.geometry.direction)


@pytest.mark.parametrize("slope, intercept", [(2, -1024), (0.5, 0.25), (1, 0)])
def test_scaling_in_a_header_is_undone_as_for_files(tmp_path, slope, intercept):
    image = nibabel.Nifti1Image(np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8), np.diag([-1.5, -1.0, 2.0, 1.0]))
    image.header.set_slope_inter(slope, intercept)
    with open(tmp_path / "a.nii", "wb") as file:
        header = image.header.copy()
        header["vox_offset"], header["magic"] = 352, b"n+1"
        file.write(header.binaryblock + b"\0\0\0\0" + np.asarray(image.dataobj).tobytes(order="F"))
    wanted = read_volume(tmp_path / "a.nii")
    assert wanted.array.max() == pytest.approx(slope * (6 * 7 * 8 - 1) + intercept)
    assert identical(to_volume(nibabel.load(tmp_path / "a.nii")), wanted)


def test_an_image_that_was_never_saved_means_what_it_would_be_saved_as(tmp_path):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned(10, -20, 5) @ np.diag([0.7, 0.9, 2.5]), (4, 5, -6)
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(-900, 900, (8, 9, 10)).astype(np.int16), affine)
    before = image.header.binaryblock
    found = to_volume(image)
    assert image.header.binaryblock == before
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert identical(found, read_volume(tmp_path / "a.nii.gz"))
    np.testing.assert_allclose(found.geometry.index_to_world([9, 8, 7]), (affine @ [7, 8, 9, 1])[:3] * (-1, -1, 1), atol=1e-4)


def test_an_image_of_another_format_goes_by_its_affine():
    affine = np.array([[0, 0, 1.5, 3], [-1.0, 0, 0, 4], [0, -2.0, 0, 5], [0, 0, 0, 1]])
    array = np.random.default_rng(0).integers(-900, 900, (8, 9, 10)).astype(np.int16)
    found = to_volume(nibabel.MGHImage(array, affine))
    assert np.array_equal(found.array, array.transpose()) and found.geometry.spacing == (1.5, 2.0, 1.0)
    np.testing.assert_allclose(found.geometry.index_to_world([9, 8, 7]), (affine @ [7, 8, 9, 1])[:3] * (-1, -1, 1), atol=1e-5)
    assert identical(to_volume(array, affine=affine), found)


def test_an_array_with_spacing_lies_head_up_at_the_origin():
    scan = spine(("L1",))[0]
    found = to_volume(scan.array, spacing=scan.spacing)
    assert found.geometry == ImageGrid(scan.geometry.shape, scan.spacing, (0.0, 0.0, 0.0), np.eye(3)) and found.array is scan.array
    assert found.geometry.orientation == "LPS"
    for kind in (np.int32, np.float64, ">i2", np.float16):
        assert np.array_equal(to_volume(scan.array.astype(kind), spacing=(1, 1, 1)).array, scan.array.astype(np.float16)
                              if kind is np.float16 else scan.array)


GOOD = np.arange(216, dtype=np.int16).reshape(6, 6, 6)


def with_nan() -> np.ndarray:
    array = GOOD.astype(np.float32)
    array[0, 0, 0] = np.nan
    return array


@pytest.mark.parametrize("arguments, sentence", [
    ((GOOD,), r"shape \(6, 6, 6\) says nothing of its grid; give spacing=\(z, y, x\)"),
    ((GOOD, (1, 1, 1), np.eye(4)), "give one of them"),
    ((GOOD, (1, 1)), r"spacing is \(1\.0, 1\.0\); expected three numbers"),
    ((GOOD, 1.0), "spacing is 1.0; expected three numbers"),
    ((GOOD, (1, 1, 0)), "expected three numbers"),
    ((GOOD, (1, float("nan"), 1)), "expected three numbers"),
    ((GOOD, ("a", 1, 1)), "expected three numbers"),
    ((GOOD, None, np.eye(3)), "no matrix of 4 x 4"),
    ((GOOD, None, "identity"), "no matrix of 4 x 4"),
    ((GOOD, None, np.full((4, 4), np.inf)), "no matrix of 4 x 4"),
    ((GOOD, None, np.diag([1.0, 1, 0, 1])), "voxels of"),
    ((GOOD, None, np.array([[1, 0.99, 0, 0], [0, 0.1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])), "almost in one plane"),
    ((GOOD[0], (1, 1, 1)), r"2 dimensions, shape \(6, 6\); expected one 3D scan"),
    ((GOOD[None], (1, 1, 1)), "4 dimensions"),
    ((GOOD[:2], (1, 1, 1)), "5 slices or more"),
    ((GOOD.astype(complex), (1, 1, 1)), "type complex128"),
    ((GOOD > 3, (1, 1, 1)), "type bool"),
    ((with_nan(), (1, 1, 1)), "1 voxels that are NaN or infinite"),
    ((np.full((6, 6, 6), -1000), (1, 1, 1)), "nothing but air"),
    ((np.full((6, 6, 6), 7), (1, 1, 1)), "single value"),
    ((GOOD.tolist(),), "cannot be of type list; expected a path"),
    ((None,), "cannot be of type NoneType"),
    ((torch.zeros(6, 6, 6),), r"cannot be of type Tensor.*\.cpu\(\)\.numpy\(\)"),
    ((torch.zeros(6, 6, 6), (1, 1, 1)), r"cannot be of type Tensor.*\.cpu\(\)\.numpy\(\)"),
    ((GOOD.tolist(), (1, 1, 1)), r"cannot be of type list.*numpy\.array"),
    (("a.nii.gz", (1, 1, 1)), "belong to bare numpy arrays; a.nii.gz has a grid of its own"),
    (("there/is/none.nii.gz",), "does not exist"),
    ((Volume(GOOD, ImageGrid((6, 6, 7), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))),), "on a grid of shape"),
    ((sitk.Image([6, 6], sitk.sitkInt16),), "2 dimensions"),
    ((sitk.Image([6, 6, 6], sitk.sitkVectorFloat32, 3),), "3 values per voxel"),
    ((nibabel.Nifti1Image(np.zeros((6, 6, 6, 2), np.int16), np.eye(4)),), "4 dimensions"),
])
def test_what_is_no_scan_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        to_volume(*arguments)


def test_itk_stays_silent_until_the_last_thread_is_done():
    from spineclue_v2.imageio.itk import itk_silent

    before, first, second = sitk.ProcessObject.GetGlobalWarningDisplay(), itk_silent(), itk_silent()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sitk.ProcessObject.GetGlobalWarningDisplay() is False
    second.__exit__(None, None, None)
    assert sitk.ProcessObject.GetGlobalWarningDisplay() == before
