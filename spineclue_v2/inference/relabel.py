"""Naming the vertebrae of anybody's label map: its values are ignored, its bodies are kept voxel by voxel, only names are new."""
from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..anatomy import LABEL_OF_NAME
from ..anatomy.label_boxes import label_boxes
from ..anatomy.morphology import body_centre, fill_holes
from ..anatomy.vertebra import Vertebra
from ..errors import InputError
from ..export.case_record import case_record
from ..export.result_flags import picture_failed, with_result_flags
from ..flags import Flag
from ..imageio.centroids import write_ctd
from ..imageio.orientation import check_same_grid, oriented_view
from ..imageio.volume import FILE_ENDINGS, ImageGrid, Volume, read_labels, read_volume, write_volume
from ..plans.data import Data
from ..preprocessing.resampling import labels_to_network_space, network_grid
from ..results import SpineResult
from ..stages.segment.spine import mark_border
from ..utilities.files import write_json
from ..utilities.pictures import draw_or_say
from ..utilities.triples import box_slices, float_triple, int_triple
from .model import Model
from .pipeline import Options, identify_masks

logger = logging.getLogger(__name__)

FRAGMENT_FRACTION = 0.3   # a smaller piece of the same value, level with a larger one, is a broken-off part of it
MAX_BODIES = 60        # more bodies are no spine: a map of fragments, or of everything in the scan
MAX_VALUES = 300       # more values are no label map (a CT, noise); the largest known atlas names 117 structures
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")


@dataclass(frozen=True)
class Body:
    """One vertebra of the input: where it lies in the LPS view of the map, `mask` bool (z, y, x) beginning at index `start`."""

    start: tuple[int, int, int]
    mask: np.ndarray
    value: int


def relabel(source: str | Path, output: str | Path, model: Model, options: Options | None = None, ignore: Collection[int] = (),
            scan: str | Path | None = None) -> SpineResult:
    """Write the label map `source` with new names to `output`, `_ctd.json` and, last, `.json` beside it (as `predict` writes).

    `ignore`: values that are no vertebrae (sacrum, ribs). `scan`: the CT, for the picture `.png` and HU; it has no say in the names.
    """
    started = time.perf_counter()
    source, output = Path(source), Path(output)
    base = _base(output)
    if output.exists() and output.resolve() == source.resolve():
        raise InputError(f"Cannot write {output}: it is the input; choose another name, so that the old labels stay.")
    labels = read_labels(source)
    volume = _matching_scan(scan, labels.geometry, source) if scan is not None else None
    smallest = model.plans.stage("segment").run.min_volume_ml
    bodies, dropped = find_bodies(labels, smallest, ignore)
    if len(bodies) > MAX_BODIES:
        raise InputError(f"{source} holds {len(bodies)} separate bodies of {smallest:g} ml and more, no spine has that many; expected "
                         "a label map of vertebrae (--ignore leaves out values of other structures).")
    from ..stages.grade.body_heights import add_heights

    data = model.plans.stage("identify").data
    result, owners = name_bodies(bodies, labels.geometry, model, options, volume)
    notes = tuple(text for count, text in ((dropped, f"{dropped} islands smaller than {smallest:g} ml were dropped."),
                                           (len(bodies) - len(result.vertebrae), f"{len(bodies) - len(result.vertebrae)} bodies are "
                                            "no vertebra in the chosen numbering and were dropped.")) if count)
    grid = network_grid(labels.geometry, data)
    named = add_heights(result.vertebrae, grid, volume, labels.geometry)
    result = replace(result, vertebrae=named, notes=result.notes + notes, seconds={"total": time.perf_counter() - started})
    Path(f"{base}.json").unlink(missing_ok=True)  # an older record must not vouch for half-replaced files
    result = with_result_flags(result)
    write_volume(Volume(_drawn(labels, owners), labels.geometry), output)
    write_ctd(f"{base}_ctd.json", result.vertebrae, labels.geometry)
    if volume is not None:
        result = replace(result, flags=result.flags + _draw(result, grid, volume, Path(f"{base}.png")))
    write_json(f"{base}.json", case_record(result, model.record))
    return result


def _draw(result: SpineResult, grid: ImageGrid, volume: Volume, path: Path) -> tuple[Flag, ...]:
    """The picture; the flag that says so where it could not be drawn."""
    from ..visualization.report import write_report

    trouble = draw_or_say(lambda: write_report(result, grid, volume, path, path.stem), path.name)
    return (picture_failed(trouble),) if trouble else ()


def find_bodies(labels: Volume, smallest_ml: float, ignore: Collection[int] = ()) -> tuple[list[Body], int]:
    """Vertebrae of a label map (any values, any orientation), and the number of islands below `smallest_ml` that were left out.

    A value is one vertebra, or several where its voxels do not are connected (a map of one value for the whole spine).
    """
    import cc3d

    view = oriented_view(labels)
    voxel_ml = float(np.prod(view.spacing)) / 1000
    bodies, dropped = [], 0
    boxes_of_values = label_boxes(view.array)
    if len(boxes_of_values) > MAX_VALUES:
        raise InputError(f"The label map holds {len(boxes_of_values)} different values; expected a map of vertebrae, at most {MAX_VALUES}.")
    for value, box in boxes_of_values.items():
        if value in ignore:
            continue
        pieces, count = cc3d.connected_components(np.ascontiguousarray(view.array[box] == value, dtype=np.uint8), connectivity=26,
                                                  return_N=True)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        large = [i for i in np.argsort(-sizes[1:], kind="stable") + 1 if sizes[i] * voxel_ml >= smallest_ml]
        dropped += count - len(large)
        boxes = label_boxes(pieces)
        origin = np.array([s.start for s in box])
        for members in _join(large, boxes, sizes):
            low = np.min([[s.start for s in boxes[i]] for i in members], axis=0)
            high = np.max([[s.stop for s in boxes[i]] for i in members], axis=0)
            part = pieces[box_slices(low, high - low)]
            bodies.append(Body(int_triple(origin + low), np.isin(part, members), int(value)))
    return bodies, dropped


