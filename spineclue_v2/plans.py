"""Plans: every number of every stage, typed and frozen, read from and written to `SpineCLUEPlans.json`.

Each number belongs to one of three groups. `data`: how the preprocessed volumes look. `network`: what the weights were
made for, crop sizes included. `run`: what may change without invalidating anything. Fingerprints are sha256 over canonical
JSON of values only (6 significant digits, no reasons): data = H(data), model = H(data, network).
"""
from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import reprlib
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError
from .storage import read_json, write_json

CORE_STAGES = ("localize", "segment", "identify")
MR_STAGES = ("hybrid_2d", "hybrid_3d")
GROUPS = ("data", "network", "run")
FORMAT = 1
DEFAULT_PLANS_NAME = "SpineCLUEPlans"

Box = tuple[int, int, int]


@dataclass(frozen=True)
class Data:
    """Model space of a stage: isotropic spacing (mm), orientation, HU limits of the stored int16 volume, CT windows (channels)."""

    spacing_mm: float
    orientation: str = "LPS"
    hu_min: int = -1024
    hu_max: int = 3071
    windows_hu: tuple[tuple[float, float], ...] = ((-200.0, 400.0), (-100.0, 1300.0))


@dataclass(frozen=True)
class LocalizeNetwork:
    family: str                       # ultralytics model family, e.g. "yolo11"
    scale: str                        # n, s, m, l, x
    slice_size: tuple[int, int]       # (z, in-plane) pixels of a training slice, multiples of 32


@dataclass(frozen=True)
class LocalizeRun:
    batch_size: int
    epochs: int
    iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    slices_per_plane: int             # k: slices per plane and scan at inference
    inference_batch: int
    min_score: float                  # boxes below never reach the clustering
    nms_iou: float
    eps_mm: float                     # radius of the position clustering, in scaled millimetres
    axis_scale: tuple[float, float, float]  # (z, y, x): distances are divided by these before clustering
    min_samples_share: float          # share of the slices expected to cross a vertebra that must hold a box
    size_eps: float                   # radius of the size clustering, relative to the median height and width
    spacing_between_mm: tuple[float, float]  # smallest and largest plausible distance of neighbouring centres


@dataclass(frozen=True)
class SegmentNetwork:
    architecture: str                 # "ResEnc" or "TransUNet3D"
    crop_size: Box                    # voxels (z, y, x)
    features: tuple[int, ...]         # channels per resolution
    blocks: tuple[int, ...]           # residual blocks per resolution of the encoder
    heatmap_sigma_mm: float


@dataclass(frozen=True)
class SegmentRun:
    batch_size: int
    epochs: int
    iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    inference_batch: int
    centre_jitter_mm: float           # the heat map is made from centres moved by up to this much
    min_volume_ml: float              # smaller bodies are no vertebra
    overlap_dice: float               # two located centres whose masks overlap more are the same vertebra


@dataclass(frozen=True)
class IdentifyNetwork:
    depth: int                        # 18, 34, 50 or 101
    width: int                        # channels of the first stage
    stem_stride: int
    crop_size: Box
    pool_grid: Box                    # spatial cells kept by the pooling before the head
    hidden: int
    projection_dim: int
    dropout: float


@dataclass(frozen=True)
class IdentifyRun:
    batch_size: int
    contrastive_epochs: int
    classifier_epochs: int
    iterations_per_epoch: int
    contrastive_lr: float
    classifier_lr: float
    weight_decay: float
    contrastive_loss: str             # "in" (as printed in the paper) or "out"
    temperature: float
    loss_weights: tuple[float, float, float]  # alpha (sequence), beta (level distance), gamma (cross entropy)
    freeze_backbone: bool
    mc_samples: int
    theta: float
    hops: int
    neighbours: int                   # including the target
    decoder_prices: dict[str, float] = field(default_factory=dict)  # empty: the decoder's own defaults
    witness_weights: dict[str, float] = field(default_factory=dict)  # weight of each witness's log probabilities


