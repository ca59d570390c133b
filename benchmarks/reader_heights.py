"""Readers' heights of real vertebrae (MosMedData, 50 chest CTs, two or three readers each) against what the package lets expect.

    python -m benchmarks.reader_heights [--data ../shared/data]

Spread between readers; usual ratios by level; how far readers' heights lie from those expected by their neighbours
(`comparison.compare`), and whether grade probabilities from one reader's heights fit the grades that another reader's heights imply.
The unit of the table does not matter: only ratios are compared. Nothing of the table is in the package: its licence (CC BY-NC) does not
allow it.
"""
from __future__ import annotations

import argparse
import gzip
import json
from collections import defaultdict
from itertools import permutations
from pathlib import Path

import numpy as np

from spineclue_v2.measures.height_records import EXPECTED_SD, grade_probabilities
from spineclue_v2.stages.grade.comparison import GRADED, USUAL, compare, grade_of

Heights = dict[str, tuple[float, float, float]]
READER_SD = 0.045       # of one reader's height, share: what `spread` finds


def read(file: Path) -> list[list[Heights]]:
    """Heights by scan, reader and level."""
    def lengths(row: dict[str, list]) -> tuple[float, float, float]:
        ends = np.array(row["segments_voxel_mm"])
        front, middle, back = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
        return float(front), float(middle), float(back)
    with gzip.open(file) as content:
        scans = json.load(content)
    return [[{row["level"]: lengths(row) for row in rows} for rows in scan["readers"].values()] for scan in scans]


def robust(values: np.ndarray) -> np.ndarray:
    """Standard deviation by column that some fractures do not move."""
    return 1.4826 * np.median(np.abs(values - np.median(values, axis=0)), axis=0)


def spread(scans: list[list[Heights]]) -> None:
    pairs = np.array([np.log(np.divide(a[level], b[level])) for readers in scans for i, a in enumerate(readers) for b in readers[:i]
                      for level in a.keys() & b.keys()])
    print(f"{len(pairs)} pairs of two readers: deviation of one reader's height (anterior, middle, posterior), %",
          (100 * pairs.std(0) / np.sqrt(2)).round(1), "robust", (100 * robust(pairs) / np.sqrt(2)).round(1))


def ratios(scans: list[list[Heights]], least: int = 20) -> None:
    found = defaultdict(list)
    for readers in scans:
        for heights in readers:
            for level, values in heights.items():
                found[level].append(values)
    print("level, readings: anterior and middle to posterior, readers (median) | usual")
    for level, usual in USUAL.items():
        if len(found[level]) >= least:
            front, middle, back = np.array(found[level]).T
            print(f"{level} {len(front)}: {np.median(front / back):.2f} {np.median(middle / back):.2f} | "
                  f"{usual[0] / usual[2]:.2f} {usual[1] / usual[2]:.2f}")


def against_own_wall(scans: list[list[Heights]], least: int = 40) -> None:
    """How far anterior and middle height, shares of the posterior one, lie from their level's median, and the reader's part of it."""
    def shares(values: tuple[float, float, float]) -> np.ndarray:
        return np.log(np.array(values[:2]) / values[2])
    found = defaultdict(list)
    for readers in scans:
        for heights in readers:
            for level, values in heights.items():
                found[level].append(shares(values))
    off = np.concatenate([np.array(rows) - np.median(rows, axis=0) for rows in found.values() if len(rows) >= least])
    pairs = np.array([shares(a[level]) - shares(b[level]) for readers in scans for i, a in enumerate(readers) for b in readers[:i]
                      for level in a.keys() & b.keys()])
    print("from the level's usual share of the posterior height (anterior, middle), robust deviation, %", (100 * robust(off)).round(1),
          "of which one reader's", (100 * robust(pairs) / np.sqrt(2)).round(1))


def losses(heights: Heights) -> dict[str, tuple[float, float, float]]:
    """By level, of those that neighbours let expect."""
    levels = [level for level in USUAL if level in heights]
    compared = zip(levels, compare(levels, [heights[level] for level in levels]), strict=True)
    return {level: value.loss for level, value in compared if value is not None and value.loss is not None
            and value.reference == "neighbours"}


def against_neighbours(scans: list[list[Heights]]) -> None:
    rows = [(level, loss) for readers in scans for heights in readers for level, loss in losses(heights).items()]
    every = np.array([loss for _, loss in rows])
    print(f"{len(every)} readings against their neighbours: median loss, %", (100 * np.median(every, axis=0)).round(1),
          "robust deviation", (100 * robust(every)).round(1), f"beyond 20 %: {(every.max(1) > 0.2).mean():.3f}")
    for level in USUAL:
        own = np.array([loss for name, loss in rows if name == level])
        if len(own) >= 20:
            print(f"  {level} {len(own)}: {(100 * np.median(own, axis=0)).round(1)}")


def calibration(scans: list[list[Heights]]) -> None:
    """Probability of grade >= 1 and >= 2 from one reader's heights, against what each other reader's heights imply."""
    said: dict[int, list[tuple[float, bool]]] = {1: [], 2: []}
    deviation = float(np.hypot(EXPECTED_SD["neighbours"], READER_SD))
    for readers in scans:
        by_reader = [losses(heights) for heights in readers]
        for one, other in permutations(by_reader, 2):
            for level in one.keys() & other.keys() & set(GRADED):
                probabilities = grade_probabilities(max(one[level]), deviation)
                for limit, rows in said.items():
                    rows.append((sum(probabilities[g] for g in range(limit, 4)), grade_of(max(other[level])) >= limit))
    for limit, rows in said.items():
        p, true = np.array(rows, dtype=float).T
        print(f"grade >= {limit}: {len(p)} pairs, share {true.mean():.3f}, mean probability {p.mean():.3f}, "
              f"Brier {np.mean((p - true) ** 2):.4f}")
        for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
            there = (p >= low) & (p < high)
            if there.any():
                print(f"  said {low:.2f} to {min(high, 1):.2f}: {there.sum()} pairs, mean {p[there].mean():.2f}, "
                      f"true {true[there].mean():.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    scans = read(parser.parse_args().data / "fracture" / "mosmed_heights_a.json.gz")
    for show in (spread, ratios, against_own_wall, against_neighbours, calibration):
        show(scans)


if __name__ == "__main__":
    main()