def _join(large: list[int], boxes: dict[int, tuple[slice, slice, slice]], sizes: np.ndarray) -> list[list[int]]:
    """Pieces (largest first) grouped into vertebrae: a small piece whose middle is level with a larger one belongs to it.

    Neighbouring vertebrae lie above one another; a spinous process or arch that came off lies beside its body.
    """
    groups: list[list[int]] = []
    for piece in large:
        middle = (boxes[piece][0].start + boxes[piece][0].stop - 1) / 2
        for group in groups:
            rows = boxes[group[0]][0]
            if rows.start <= middle < rows.stop and sizes[piece] < FRAGMENT_FRACTION * sizes[group[0]]:
                group.append(piece)
                break
        else:
            groups.append([piece])
    return groups


def name_bodies(bodies: list[Body], geometry: ImageGrid, model: Model, options: Options | None = None,
                scan: Volume | None = None) -> tuple[SpineResult, list[tuple[Body, str]]]:
    """Result of stage 3 for bodies of a map on grid `geometry` (and its CT, where it is known), and each named body with its level."""
    data = model.plans.stage("identify").data
    view = geometry.reoriented("LPS")[0]
    vertebrae: list[Vertebra] = []
    kept: list[Body] = []
    for body in bodies:
        vertebra = to_vertebra(body, view, data, hits=len(kept))
        if vertebra is not None:
            vertebrae.append(vertebra)
            kept.append(body)
    result = identify_masks(vertebrae, model, options, scan)
    return result, [(kept[v.hits], v.level) for v in result.vertebrae if v.level is not None]


def to_vertebra(body: Body, geometry: ImageGrid, data: Data, hits: int = 0) -> Vertebra | None:
    """The record that stage 2 would have made: mask and measures in network space. None when no voxel is left on that grid.

    `geometry`: LPS grid of the map; `support` is stored as given.
    """
    model = network_grid(geometry, data)
    # Only the surroundings of the body are resampled; beyond the kernel's reach there is nothing but zeros.
    reach = np.ceil(3 * data.spacing_mm / np.array(geometry.spacing)).astype(int) + 3
    start, stop = np.array(body.start), np.array(body.start) + body.mask.shape
    low, high = np.maximum(start - reach, 0), np.minimum(stop + reach, geometry.shape)
    crop = np.pad(body.mask.astype(np.uint8), [(int(a), int(b)) for a, b in zip(start - low, high - stop, strict=True)])
    corners = model.world_to_index(geometry.index_to_world(np.array([start, stop - 1])))
    first = np.maximum(np.floor(corners.min(0)).astype(int) - 1, 0)
    last = np.minimum(np.ceil(corners.max(0)).astype(int) + 2, model.shape)
    window = model.cropped(first, last - first)
    mask = fill_holes(labels_to_network_space(Volume(crop, geometry.cropped(low, high - low)), window).array > 0)
    if not mask.any():
        return None
    inside = np.argwhere(mask)
    begin, end = inside.min(0), inside.max(0) + 1
    mask = np.ascontiguousarray(mask[box_slices(begin, end - begin)])
    origin = first + begin
    spacing = data.spacing_mm

    def world(index: np.ndarray) -> tuple[float, float, float]:
        return float_triple(model.index_to_world(index))

    vertebra = Vertebra(world(origin + (np.array(mask.shape) - 1) / 2), float_triple(n * spacing for n in mask.shape), 1.0, hits, mask,
                        int_triple(origin), world(inside.mean(0) + first),
                        world(origin + np.array(body_centre(mask, (spacing,) * 3))), float(mask.sum()) * spacing ** 3 / 1000)
    return mark_border(vertebra, model, geometry)


def _drawn(labels: Volume, owners: list[tuple[Body, str]]) -> np.ndarray:
    """VerSe values, uint8, on the map's own grid: exactly the voxels of the named bodies."""
    drawn = np.zeros(labels.array.shape, np.uint8)
    view = oriented_view(Volume(drawn, labels.geometry)).array  # shares memory with `drawn`
    for body, level in owners:
        box = tuple(slice(a, a + n) for a, n in zip(body.start, body.mask.shape, strict=True))
        view[box][body.mask] = LABEL_OF_NAME[level]
    return drawn


def _base(output: Path) -> str:
    """`output` without its ending."""
    for ending in WRITABLE:
        if output.name.lower().endswith(ending):
            return str(output)[:-len(ending)]
    raise InputError(f"Cannot write {output}: choose a file name that ends with {', '.join(WRITABLE)}.")


def _matching_scan(scan: str | Path, geometry: ImageGrid, source: Path) -> Volume:
    scan = Path(scan)
    if scan.is_file() and not scan.name.lower().endswith(FILE_ENDINGS):
        raise InputError(f"{scan} is of no known format; expected {', '.join(FILE_ENDINGS)} or a DICOM folder.")
    volume = read_volume(scan)
    check_same_grid(volume.geometry, geometry, source.name, source)
    return volume
