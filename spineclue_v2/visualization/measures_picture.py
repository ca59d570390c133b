"""`CASE_measures.png`: the lines that a reader would draw on a mid-sagittal and a coronal view, with the numbers beside them."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..export.labelled_spine import LabelledSpine
from ..imageio.orientation import oriented_view
from ..imageio.volume import ImageGrid, Volume
from ..measures.bodies import Body, EndPlate
from ..utilities.files import atomic_path
from .report import BACKGROUND, DPI, FAINT, HEAD, MAX_SIZE_INCH, PACKING, SIDE, TEXT, WARNING, View, curved_views, show_plane

COLOURS = ("#4fc3f7", "#ffb74d", "#aed581", "#f06292", "#ba68c8", "#fff176", "#4db6ac", "#e57373")
TABLE_INCH, GAP_INCH, FOOT_INCH, LINE_INCH = 5.2, 0.25, 0.45, 0.155
INCH_PER_MM = 0.04
FEWEST_INCH = 5.0
BEYOND_MM = {"sagittal": 18.0, "coronal": 24.0}     # lines run on beyond the body, so that the eye can compare them
TINY = 7.5


def write_measures_picture(result: LabelledSpine, mask_grid: ImageGrid, volume: Volume, path: str | Path, title: str) -> None:
    """Write the picture as PNG, by rename. `volume`: the scan on any grid; `mask_grid`: that of the vertebrae's masks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = measures_figure(result, mask_grid, volume, title)
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor=BACKGROUND, format="png", pil_kwargs=PACKING)


def measures_figure(result: LabelledSpine, mask_grid: ImageGrid, volume: Volume, title: str) -> Any:
    """The figure of `write_measures_picture` (a matplotlib Figure that no global state knows)."""
    from matplotlib.figure import Figure

    scan = oriented_view(volume)
    views = curved_views(result.vertebrae, mask_grid, scan.geometry)
    widths = [view.extent[1] - view.extent[0] for view in views]
    height = views[0].extent[3] - views[0].extent[2]
    scale = min((MAX_SIZE_INCH[1] - HEAD - FOOT_INCH) / height, INCH_PER_MM, 9.0 / sum(widths))
    size = (sum(widths) * scale + 2 * SIDE + 2 * GAP_INCH + TABLE_INCH, max(height * scale, FEWEST_INCH) + HEAD + FOOT_INCH)
    figure = Figure(figsize=size, facecolor=BACKGROUND)
    shown = _shown(result.measures.get("alignment", ()), result.measures.get("discs", ()))
    left = SIDE
    for view, name, width in zip(views, ("sagittal", "coronal"), widths, strict=True):
        panel = figure.add_axes((left / size[0], 1 - (HEAD + height * scale) / size[1], width * scale / size[0], height * scale / size[1]))
        show_plane(panel, view, scan)
        for body in result.bodies:
            _draw_body(panel, body, name, scan.geometry)
        _draw_lines(panel, view, [(r, c) for r, c in shown if r.get("plane") == name], name, scan.geometry)
        left += width * scale + GAP_INCH
    _draw_tables(figure, result, left / size[0], size, {r["name"]: c for r, c in shown})
    figure.text(SIDE / size[0], 1 - 0.16 / size[1], title, color=TEXT, fontsize=13, weight="bold", va="top")
    anchored = "" if result.numbering_anchored else ", NUMBERING NOT ANCHORED: names and all angles between named levels may be shifted"
    figure.text(SIDE / size[0], 1 - 0.45 / size[1], f"measured lying{anchored}", color=FAINT if result.numbering_anchored else WARNING,
                fontsize=10, va="top")
    figure.text(SIDE / size[0], 0.16 / size[1], "kyphosis positive in the thoracic spine, lordosis positive in all other angles · lines: "
                "end plates fitted in 3D, seen in this view", color=FAINT, fontsize=8.5, va="center")
    return figure


