"""`CASE.png`: the spine at one glance. Sagittal and coronal views that follow its curve, vertebrae coloured and named.

Every row of a view is one axial position: the sagittal view shows at each height the plane through the spine's middle there, the
coronal view the plane through the vertebral bodies. Distances within the views are true along the scan's axes (millimetres).
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import anatomy
from ..anatomy.vertebra import Vertebra
from ..export.labelled_spine import LabelledSpine
from ..imageio.orientation import oriented_view
from ..imageio.volume import ImageGrid, Volume
from ..preprocessing.straighten import straightened
from ..utilities.files import atomic_path

BONE_WINDOW = (-300.0, 1200.0)
LOW_CONFIDENCE = 0.7
BEYOND_MM = 45.0           # shown above and below the outermost vertebrae
ANTERIOR_MM, LATERAL_MM, MARGIN_MM = 60.0, 65.0, 25.0
PIXEL_MM = (0.4, 1.0)
PIXELS = 900
SMOOTHING_MM = 1.5
MAX_SLOPE = 0.6

BACKGROUND, TEXT, FAINT, WARNING = "#101214", "#f2f2f2", "#9aa0a6", "#ffb000"
MAX_SIZE_INCH, INCH_PER_MM = (12.0, 9.0), 0.034
GUTTER, SIDE, HEAD, FOOT = 2.0, 0.25, 0.75, 0.55
NAME_HEIGHT = 0.19
DPI = 120
PACKING = {"compress_level": 3}   # of PNG: half the time of the default for a sixth more bytes


def write_report(result: LabelledSpine, network_grid: ImageGrid, volume: Volume, path: str | Path, title: str) -> None:
    """Write the picture of a predicted scan as PNG, by rename.

    `volume` is the scan on any grid, `network_grid` the grid of the vertebrae's masks. Without vertebrae the middle planes of
    the scan are shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = spine_figure(result, network_grid, volume, title)
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor=BACKGROUND, format="png", pil_kwargs=PACKING)


