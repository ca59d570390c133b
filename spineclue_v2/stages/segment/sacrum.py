"""The first sacral segment: one crop a step below the last lumbar vertebra, where nothing has been found there yet.

Where stage centres has followed the row, segment looks at nothing beyond its ends, for a sacrum would only be one more vertebra to the
numbering. So it is asked for once the names are known, and takes no part in them.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...anatomy.morphology import body_centre, largest_component
from ...anatomy.sacral_segment import LOWEST_LUMBAR, first_sacral_segment
from ...anatomy.vertebra import Vertebra
from ...imageio.grid import ImageGrid
from ...training.stage_model import StageModel
from ...utilities.triples import float_triple
from ..base import Context, Findings
from .predictor import segment
from .proposals import inside, mask_middle
from .spine import mark_border

SACRUM_SEEN = 0.5    # least probability of the sacrum below the row, where the appearance classifier has looked there
SHARED = 0.3         # of the mask found there that is the last lumbar vertebra's: more, the network has shown that one again


def predict(findings: Findings, model: StageModel | None, context: Context) -> Findings:
    """Findings whose `basis.below` is what the segment network shows a step below the last lumbar vertebra, where that may be a sacrum."""
    network, basis, crop = context.models.get("segment"), findings.basis, findings.crop
    if network is None or basis is None or crop is None or not context.options.sacrum:
        return findings
    if first_sacral_segment(basis.names, basis.detections) is not None:
        return findings
    row = [v for v, name in zip(basis.detections, basis.names, strict=True) if name is not None]
    if len(row) < 2 or row[-1].touches_border or not _may_be_there(findings):
        return findings
    asked = prompt(row, crop.geometry)
    if not inside(np.array(asked.box_centre), crop.geometry):
        return findings
    found = segment(crop, [asked], network.networks, context.plans.stage("segment"), context.device, context.options.mirror)
    below = apart(found[0], row[-1], crop.geometry) if found else None
    if below is None:
        return findings
    return replace(findings, basis=replace(basis, below=mark_border(below, crop.geometry, findings.volume.geometry)))


def prompt(row: Sequence[Vertebra], geometry: ImageGrid) -> Vertebra:
    """A candidate as far below the last of the row (cranio-caudal, with masks on `geometry`) as that one lies below the one above."""
    above, last = (mask_middle(v, geometry) for v in row[-2:])
    return Vertebra(float_triple(2 * last - above), row[-1].extent, 0.0)


def apart(found: Vertebra, last: Vertebra, geometry: ImageGrid) -> Vertebra | None:
    """`found` without the voxels that are the last lumbar vertebra's; None where too many of them are. Masks lie on `geometry`."""
    mask, start = found.known_mask.copy(), np.array(found.known_mask_start)
    shift = np.array(last.known_mask_start) - start
    low, high = np.maximum(shift, 0), np.minimum(shift + np.array(last.known_mask.shape), mask.shape)
    if (high > low).all():
        here = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        there = tuple(slice(int(a), int(b)) for a, b in zip(low - shift, high - shift, strict=True))
        mask[here] &= ~last.known_mask[there]
    if mask.sum() < (1 - SHARED) * found.known_mask.sum():
        return None
    mask = largest_component(mask)
    middle = np.argwhere(mask).mean(0)
    body = np.asarray(body_centre(mask, geometry.spacing)) if mask.any() else middle
    return replace(found, mask=mask, mask_probability=None, volume_ml=float(mask.sum() * np.prod(geometry.spacing)) / 1000,
                   mask_centroid=float_triple(geometry.index_to_world(middle + start)),
                   body_centre=float_triple(geometry.index_to_world(body + start)))


def _may_be_there(findings: Findings) -> bool:
    """Whether the row ends with a last lumbar vertebra by name, or the surroundings look so."""
    basis = findings.basis
    assert basis is not None
    last = max(i for i, name in enumerate(basis.names) if name is not None)
    seen = basis.evidence.get("appearance")
    below = np.nan if seen is None or seen.landmarks is None else float(seen.landmarks[last, 0])
    return below >= SACRUM_SEEN if np.isfinite(below) else basis.names[last] in LOWEST_LUMBAR
