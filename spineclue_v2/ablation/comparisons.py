"""What the paper compares its shape network with: the same ResNet on the CT, ResNeXt and a vision transformer on the mask.

They exist for the ablation study only: no prediction is made with them.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..adapters import crop_and_pad
from ..anatomy import NUM_LEVELS
from ..plans.plans import Plans
from ..preprocessing.crops import crop_start
from ..preprocessing.moving_grids import moving_grid
from ..preprocessing.resampling import windows
from ..stages.identify.data import MaskBatches
from ..stages.identify.network import LevelNetwork, ShapeNetwork
from ..stages.identify.plan import IdentifyNetwork
from ..stages.identify.trainer import IdentifyTrainer

CARDINALITY_FRACTION = 4          # ResNeXt (Xie et al. 2017): 4 channels per group in the first stage ("32 x 4d")
PATCH = (8, 8, 8)
TRANSFORMER = {"dim": 96, "layers": 4, "heads": 4}
GAIN, OFFSET, NOISE = 0.15, 0.08, 0.04   # of windowed intensities 0..1


@dataclass
class CTBatches(MaskBatches):
    """The batches of `MaskBatches`, but the crops are the CT itself: one channel per window, 0..1."""

    windows_hu: tuple[tuple[float, float], ...] = ((-200.0, 400.0),)
    hu_min: int = -1024
    _crops: dict[int, np.ndarray] = field(default_factory=dict)

    def inputs(self, numbers: list[int]) -> Tensor:
        return torch.from_numpy(np.stack([windows(self._crop(n), self.windows_hu) for n in numbers]))

    def augment_images(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """The movements of the masks, and another contrast, brightness and noise; the border repeats."""
        moved = functional.grid_sample(images, moving_grid(len(images), np.array(images.shape[2:]), rng, self.spacing),
                                       align_corners=False, padding_mode="border")
        shape = (len(images), images.shape[1], 1, 1, 1)
        gain, offset = (torch.from_numpy(rng.uniform(-a, a, shape)).float() for a in (GAIN, OFFSET))
        noise = torch.from_numpy(rng.normal(0, NOISE * rng.random(), moved.shape).astype(np.float32))
        return (moved * (1 + gain) + offset + noise).clamp_(0, 1)

    def _crop(self, number: int) -> np.ndarray:
        """int16 HU crop of row `number`, kept after the first reading."""
        if number not in self._crops:
            case, _, centre = self._rows[number]
            self._crops[number] = crop_and_pad(self._dataset.image(case), crop_start(centre, self.crop_size), self.crop_size,
                                               pad_value=self.hu_min)
        return self._crops[number]


class CTTrainer(IdentifyTrainer):
    """The paper's baseline: the same network on the CT crop instead of the mask crop."""

    @classmethod
    def build_network(cls, plans: Plans) -> LevelNetwork:
        plan = plans.stage(cls.stage)
        return _resnet(plan.network, channels=len(plan.data.windows_hu))

    def batch_sampler(self, training: bool) -> MaskBatches:
        masks, data = super().batch_sampler(training), self.plan.data
        return CTBatches(masks.folder, masks.cases, masks.crop_size, masks.spacing, masks.batch_size, masks.contrastive_batches,
                         masks.seed, masks.augment, masks.classifier_batch_size, windows_hu=data.windows_hu, hu_min=data.hu_min)


class ResNeXtTrainer(IdentifyTrainer):
    """ResNeXt with the plan's stages on the mask crop; half the plan's width, since its bottlenecks give four times as many channels."""

    @classmethod
    def build_network(cls, plans: Plans) -> LevelNetwork:
        planned = plans.stage(cls.stage).network
        network = replace(planned, width=max(4, planned.width // 2))
        return _resnet(network, groups=max(2, 2 * network.width // CARDINALITY_FRACTION))


class TransformerTrainer(IdentifyTrainer):
    """A vision transformer on the mask crop."""

    @classmethod
    def build_network(cls, plans: Plans) -> LevelNetwork:
        return VisionTransformer(plans.stage(cls.stage).network)


def _resnet(network: IdentifyNetwork, **changes: Any) -> ShapeNetwork:
    return ShapeNetwork(network.depth, network.width, network.stem_stride, hidden=network.hidden, projection_dim=network.projection_dim,
                        dropout=network.dropout, pool_grid=network.pool_grid, **changes)


class VisionTransformer(LevelNetwork):
    """ViT (Dosovitskiy et al. 2021) in three dimensions: patches of 8 voxels, learned positions, pre-norm encoder, mean of the tokens.

    The crop is filled up with zeros to a multiple of the patch. Widths do not follow the plan's ResNet: `TRANSFORMER`.
    """

    def __init__(self, network: IdentifyNetwork):
        super().__init__()
        dim = TRANSFORMER["dim"]
        cells = [-(-size // patch) for size, patch in zip(network.crop_size, PATCH, strict=True)]
        self.filled = tuple(n * patch for n, patch in zip(cells, PATCH, strict=True))
        self.embed = nn.Conv3d(1, dim, PATCH, stride=PATCH)
        self.place = nn.Parameter(torch.randn(1, int(np.prod(cells)), dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, TRANSFORMER["heads"], 4 * dim, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, TRANSFORMER["layers"], norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.add_head(dim, NUM_LEVELS, network.hidden, network.projection_dim, network.dropout)

    def features(self, x: Tensor) -> Tensor:
        missing = [full - size for full, size in zip(self.filled, x.shape[2:], strict=True)]
        x = functional.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))
        return self.encoder(self.embed(x).flatten(2).transpose(1, 2) + self.place).mean(dim=1)
