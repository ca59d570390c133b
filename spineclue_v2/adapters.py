"""The only place that touches nnunetv2 and batchgeneratorsv2: everything is imported when called.

Their signatures move between minor versions; a change upstream is fixed here and nowhere else.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError

SPLIT_SEED = 12345
NUM_FOLDS = 5


def crossval_splits(identifiers: Sequence[str], num_folds: int = NUM_FOLDS) -> list[dict[str, list[str]]]:
    """nnU-Net's own folds of sorted `identifiers` (KFold, shuffled with its seed), as plain strings."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    splits = generate_crossval_split(sorted(identifiers), seed=SPLIT_SEED, n_splits=num_folds)
    return [{part: [str(name) for name in split[part]] for part in ("train", "val")} for split in splits]


def random_split(identifiers: Sequence[str], fold: int) -> tuple[list[str], list[str]]:
    """nnU-Net's answer to a fold beyond the split file: a seeded 80:20 split (train, validation) of sorted `identifiers`."""
    keys = np.sort(list(identifiers))
    chosen = np.random.RandomState(seed=SPLIT_SEED + fold).choice(len(keys), int(len(keys) * 0.8), replace=False)
    train = [str(keys[i]) for i in chosen]
    return train, [str(key) for i, key in enumerate(keys) if i not in set(chosen.tolist())]


