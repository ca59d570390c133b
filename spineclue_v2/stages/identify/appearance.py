"""The appearance classifier: levels from what lies around a vertebra in the CT: ribs, sacrum, skull base, shoulders, discs.

A small network on a wider and coarser crop than the mask's. It is no part of the paper's method and has its own training,
`spineclue_train DATASET identify FOLD -tr AppearanceTrainer`. Unlike the shape classifier it knows "not a vertebra".
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...adapters import crop_and_pad
from ...anatomy import LABEL_OF_NAME, LEVEL_INDEX_OF_LABEL, LEVELS, NUM_LEVELS, region
from ...dataset.preprocessed import PreprocessedDataset
from ...dataset.vertebra_rows import regular_rows
from ...errors import InputError
from ...imageio.orientation import oriented_view
from ...imageio.volume import ImageGrid, Volume
from ...plans.data import Data
from ...preprocessing.crops import crop_start
from ...preprocessing.moving_grids import moving_grid
from ...preprocessing.resampling import to_network_space, windows
from ...training.checkpoint import Checkpoint
from ...training.tensor_files import load_weights, save_weights
from ...training.trainer import BaseTrainer
from .network import InceptionStem, ResidualBlock
from .uncertainty import fit_temperature

KIND = "spineclue_v2 appearance witness"
SPACING_MM = 5.0                    # half a rib's width: finer would cost time, coarser would lose the ribs
CROP = (24, 32, 32)                 # 120 x 160 x 160 mm: two to three vertebrae up and down, the ribs' beginnings at the sides
WIDTHS = (16, 32, 64, 96)
POOL_GRID = (2, 2, 1)               # above and below, before and behind; left and right mean the same
DROPOUT = 0.3
LEARNING_RATE = 1e-3
NOT_A_VERTEBRA = NUM_LEVELS
REGIONS = (*map(region, LEVELS), "none")   # of the 25 columns, for weights per region
JITTER_MM = 6.0                     # located centres err by about 4 mm
FALSE_FRACTION = 0.12                  # crops of a batch around places that are no vertebra
FALSE_DISTANCE_MM = 30.0
BEYOND_FRACTION = 0.6                  # of them just beyond C1 or the last lumbar vertebra: a sacrum looks like one more vertebra
BEYOND_MM = 8.0
CUT_FRACTION = 0.4                     # crops whose upper or lower end is cut off, as fields of view do
GAIN, OFFSET, NOISE = 0.25, 0.12, 0.06   # of windowed intensities 0..1
GAMMA, SHADING, SHADING_GRID = 0.4, 0.12, (3, 4, 4)   # logarithm of the exponent; slow changes across the crop and their grid
BLUR_FRACTION, HIDDEN_FRACTION = 0.3, 0.5     # crops that are blurred; crops with a box of random intensity


class AppearanceNetwork(nn.Module):
    """CT crop (B, C, z, y, x) in 0..1 -> logits (B, 25) over the 24 levels and "not a vertebra"."""

    def __init__(self, channels: int, widths: Sequence[int] = WIDTHS):
        super().__init__()
        pairs = zip([widths[0], *widths], widths, strict=False)
        blocks = [ResidualBlock(inputs, outputs, 1 if k == 0 else 2, bottleneck=False) for k, (inputs, outputs) in enumerate(pairs)]
        self.layers = nn.Sequential(InceptionStem(channels, widths[0], 2), *blocks, nn.AdaptiveAvgPool3d(POOL_GRID), nn.Flatten(),
                                    nn.Dropout(DROPOUT), nn.Linear(widths[-1] * int(np.prod(POOL_GRID)), NUM_LEVELS + 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def coarse(volume: Volume, data: Data, centres_xyz: np.ndarray | None = None) -> Volume:
    """The scan on the classifier's grid, int16 HU; with `centres_xyz` (n, 3) LPS mm only what crops around them can touch."""
    wanted = replace(data, spacing_mm=SPACING_MM)
    view = oriented_view(volume, data.orientation)
    if centres_xyz is not None:
        spacing = np.array(view.geometry.spacing)
        reach = (np.array(CROP) / 2 + 3) * SPACING_MM / spacing
        centres = view.geometry.world_to_index(centres_xyz)
        low = np.floor(np.clip(centres.min(0) - reach, 0, np.array(view.array.shape) - 1)).astype(int)
        high = np.ceil(np.clip(centres.max(0) + reach + 1, low + 1, view.array.shape)).astype(int)
        view = view.cropped(low, high)
    return to_network_space(view, wanted)