@dataclass(frozen=True)
class View:
    """One curved plane: positions (z, y, x) of its pixels in mm along the scan's LPS axes, (rows, columns, 3)."""

    name: str
    sides: tuple[str, str]
    position: np.ndarray
    columns_mm: np.ndarray
    rows_mm: np.ndarray

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top for matplotlib, outer pixel edges in mm."""
        half = abs(self.rows_mm[1] - self.rows_mm[0]) / 2
        return (self.columns_mm[0] - half, self.columns_mm[-1] + half, self.rows_mm[-1] - half, self.rows_mm[0] + half)


def spine_figure(result: LabelledSpine, network_grid: ImageGrid, volume: Volume, title: str) -> Any:
    """The figure of `write_report` (a matplotlib Figure that no global state knows)."""
    from matplotlib.figure import Figure

    scan = oriented_view(straightened(volume))
    views = curved_views(result.vertebrae, network_grid, scan.geometry)
    widths = [view.extent[1] - view.extent[0] for view in views]
    height = views[0].extent[3] - views[0].extent[2]
    scale = min((MAX_SIZE_INCH[0] - GUTTER - 2 * SIDE) / sum(widths), (MAX_SIZE_INCH[1] - HEAD - FOOT) / height, INCH_PER_MM)
    size = (max(sum(widths) * scale + GUTTER + 2 * SIDE, 6.5), height * scale + HEAD + FOOT)
    figure = Figure(figsize=size, facecolor=BACKGROUND)
    left = (size[0] - sum(widths) * scale - GUTTER) / 2
    window = _window(scan.array)
    axes = []
    for view, width in zip(views, widths, strict=True):
        panel = figure.add_axes((left / size[0], FOOT / size[1], width * scale / size[0], height * scale / size[1]))
        _draw_view(panel, view, scan, result.vertebrae, network_grid, window)
        axes.append(panel)
        left += width * scale + GUTTER
    _draw_names(figure, axes, views, result.vertebrae, scan.geometry, scale)
    _draw_text(figure, result, title, size)
    return figure


def curved_views(vertebrae: tuple[Vertebra, ...], model: ImageGrid, scan: ImageGrid) -> tuple[View, View]:
    """Mid-sagittal and coronal view through the centres of the vertebrae; straight planes with fewer than three of them."""
    spacing, last = np.array(scan.spacing), (np.array(scan.shape) - 1) * np.array(scan.spacing)
    centres = np.array([scan.world_to_index(centre(v)) for v in vertebrae]).reshape(-1, 3) * spacing
    low, high = _field(vertebrae, centres, model, scan, last)
    longest = max(high - low)
    step = float(np.clip(longest / PIXELS, *PIXEL_MM))
    rows = np.arange(high[0], low[0], -step)
    anterior, lateral = np.arange(low[1], high[1], step), np.arange(low[2], high[2], step)
    # What is left of a vertebra that the border cuts has its centre anywhere: such ones do not bend the planes.
    whole = np.array([not v.touches_border for v in vertebrae], dtype=bool)
    leading = centres[whole] if whole.sum() > 2 else centres
    bend_y, bend_x = _curve(leading, rows, 1, last), _curve(leading, rows, 2, last)

    def plane(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.stack(np.broadcast_arrays(rows[:, None], y, x), axis=-1)
    return (View("mid-sagittal", ("A", "P"), plane(anterior[None, :], bend_x[:, None]), anterior, rows),
            View("coronal", ("R", "L"), plane(bend_y[:, None], lateral[None, :]), lateral, rows))


def centre(vertebra: Vertebra) -> tuple[float, float, float]:
    """The best known centre (LPS mm): body, else mask, else detection box."""
    return vertebra.body_centre or vertebra.mask_centroid or vertebra.box_centre


def _field(vertebrae: tuple[Vertebra, ...], centres: np.ndarray, model: ImageGrid, scan: ImageGrid,
           last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Part of the scan to show, (z, y, x) mm: around the spine with some context, inside the scan."""
    if not len(centres):
        return np.zeros(3), last
    points = [centres]
    for vertebra in vertebrae:
        if vertebra.mask is not None:
            start = np.array(vertebra.mask_start)
            ends = np.array([start, start + vertebra.mask.shape])
            corners = np.array(np.meshgrid(*ends.T, indexing="ij")).reshape(3, -1).T
            points.append(scan.world_to_index(model.index_to_world(corners)) * np.array(scan.spacing))
    everything = np.concatenate(points)
    low = np.minimum(everything.min(axis=0) - MARGIN_MM, centres.min(axis=0) - (BEYOND_MM, ANTERIOR_MM, LATERAL_MM))
    high = np.maximum(everything.max(axis=0) + MARGIN_MM, centres.max(axis=0) + (BEYOND_MM, MARGIN_MM, LATERAL_MM))
    return np.maximum(low, 0), np.minimum(high, last)


def _curve(centres: np.ndarray, rows: np.ndarray, axis: int, last: np.ndarray) -> np.ndarray:
    """Position along `axis` (mm) at the heights `rows`: a smoothing spline through the centres, straight beyond both ends."""
    from scipy.interpolate import UnivariateSpline

    if len(centres) < 3:
        return np.full(len(rows), centres[:, axis].mean() if len(centres) else last[axis] / 2)
    z, position = centres[np.argsort(centres[:, 0])][:, (0, axis)].T
    # Two centres at one height (a mistake of an earlier stage) must not stop the picture.
    distinct = np.append(True, np.diff(z) > 1.0)
    z, position = z[distinct], position[distinct]
    if len(z) < 3:
        return np.full(len(rows), position.mean())
    spline = UnivariateSpline(z, position, k=3 if len(z) > 3 else 2, s=len(z) * SMOOTHING_MM ** 2)
    inside = np.clip(rows, z[0], z[-1])
    slope = np.clip(spline.derivative()(inside), -MAX_SLOPE, MAX_SLOPE)
    return np.clip(spline(inside) + slope * np.clip(rows - inside, -BEYOND_MM, BEYOND_MM), 0, last[axis])


def _window(array: np.ndarray) -> tuple[float, float]:
    """Bone window for CT; other scans (no air below -200) are shown between their 1st and 99.5th percentile."""
    sample = array[::4, ::4, ::4]
    if sample.min() < -200:
        return BONE_WINDOW
    low, high = np.percentile(sample, (1, 99.5))
    return float(low), float(max(high, low + 1))


def _draw_view(panel: Any, view: View, scan: Volume, vertebrae: tuple[Vertebra, ...], model: ImageGrid,
               window: tuple[float, float]) -> None:
    show_plane(panel, view, scan, window)
    in_model = model.world_to_index(scan.geometry.index_to_world(view.position / np.array(scan.geometry.spacing)))
    for vertebra in vertebrae:
        _draw_vertebra(panel, view, vertebra, in_model)