def _shown(*groups: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """Records with lines whose lines are drawn in colour, each with its colour: alignment, and marked listhesis."""
    found = [r for records in groups for r in records if r.get("lines_mm") and r["name"] != "disc angle"]
    return [(r, COLOURS[i % len(COLOURS)]) for i, r in enumerate(found)]


def _place(point: Sequence[float] | np.ndarray, plane: str, grid: ImageGrid) -> tuple[float, float]:
    """Column and row (mm) of an LPS point in a view."""
    z, y, x = grid.world_to_index(np.asarray(point, dtype=float)) * np.array(grid.spacing)
    return float(y if plane == "sagittal" else x), float(z)


def _draw_body(panel: Any, body: Body, plane: str, grid: ImageGrid) -> None:
    """Both end plates as thin lines, and the level's name beside the body."""
    plates: list[EndPlate] = [plate for plate in (body.upper, body.lower) if plate is not None]
    for plate in plates:
        ends = (plate.front, plate.back) if plane == "sagittal" else (plate.right, plate.left)
        panel.plot(*zip(*(_place(end, plane, grid) for end in ends), strict=True), color="#ffffff", linewidth=0.9, alpha=0.75)
    if body.half_depth_mm:
        column, row = _place(body.centre, plane, grid)
        panel.text(column, row, body.level, color=TEXT if plates else FAINT, fontsize=TINY, ha="center", va="center", alpha=0.9)


def _draw_lines(panel: Any, view: View, records: Sequence[tuple[Mapping[str, Any], str]], plane: str, grid: ImageGrid) -> None:
    """Lines of the records, run on beyond the body, with the value at the end of the first."""
    taken: list[float] = []
    for number, (record, colour) in enumerate(records):
        beyond = BEYOND_MM[plane] + 7.0 * (number % 3) if record["unit"] == "deg" else 0.0
        spots = []
        for line in record["lines_mm"]:
            ends = np.array([_place(point, plane, grid) for point in line])
            along = ends[1] - ends[0]
            along = along / max(float(np.linalg.norm(along)), 1e-6)
            ends = ends + np.array([[-0.3], [1.0]]) * along * beyond
            panel.plot(*ends.T, color=colour, linewidth=1.6)
            spots.append(ends[1])
        column = min(max(spot[0] for spot in spots) + 2.0, view.extent[1] - 14.0)
        row = float(np.mean([spot[1] for spot in spots])) if record["unit"] == "deg" else spots[-1][1]
        while any(abs(row - other) < 9.0 for other in taken):
            row -= 9.0
        taken.append(row)
        if record["unit"] == "deg" and len(spots) > 1:
            panel.plot([spots[0][0], spots[1][0]], [spots[0][1], spots[1][1]], color=colour, linewidth=0.7, linestyle=":")
        panel.text(column, row, _number(record), color=colour, fontsize=10, weight="bold", ha="left", va="center",
                   bbox={"facecolor": BACKGROUND, "edgecolor": "none", "alpha": 0.6, "pad": 1.0})


def _draw_tables(figure: Any, result: LabelledSpine, left: float, size: tuple[float, float], colours: Mapping[str, str]) -> None:
    """Alignment, then discs, then bone, one line each; as many as there is room for."""
    lines: list[tuple[str, str]] = []
    for row in result.measures.get("alignment", ()):
        given = row["value"] is not None
        sure = "" if row["confidence"] is None or not given else f"  ({100 * row['confidence']:.0f} %)"
        ends = " " + "-".join(row["levels"]) if row["name"].startswith("Cobb") and given else ""
        side = f" convex {row['convexity']}, apex {row['apex']}" if row.get("convexity") else ""
        text = f"{row['name']}{ends}: {_number(row)}{side}{sure}" if given else f"{row['name']}: {_shortened(row['note'])}"
        lines.append((text, colours.get(row["name"], TEXT) if given else FAINT))
    lines += [("", TEXT), *((text, TEXT) for text in disc_lines(result.measures.get("discs", ())))]
    bone = result.measures.get("bone", ())
    if bone:
        values = ", ".join(f"{row['levels'][0]} {row['value']:.0f}" for row in bone)
        note = bone[0]["note"]
        lines += [("", TEXT), ("trabecular density, HU" + (f" ({note})" if note else ""), WARNING if note else TEXT)]
        lines += [(part, TEXT) for part in _wrapped(values, 62)]
    top = size[1] - HEAD
    for number, (text, colour) in enumerate(lines):
        y = top - number * LINE_INCH
        if y < FOOT_INCH:
            break
        figure.text(left, y / size[1], text, color=colour, fontsize=8.2, va="top", family="monospace")


def disc_lines(discs: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line of text for each disc: angle, heights, listhesis."""
    table: dict[str, dict[str, float]] = {}
    for row in discs:
        table.setdefault(row["disc"], {})[row["name"]] = row["value"]
    if not table:
        return []
    lines = ["disc      angle    height mm (a/m/p)   listhesis"]
    for disc, row in table.items():
        heights = "/".join(f"{row[f'disc height {where}']:.0f}" for where in ("anterior", "middle", "posterior"))
        lines.append(f"{disc:<8} {row['disc angle']:6.1f}°   {heights:^17}   {row['listhesis']:+5.1f} mm {row['listhesis share']:+4.0f} %")
    return lines


def _number(record: Mapping[str, Any]) -> str:
    return f"{record['value']:.0f}°" if record["unit"] == "deg" else f"{record['value']:+.1f} {record['unit']}"


def _shortened(text: str, most: int = 52) -> str:
    return text if len(text) <= most else text[:most - 3].rstrip() + "..."


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