def crops(volume: Volume, centres_xyz: np.ndarray, data: Data) -> np.ndarray:
    """Network inputs (n, C, z, y, x) of `coarse` `volume` around centres (n, 3), LPS mm; air beyond the scan."""
    places = volume.geometry.world_to_index(np.asarray(centres_xyz, dtype=float).reshape(-1, 3))
    return np.stack([windows(crop_and_pad(volume.array, crop_start(place, CROP), CROP, pad_value=data.hu_min), data.windows_hu)
                     for place in places])


def beyond_ends(labels: Sequence[int], centres_xyz: np.ndarray) -> list[np.ndarray]:
    """Where one more vertebra would lie above C1 and below the last lumbar one (LPS mm): skull and sacrum. `labels` (n,) VerSe values of
    `centres_xyz` (n, 3); an end of the field of view is no end of the spine."""
    order = np.argsort(-np.asarray(centres_xyz)[:, 2])
    if len(order) < 2:
        return []
    values, centres = [labels[i] for i in order], np.asarray(centres_xyz)[order]
    places = [2 * centres[0] - centres[1]] if values[0] == LABEL_OF_NAME["C1"] else []
    return places + ([2 * centres[-1] - centres[-2]] if values[-1] in (LABEL_OF_NAME["L5"], LABEL_OF_NAME["L6"]) else [])


@dataclass
class AppearanceBatches:
    """{"image" (B, C, z, y, x), "level" (B,)}; levels equally often, class 24 are places off the spine. Batch i depends on (seed, i)."""

    folder: Path
    cases: list[str]
    data: Data
    batch_size: int
    seed: int
    augment: bool = True

    def __post_init__(self) -> None:
        self._scans: dict[str, Volume] = {}
        self._centres: dict[str, np.ndarray] = {}
        self._beyond: dict[str, list[np.ndarray]] = {}
        self._rows: dict[int, list[tuple[str, np.ndarray]]] = {}

    def prepare(self) -> None:
        """Read what is needed once: coarse scans stay in memory, a few hundred kilobytes each."""
        if self._rows:
            return
        dataset = PreprocessedDataset(self.folder)
        for case in self.cases:
            properties = dataset.properties(case)
            geometry = ImageGrid.from_json(properties["geometry"])
            vertebrae = [v for v in properties["vertebrae"].values() if v["label"] in LEVEL_INDEX_OF_LABEL]
            if not vertebrae:
                continue
            self._scans[case] = coarse(Volume(np.asarray(dataset.image(case)[:]), geometry), self.data)
            self._centres[case] = geometry.index_to_world(np.array([v["body_centre"] for v in properties["vertebrae"].values()]))
            self._beyond[case] = beyond_ends([v["label"] for v in properties["vertebrae"].values()], self._centres[case])
            for vertebra in vertebrae:
                row = (case, geometry.index_to_world(np.array(vertebra["body_centre"])))
                self._rows.setdefault(LEVEL_INDEX_OF_LABEL[vertebra["label"]], []).append(row)
        if not self._rows:
            raise InputError(f"None of the {len(self.cases)} cases of {self.folder} shows a regular vertebra (C1 to L5) to learn "
                             "from; check the labels of the dataset.")

    def rows_of(self, case: str) -> tuple[Tensor, Tensor]:
        """Inputs (n, C, z, y, x) and levels (n,) of one case's regular vertebrae, in cranio-caudal order, not augmented."""
        self.prepare()
        rows = [(level, centre) for level, found in self._rows.items() for name, centre in found if name == case]
        if not rows:
            return torch.zeros(0, len(self.data.windows_hu), *CROP), torch.zeros(0, dtype=torch.long)
        rows.sort(key=lambda row: -row[1][2])
        images = crops(self._scans[case], np.array([centre for _, centre in rows]), self.data)
        return torch.from_numpy(images), torch.tensor([level for level, _ in rows])

    def __call__(self, index: int) -> dict[str, Tensor]:
        self.prepare()
        rng = np.random.default_rng([self.seed, index])
        levels = sorted(self._rows)
        images, targets = [], []
        for k in rng.permutation(max(len(levels), self.batch_size))[:self.batch_size]:
            level = levels[k % len(levels)]
            case, centre = self._rows[level][int(rng.integers(len(self._rows[level])))]
            if rng.random() < FALSE_FRACTION and (place := self._off_the_spine(case, rng)) is not None:
                level, centre = NOT_A_VERTEBRA, place
            elif self.augment:
                centre = centre + rng.normal(0, JITTER_MM / np.sqrt(3), 3)
            images.append(crops(self._scans[case], centre[None], self.data)[0])
            targets.append(level)
        batch = torch.from_numpy(np.stack(images))
        return {"image": augmented(batch, rng) if self.augment else batch, "level": torch.tensor(targets)}

    def _off_the_spine(self, case: str, rng: np.random.Generator) -> np.ndarray | None:
        """A place beyond an end of the spine, or a random one of the scan well away from every vertebra (LPS mm); None when ten tries
        find none."""
        scan = self._scans[case]
        ends = [place for place in self._beyond[case] if (scan.geometry.world_to_index(place) > 0).all()
                and (scan.geometry.world_to_index(place) < np.array(scan.array.shape) - 1).all()]
        if ends and rng.random() < BEYOND_FRACTION:
            return ends[int(rng.integers(len(ends)))] + rng.normal(0, BEYOND_MM / np.sqrt(3), 3)
        for _ in range(10):
            place = scan.geometry.index_to_world(rng.uniform(0, np.array(scan.array.shape) - 1))
            if np.linalg.norm(self._centres[case] - place, axis=1).min() >= FALSE_DISTANCE_MM:
                return place
        return None