def show_plane(panel: Any, view: View, scan: Volume, window: tuple[float, float] | None = None) -> None:
    """The scan (LPS order) in a view, true in mm, with the names of its sides."""
    from scipy.ndimage import map_coordinates

    low, high = window or _window(scan.array)
    index = view.position / np.array(scan.geometry.spacing)
    pixels = map_coordinates(scan.array, np.moveaxis(index, -1, 0), order=1, mode="nearest", output=np.float32)
    panel.imshow(pixels, cmap="gray", vmin=low, vmax=high, extent=view.extent, interpolation="bilinear")
    panel.set_xlim(view.extent[:2])
    panel.set_ylim(view.extent[2:])
    panel.set_axis_off()
    for side, position, align in ((view.sides[0], 0.02, "left"), (view.sides[1], 0.98, "right")):
        panel.text(position, 0.99, side, transform=panel.transAxes, color=TEXT, ha=align, va="top", fontsize=10, weight="bold")


def _draw_vertebra(panel: Any, view: View, vertebra: Vertebra, in_model: np.ndarray) -> None:
    """Fill and outline of one mask where the view cuts it; only the pixels of its crop are looked at."""
    from scipy.ndimage import map_coordinates

    if vertebra.mask is None:
        return
    position = in_model - np.array(vertebra.mask_start)
    near = ((position > -1) & (position < np.array(vertebra.mask.shape))).all(axis=-1)
    if not near.any():
        return
    seen_rows, seen_columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    # One pixel more on each side, so that outlines close.
    rows = slice(max(seen_rows[0] - 1, 0), seen_rows[-1] + 2)
    columns = slice(max(seen_columns[0] - 1, 0), seen_columns[-1] + 2)
    value = map_coordinates(vertebra.mask.astype(np.float32), np.moveaxis(position[rows, columns], -1, 0), order=1, mode="constant")
    if value.max() < 0.5:
        return
    x, y = view.columns_mm[columns], view.rows_mm[rows]
    unsure = _unsure(vertebra)
    panel.contourf(x, y, value, levels=[0.5, 1.01], colors=[_colour(vertebra)], alpha=0.15 if unsure else 0.32)
    style = "dashed" if unsure else "solid"
    panel.contour(x, y, value, levels=[0.5], colors=[_line_colour(vertebra)], linewidths=1.3, linestyles=style)


def _draw_names(figure: Any, axes: list[Any], views: tuple[View, View], vertebrae: tuple[Vertebra, ...], scan: ImageGrid,
                scale: float) -> None:
    """Names between the views, each at the height of its vertebra, tied to it by thin lines on both sides."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    boxes = [panel.get_position() for panel in axes]
    middle = (boxes[0].x1 + boxes[1].x0) / 2 - 0.25 / width  # remarks take more room than names
    spots = [scan.world_to_index(centre(v)) * np.array(scan.spacing) for v in vertebrae]
    wanted = np.array([boxes[0].y0 * height + (spot[0] - views[0].extent[2]) * scale for spot in spots])
    for vertebra, spot, y in zip(vertebrae, spots, _spread(wanted, NAME_HEIGHT) / height, strict=True):
        unsure = _unsure(vertebra)
        line: dict[str, Any] = {"color": _line_colour(vertebra), "linewidth": 0.7, "alpha": 0.8, "marker": "o", "markevery": [0],
                                "markersize": 3}
        name = (vertebra.level or "unnamed") + (" ?" if unsure else "")
        note = "" if vertebra.confidence is None else f"{100 * vertebra.confidence:.0f} %"
        note += " cut" if vertebra.touches_border else ""
        note += _height_mark(vertebra)
        figure.text(middle - 0.06 / width, y, name, color=WARNING if unsure else TEXT, ha="right", va="center", fontsize=11,
                    weight="bold")
        figure.text(middle + 0.06 / width, y, note, color=WARNING if unsure else FAINT, ha="left", va="center", fontsize=9)
        for panel, box, view, axis in zip(axes, boxes, views, (1, 2), strict=True):
            inner = box.x1 if panel is axes[0] else box.x0
            outer = inner + (0.08 if panel is axes[0] else -0.08) / width
            level = box.y0 + (spot[0] - view.extent[2]) * scale / height
            target = box.x0 + (spot[axis] - view.extent[0]) * scale / width
            figure.add_artist(Line2D([target, inner, outer], [level, level, y], **line))


def _height_mark(vertebra: Vertebra) -> str:
    """Largest loss of height where the body no longer counts as intact, the grade given (above 0), and whether the two disagree.

    A loss is shown before it amounts to a grade: readers grade by eye, and earlier than arithmetic. Nothing of a body in doubt.
    """
    if vertebra.height_doubt is not None:
        return ""
    from ..stages.grade.comparison import GRADED, INTACT
    from ..stages.grade.predictor import disagree, grade_given

    mark = ""
    loss = None if vertebra.heights is None else vertebra.heights.loss
    if loss is not None and vertebra.level in GRADED and max(loss) >= INTACT:
        mark += f" ↓{100 * max(loss):.0f} %"
    if grade := grade_given(vertebra):
        mark += f" G{grade}"
    return mark + (" ≠" if disagree(vertebra) else "")


def _spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Heights as near to `wanted` as a distance of `gap` allows (pushed down from the top one, then centred again)."""
    order = np.argsort(-wanted)
    placed = wanted[order].copy()
    for i in range(1, len(placed)):
        placed[i] = min(placed[i], placed[i - 1] - gap)
    placed += (wanted[order] - placed).mean() if len(placed) else 0.0
    result = np.empty_like(placed)
    result[order] = placed
    return result


