"""What a prediction computes with arrays alone equals what training computes with PyTorch, and what slow libraries do."""
from __future__ import annotations

import io

import nibabel
import numpy as np
import pytest
import torch

from spineclue_v2.imageio.nifti_header import NiftiHeader, header_bytes
from spineclue_v2.stages.geometry.features import Batch, along, features
from spineclue_v2.stages.geometry.landmarks import Landmarks, row_features
from spineclue_v2.stages.identify.arrays import dropout_masks, entropy, fuse
from spineclue_v2.stages.identify.fusion import fusion_with
from spineclue_v2.stages.identify.network import ShapeNetwork
from spineclue_v2.stages.identify.uncertainty import entropy as torch_entropy
from spineclue_v2.utilities.smoothing import smoothing_spline


def test_dropout_draws_as_torch_does() -> None:
    network = ShapeNetwork(18, 4, hidden=40, projection_dim=24, dropout=0.3)
    wanted = network.dropout_masks((5, 7), torch.Generator().manual_seed(3))
    for mask, found in zip(wanted, dropout_masks((5, 7), (40, 24), 0.3, seed=3), strict=True):
        np.testing.assert_array_equal(found, mask.numpy())


@pytest.mark.parametrize("offsets", [None, 5, 9])
def test_fusion_is_that_of_training(offsets: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 24, generator=generator).softmax(1)
    positions = torch.tensor([0, 1, 2, 4, 5, 6, 9, 10])
    phi = None if offsets is None else torch.rand(offsets, 24, 24, generator=generator) - 0.2
    with torch.no_grad():
        wanted = fusion_with(0.1, 3, 7, phi)(rows, torch_entropy(rows), positions)
    np.testing.assert_allclose(entropy(rows.numpy()), torch_entropy(rows), atol=1e-6)
    np.testing.assert_allclose(fuse(rows.numpy(), entropy(rows.numpy()), positions.numpy(), 0.1, 3, 7, phi), wanted, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_features_of_a_row_are_those_of_training(count: int) -> None:
    centres = np.cumsum(np.random.default_rng(count).normal((1, 2, -27), (2, 4, 6), (count, 3)), axis=0)
    batch = Batch.of([Landmarks(centres)])
    rows, arc = row_features(centres)
    np.testing.assert_allclose(rows, features(batch)[0], atol=1e-5)
    np.testing.assert_allclose(arc, along(batch)[0], atol=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_headers_are_those_of_nibabel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if seed % 2 else np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    spacing, affine = rng.uniform(0.3, 5, 3), np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, rng.normal(0, 200, 3)
    array = np.zeros((3, 4, 5), [np.uint8, np.int16, np.float32, np.uint16][seed % 4])
    image, stream = nibabel.Nifti1Image(array, affine, dtype=array.dtype), io.BytesIO()
    image.set_sform(affine, 1)
    image.set_qform(affine, 2)
    image.header.set_xyzt_units("mm")
    image.to_stream(stream)
    assert header_bytes(array, affine, 2, affine, 1, spacing) == stream.getvalue()[:352]
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        theirs = kind(endianness="<>"[seed % 2])
        theirs.set_data_shape((3, 4, 5))
        theirs.set_data_dtype(array.dtype)
        theirs.set_qform(affine, 1)
        theirs.set_sform(affine, 1)
        own = NiftiHeader.read(theirs.binaryblock)
        assert own is not None and own.get_data_dtype() == theirs.get_data_dtype()
        np.testing.assert_allclose(own.get_qform(), theirs.get_qform(), atol=1e-9)
        np.testing.assert_array_equal(own.get_sform(), theirs.get_sform())


def test_a_quaternion_that_is_none_is_refused() -> None:
    header = nibabel.Nifti1Header()
    header["quatern_b"] = header["quatern_c"] = 0.9
    header["dim"][0] = 3
    own = NiftiHeader.read(header.binaryblock)
    assert own is not None
    with pytest.raises(ValueError, match="quaternion"):
        own.get_qform()


def test_a_smoothing_spline_keeps_to_its_limit() -> None:
    x = np.arange(12) * 27.0
    y = 15 * np.sin(x / 90)
    value, slope = smoothing_spline(x, y, 12 * 1.5 ** 2, x)
    assert 0.9 * 12 * 1.5 ** 2 < ((value - y) ** 2).sum() <= 12 * 1.5 ** 2 * 1.0001      # as smooth as it may be
    exact, _ = smoothing_spline(x, y, 1e-12, x)
    np.testing.assert_allclose(exact, y, atol=1e-4)
    line, steep = smoothing_spline(x, 0.2 * x + 3, 1.0, np.array([5.0, 100.0]))
    np.testing.assert_allclose(line, [4.0, 23.0], atol=1e-6)
    np.testing.assert_allclose(steep, 0.2, atol=1e-6)
    fine = np.linspace(0, x[-1], 400)
    value, slope = smoothing_spline(x, y, 5.0, fine)
    np.testing.assert_allclose(np.gradient(value, fine)[1:-1], slope[1:-1], atol=2e-3)