@dataclass(frozen=True)
class MRData:
    """Model space of the MR stages: sagittal slices, z-scored; class k + 1 is `classes[k]` (canonical names)."""

    spacing_mm: tuple[float, float, float]   # (slice, row, column)
    orientation: str                  # x, y, z index axes run towards these sides; "PIL": slices to the left, rows to the feet
    percentiles: tuple[float, float]  # of the non-zero voxels: intensities are clipped there before the z-score
    classes: tuple[str, ...]
    label_values: tuple[int, ...]     # the dataset's own value of each class, used in written label maps


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
    label_shares: bool                # learned: the share of each class in a pixel of the 2D branches; False: its largest class
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
    kind_weight: float                # of Dice + cross entropy of body, disc and background as such, beside that of every class
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
    class_placed_share: float         # patches placed on a voxel of a random class; the others lie anywhere
    kind_weight: float
    rotation_deg: float
    scaling: tuple[float, float]
    disc_signal: float
    inference_batch: int
    overlap: float


@dataclass(frozen=True)
class GradeNetwork:
    crop_size: Box                    # voxels (z, y, x) that a vertebra is zoomed to
    features: tuple[int, ...]         # channels per resolution
    blocks: tuple[int, ...]           # residual blocks with squeeze and excitation per resolution
    projection_dim: int
    windows_hu: tuple[tuple[float, float], ...]  # CT channels beside the mask


@dataclass(frozen=True)
class GradeRun:
    batch_size: int                   # vertebrae, the four grades equally often; the contrastive loss sees each twice
    epochs: int
    iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    contrastive_weight: float         # of the supervised contrastive loss beside cross entropy; 0 = cross entropy alone
    temperature: float
    detach_classifier: bool           # the classifier learns on features that it cannot change
    ordinal: bool                     # soft targets: a far grade is a worse mistake than a neighbouring one


GROUP_TYPES: dict[str, dict[str, type]] = {
    "localize": {"data": Data, "network": LocalizeNetwork, "run": LocalizeRun},
    "segment": {"data": Data, "network": SegmentNetwork, "run": SegmentRun},
    "identify": {"data": Data, "network": IdentifyNetwork, "run": IdentifyRun},
    "grade": {"data": Data, "network": GradeNetwork, "run": GradeRun},
    "hybrid_2d": {"data": MRData, "network": Hybrid2DNetwork, "run": Hybrid2DRun},
    "hybrid_3d": {"data": MRData, "network": Hybrid3DNetwork, "run": Hybrid3DRun},
}
STAGES = tuple(GROUP_TYPES)  # every stage there is; a plan holds those of one family
# Stages that make a model together: (those it cannot do without, those it may have besides).
FAMILIES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ((CORE_STAGES, ("grade",)), (MR_STAGES[:1], MR_STAGES[1:]))


@dataclass(frozen=True)
class StagePlan:
    """The three groups of one stage; `reasons` holds {"group.name": {"rule": text, "from": {...}}} for the reader."""

    data: Any
    network: Any
    run: Any
    reasons: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)

    @property
    def data_fingerprint(self) -> str:
        return _digest({"data": dataclasses.asdict(self.data)})

    @property
    def model_fingerprint(self) -> str:
        return _digest({"data": dataclasses.asdict(self.data), "network": dataclasses.asdict(self.network)})


