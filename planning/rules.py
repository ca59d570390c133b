"""The planning rules: one pure function per number, each giving the value, the rule in words, and the inputs it used.

`statistics` is the fingerprint's spine statistics in the units of the rules (`DatasetStatistics`), `HardwareProfile` the class of machine.
Lengths are mm, boxes (z, y, x) = (SI, AP, LR).
"""
from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import Any, NamedTuple

from spineclue_v2.errors import InputError

FINEST_MM = 1.0                  # CT masks of vertebrae carry no shape below a millimetre, and cost grows with the cube
LEAST_GAP_MM, LARGEST_GAP_MM = 1.0, 4.0   # closer slices add boxes, not vertebrae; between wider ones a small vertebra gets lost
MAX_SLICE_SIZE = 640             # the paper's slice
REACH_MM = 12.0                  # how far one vertebra's boxes are linked across it
SPINE_BAND_MM = 320.0            # in-plane width that holds spine, ribs and a scoliotic curve


class PlannedValue(NamedTuple):
    """A planned number with its reason."""

    value: Any
    rule: str
    inputs: dict[str, Any]


@dataclass(frozen=True)
class DatasetStatistics:
    """What the rules look at. Extents: p95 of the largest level, p95 and p5 over all vertebrae, each (SI, AP, LR) mm."""

    median_voxel: float
    fov: tuple[float, float, float]
    largest: tuple[float, float, float]
    extent_p95: tuple[float, float, float]
    extent_p5: tuple[float, float, float]
    spacing_between: tuple[float, float, float]       # p5, p50, p99
    body_height: tuple[float, float]                  # p5, p50
    volume_p5: float
    num_cases: int
    num_vertebrae: int
    is_ct: bool
    intensity: tuple[float, float, float]             # p0.5, median, p99.5 of the foreground

    @staticmethod
    def from_fingerprint(fingerprint: dict[str, Any]) -> DatasetStatistics:
        spine = fingerprint["spine"]
        axes = ("si", "ap", "lr")
        # One or two samples say little about a 95th percentile: such levels count only when nothing else is there.
        levels = [v for v in spine["levels"].values() if v["whole"] >= 3] or list(spine["levels"].values())
        gaps = spine["spacing_between_mm"] or {"p5": 15.0, "p50": 25.0, "p99": 40.0}    # no neighbours in the data: adult anatomy
        intensity = fingerprint["foreground_intensity_properties_per_channel"]["0"]
        return DatasetStatistics(
            median_voxel=spine["median_voxel_mm"], fov=tuple(spine["fov_mm"][a]["p95"] for a in axes),
            largest=tuple(max(v["extent_mm"][a]["p95"] for v in levels) for a in axes),
            extent_p95=tuple(spine["extent_mm"][a]["p95"] for a in axes),
            extent_p5=tuple(spine["extent_mm"][a]["p5"] for a in axes),
            spacing_between=(gaps["p5"], gaps["p50"], gaps["p99"]),
            body_height=(spine["body_height_mm"]["p5"], spine["body_height_mm"]["p50"]), volume_p5=spine["volume_ml"]["p5"],
            num_cases=spine["num_cases"], num_vertebrae=spine["num_vertebrae"], is_ct=fingerprint["channel_name"].upper() == "CT",
            intensity=(intensity["percentile_00_5"], intensity["median"], intensity["percentile_99_5"]))


@dataclass(frozen=True)
class HardwareProfile:
    """A class of machine and what fits it; chosen by `tier`. Everything else follows from the data."""

    name: str
    localize_mm: float           # finest spacing per stage
    segment_mm: float
    detector: str
    slice_pixels: int
    slice_hits: int              # slices of one plane that should cross the narrowest vertebra
    features: tuple[int, ...]
    blocks: tuple[int, ...]
    depth: int
    width: int
    epochs: tuple[int, int, int, int]        # localize, segment, identify contrastive, identify classifier
    iterations: int
    grade_pixels: int = 128      # largest in-plane side of a crop for grading


HARDWARE_PROFILES = (
    # The laptop's epochs are half an hour for all three stages on two cores that multiply bfloat16 (measured: 26 minutes), perhaps
    # three quarters on others; more are a number to edit in the plan.
    HardwareProfile("laptop", 2.0, 1.5, "n", 256 * 160, 5, (16, 32, 64, 128), (1, 1, 1, 1), 18, 16, (36, 14, 4, 6), 25, 64),
    HardwareProfile("small", 1.5, 1.25, "s", 384 * 256, 8, (24, 48, 96, 192), (1, 2, 3, 3), 18, 32, (100, 200, 100, 50), 100, 96),
    HardwareProfile("medium", 1.25, 1.0, "m", 512 * 320, 10, (32, 64, 128, 256, 320), (1, 2, 3, 4, 4), 34, 32,
         (150, 400, 200, 100), 250),
    HardwareProfile("large", 1.0, 1.0, "l", 640 * 384, 12, (32, 64, 128, 256, 320), (1, 3, 4, 6, 6), 50, 48,
         (200, 600, 300, 100), 250),
    HardwareProfile("workstation", 1.0, 1.0, "x", 640 * 640, 12, (48, 96, 192, 320, 384), (1, 3, 4, 6, 6), 101, 64,
         (300, 800, 500, 100), 250),
)


