"""Plan groups of the MR stages hybrid_2d and hybrid_3d."""
from __future__ import annotations

from dataclasses import dataclass

from ...plans.data import Box


@dataclass(frozen=True)
class Hybrid2DNetwork:
    encoder: str                      # encoder name of segmentation_models_pytorch ("tu-..." for timm's)
    decoder_channels: int
    atrous_rates: tuple[int, int, int]
    head: str                         # "bilinear" (DeepLabv3+) or "detail": how features at 1/4 resolution become pixels
    in_plane_factor: int              # pixels of the 2D branches are this many voxels wide
    crop_size: tuple[int, int]        # (rows, columns) in pixels of the 2D branches, multiples of 16
    dropout: float                    # behind atrous pooling


@dataclass(frozen=True)
class Hybrid2DRun:
    batch_size: int                   # labelled slices per step
    soft_labels: bool                # learned: the share of each class in a pixel of the 2D branches; False: its largest class
    unlabelled_batch_size: int        # slices in each of the two unlabelled batches; 0: supervised only
    epochs: int
    iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    lr_drop_epochs: tuple[int, ...]   # the learning rate is divided by 10 at each; none: it falls to 0, almost in a line
    cps_weight: float
    cps_ramp_epochs: int              # epochs over which the weight rises from 0; 0: at once
    cutmix_boxes: int
    cutmix_area: tuple[float, float]  # smallest and largest share of the image that the boxes take
    tissue_class_weight: float                # of Dice + cross entropy of body, disc and background as such, beside that of every class
    rotation_deg: float
    scaling: tuple[float, float]      # smallest and largest field, relative to a crop's, that is drawn into a training crop
    disc_signal: float                # standard deviation of the random offset of labelled discs' signal, in z-scores; 0: none
    inference_batch: int
    overlap: float                    # of neighbouring windows, share of their size


@dataclass(frozen=True)
class Hybrid3DNetwork:
    patch_size: Box                   # voxels (slices, rows, columns), rows and columns multiples of 16
    context: tuple[int, int]          # voxels (rows, columns) around the patch that the 2D branches see in training
    width: int                        # channels of the stem
    blocks: tuple[int, ...]           # residual blocks of the four layers
    groups: int                       # of the bottleneck's middle convolution (32 in ResNeXt50)
    decoder_channels: int
    atrous_rates: tuple[int, int, int]
    dropout: float
    head: str
    use_2d: bool                      # False: a 3D network alone, for comparison
    residual: bool                    # True: the 2D answer is corrected; False: it is one input among others, as in the paper
    attention: bool                   # False: features of both are concatenated and fused
    attention_channels: int           # of queries and keys
    attention_stride: int             # the spatial affinity is computed on a grid this much coarser than the features


@dataclass(frozen=True)
class Hybrid3DRun:
    batch_size: int                   # patches of one volume per step
    epochs: int
    iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    lr_drop_epochs: tuple[int, ...]
    class_centred_fraction: float         # patches placed on a voxel of a random class; the others lie anywhere
    tissue_class_weight: float
    rotation_deg: float
    scaling: tuple[float, float]
    disc_signal: float
    inference_batch: int
    overlap: float
