"""`CASE.png` of an MR scan."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import structures
from ..export.structures import NO_STRUCTURE
from ..imageio.orientation import oriented_view
from ..imageio.volume import Volume
from ..utilities.files import atomic_path

TILES = 5                 # sagittal slices shown

DPI = 110


def write_mr_report(volume: Volume, labels: Volume, rows: list[dict[str, Any]], orientation: str, path: Path, title: str) -> None:
    """`CASE.png`: sagittal slices through the labelled part, structures outlined in colour and named on the middle one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scan, found = oriented_view(volume, orientation), oriented_view(labels, orientation)
    inside = np.flatnonzero((found.array > 0).any((1, 2)))
    first, last = (inside[0], inside[-1]) if len(inside) else (0, scan.array.shape[0] - 1)
    chosen = np.unique(np.linspace(first, last, TILES).round().astype(int))
    high, wide = (n * s for n, s in zip(scan.array.shape[1:], scan.spacing[1:], strict=True))
    tall = 7.0
    figure = Figure(figsize=(max(6.0, tall * wide / high * len(chosen)), tall + 0.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}: {len(rows)} structures" if rows else f"{title}: {NO_STRUCTURE}", color="white")
    window = np.percentile(scan.array[scan.array != 0] if (scan.array != 0).any() else scan.array, (1, 99.5))
    for number, (axis, index) in enumerate(zip(np.atleast_1d(figure.subplots(1, len(chosen))), chosen, strict=True)):
        extent = (0, wide, high, 0)
        axis.imshow(scan.array[index], cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="bilinear")
        axis.set_axis_off()
        axis.set_title(f"slice {index + 1}", color="white", fontsize="small")
        for row in rows:
            mask = found.array[index] == row["label"]
            if not mask.any():
                continue
            colour = _colour(row["structure"])
            y, x = ((np.arange(n) + 0.5) * s for n, s in zip(mask.shape, scan.spacing[1:], strict=True))
            axis.contourf(x, y, mask, levels=[0.5, 1.5], colors=[colour], alpha=0.35)
            axis.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=0.8)
            if number == len(chosen) // 2:
                axis.text(x[mask.any(0)].mean(), y[mask.any(1)].mean(), row["structure"], color="white", fontsize=7,
                          ha="center", va="center")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="black", format="png")


def _colour(name: str) -> tuple[float, float, float]:
    """RGB 0..1: a vertebra's own colour, a disc's between its neighbours' and white, grey for the rest."""
    from ..anatomy import colour

    kind, upper = structures.kind(name), name.split("/")[0]
    if kind == "other" or name == structures.SACRUM:
        return (0.67, 0.67, 0.67)
    red, green, blue = (c / 255 for c in colour(upper))
    return (red, green, blue) if kind == "body" else ((red + 1) / 2, (green + 1) / 2, (blue + 1) / 2)
