"""A bank of vertebrae for training: signed distances (and CT) drawn once, then turned, bent and cut on the fly, in batches, on any device.

Drawing a vertebra costs some 40 ms, warping a stored one a few: training never waits for shapes, and sees no shape twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..anatomy import LEVEL_INDEX, LEVEL_INDEX_OF_LABEL, LEVELS
from ..errors import InputError
from ..utilities.triples import int_triple
from .canvas import Canvas, one_thread
from .fields import distance_fields
from .sampling import PhantomCase
from .spine import draw_subject

PER_MM = 20.0  # stored steps per millimetre: int8 holds -6.35..6.35 mm
AIR = -1000
BOX_MM = (92.0, 116.0, 120.0)
"""Stored box (z, y, x): the largest vertebra with room to turn."""


@dataclass(frozen=True)
class Warp:
    """How far crops stray from what is stored. Angles (deg, about x, y, z), shifts and bends (mm): standard deviations or half ranges."""

    turn: tuple[float, float, float] = (12.0, 12.0, 18.0)  # half range; four fifths of it shared by one spine
    scale: float = 0.03  # sd of the log of each axis' factor, half of it shared
    shift: float = 5.0  # half range
    bend: float = 1.2  # sd of a smooth displacement with knots every `knots` mm
    knots: float = 22.0
    offset: float = 0.5  # half range of the surface's shift outwards
    mirror: bool = True


STILL = Warp((0.0, 0.0, 0.0), 0.0, 0.0, 0.0, 22.0, 0.0, False)
"""No warp at all: what is stored, resampled."""


@dataclass(frozen=True)
class ShapeBank:
    """n vertebrae in LPS pose, each in the middle of its box.

    fields (n, z, y, x) int8: signed distance times PER_MM; images (n, z, y, x) int16 HU or None; levels (n,) level index (C1 = 0);
    spines (n,): which spine each belongs to, in cranio-caudal order within one; spacing mm of the boxes.
    """

    fields: Tensor
    levels: Tensor
    spines: Tensor
    spacing: float
    images: Tensor | None = None

    @staticmethod
    def from_shapes(subjects: int, seed: int, spacing: float = 2.0, levels: Iterable[str] = LEVELS) -> ShapeBank:
        """Draw whole spines without painting them; `seed` and the number of a subject decide its shapes. `spacing` mm of the boxes."""
        wanted, stored, index, spines = set(levels), [], [], []
        if subjects < 1 or not wanted <= set(LEVELS):
            raise InputError(f"A shape bank needs at least one subject and levels among C1..L5; found {subjects}, {sorted(wanted)[:3]}.")
        shape = tuple(int(round(m / spacing)) for m in BOX_MM)
        for number in range(subjects):
            rng = np.random.default_rng([seed, number])
            subject = draw_subject(rng, None, None, {}, float(rng.uniform() ** 2))
            centres = np.array([v.centre for v in subject.placed])
            low, high = centres.min(0) - 75, centres.max(0) + 75
            for v in subject.placed:
                v.centre = v.centre - low
            size = int_triple(np.ceil((high - low)[::-1] / spacing))
            canvas = Canvas(size, (spacing,) * 3, (0.0,) * 3, 0.5, torch.Generator().manual_seed(int(rng.integers(2**31))))
            with one_thread():
                for v, _, field in distance_fields(canvas, subject, canvas.generator):
                    if v.name in wanted:
                        stored.append(_centre(field, shape))
                        index.append(LEVEL_INDEX[v.name])
                        spines.append(number)
        return ShapeBank(torch.stack(stored), torch.tensor(index), torch.tensor(spines), spacing)

    @staticmethod
    def from_cases(cases: Iterable[PhantomCase], spacing: float = 1.5) -> ShapeBank:
        """Whole labelled vertebrae of scans with their CT, variants left out; distances come from the label masks."""
        from scipy.ndimage import distance_transform_edt, zoom

        stored, pictures, index, spines = [], [], [], []
        shape = tuple(int(round(m / spacing)) for m in BOX_MM)
        for number, case in enumerate(cases):
            factor = np.asarray(case.spacing) / spacing
            picture = torch.from_numpy(zoom(case.ct.astype(np.float32), factor, order=1, grid_mode=True, mode="nearest"))
            for label in sorted(set(np.unique(case.labels).tolist()) & set(LEVEL_INDEX_OF_LABEL)):
                own = np.argwhere(case.labels == label)
                low, high = np.maximum(own.min(0) - 6, 0), own.max(0) + 7
                mask = case.labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] == label
                half = 0.5 * float(np.mean(case.spacing))
                inner, outer = (distance_transform_edt(m, sampling=case.spacing) for m in (mask, ~mask))
                field = torch.from_numpy(zoom(np.where(mask, half - inner, outer - half), factor, order=1, grid_mode=True, mode="nearest"))
                corner = np.rint(low * factor).astype(int)
                stored.append(_centre(field.float(), shape))
                middle = _middle(field) + corner
                pictures.append(_cut(picture, middle, shape, AIR).round().to(torch.int16))
                index.append(LEVEL_INDEX_OF_LABEL[label])
                spines.append(number)
        if not stored:
            raise InputError("A bank of CT crops needs at least one scan with a whole vertebra C1..L5.")
        return ShapeBank(torch.stack(stored), torch.tensor(index), torch.tensor(spines), spacing, torch.stack(pictures))

    def to(self, device: str | torch.device) -> ShapeBank:
        """The same bank on a device; crops are made where the bank is."""
        moved = {k: getattr(self, k).to(device) for k in ("fields", "levels", "spines")}
        return replace(self, **moved, images=None if self.images is None else self.images.to(device))

    def save(self, path: str | Path) -> None:
        """Tensors in one file, by rename."""
        from ..utilities.files import atomic_path

        content = {k: getattr(self, k).cpu() for k in ("fields", "levels", "spines")} | {"spacing": torch.tensor(self.spacing)}
        if self.images is not None:
            content["images"] = self.images.cpu()
        with atomic_path(Path(path)) as temporary:
            torch.save(content, temporary)

    @staticmethod
    def load(path: str | Path) -> ShapeBank:
        try:
            content = torch.load(path, weights_only=True)
            return ShapeBank(content["fields"], content["levels"], content["spines"], float(content["spacing"]), content.get("images"))
        except Exception as error:  # torch raises many kinds for broken or foreign files
            raise InputError(f"{path} is no shape bank; make one with ShapeBank.from_shapes(...).save(path).") from error

    def spine(self, number: int) -> Tensor:
        """Indices of one spine's vertebrae, in cranio-caudal order."""
        return torch.nonzero(self.spines.cpu() == number).flatten()

    def crops(
        self, index: Tensor, seed: int, size: tuple[int, int, int], spacing: float, warp: Warp | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Masks (B, 1, z, y, x) in 0..1 with soft edges, and HU of the same crops (None for a bank without CT), float32.

        `index` (B,) may name a vertebra twice; `size` voxels of `spacing` mm. Equal seeds give equal crops; members of one spine share
        most of their turn and scale.
        """
        warp, device = warp or Warp(), self.fields.device
        index = index.to("cpu", torch.long)
        generator = torch.Generator().manual_seed(int(seed))
        grid = self._grid(index, generator, size, spacing, warp).to(device)
        chosen = index.to(device)
        source = self.fields[chosen].float()[:, None].div_(PER_MM)
        if self.images is not None:
            source = torch.cat([source, self.images[chosen].float()[:, None] - AIR], 1)  # zeros outside are air
            source[:, :1] -= BEYOND
        moved = F.grid_sample(source, grid, align_corners=False, padding_mode="border" if self.images is None else "zeros")
        distance = moved[:, :1] + (BEYOND if self.images is not None else 0.0)
        offset = (torch.rand((len(index), 1, 1, 1, 1), generator=generator) * 2 - 1) * warp.offset
        masks = torch.sigmoid((offset.to(device) - distance) * (1.702 / (0.45 * spacing)))
        return masks, None if self.images is None else moved[:, 1:] + AIR

    def _grid(self, index: Tensor, generator: torch.Generator, size: tuple[int, int, int], spacing: float, warp: Warp) -> Tensor:
        """Sampling positions (B, z, y, x, 3) in -1..1 of the stored boxes."""
        count = len(index)
        _, member = torch.unique(self.spines.cpu()[index], return_inverse=True)

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator) * 2 - 1

        turn = torch.tensor(warp.turn) * torch.pi / 180
        matrix = _rotations((0.8 * draw(count, 3)[member] + 0.2 * draw(count, 3)) * turn)
        shared = torch.randn((count, 3), generator=generator)[member] * 0.5
        matrix = matrix * torch.exp((shared + 0.87 * torch.randn((count, 3), generator=generator)) * warp.scale)[:, None, :]
        if warp.mirror:
            matrix[:, :, 0] *= torch.where(draw(count) < 0, -1.0, 1.0)[:, None]
        # from crop millimetres to box millimetres, then into -1..1
        half = torch.tensor(self.fields.shape[1:]).flip(0) * self.spacing / 2
        reach = torch.tensor(size).flip(0) * spacing / 2
        theta = torch.zeros(count, 3, 4)
        theta[:, :, :3] = matrix * reach[None, None, :] / half[None, :, None]
        theta[:, :, 3] = draw(count, 3) * warp.shift / half
        grid = F.affine_grid(theta, [count, 1, *size], align_corners=False)
        if warp.bend:
            cells = [max(int(n * spacing / warp.knots) + 2, 3) for n in size]
            bend = torch.randn((count, 3, *cells), generator=generator) * warp.bend / half.view(1, 3, 1, 1, 1)
            grid += F.interpolate(bend, size=size, mode="trilinear", align_corners=True).permute(0, 2, 3, 4, 1)
        return grid


BEYOND = 127 / PER_MM
"""Distance outside the stored box."""


def batches(bank: ShapeBank, size: tuple[int, int, int], spacing: float, batch_size: int, seed: int) -> Callable[[int], dict[str, Tensor]]:
    """Batch sampler for training: call it with a batch's number; levels come equally often. {"image", "level"} and "mask" with CT."""
    own = [torch.nonzero(bank.levels.cpu() == level).flatten() for level in sorted(set(bank.levels.tolist()))]

    def make(number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        order = torch.cat([torch.randperm(len(own), generator=generator) for _ in range(-(-batch_size // len(own)))])[:batch_size]
        index = torch.stack([own[k][torch.randint(len(own[k]), (), generator=generator)] for k in order.tolist()])
        masks, images = bank.crops(index, seed * 1_000_003 + number, size, spacing)
        result = {"image": masks if images is None else images, "level": bank.levels[index.to(bank.levels.device)]}
        return result if images is None else result | {"mask": masks}

    return make


def _middle(field: Tensor) -> np.ndarray:
    """Middle (z, y, x) of the box round the inside of a distance field."""
    inside = torch.nonzero(field < 0)
    return (inside.amin(0) + inside.amax(0)).numpy() / 2


def _cut(volume: Tensor, middle: np.ndarray, shape: tuple[int, ...], fill: float) -> Tensor:
    """Box of `shape` voxels round `middle`; what lies outside the volume is `fill`."""
    start = np.floor(middle - (np.array(shape) - 1) / 2 + 0.5).astype(int)
    out = torch.full(shape, float(fill))
    low, high = np.maximum(start, 0), np.minimum(start + shape, volume.shape)
    if (low < high).all():
        source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        out[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))] = volume[source].float()
    return out


def _centre(field: Tensor, shape: tuple[int, ...]) -> Tensor:
    return (_cut(field, _middle(field), shape, BEYOND) * PER_MM).round().clamp(-127, 127).to(torch.int8)


def _rotations(angles: Tensor) -> Tensor:
    """(n, 3) radians about x, y, z -> (n, 3, 3)."""
    zero = torch.zeros_like(angles[:, 0])
    x, y, z = angles.T
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    return torch.linalg.matrix_exp(skew)
