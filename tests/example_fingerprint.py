"""Fingerprints for planner tests: a VerSe-like dataset from published body sizes and spacings, and what may differ."""

from __future__ import annotations

from typing import Any

LEVELS = {  # name: extent (SI, AP, LR) mm, volume ml; rounded adult values
    "C2": ((40, 47, 52), 12.0),
    "C5": ((27, 46, 55), 9.0),
    "T1": ((38, 55, 74), 18.0),
    "T6": ((46, 62, 62), 20.0),
    "T12": ((47, 75, 52), 41.0),
    "L3": ((52, 90, 100), 60.0),
    "L5": ((50, 84, 96), 62.0),
}


def percentiles(value: float, spread: float = 0.1) -> dict[str, float]:
    return {f"p{p}": round(value * (1 + spread * z), 3) for p, z in ((1, -2.3), (5, -1.6), (50, 0.0), (95, 1.6), (99, 2.3))}


def fingerprint(
    levels: tuple[str, ...] = tuple(LEVELS),
    voxel: float = 1.0,
    fov: tuple[float, float, float] = (420, 220, 240),
    spacing: tuple[float, float, float] = (15.0, 24.0, 40.0),
    channel: str = "CT",
    cases: int = 120,
) -> dict[str, Any]:
    """`spacing`: p5, p50, p99 of the distance between neighbours; `fov`: median field of view (SI, AP, LR), all mm."""
    shown = {name: LEVELS[name] for name in levels}
    axes = ("si", "ap", "lr")
    volumes = [v for _, v in shown.values()]

    def pooled(i: int) -> dict[str, float]:
        values = [extent[i] for extent, _ in shown.values()]
        return {
            "p1": 0.8 * min(values),
            "p5": 0.85 * min(values),
            "p50": sorted(values)[len(values) // 2],
            "p95": 1.05 * max(values),
            "p99": 1.2 * max(values),
        }

    low, median, high = spacing
    spine = {
        "num_cases": cases,
        "num_vertebrae": cases * len(shown),
        "median_voxel_mm": voxel,
        "fov_mm": {a: percentiles(f, 0.2) for a, f in zip(axes, fov, strict=True)},
        "extent_mm": {a: pooled(i) for i, a in enumerate(axes)},
        "volume_ml": {"p1": 0.7 * min(volumes), "p5": 0.8 * min(volumes), "p50": 30.0, "p95": 1.1 * max(volumes), "p99": 80.0},
        "body_height_mm": {"p1": 11.0, "p5": 12.0, "p50": 21.0, "p95": 29.0, "p99": 31.0},
        "spacing_between_mm": {"p1": 0.9 * low, "p5": low, "p50": median, "p95": 0.95 * high, "p99": high},
        "levels": {
            name: {
                "count": cases,
                "whole": cases,
                "extent_mm": {a: percentiles(e) for a, e in zip(axes, extent, strict=True)},
                "volume_ml": percentiles(volume),
                "body_height_mm": percentiles(20),
            }
            for name, (extent, volume) in shown.items()
        },
        "pairs": {},
        "transitions": {},
    }
    intensity = {
        "mean": 250.0,
        "median": 220.0,
        "std": 200.0,
        "min": -200.0,
        "max": 2500.0,
        "percentile_00_5": -60.0,
        "percentile_99_5": 1100.0,
    }
    return {
        "version": 1,
        "dataset_name": "Dataset501_Example",
        "dataset_hash": "0" * 16,
        "channel_name": channel,
        "foreground_intensity_properties_per_channel": {"0": intensity},
        "spine": spine,
        "cases": {},
        "checks": [],
    }