def _draw_text(figure: Any, result: LabelledSpine, title: str, size: tuple[float, float]) -> None:
    width, height = size
    x = SIDE / width
    figure.text(x, 1 - 0.16 / height, title, color=TEXT, fontsize=13, weight="bold", va="top")
    summary, colour = _summary(result)
    figure.text(x, 1 - 0.45 / height, summary, color=colour, fontsize=10, va="top")
    unsure = [v for v in result.vertebrae if _unsure(v)]
    foot = ["planes follow the spine" if len(result.vertebrae) > 2 else "straight planes", "true in mm"]
    if unsure:
        foot.append(f"dashed and ?: confidence under {100 * LOW_CONFIDENCE:.0f} %")
    if any(_height_mark(v) for v in result.vertebrae):
        foot.append("↓: body height missing")
    if any(v.grade_probabilities for v in result.vertebrae):
        foot.append("G: grade with the network, ≠: heights disagree")
    figure.text(x, 0.34 / height, " · ".join(foot), color=FAINT, fontsize=8.5, va="center")
    figure.text(x, 0.16 / height, " ".join(result.notes), color=WARNING, fontsize=8.5, va="center")
    figure.text(1 - x, 0.34 / height, "not a medical device", color=FAINT, fontsize=8.5, va="center", ha="right")
    _scale_bar(figure)


def _summary(result: LabelledSpine) -> tuple[str, str]:
    if not result.vertebrae:
        return "No vertebra found", WARNING
    names = [v.level or "?" for v in result.vertebrae]
    text = f"{len(names)} vertebrae, {names[0]} to {names[-1]}" if len(names) > 1 else f"1 vertebra, {names[0]}"
    if result.numbering_anchored:
        seen = [sentence.rsplit(" (", 1)[0] for sentence in result.extra.get("identify", {}).get("landmarks", ())]
        return ", ".join([text, *seen]), TEXT
    return f"{text}   NUMBERING NOT ANCHORED: the whole sequence may be shifted up or down", WARNING


def _scale_bar(figure: Any) -> None:
    panel = figure.axes[0]
    low, high = panel.get_xlim()
    bottom, top = panel.get_ylim()
    length = 50 if high - low > 80 else 10
    x, y = low + 0.04 * (high - low), bottom + 0.03 * (top - bottom)
    panel.plot([x, x + length], [y, y], color=TEXT, linewidth=2, solid_capstyle="butt")
    panel.text(x + length / 2, y + 0.008 * (top - bottom), f"{length} mm", color=TEXT, fontsize=8, ha="center", va="bottom")


def _colour(vertebra: Vertebra) -> tuple[float, ...]:
    return tuple(c / 255 for c in anatomy.colour(vertebra.level)) if vertebra.level else (0.7, 0.7, 0.7)


def _line_colour(vertebra: Vertebra) -> tuple[float, ...]:
    """The level's colour, lightened so that thin lines stand out from dark tissue."""
    return tuple(0.7 * c + 0.3 for c in _colour(vertebra))


def _unsure(vertebra: Vertebra) -> bool:
    return vertebra.confidence is not None and vertebra.confidence < LOW_CONFIDENCE