def default_budget(device: str) -> float:
    """GB that a plan may use when none are given: 8 on a GPU (nnU-Net's default), 2 elsewhere."""
    return 8.0 if device == "cuda" else 2.0


def budget(device: str, gpu_memory_target: float | None) -> float:
    """The GB asked for, or the device's default; InputError for an unknown device or no memory."""
    if device not in ("cuda", "cpu", "mps"):
        raise InputError(f"Device '{device}' is unknown; expected cuda, cpu or mps.")
    gb = default_budget(device) if gpu_memory_target is None else float(gpu_memory_target)
    if not gb > 0:
        raise InputError(f"-gpu_memory_target is {gb:g} GB; expected a positive number.")
    return gb


def profile(device: str, gpu_memory_target: float) -> PlannedValue:
    """Class of machine from the device and the memory target."""
    if device != "cuda":
        chosen = HARDWARE_PROFILES[0]
    else:
        limits = (3.0, 6.0, 12.0, 32.0)
        chosen = HARDWARE_PROFILES[sum(gpu_memory_target >= limit for limit in limits)]
    return PlannedValue(chosen, "without a GPU waiting time is the limit, not memory: the laptop class; with one by memory: "
                          "small from 3 GB, medium from 6, large from 12, workstation from 32",
                  {"device": device, "gb": gpu_memory_target})


# ---- data -----------------------------------------------------------------------------------------------------------------
def spacing(statistics: DatasetStatistics, finest: float) -> PlannedValue:
    """Isotropic voxel of a stage."""
    value = max(FINEST_MM, finest, round(statistics.median_voxel * 4) / 4)
    return PlannedValue(float(value), "the median voxel's geometric mean in steps of 0.25 mm, not finer than 1 mm nor than the class "
                                "of machine serves", {"median_voxel_mm": statistics.median_voxel, "class_finest_mm": finest})


def hu_limits(statistics: DatasetStatistics) -> PlannedValue:
    """Stored intensity range."""
    if statistics.is_ct:
        return PlannedValue((-1024, 3071), "12-bit CT from air; metal above says nothing about bone", {})
    return PlannedValue((0, int(max(1.0, 4 * statistics.intensity[2]))), "no CT: 0 to four times the foreground's 99.5th percentile",
                  {"percentile_99_5": statistics.intensity[2]})


def windows_hu(statistics: DatasetStatistics) -> PlannedValue:
    """CT windows, one input channel each."""
    if statistics.is_ct:
        return PlannedValue(((-200.0, 400.0), (-100.0, 1300.0)), "soft tissue, discs and trabecular bone; bone up to the cortex", {})
    low, median, high = statistics.intensity
    return PlannedValue(((round(min(low, 0.0), 1), round(high, 1)), (round(low, 1), round(max(median * 2, low + 1), 1))),
                  "no CT: the whole foreground, and its darker half", {"percentiles": list(statistics.intensity)})


# ---- localize ---------------------------------------------------------------------------------------------------------------
def slice_size(statistics: DatasetStatistics, spacing_mm: float, pixels: int) -> PlannedValue:
    """(z, in-plane) pixels of a training slice."""
    plane_mm = min(SPINE_BAND_MM, max(statistics.fov[1], statistics.fov[2]))
    plane = min(MAX_SLICE_SIZE, _multiple(plane_mm / spacing_mm, 32))
    rows = min(MAX_SLICE_SIZE, _multiple(statistics.fov[0] / spacing_mm, 32), max(64, 32 * floor(pixels / plane / 32)))
    return PlannedValue((rows, plane), "95th percentile of the field of view (in-plane at most 320 mm), multiples of 32, at most 640 "
                                 "and the pixels that the class of machine serves; longer scans are tiled",
                  {"fov_p95_mm": list(statistics.fov), "spacing_mm": spacing_mm, "class_pixels": pixels})


def slice_gap_mm(statistics: DatasetStatistics, hits: int) -> PlannedValue:
    """Distance of the slices of a plane where the spine is read."""
    narrowest = min(statistics.extent_p5[1], statistics.extent_p5[2])
    return PlannedValue(float(min(LARGEST_GAP_MM, max(LEAST_GAP_MM, round(narrowest / hits, 2)))), "enough slices cross the narrowest "
                        "vertebra (5th percentile), between 1 and 4 mm; their number follows from the scan",
                        {"narrowest_mm": narrowest, "hits": hits})


def eps_mm(statistics: DatasetStatistics) -> PlannedValue:
    """Radius of the position clustering."""
    return PlannedValue(round(0.25 * statistics.spacing_between[0], 2), "a quarter of the smallest spacing between neighbours (5th "
                  "percentile): boxes of one vertebra agree far better along the spine, and two radii never bridge to the next",
                  {"spacing_p5_mm": statistics.spacing_between[0]})