def family_of(stages: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(mandatory, optional) stages of the family that `stages` belong to; the core family when there are none."""
    present = set(stages)
    for required, optional in FAMILIES:
        if present & {*required, *optional}:
            return required, optional
    return FAMILIES[0]


def is_whole_model(stages: Iterable[str]) -> bool:
    """True when `stages` are all mandatory ones of a family and nothing but its optional ones besides."""
    present = set(stages)
    required, optional = family_of(present)
    return set(required) <= present <= {*required, *optional}


@dataclass(frozen=True)
class Plans:
    """All stages of one dataset's plan."""

    plans_name: str
    planner: str
    dataset_name: str
    dataset_hash: str
    budget: dict[str, Any]
    stages: dict[str, StagePlan]

    def stage(self, name: str) -> StagePlan:
        if name not in self.stages:
            raise InputError(f"Plan '{self.plans_name}' has no stage '{name}'; it has {', '.join(self.stages)}.")
        return self.stages[name]

    def to_json(self) -> dict[str, Any]:
        """JSON form: every number as {"value", "rule", "from"} so that it stays readable and editable."""
        stages: dict[str, Any] = {}
        for name, stage in self.stages.items():
            stages[name] = {group: {key: {"value": value} | stage.reasons.get(f"{group}.{key}", {})
                                    for key, value in dataclasses.asdict(getattr(stage, group)).items()} for group in GROUPS}
        return {"format": FORMAT, "plans_name": self.plans_name, "planner": self.planner, "dataset_name": self.dataset_name,
                "dataset_hash": self.dataset_hash, "budget": self.budget, "stages": stages,
                "fingerprints": {name: {"data": s.data_fingerprint, "model": s.model_fingerprint} for name, s in self.stages.items()}}

    @staticmethod
    def from_json(content: dict[str, Any], source: str = "plan") -> Plans:
        """Typed plan from its JSON form. Unknown or missing keys and wrong types are InputErrors that name the place."""
        if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
            raise InputError(f"{source} is no SpineCLUE plan (no 'stages').")
        version = content.get("format", 0)
        if type(version) is not int or version > FORMAT:
            raise InputError(f"{source} has format {version!r}; this version reads up to {FORMAT}. Update spineclue_v2.")
        for key, kind in (("plans_name", str), ("planner", str), ("dataset_name", str), ("dataset_hash", str), ("budget", dict)):
            if not isinstance(content.get(key, kind()), kind):
                raise InputError(f"{source}: {key} is {content[key]!r}; expected {kind.__name__}.")
        stages = {}
        for name, groups in content["stages"].items():
            if name not in GROUP_TYPES:
                raise InputError(f"{source}: unknown stage '{name}'{_nearest(name, GROUP_TYPES)}.")
            reasons: dict[str, dict[str, Any]] = {}
            parsed = {group: _parse_group(groups, name, group, reasons, source) for group in GROUPS}
            stages[name] = StagePlan(**parsed, reasons=reasons)
        return Plans(content.get("plans_name", DEFAULT_PLANS_NAME), content.get("planner", ""), content.get("dataset_name", ""),
                     content.get("dataset_hash", ""), content.get("budget", {}), stages)

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_json())

    @staticmethod
    def load(path: str | Path) -> Plans:
        path = Path(path)
        if not path.exists():
            raise InputError(f"Plan {path} does not exist; run spineclue_plan_and_preprocess -d ID first.")
        return Plans.from_json(read_json(path, "plan"), str(path))


