"""Plan groups of the MR stages hybrid_2d and hybrid_3d."""
from __future__ import annotations

from typing import Annotated

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from ...plans.fields import (
    CONFIG,
    Amount,
    Batch,
    Blocks,
    Box,
    Channels,
    Count,
    Edge,
    Epochs,
    Fraction,
    Interval,
    Iterations,
    Run,
    ScheduledRun,
    WeightDecay,
    Whole,
    check_multiples,
    one_of,
    planned,
)

STRIDE = 16               # in plane, of the coarsest features
WHY = "the coarsest grid in plane"
HEADS = one_of("bilinear", "detail")
HEAD = "how features of a quarter of the resolution become pixels: interpolated (bilinear), or with a layer at full resolution (detail)"
RATES = "dilations of the atrous pooling, in cells of the coarsest grid"


@dataclass(frozen=True, config=CONFIG)
class Hybrid2DNetwork:
    encoder: Annotated[str, planned("encoder of segmentation_models_pytorch; tu-NAME for one of timm's")]
    decoder_channels: Annotated[Channels, planned("channels of the decoder")]
    atrous_rates: Annotated[tuple[Count, Count, Count], planned(RATES)]
    head: Annotated[str, HEADS, planned(HEAD)]
    in_plane_factor: Annotated[Count, planned("a pixel of the 2D branches is this many voxels wide", "voxels")]
    crop_size: Annotated[tuple[Edge, Edge], planned("crop (rows, columns) of the 2D branches, multiples of 16", "pixels")]
    dropout: Annotated[Fraction, planned("behind the atrous pooling")]

    @model_validator(mode="after")
    def _check(self) -> Hybrid2DNetwork:
        check_multiples("crop_size", self.crop_size, STRIDE, WHY)
        return self


@dataclass(frozen=True, config=CONFIG)
class Hybrid2DRun(Run):
    batch_size: Annotated[Batch, planned("labelled slices per training step", "slices")]
    soft_labels: Annotated[bool, planned("what is learned: the part of each class in a pixel of the 2D branches; else its largest class",
                                         old_names=["label_shares"])]
    unlabelled_batch_size: Annotated[int, planned("slices in each of the two unlabelled batches; 0: supervised only", "slices", ge=0,
                                                  le=1 << 16)]
    epochs: Epochs
    iterations_per_epoch: Iterations
    initial_lr: Annotated[Amount, planned("learning rate of the first step")]
    weight_decay: WeightDecay
    lr_drop_epochs: Annotated[tuple[Whole, ...], planned(
        "the learning rate is divided by 10 at each; none: it falls to 0, almost in a line", "epochs")]
    cps_weight: Annotated[Amount, planned("of the branches' supervision of each other (cross pseudo supervision)")]
    cps_ramp_epochs: Annotated[Whole, planned("length of the rise of that weight from 0; 0: at once", "epochs")]
    cutmix_boxes: Annotated[Whole, planned("boxes that one unlabelled slice takes from another")]
    cutmix_area: Annotated[Interval, planned("smallest and largest part of the image that the boxes take")]
    tissue_class_weight: Annotated[Amount, planned(
        "of Dice and cross entropy of body, disc and background as such, beside those of every class", old_names=["kind_weight"])]
    rotation_deg: Annotated[Amount, planned("training crops turn by up to this much", "degrees")]
    scaling: Annotated[Interval, planned("smallest and largest field, relative to a crop's, that is drawn into a training crop")]
    disc_signal: Annotated[Amount, planned("standard deviation of the random offset of labelled discs' signal; 0: none", "z-scores")]
    inference_batch: Annotated[Batch, planned("windows at a time in prediction", "windows")]
    overlap: Annotated[Amount, planned("of neighbouring windows, as part of their size", lt=1)]


@dataclass(frozen=True, config=CONFIG)
class Hybrid3DNetwork:
    patch_size: Annotated[Box, planned("patch (slices, rows, columns); rows and columns are multiples of 16", "voxels")]
    context: Annotated[tuple[Whole, Whole], planned("rows and columns around the patch that the 2D branches see in training", "voxels")]
    width: Annotated[Channels, planned("channels of the stem")]
    blocks: Annotated[tuple[Blocks, Blocks, Blocks, Blocks], planned("residual blocks of the four layers")]
    groups: Annotated[Count, planned("of the bottleneck's middle convolution; 32 in ResNeXt50")]
    decoder_channels: Annotated[Channels, planned("channels of the decoder")]
    atrous_rates: Annotated[tuple[Count, Count, Count], planned(RATES)]
    dropout: Annotated[Fraction, planned("behind the atrous pooling")]
    head: Annotated[str, HEADS, planned(HEAD)]
    use_2d: Annotated[bool, planned("false: a 3D network alone, for comparison")]
    residual: Annotated[bool, planned("true: the 2D answer is corrected; false: it is one input among others, as in the paper")]
    attention: Annotated[bool, planned("false: features of both are concatenated and fused")]
    attention_channels: Annotated[Channels, planned("of queries and keys")]
    attention_stride: Annotated[Count, planned("the spatial affinity is computed on a grid this much coarser than the features")]

    @model_validator(mode="after")
    def _check(self) -> Hybrid3DNetwork:
        check_multiples("patch_size (rows x columns)", self.patch_size[1:], STRIDE, WHY)
        return self


@dataclass(frozen=True, config=CONFIG)
class Hybrid3DRun(ScheduledRun):
    batch_size: Annotated[Batch, planned("patches of one volume per training step", "patches")]
    initial_lr: Annotated[Amount, planned("learning rate of the first step")]
    lr_drop_epochs: Annotated[tuple[Whole, ...], planned(
        "the learning rate is divided by 10 at each; none: it falls to 0, almost in a line", "epochs")]
    class_centred_fraction: Annotated[Fraction, planned(
        "part of the patches that lie on a voxel of a random class; the others lie anywhere", old_names=["class_placed_share"])]
    tissue_class_weight: Annotated[Amount, planned(
        "of Dice and cross entropy of body, disc and background as such, beside those of every class", old_names=["kind_weight"])]
    rotation_deg: Annotated[Amount, planned("training crops turn by up to this much", "degrees")]
    scaling: Annotated[Interval, planned("smallest and largest field, relative to a crop's, that is drawn into a training crop")]
    disc_signal: Annotated[Amount, planned("standard deviation of the random offset of labelled discs' signal; 0: none", "z-scores")]
    inference_batch: Annotated[Batch, planned("windows at a time in prediction", "windows")]
    overlap: Annotated[Amount, planned("of neighbouring windows, as part of their size", lt=1)]
