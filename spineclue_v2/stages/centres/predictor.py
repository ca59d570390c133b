"""Inference of stage centres: heat maps in patches along the located row, their best chain of peaks, and the row that follows from both."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...adapters import crop_and_pad
from ...anatomy.vertebra import Vertebra
from ...imageio.orientation import oriented_view
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...preprocessing.resampling import to_network_space, windows
from ...training.stage_model import StageModel
from ..base import Context, Findings
from ..engine import engine_of
from .row import BODY, Located, best_chain, fill_gaps, find_peaks, reconcile

if TYPE_CHECKING:
    import torch

REACH_MM = 60.0          # beyond the ends of the row
STEP = 0.34              # of a patch's length: from one patch to the next; each place is seen three times, and as often mirrored
SURE_ROW = 0.6           # median score of located vertebrae: voxels are fine and bodies clear, and nothing needs mending
EDGE_SIGMA = 0.22        # of a patch's edges: the middle of a patch sees most around it and counts most
LEAST_WEIGHT = 1e-3      # of that; what only the outermost corners saw was hardly looked at


def predict(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings whose located vertebrae agree with the heat maps: with those that were passed over, without those that lie on none."""
    if not findings.vertebrae:
        return findings
    plan = context.plans.stage("centres")
    volume = around_the_row(findings.volume, np.array([v.known_body_centre for v in findings.vertebrae]), plan)
    return replace(findings, vertebrae=tuple(follow_row(volume, findings.vertebrae, model.networks, plan, context.device)))


def follow_row(volume: Volume, vertebrae: Sequence[Vertebra], networks: Sequence[torch.nn.Module], plan: StagePlan,
               device: torch.device) -> list[Vertebra]:
    """The located vertebrae as the heat maps have them, cranio-caudal; as they are where the detector is sure of the row.

    Args:
        volume: int16 HU in the stage's network space; all of the scan, or `around_the_row`.
        vertebrae: located.
        networks: one per fold.
        plan: of stage centres.
        device: where the networks are.
    """
    if not vertebrae or float(np.median([v.score for v in vertebrae])) >= SURE_ROW:
        return list(vertebrae)
    spacing = plan.data.spacing_mm
    bodies = volume.geometry.world_to_index(np.array([v.known_body_centre for v in vertebrae]))
    heat = heat_maps(volume.array, bodies, networks, plan, device)[BODY]
    located = Located(bodies, np.array([v.extent[0] for v in vertebrae]), np.array([v.score for v in vertebrae]))
    chain = fill_gaps(best_chain(find_peaks(heat, plan.run.least_score, spacing), spacing, located), heat, spacing)
    return reconcile(vertebrae, chain, heat, volume.geometry)


def around_the_row(scan: Volume, bodies_xyz: np.ndarray, plan: StagePlan) -> Volume:
    """The part of the scan that patches around the bodies (n, 3), LPS mm, and beyond the ends of their row can touch, in network space."""
    view = oriented_view(scan, plan.data.orientation)
    spacing = np.array(view.geometry.spacing)
    reach = (np.array(plan.network.patch_size) * plan.data.spacing_mm / 2 + (REACH_MM, 0, 0)) / spacing + 2
    centres = view.geometry.world_to_index(bodies_xyz)
    shape = np.array(view.array.shape)
    low = np.clip(np.floor(centres.min(0) - reach), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(centres.max(0) + reach + 1), low + 1, shape).astype(int)
    return to_network_space(view.cropped(low, high), plan.data)


def heat_maps(array: np.ndarray, bodies: np.ndarray, networks: Sequence[torch.nn.Module], plan: StagePlan,
              device: torch.device) -> np.ndarray:
    """Mean heat maps (2, z, y, x) of the networks along a row; 0 where nobody looked.

    Args:
        array: int16 HU (z, y, x) in the stage's network space, z upwards.
        bodies: (n, 3) about where the bodies are (z, y, x), indices.
        networks: one per fold.
        plan: of stage centres.
        device: where the networks are.
    """
    size, shape = np.array(plan.network.patch_size), array.shape
    starts = patch_starts(bodies, shape, plan)
    edges = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n * EDGE_SIGMA)) ** 2) for n in size]
    trust = (edges[0][:, None, None] * edges[1][None, :, None] * edges[2]).astype(np.float32)
    engines = [engine_of(network, f"{__package__}.network:heat", device) for network in networks]
    total, weight = np.zeros((2, *shape), np.float32), np.zeros(shape, np.float32)
    for first in range(0, len(starts), plan.run.inference_batch):
        batch = starts[first:first + plan.run.inference_batch]
        patches = [crop_and_pad(array, start, plan.network.patch_size, pad_value=plan.data.hu_min) for start in batch]
        images = np.stack([windows(patch, plan.data.windows_hu) for patch in patches])
        views = [view for engine in engines for view in (engine(images), engine(images[..., ::-1])[..., ::-1])]
        heat = np.mean(views, axis=0)
        for start, patch in zip(batch, heat, strict=True):
            low, high = np.maximum(start, 0), np.minimum(start + size, shape)
            if (high <= low).any():
                continue
            here = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
            mine = tuple(slice(int(a), int(b)) for a, b in zip(low - start, high - start, strict=True))
            total[(slice(None), *here)] += patch[(slice(None), *mine)] * trust[mine]
            weight[here] += trust[mine]
    return total / np.maximum(weight, LEAST_WEIGHT)


def patch_starts(bodies: np.ndarray, shape: Sequence[int], plan: StagePlan) -> list[np.ndarray]:
    """First indices (z, y, x) of patches that follow the row (n, 3) and go on beyond both ends; they may lie partly outside."""
    size = np.array(plan.network.patch_size)
    row = bodies[np.argsort(bodies[:, 0])]
    reach = REACH_MM / plan.data.spacing_mm
    low, high = max(row[0, 0] - reach, 0.0), min(row[-1, 0] + reach, shape[0] - 1.0)
    length = float(size[0])
    count = max(1, int(np.ceil((high - low - length) / (STEP * length))) + 1)
    middles = np.linspace(low + length / 2, high - length / 2, count) if count > 1 else np.array([(low + high) / 2])
    starts = []
    for z in middles:
        around = np.linspace(z - length / 2, z + length / 2, 9)
        middle = np.array([z, np.interp(around, row[:, 0], row[:, 1]).mean(), np.interp(around, row[:, 0], row[:, 2]).mean()])
        starts.append(np.round(middle - size / 2).astype(int))
    return starts