def _parse_group(groups: Any, stage: str, group: str, reasons: dict[str, dict[str, Any]], source: str) -> Any:
    kind = GROUP_TYPES[stage][group]
    place = f"{source}: stages.{stage}.{group}"
    entries = groups.get(group) if isinstance(groups, dict) else None
    if not isinstance(entries, dict):
        raise InputError(f"{place} is missing.")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, entry in entries.items():
        if key not in hints:
            raise InputError(f"{place}: unknown key '{key}'{_nearest(key, hints)}.")
        value = entry["value"] if isinstance(entry, dict) and "value" in entry else entry
        values[key] = _typed(value, hints[key], f"{place}.{key}")
        _check_range(values[key], key, f"{place}.{key}")
        if isinstance(entry, dict) and "value" in entry:
            reasons[f"{group}.{key}"] = {k: v for k, v in entry.items() if k != "value"}
    missing = [f.name for f in dataclasses.fields(kind)
               if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise InputError(f"{place}: missing {', '.join(missing)}; plan again with spineclue_plan_experiment.")
    return kind(**values)


def _typed(value: Any, hint: Any, place: str) -> Any:
    """`value` as the annotated type; lists become tuples; anything that does not fit is an InputError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wrong = InputError(f"{place} is {reprlib.repr(value)}; expected {getattr(hint, '__name__', None) or hint}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise wrong
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(v, arguments[0], place) for v in value)
        if len(value) != len(arguments):
            raise wrong
        return tuple(_typed(v, a, place) for v, a in zip(value, arguments, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong
        return {str(k): _typed(v, arguments[1], place) for k, v in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise wrong
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise wrong


MAX_NUMBER = 10 ** 9
POSITIVE = {"spacing_mm", "slice_size", "crop_size", "features", "blocks", "width", "stem_stride", "pool_grid", "hidden", "projection_dim",
            "heatmap_sigma_mm", "batch_size", "inference_batch", "iterations_per_epoch", "slices_per_plane", "eps_mm", "axis_scale",
            "temperature", "mc_samples", "neighbours", "spacing_between_mm"}
MAY_BE_EMPTY = {"lr_drop_epochs"}
ANY_SIGN = {"hu_min", "hu_max", "windows_hu", "decoder_prices", "witness_weights"}
LARGEST = {"crop_size": 1024, "slice_size": 4096, "features": 8192, "blocks": 256, "width": 4096, "pool_grid": 1024, "hidden": 1 << 16,
           "projection_dim": 1 << 16, "spacing_mm": 50, "batch_size": 1 << 16, "inference_batch": 1 << 16, "slices_per_plane": 1 << 16,
           "mc_samples": 1 << 16, "dropout": 1, "nms_iou": 1, "min_score": 1, "overlap_dice": 1, "min_samples_share": 1}
SIDES = {"L": "L", "R": "L", "P": "P", "A": "P", "S": "S", "I": "S"}
CHOICES = {"contrastive_loss": ("in", "out"), "depth": (18, 34, 50, 101), "scale": ("n", "s", "m", "l", "x")}


def _check_range(value: Any, key: str, place: str) -> None:
    """Refuse numbers that no stage could work with: not finite, negative or zero where it makes no sense, absurdly large."""
    if key in CHOICES and value not in CHOICES[key]:
        raise InputError(f"{place} is {value!r}; known: {', '.join(map(str, CHOICES[key]))}.")
    if key == "orientation" and sorted(SIDES.get(letter, "") for letter in value) != ["L", "P", "S"]:
        raise InputError(f"{place} is {value!r}; expected one letter for each axis, such as LPS.")
    if key == "neighbours" and value % 2 == 0:
        raise InputError(f"{place} is {value}; expected an odd number: the vertebra itself and as many on either side.")
    if key == "decoder_prices":
        from .stages.identify.decoder import Prices

        known = [field.name for field in dataclasses.fields(Prices)]
        for name in value:
            if name not in known:
                raise InputError(f"{place}: unknown price '{name}'{_nearest(name, known)}.")
    if isinstance(value, tuple) and not value and key not in MAY_BE_EMPTY:
        raise InputError(f"{place} is empty; expected at least one value.")
    for number in _numbers(value):
        if isinstance(number, float) and not math.isfinite(number):
            raise InputError(f"{place} holds {number}, which is not finite.")
        if key not in ANY_SIGN and (number < 0 or (number == 0 and key in POSITIVE)):
            raise InputError(f"{place} holds {number}; expected a number {'above' if key in POSITIVE else 'of at least'} 0.")
        if abs(number) > LARGEST.get(key, MAX_NUMBER):
            raise InputError(f"{place} holds a number above {LARGEST.get(key, MAX_NUMBER)}, the largest that is accepted.")
    if key == "windows_hu" and any(low >= high for low, high in value):
        raise InputError(f"{place} holds {value!r}; each window needs its lower limit first.")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return [number for part in value for number in _numbers(part)]
    return [] if isinstance(value, str | bool) else [value]


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"


def _canonical(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return float(f"{float(value):.6g}")
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    return [_canonical(v) for v in value]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(_canonical(content), sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
