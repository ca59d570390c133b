"""The vertebrae of anybody's label map: found as bodies, measured as stage 2 would, named by the classifiers."""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ..anatomy.label_boxes import label_boxes
from ..anatomy.morphology import body_centre, fill_holes
from ..anatomy.vertebra import Vertebra
from ..errors import InputError
from ..imageio.orientation import oriented_view
from ..imageio.volume import ImageGrid, Volume
from ..plans.data import Data
from ..preprocessing.resampling import labels_to_network_space, network_grid
from ..results import SpineResult
from ..stages.segment.spine import mark_border
from ..utilities.triples import Box, box_slices, float_triple, int_triple
from .model import Model
from .pipeline import Hint, Options, identify_masks

FRAGMENT_FRACTION = 0.3   # a smaller piece of the same value, level with a larger one, is a broken-off part of it
MAX_VALUES = 300       # more values are no label map (a CT, noise); the largest known atlas names 117 structures


@dataclass(frozen=True)
class Body:
    """One vertebra of a map: where it lies in the LPS view of the map, `mask` bool (z, y, x) beginning at index `start`, and its value."""

    start: tuple[int, int, int]
    mask: np.ndarray
    value: int

    @property
    def box(self) -> Box:
        return box_slices(self.start, self.mask.shape)


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
                scan: Volume | None = None, hint: Hint | None = None) -> tuple[SpineResult, list[tuple[Body, str]]]:
    """Result of stage 3 for bodies of a map on grid `geometry` (and its CT, where it is known), and each named body with its level.

    `hits` of a vertebra is the place of its body in the list; `hint` as of `identify_masks`.
    """
    data = model.plans.stage("identify").data
    view = geometry.reoriented("LPS")[0]
    vertebrae: list[Vertebra] = []
    for place, body in enumerate(bodies):
        vertebra = to_vertebra(body, view, data, hits=place)
        if vertebra is not None:
            vertebrae.append(vertebra)
    result = identify_masks(vertebrae, model, options, scan, hint)
    return result, [(bodies[v.hits], v.level) for v in result.vertebrae if v.level is not None]


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