def augmented(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Random movement with left-right mirror, contrast, brightness, shading, blur, noise, boxes that hide a part, and ends of the field
    of view cut off (air): what a patient's surroundings have in common with a phantom's must do."""
    count, channels, size = len(images), images.shape[1], np.array(images.shape[2:])

    def draw(spread: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(-spread, spread, (count, *shape))).float()

    moved = functional.grid_sample(images, moving_grid(count, size, rng, SPACING_MM), align_corners=False, padding_mode="border")
    blurred = torch.from_numpy(rng.random(count) < BLUR_FRACTION)
    moved[blurred] = functional.avg_pool3d(moved[blurred], 3, 1, 1, count_include_pad=False)
    moved = moved.clamp_(0, 1) ** draw(GAMMA, channels, 1, 1, 1).exp()
    shading = functional.interpolate(draw(SHADING, channels, *SHADING_GRID), images.shape[2:], mode="trilinear", align_corners=True)
    noise = torch.from_numpy(rng.normal(0, NOISE * rng.random(), moved.shape).astype(np.float32))
    moved = (moved * (1 + draw(GAIN, channels, 1, 1, 1)) + draw(OFFSET, channels, 1, 1, 1) + shading + noise).clamp_(0, 1)
    for i in np.flatnonzero(rng.random(count) < HIDDEN_FRACTION):
        hidden = np.rint(size * rng.uniform(0.2, 0.5, 3)).astype(int)
        start = rng.integers(0, size - hidden + 1)
        box = tuple(slice(int(s), int(s + h)) for s, h in zip(start, hidden, strict=True))
        moved[(i, slice(None), *box)] = torch.from_numpy(rng.random(channels).astype(np.float32))[:, None, None, None]
    for i in np.flatnonzero(rng.random(count) < CUT_FRACTION):
        kept = int(rng.integers(size[0] // 2 + 1, size[0]))  # the vertebra itself stays
        moved[i, :, slice(kept, None) if rng.random() < 0.5 else slice(0, int(size[0]) - kept)] = 0
    return moved


class AppearanceTrainer(BaseTrainer):
    """Cross entropy, as many iterations as the shape classifier has; the epoch figure is the share of crops named right."""

    stage = "identify"
    auxiliary = True

    def build_network(self) -> AppearanceNetwork:
        self.epochs = self.plan.run.contrastive_epochs + self.plan.run.classifier_epochs
        return AppearanceNetwork(len(self.plan.data.windows_hu))

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=LEARNING_RATE, weight_decay=self.plan.run.weight_decay)
        return optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=max(1, self.epochs * self.iterations), power=0.9)

    def has_samples(self, cases: list[str]) -> bool:
        return bool(regular_rows(self.dataset, cases))

    def batch_sampler(self, training: bool) -> AppearanceBatches:
        return AppearanceBatches(self.dataset.folder, self.batch_cases(training),
                                 self.plan.data, self.plan.run.batch_size, self.seed + (0 if training else 1), augment=training)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        return functional.cross_entropy(self.network(batch["image"]).float(), batch["level"]), {}

    def validation_metric(self, batch: dict[str, Tensor]) -> dict[str, float]:
        logits = self.network(batch["image"]).float()
        return {"loss": float(functional.cross_entropy(logits, batch["level"])),
                "score": float((logits.argmax(1) == batch["level"]).float().mean())}

    def on_train_end(self) -> None:
        """Temperature from the validation rows, which this fold's network has not seen."""
        logits, targets = map(torch.cat, zip(*self._rows().values(), strict=True))
        self.fitted = {"temperature": fit_temperature(logits, targets)}

    @torch.no_grad()
    def _rows(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{validation case: (logits (n, 25), levels (n,))}."""
        self.network.eval()
        maker = self.batch_sampler(training=False)
        maker.prepare()
        rows = {}
        for case in maker.cases:
            images, levels = maker.rows_of(case)
            if len(levels):
                rows[case] = self.network(images.to(self.device)).float().cpu(), levels
        return rows

    def validate_cases(self) -> dict[str, Any]:
        """Validation cases, true centres: share of vertebrae named right one by one."""
        right = {case: (logits.argmax(1) == levels).float() for case, (logits, levels) in self._rows().items()}
        return {"stage": self.stage, "id_rate_single": float(torch.cat(list(right.values())).mean()),
                "metric_per_case": [{"case": case, "vertebrae": len(r), "right": int(r.sum())} for case, r in right.items()]}


def weight_by_region(rows: np.ndarray, weight: float | Mapping[str, float]) -> np.ndarray:
    """(n, 25) log-probabilities times their weight; with weights per region each row's is the mean over what it says it may be."""
    if not isinstance(weight, Mapping):
        return rows * weight
    shares = np.exp(rows - np.logaddexp.reduce(rows, axis=1, keepdims=True))
    return rows * (shares @ np.array([weight[name] for name in REGIONS]))[:, None]


class AppearanceClassifier:
    """Trained networks (one per fold) and how far they can be trusted.

    Attributes:
        networks: in evaluation mode, on `device`.
        data: the network space whose CT windows and HU limits they were trained with.
        temperatures: one per network.
        weight: of its log-probabilities, where it was fitted: one number, or one for each of cervical, thoracic, lumbar and none, since
            what surrounds one region may be learned better than what surrounds another; None leaves it to the plan's `classifier_weights`.
        about: plain JSON for the record.
    """

    def __init__(self, networks: Sequence[AppearanceNetwork], data: Data, temperatures: Sequence[float],
                 weight: float | Mapping[str, float] | None = None, about: Mapping[str, Any] | None = None,
                 device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.networks = [network.eval().to(self.device) for network in networks]
        self.data, self.temperatures, self.weight, self.about = data, list(temperatures), weight, dict(about or {})

    @classmethod
    def from_checkpoints(cls, files: Sequence[Path], data: Data, device: str | torch.device = "cpu") -> AppearanceClassifier:
        """From the checkpoints that `AppearanceTrainer` wrote, one per fold."""
        networks, temperatures = [], []
        for file in files:
            saved = Checkpoint.load(file, device)
            if saved.meta.get("trainer") != AppearanceTrainer.__name__:
                raise InputError(f"{file} is no checkpoint of {AppearanceTrainer.__name__}.")
            network = AppearanceNetwork(len(data.windows_hu))
            network.load_state_dict(saved.network)
            networks.append(network)
            temperatures.append(saved.meta.get("fitted", {}).get("temperature", 1.0))
        return cls(networks, data, temperatures, device=device)

    @torch.inference_mode()
    def log_probabilities(self, scan: Volume, centres_xyz: np.ndarray) -> np.ndarray:
        """(n, 25) log-probabilities over the 24 levels and "not a vertebra".

        Args:
            scan: the CT (HU), any grid and orientation.
            centres_xyz: (n, 3) body centres, LPS mm.
        """
        centres = np.asarray(centres_xyz, dtype=float).reshape(-1, 3)
        if not len(centres):
            return np.zeros((0, NUM_LEVELS + 1))
        images = torch.from_numpy(crops(coarse(scan, self.data, centres), centres, self.data)).to(self.device)
        shares = [(network(images).double() / t).softmax(1) for network, t in zip(self.networks, self.temperatures, strict=True)]
        return torch.stack(shares).mean(0).clamp(min=1e-12).log().cpu().numpy()

    def save(self, path: str | Path) -> None:
        """Tensors in half precision and plain JSON."""
        tensors = {f"{i}.{name}": value.half() if value.is_floating_point() else value
                   for i, network in enumerate(self.networks) for name, value in network.state_dict().items()}
        save_weights(path, tensors, {"kind": KIND, "data": asdict(self.data), "temperatures": self.temperatures, "weight": self.weight,
                                     "about": self.about})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> AppearanceClassifier:
        """Read `save`'s file; anything else is an InputError."""
        tensors, description = load_weights(path, KIND)
        data = Data(**description["data"] | {"windows_hu": tuple(map(tuple, description["data"]["windows_hu"]))})
        networks = []
        for i in range(len(description["temperatures"])):
            network = AppearanceNetwork(len(data.windows_hu))
            network.load_state_dict({name: tensors[f"{i}.{name}"].to(value.dtype) for name, value in network.state_dict().items()})
            networks.append(network)
        return cls(networks, data, description["temperatures"], description["weight"], description["about"], device)