def blosc2_layout(shape: Sequence[int], patch: Sequence[int], bytes_per_voxel: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(chunks, blocks) of a (z, y, x) array so that reading a `patch` touches few of them."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

    size = (1, *(int(n) for n in shape))
    blocks, chunks = comp_blosc2_params(size, tuple(int(n) for n in patch), bytes_per_pixel=bytes_per_voxel)
    return tuple(chunks[1:]), tuple(blocks[1:])


def crop_and_pad(array: Any, start: Sequence[int] | np.ndarray, size: Sequence[int], pad_value: float = 0) -> np.ndarray:
    """Box of `size` from index `start` (negative and beyond allowed) of the last axes of a numpy or blosc2 `array`.

    acvl_utils has one, which imports blosc2 (a fifth of a second in each prediction) and answers zeros for a box that lies outside,
    whatever the pad value; air must stay air.
    """
    first, wanted, shape = np.asarray(start).astype(int), np.asarray(size).astype(int), np.array(array.shape[-len(size):])
    leading = array.shape[:len(array.shape) - len(wanted)]
    low, high = np.maximum(first, 0), np.minimum(first + wanted, shape)
    box = np.full((*leading, *wanted.tolist()), pad_value, dtype=array.dtype)
    if (high > low).all():
        source, target = (tuple([slice(None)] * len(leading) + [slice(int(a), int(b)) for a, b in zip(begin, end, strict=True)])
                          for begin, end in ((low, high), (low - first, high - first)))
        box[target] = array[source]
    return box


def verify_dataset_integrity(folder: str | Path, num_processes: int = 2) -> None:
    """nnU-Net's own check of a raw dataset; its complaint becomes an InputError, and so does the death of one of its processes."""
    from concurrent.futures.process import BrokenProcessPool

    from nnunetv2.experiment_planning import verify_dataset_integrity as module

    theirs = module.multiprocessing
    module.multiprocessing = _WatchedPools()  # theirs waits for ever for a worker that was killed
    try:
        module.verify_dataset_integrity(str(folder), max(1, num_processes))
    except BrokenProcessPool as error:
        raise InputError(f"A process of nnU-Net's integrity check of {folder} died (out of memory?); run it again with fewer processes "
                         "(-np).") from error
    except (AssertionError, RuntimeError, FileNotFoundError, KeyError) as error:
        raise InputError(f"nnU-Net's integrity check refuses {folder}: {' '.join(str(error).split())[:500]}") from error
    finally:
        module.multiprocessing = theirs


class _WatchedPools:
    """What nnU-Net's check uses of `multiprocessing` (`get_context(method).Pool(n).starmap`), with pools that notice a dead worker."""

    def get_context(self, method: str) -> Any:
        from contextlib import contextmanager
        from types import SimpleNamespace

        from .utilities.worker_pool import WorkerPool

        @contextmanager
        def pool(count: int) -> Iterator[Any]:
            with WorkerPool(count) as executor:
                yield SimpleNamespace(starmap=lambda function, rows: list(executor.map(function, *zip(*rows, strict=True))))

        return SimpleNamespace(Pool=pool)


def segmentation_transforms(crop_size: Sequence[int], heatmap_channel: int) -> Any:
    """nnU-Net's augmentation for {'image' (C, z, y, x), 'segmentation' (1, z, y, x)} tensors, cut to `crop_size` around the centre.

    Only left-right is mirrored (up-down and front-back would make vertebrae that do not exist). The heat map moves and bends
    with the image but is kept out of every intensity transform.
    """
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.move_channels import MoveChannelsTransform
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    angle = np.pi / 10
    return ComposeTransforms([
        MoveChannelsTransform(heatmap_channel, "image", "regression_target"),
        SpatialTransform(tuple(crop_size), patch_center_dist_from_border=0, random_crop=False, p_rotation=0.5, rotation=(-angle, angle),
                         p_scaling=0.5, scaling=(0.8, 1.25), p_synchronize_scaling_across_axes=0.8, bg_style_seg_sampling=False,
                         mode_seg="nearest"),
        RandomTransform(GaussianNoiseTransform(noise_variance=(0, 0.06), p_per_channel=1, synchronize_channels=True), 0.3),
        RandomTransform(GaussianBlurTransform(blur_sigma=(0.4, 1.0), p_per_channel=1, synchronize_channels=True), 0.15),
        RandomTransform(MultiplicativeBrightnessTransform(multiplier_range=BGContrast((0.75, 1.25)), synchronize_channels=True,
                                                          p_per_channel=1), 0.3),
        RandomTransform(ContrastTransform(contrast_range=BGContrast((0.75, 1.25)), preserve_range=True, synchronize_channels=True,
                                          p_per_channel=1), 0.3),
        RandomTransform(SimulateLowResolutionTransform(scale=(0.5, 1), synchronize_channels=True, synchronize_axes=False,
                                                       ignore_axes=(), p_per_channel=1), 0.25),
        RandomTransform(GammaTransform(gamma=BGContrast((0.7, 1.5)), p_invert_image=0, synchronize_channels=True, p_per_channel=1,
                                       p_retain_stats=1), 0.3),
        MirrorTransform(allowed_axes=(2,)),
        MoveChannelsTransform(0, "regression_target", "image"),
    ])


def mr_transforms(size: Sequence[int], rotation_deg: float, scaling: tuple[float, float]) -> Any:
    """Augmentation of a stack of sagittal slices {'image' (slices, rows, columns), 'segmentation' likewise}, cut to `size` in plane.

    All slices move alike. Flips are left out: upside down or back to front no spine exists, and left-right is the slice axis.
    """
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.noise.sharpen import SharpeningTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    angle = np.deg2rad(rotation_deg)
    return ComposeTransforms([
        SpatialTransform(tuple(size), patch_center_dist_from_border=0, random_crop=False, p_rotation=0.8, rotation=(-angle, angle),
                         p_scaling=0.8, scaling=BGContrast(scaling), p_synchronize_scaling_across_axes=0.6, p_elastic_deform=0.3,
                         elastic_deform_scale=(0.1, 0.25), elastic_deform_magnitude=(1.0, 4.0), bg_style_seg_sampling=False,
                         mode_seg="nearest"),
        RandomTransform(GaussianNoiseTransform(noise_variance=(0, 0.04), p_per_channel=1, synchronize_channels=True), 0.3),
        RandomTransform(GaussianBlurTransform(blur_sigma=(0.4, 1.0), p_per_channel=1, synchronize_channels=True), 0.2),
        RandomTransform(SharpeningTransform(strength=(0.1, 0.5), p_same_for_each_channel=1.0), 0.2),
        RandomTransform(MultiplicativeBrightnessTransform(multiplier_range=BGContrast((0.75, 1.25)), synchronize_channels=True,
                                                          p_per_channel=1), 0.3),
        RandomTransform(ContrastTransform(contrast_range=BGContrast((0.75, 1.25)), preserve_range=True, synchronize_channels=True,
                                          p_per_channel=1), 0.3),
        RandomTransform(GammaTransform(gamma=BGContrast((0.7, 1.5)), p_invert_image=0, synchronize_channels=True, p_per_channel=1,
                                       p_retain_stats=1), 0.3),
    ])


def deeplab_2d(encoder: str, inputs: int, decoder_channels: int, atrous_rates: Sequence[int], dropout: float) -> tuple[Any, Any]:
    """Encoder and decoder of segmentation_models_pytorch's DeepLabv3+ with fresh weights: decoder(encoder(image)) maps (B, inputs, rows,
    columns), multiples of 16, to (B, decoder_channels, rows / 4, columns / 4). InputError for an encoder it does not have."""
    from segmentation_models_pytorch import DeepLabV3Plus

    try:
        model = DeepLabV3Plus(encoder, encoder_weights=None, encoder_output_stride=16, decoder_channels=decoder_channels,
                              decoder_atrous_rates=tuple(atrous_rates), decoder_aspp_dropout=dropout, in_channels=inputs,
                              classes=1)
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"Encoder '{encoder}' cannot be built ({str(error).splitlines()[0][:200]}); give one of "
                         "segmentation_models_pytorch, such as resnet18, se_resnext50_32x4d or tu-resnet10t.") from error
    return model.encoder, model.decoder


def window_starts(shape: Sequence[int], size: Sequence[int], step: float) -> list[list[int]]:
    """First index of each sliding window per axis, as nnU-Net places them: `step` is the share of `size` between neighbours."""
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    return compute_steps_for_sliding_window(tuple(int(n) for n in shape), tuple(int(n) for n in size), step)


def dice_and_cross_entropy(batch_dice: bool = False, ignored: int | None = None) -> Any:
    """nnU-Net's Dice + cross-entropy loss for logits (B, C, ...) and labels (B, 1, ...); `batch_dice` sums over the batch first, which
    steadies it where most samples lack most classes. Voxels of the label `ignored` count nowhere."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    return DC_and_CE_loss({"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, weight_ce=1, weight_dice=1,
                          ignore_label=ignored, dice_class=MemoryEfficientSoftDiceLoss)


def dice_of_soft_labels() -> Any:
    """nnU-Net's Dice loss for logits and shares of the classes, both (B, C, ...); sums over the batch, without the background."""
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
    from nnunetv2.utilities.helpers import softmax_helper_dim1

    return MemoryEfficientSoftDiceLoss(softmax_helper_dim1, batch_dice=True, do_bg=False, smooth=1e-5, ddp=False)
