"""What the stages hand to each other: one frozen record per vertebra that gains fields stage by stage."""
from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from ..utilities.triples import Box, Floats3, box_slices

Value = TypeVar("Value")


@dataclass(frozen=True)
class BodyHeights:
    """Heights of a vertebral body along its own axis (mm), what is expected of them, and what that implies."""

    anterior: float
    middle: float
    posterior: float
    expected: tuple[float, float, float] | None = None   # (anterior, middle, posterior) mm
    reference: str | None = None                         # where `expected` comes from: "neighbours" or "own posterior wall"
    grade: int | None = None                             # Genant grade 0..3 that the largest loss implies
    shape: str | None = None                             # "wedge", "biconcave" or "crush" when the grade is above 0

    @property
    def measured(self) -> tuple[float, float, float]:
        return (self.anterior, self.middle, self.posterior)

    @property
    def loss(self) -> tuple[float, float, float] | None:
        """Missing fraction of the expected height, per height; below 0 where the body is higher than expected."""
        if self.expected is None:
            return None
        anterior, middle, posterior = self.expected
        return 1 - self.anterior / anterior, 1 - self.middle / middle, 1 - self.posterior / posterior


@dataclass(frozen=True, eq=False)
class BodyFrame:
    """A vertebral body in its own frame. `centre` (z, y, x) index of the mask; `axes` (3, 3): rows are the unit vectors z' (cranial), y'
    (backwards), x' (to the left) in array order (z, y, x), mm; `walls_mm`: y' of the anterior and posterior wall; `heights_mm`: (anterior,
    middle, posterior); `half_width_mm`: half the body's width at mid-height; `residual_mm`: roughness of the end plates round their fit."""

    centre: np.ndarray
    axes: np.ndarray
    walls_mm: tuple[float, float]
    heights_mm: tuple[float, float, float]
    half_width_mm: float
    residual_mm: float


@dataclass(frozen=True)
class Vertebra:
    """One vertebra of a scan. Positions are LPS millimetres (x, y, z); extents and sizes are (z, y, x) millimetres.

    localize fills `box_centre`, `extent`, `score`, `hits` and about where the `body_centre` is; centres puts that one on a peak of its heat
    map and fills `centre_score`; segment fills `mask`, `mask_start`, `mask_centroid`,
    `body_centre`, `volume_ml`, `touches_border`; identify `probabilities` to `confidence`; grade the rest.
    Fields of stages that have not run are None; `known_*` are the same fields for code that runs after that stage: they raise a
    ValueError instead of giving None.
    """

    box_centre: tuple[float, float, float]
    extent: tuple[float, float, float]
    score: float
    hits: int = 0                                     # detector boxes behind this vertebra
    mask: np.ndarray | None = field(default=None, repr=False)   # bool (z, y, x), network space, tight crop
    mask_start: tuple[int, int, int] | None = None       # index (z, y, x) of mask[0, 0, 0] in network space
    mask_centroid: tuple[float, float, float] | None = None
    body_centre: tuple[float, float, float] | None = None
    volume_ml: float | None = None
    touches_border: bool = False
    probabilities: np.ndarray | None = field(default=None, repr=False)  # (24,) over anatomy.LEVELS, sums to 1
    uncertainty: float | None = None                     # entropy of the Monte-Carlo mean, nats (SpineCLUE Eq. 6)
    level: str | None = None                             # name in anatomy.ANATOMICAL_ORDER
    confidence: float | None = None                      # posterior of `level` under the decoder
    heights: BodyHeights | None = None
    height_doubt: str | None = None                      # why a body that could have `heights` has none
    frame: BodyFrame | None = field(default=None, repr=False)  # of the body in `mask`, whether or not its heights are trusted
    trabecular_hu: float | None = None                   # median HU of the middle of the body; contrast raises it
    centre_score: float | None = None                    # height of the heat map's peak that `body_centre` was put on; None: there is none
    grade_probabilities: tuple[float, float, float, float] | None = None  # of Genant grades 0..3, by the network
    combined_grade_probabilities: tuple[float, float, float, float] | None = None  # by network and heights together
    grade_doubt: str | None = None                       # why the stage `grade` gave none to a vertebra that could have one
    mask_probability: np.ndarray | None = field(default=None, repr=False)  # uint8 on the crop of `mask`, see on_the_masks_side
    log_probabilities: np.ndarray | None = field(default=None, repr=False)  # (25,) levels and "not a vertebra", all classifiers together
    variant_log_probabilities: tuple[float, float] | None = None  # of T13 and L6, NaN where no classifier knows them

    @property
    def known_mask(self) -> np.ndarray:
        """`mask`; ValueError before segmentation."""
        return _filled(self.mask, "mask", "segment")

    @property
    def known_mask_start(self) -> tuple[int, int, int]:
        """`mask_start`; ValueError before segmentation."""
        return _filled(self.mask_start, "mask_start", "segment")

    @property
    def mask_box(self) -> Box:
        """Slices (z, y, x) of the mask's crop in an array of network space; ValueError before segmentation."""
        return box_slices(self.known_mask_start, self.known_mask.shape)

    @property
    def known_body_centre(self) -> Floats3:
        """`body_centre`, (x, y, z) LPS mm; ValueError before segmentation."""
        return _filled(self.body_centre, "body_centre", "segment")

    @property
    def known_volume_ml(self) -> float:
        """`volume_ml`; ValueError before segmentation."""
        return _filled(self.volume_ml, "volume_ml", "segment")

    @property
    def known_log_probabilities(self) -> np.ndarray:
        """`log_probabilities`; ValueError before identification."""
        return _filled(self.log_probabilities, "log_probabilities", "identify")

    @property
    def known_level(self) -> str:
        """`level`; ValueError before identification."""
        return _filled(self.level, "level", "identify")


def _filled(value: Value | None, name: str, stage: str) -> Value:
    if value is None:
        raise ValueError(f"this vertebra has no {name}; the stage {stage} has to run first")
    return value


def on_the_masks_side(probability: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Probabilities in [0, 1] as uint8 (255 = 1), at least 128 in the mask and at most 127 outside it.

    Voxels that the mask lost to a neighbour or with another component stay lost at any resolution, filled holes stay filled.
    """
    stored = np.rint(probability.astype(np.float32) * 255).astype(np.uint8)
    return np.where(mask, np.maximum(stored, 128), np.minimum(stored, 127)).astype(np.uint8)


def vertebra_record(vertebra: Vertebra) -> dict[str, Any]:
    """The plain values (numbers, texts, positions) as JSON; arrays and what can be measured again are left out."""
    values = {entry.name: getattr(vertebra, entry.name) for entry in fields(vertebra)}
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str | tuple)}


def vertebra_from_record(record: dict[str, Any], **arrays: Any) -> Vertebra:
    """The vertebra of a `vertebra_record`, with its arrays."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    return Vertebra(**values, **arrays)
