"""Stage 2 over a whole scan: masks of all located vertebrae, of what localize missed, and what the scan's border cuts."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ...anatomy.known import Known
from ...anatomy.vertebra import Vertebra
from ...anatomy.vertebral_gaps import order_cranio_caudal
from ...imageio.grid import ImageGrid
from ...imageio.orientation import oriented_view
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...preprocessing.resampling import to_network_space
from ...training.stage_model import StageModel
from ...utilities.triples import float_triple
from ..base import Context, Findings
from ..identify.pins import place_of
from .predictor import segment
from .proposals import drop_fragments, propose_missed

FOLLOWED = 0.5     # of the vertebrae lie on a peak of the heat map: the row is known
USUAL_EXTENT_MM = (30.0, 70.0, 60.0)   # (z, y, x) of a vertebra where no other tells it


def predict(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings whose vertebrae have masks, in cranio-caudal order, and the crop of the scan that the masks lie on."""
    located = [*findings.vertebrae, *pinned(context.options.known, findings.volume.geometry, findings.vertebrae)]
    if not located:
        return findings
    plan = context.plans.stage("segment")
    crop = spine_box(findings.volume, located, plan)
    found = segment_located(crop, located, model.networks, plan, context.device, findings.volume.geometry,
                            context.options.mirror)
    return replace(findings, vertebrae=tuple(order_cranio_caudal(found)), crop=crop)


def pinned(known: Known, scan: ImageGrid, located: Sequence[Vertebra]) -> list[Vertebra]:
    """Candidates (score 0: where localize found the same vertebra, its own stays) at the places of the user's pins: where he sees a
    vertebra, one is looked for. `scan`: the grid that places given in voxels mean."""
    extent = float_triple(np.median([v.extent for v in located], axis=0)) if located else USUAL_EXTENT_MM
    places = [place_of(pin, scan) for pin in known.pins if pin.point is not None]
    return [Vertebra(float_triple(place), extent, 0.0) for place in places]


def segment_located(fine: Volume, located: Sequence[Vertebra], networks: list[Any], plan: StagePlan, device: Any, scan: ImageGrid,
                    mirror: bool = False) -> list[Vertebra]:
    """Stage 2 on a network space volume, with a second look where a vertebra seems to be missing. `scan`: the scan's own grid.

    Where stage centres has followed the row, it is complete: a second look would only find what is none.
    """
    followed = sum(v.centre_score is not None for v in located) >= FOLLOWED * len(located)
    found = segment(fine, located, networks, plan, device, mirror, None if followed else partial(propose_missed, geometry=fine.geometry))
    return drop_fragments([mark_border(v, fine.geometry, scan) for v in found])


def spine_box(volume: Volume, located: Sequence[Vertebra], plan: StagePlan) -> Volume:
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
