"""One scan through all stages: localize, segment, identify, heights. Nothing after localize holds more than crops and the spine's box."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..anatomy.vertebra import Vertebra
from ..errors import InputError
from ..imageio.orientation import oriented_view
from ..imageio.volume import THICK_SLICE_MM, ImageGrid, Volume
from ..plans.plans import StagePlan
from ..preprocessing.resampling import to_network_space
from ..results import SpineResult
from .model import Model

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], object]  # is told the step that begins and the fraction (0..1) that is done; may raise to stop
STEPS = ("localize", "segment", "identify", "grade")


@dataclass(frozen=True)
class Options:
    """What a user may choose per run."""

    forbid_anomalies: bool = False
    mirror: bool = False                      # left-right test-time mirroring in segment
    classifiers: tuple[str, ...] = ("shape", "geometry", "appearance")  # which classifiers are enabled, where there are weights for it


class Clock:
    """Seconds per named step; `with clock('segment'):` adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.perf_counter() - self._start


def predict_volume(volume: Volume, model: Model, options: Options | None = None, progress: Progress | None = None) -> SpineResult:
    """Vertebrae of a CT (HU, any orientation) in cranio-caudal order, with the scan's grid and that of their masks."""
    from ..stages.grade.body_heights import add_heights
    from ..stages.grade.predictor import add_grades
    from ..stages.identify.predictor import identify
    from ..stages.localize.predictor import locate

    if "localize" not in model.stages:
        raise InputError(f"This is a model of MR (stages {', '.join(model.stages)}), which does not label CT; predict MR with "
                         "spineclue_predict -d, or with inference.mr_pipeline.predict_mr.")

    def begin(step: str) -> Clock:
        if progress is not None:
            progress(step, STEPS.index(step) / len(STEPS))
        return clock(step)

    options, clock = options or Options(), Clock()
    plans = {stage: model.plans.stage(stage) for stage in model.stages}
    with begin("localize"):
        coarse = to_network_space(volume, plans["localize"].data)
        located = locate(coarse, model.stages["localize"].networks, plans["localize"], model.device)
        del coarse
    notes = _notes(volume)
    if not located:
        return SpineResult((), False, None, clock.seconds, notes, grid=volume.geometry, mask_grid=oriented_view(volume).geometry)
    with begin("segment"):
        fine = spine_box(volume, located, plans["segment"])
        found = segment_located(fine, located, model.stages["segment"].networks, plans["segment"], model.device, volume.geometry,
                                options.mirror)
    geometry = fine.geometry
    if "grade" not in model.stages:
        del fine
    with begin("identify"):
        result = identify(found, model.stages["identify"], model.geometry, plans["identify"], model.device, options, model.appearance,
                          volume)
    with begin("grade"):
        named = add_heights(result.vertebrae, geometry, volume)
        if "grade" in model.stages:
            named = add_grades(named, fine, model.stages["grade"], plans["grade"], model.device)
    return SpineResult(named, result.numbering_anchored, result.margin, clock.seconds, notes, result.extra, volume.geometry, geometry)


def segment_located(fine: Volume, located: list[Vertebra], networks: list[Any], plan: StagePlan, device: Any, scan: ImageGrid,
                    mirror: bool = False) -> list[Vertebra]:
    """Stage 2 on a network space volume, with a second look where a vertebra seems to be missing. `scan`: the scan's own grid."""
    from ..stages.segment.predictor import segment
    from ..stages.segment.proposals import drop_fragments, missed

    found = segment(fine, located, networks, plan, device, mirror, partial(missed, geometry=fine.geometry))
    return drop_fragments([mark_border(v, fine.geometry, scan) for v in found])


def spine_box(volume: Volume, located: list[Vertebra], plan: StagePlan) -> Volume:
    """The part of the scan that the crops of all located vertebrae (and of their recentred repeats) can touch, in network space."""
    view = oriented_view(volume, plan.data.orientation)
    spacing = np.array(view.geometry.spacing)
    reach = np.array(plan.network.crop_size) * plan.data.spacing_mm * 0.75 / spacing
    centres = view.geometry.world_to_index(np.array([v.box_centre for v in located]))
    low = np.floor(np.maximum(centres.min(0) - reach, 0)).astype(int)
    high = np.ceil(np.minimum(centres.max(0) + reach + 1, view.array.shape)).astype(int)
    return to_network_space(view.cropped(low, high), plan.data)


def mark_border(vertebra: Vertebra, model: ImageGrid, scan: ImageGrid) -> Vertebra:
    """Set `touches_border` by the scan's own border: the box that was segmented may end earlier on its sides."""
    from dataclasses import replace

    if vertebra.mask is None or vertebra.mask_start is None:
        return vertebra
    low = np.array(vertebra.mask_start, dtype=float)
    corners = np.array([low, low + np.array(vertebra.mask.shape) - 1])
    grid = np.array(np.meshgrid(*corners.T, indexing="ij")).reshape(3, -1).T
    index = scan.world_to_index(model.index_to_world(grid))
    # A model voxel may be coarser than the scan's: its centre within one model voxel of the face counts as touching.
    slack = np.array(model.spacing).max() / np.array(scan.spacing)
    touches = bool((index < slack).any() or (index > np.array(scan.shape) - 1 - slack).any())
    return replace(vertebra, touches_border=touches)


def _notes(volume: Volume) -> tuple[str, ...]:
    thickest = max(volume.spacing)
    if thickest > THICK_SLICE_MM:
        return (f"Slices are {thickest:.1f} mm apart; results are unreliable above {THICK_SLICE_MM:.0f} mm.",)
    return ()


def identify_masks(vertebrae: list[Vertebra], model: Model, options: Options | None = None, scan: Volume | None = None) -> SpineResult:
    """Names for vertebrae whose masks are known (true masks, another tool's instances): stage 3 alone.

    `scan`: the CT; with it the appearance classifier is enabled too, where the model has one.
    """
    from ..stages.identify.predictor import identify

    plan = model.plans.stage("identify")
    return identify(vertebrae, model.stages["identify"], model.geometry, plan, model.device, options or Options(), model.appearance,
                    scan)