def axis_scale(eps: float) -> PlannedValue:
    """(z, y, x) divisors of distances before clustering."""
    value = (1.0, round(REACH_MM / eps, 2), round(REACH_MM / eps, 2))
    return PlannedValue(value, "neighbours part along z, one vertebra's boxes spread in y and x: there eps reaches 12 mm, several slices "
                        "(best "
                         "of 60 settings on validation phantoms); wider where a scan's slices lie farther apart",
                  {"eps_mm": eps, "reach_mm": REACH_MM})


def spacing_between_mm(statistics: DatasetStatistics) -> PlannedValue:
    """Plausible distance of neighbouring centres."""
    low, _, high = statistics.spacing_between
    return PlannedValue((round(0.75 * low, 1), round(1.25 * high, 1)), "5th and 99th percentile between neighbours, a quarter wider",
                  {"p5_mm": low, "p99_mm": high})


# ---- segment ----------------------------------------------------------------------------------------------------------------
def centre_jitter_mm(statistics: DatasetStatistics) -> PlannedValue:
    """How far training moves the located centre."""
    return PlannedValue(round(min(10.0, max(4.0, 0.5 * statistics.spacing_between[0])), 1), "half the smallest spacing: a centre that errs "
                  "more means the neighbour", {"spacing_p5_mm": statistics.spacing_between[0]})


def segment_crop(statistics: DatasetStatistics, spacing_mm: float, jitter_mm: float, resolutions: int) -> PlannedValue:
    """Crop (z, y, x) voxels around a located vertebra."""
    lengths = (statistics.largest[0] + statistics.spacing_between[1], statistics.largest[1] + jitter_mm, statistics.largest[2] + jitter_mm)
    divisor = 2 ** (resolutions - 1)
    return PlannedValue(tuple(_multiple(length / spacing_mm, divisor) for length in lengths),
                  "the largest vertebra (95th percentile of the largest level) and half a neighbour above and below, sideways "
                  "the centre's jitter; multiples of what the network halves",
                  {"largest_mm": list(statistics.largest), "spacing_p50_mm": statistics.spacing_between[1], "jitter_mm": jitter_mm,
                   "divisor": divisor})


def heatmap_sigma_mm(statistics: DatasetStatistics) -> PlannedValue:
    """Width of the Gaussian that marks the vertebra."""
    value = min(9.0, max(5.0, 0.5 * statistics.body_height[0] + 0.125 * (statistics.body_height[1] - statistics.body_height[0])))
    return PlannedValue(round(value, 1), "about half the height of a small body: marks the body, little of its neighbours; 5 to 9 mm",
                  {"body_height_p5_mm": statistics.body_height[0], "body_height_p50_mm": statistics.body_height[1]})


def min_volume_ml(statistics: DatasetStatistics) -> PlannedValue:
    """Smallest segmented body that counts."""
    return PlannedValue(round(max(0.3, 0.1 * statistics.volume_p5), 2), "a tenth of a small vertebra (5th percentile): what the border of "
                  "a scan leaves of one", {"volume_p5_ml": statistics.volume_p5})


# ---- identify ---------------------------------------------------------------------------------------------------------------
def identify_crop(statistics: DatasetStatistics, spacing_mm: float) -> PlannedValue:
    """Mask crop (z, y, x) voxels."""
    return PlannedValue(tuple(_multiple(length / spacing_mm, 16) for length in statistics.extent_p95),
                  "holds 95 % of the vertebrae along each axis, multiples of 16",
                  {"extent_p95_mm": list(statistics.extent_p95), "spacing_mm": spacing_mm})


def _multiple(value: float, divisor: int) -> int:
    """Smallest multiple of `divisor` that is not below `value` (half a voxel is forgiven)."""
    return int(divisor * max(1, ceil((value - 0.5) / divisor)))


# ---- grade ------------------------------------------------------------------------------------------------------------------
def can_learn_grades(grades: dict[str, int]) -> bool:
    """Whether a dataset's counts {grade: vertebrae} hold what a classifier needs: vertebrae with and without a deformity."""
    return grades.get("0", 0) > 0 and any(count > 0 for grade, count in grades.items() if grade != "0")


def grade_crop(statistics: DatasetStatistics, spacing_mm: float, most: int) -> PlannedValue:
    """Crop that each vertebra is zoomed to."""
    wide = max(statistics.extent_p95[1], statistics.extent_p95[2])
    side = min(most, _multiple(1.1 * wide / spacing_mm, 16))
    rows = min(side, _multiple(1.1 * statistics.extent_p95[0] / wide * side, 16))
    return PlannedValue((rows, side, side), "vertebrae are zoomed so that their larger in-plane side and a tenth fill the crop: about "
                        "the voxels "
                  "of the scan, as many as the class of machine serves; the height in proportion, multiples of 16; 128 cubed in Wei et al.",
                  {"extent_p95_mm": list(statistics.extent_p95), "spacing_mm": spacing_mm, "class_pixels": most})


def grade_windows(statistics: DatasetStatistics) -> PlannedValue:
    """CT channels beside the mask."""
    if statistics.is_ct:
        return PlannedValue(((-60.0, 140.0), (-350.0, 1150.0)), "soft tissue (W200 L40) and bone (W1500 L400), Wei et al. 2022", {})
    return windows_hu(statistics)
