"""Files of the study: CSV tables and the pictures drawn from them."""
from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import LEVEL_INDEX, LEVELS
from ..utilities.files import atomic_path

TITLES = {"hops": "hops", "mc_samples": "Monte-Carlo samples N", "theta": "theta", "neighbours": "neighbours, target included"}
REGION_MARKS = {"C": "o", "T": "s", "L": "^"}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table whose columns are the keys of its first row, by rename."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def plot_confusion(matrices: Mapping[str, np.ndarray], path: Path) -> None:
    """24 x 24 counts per step, each row divided by its sum: dark off the diagonal is a confusion."""
    figure, axes = _grid(len(matrices), 4, 3.3)
    for axis, (step, counts) in zip(axes, matrices.items(), strict=False):
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(np.where(counts.sum(axis=1, keepdims=True) > 0, shares, np.nan), cmap="Blues", vmin=0, vmax=1)
        right, total = int(np.trace(counts)), int(counts.sum())
        axis.set_title(f"{step}\n{right} of {total} right", fontsize=9)
        ticks = [LEVEL_INDEX[name] for name in ("C1", "T1", "T7", "L1", "L5")]
        axis.set_xticks(ticks, [LEVELS[t] for t in ticks], fontsize=7)
        axis.set_yticks(ticks, [LEVELS[t] for t in ticks], fontsize=7)
        for edge in (6.5, 18.5):
            axis.axhline(edge, color="grey", linewidth=0.4)
            axis.axvline(edge, color="grey", linewidth=0.4)
        axis.set_xlabel("predicted", fontsize=8)
        axis.set_ylabel("true", fontsize=8)
    _save(figure, path)


def plot_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """ID-rate over each parameter, mean of the seeds with each seed as a dot; the planned value is marked."""
    names = list(dict.fromkeys(row["parameter"] for row in rows))
    figure, axes = _grid(len(names), 2, 3.4)
    low = min(row["id_rate"] for row in rows)
    for axis, name in zip(axes, names, strict=False):
        own = [row for row in rows if row["parameter"] == name]
        values = list(dict.fromkeys(row["value"] for row in own))
        means = [np.mean([row["id_rate"] for row in own if row["value"] == value]) for value in values]
        axis.plot(values, means, marker="o", color="tab:blue")
        if len({row["seed"] for row in own}) > 1:
            axis.plot([row["value"] for row in own], [row["id_rate"] for row in own], ".", color="tab:blue", alpha=0.4)
        for value in {row["value"] for row in own if row["planned"]}:
            axis.axvline(value, color="grey", linestyle=":", label="planned")
            axis.legend(fontsize=8)
        if name == "theta":
            axis.set_xscale("log")
        axis.set_ylim(max(0.0, low - 0.05), 1.0)
        axis.set_xlabel(TITLES.get(name, name))
        axis.set_ylabel("ID-rate after fusion")
    _save(figure, path)


def plot_embeddings(points: Sequence[Mapping[str, Any]], silhouettes: Sequence[Mapping[str, Any]], titles: Mapping[str, str],
                    path: Path) -> None:
    """t-SNE of the features, one panel per network: hue runs from C1 to L5, the mark says the region."""
    from matplotlib import colormaps

    names = list(dict.fromkeys(point["training"] for point in points))
    figure, axes = _grid(len(names), 2, 4.2)
    colours = colormaps["turbo"](np.linspace(0.02, 0.98, len(LEVELS)))
    for axis, name in zip(axes, names, strict=False):
        for level in LEVELS:
            own = [(point["x"], point["y"]) for point in points if point["training"] == name and point["level"] == level]
            if own:
                x, y = np.array(own).T
                axis.scatter(x, y, s=14, color=colours[LEVEL_INDEX[level]], marker=REGION_MARKS[level[0]])
                axis.annotate(level, (np.median(x), np.median(y)), fontsize=7, ha="center", va="center", weight="bold")
        values = [row["neighbour_silhouette"] for row in silhouettes if row["training"] == name]
        mean = "-" if np.isnan(values).all() else f"{np.nanmean(values):.3f}"
        axis.set_title(f"{titles[name]}\nsilhouette of neighbouring levels {mean}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    _save(figure, path)


def _grid(count: int, columns: int, size: float) -> tuple[Any, list[Any]]:
    """A figure of `count` panels and their axes."""
    from matplotlib.figure import Figure

    columns = min(columns, max(count, 1))
    lines = -(-max(count, 1) // columns)
    figure = Figure(figsize=(size * columns, size * lines), layout="constrained")
    axes = list(np.ravel(figure.subplots(lines, columns, squeeze=False)))
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
