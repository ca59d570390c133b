"""Inference of the MR stages in network space: sliding windows, probabilities averaged by counts, folds averaged."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from ...adapters import window_starts
from ...imageio.volume import Volume
from ...plans.data import MRData
from ...plans.plans import Plans, StagePlan
from ...preprocessing.mr import to_mr_space
from ...training.device import autocast, items_at_once
from ...training.stage_model import StageModel
from ...utilities.triples import Box, box_slices
from ..base import Context, Findings
from .discs import measure_discs
from .labelling import label_scan
from .mr_flags import flags_of
from .network import FEATURE_STRIDE, STRIDE_IN_PLANE, HybridNetwork, TwoBranches, neighbour_stacks, shrink

SEEN_FROM = 0.05       # where the 2D branches give all structures together so much the 3D network looks, too
AROUND = (2, 12, 12)   # and so many slices, rows and columns around: half a body


def predict_hybrid_2d(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings with the label map that the 2D branches alone give."""
    plan = context.plans.stage("hybrid_2d")
    scan = to_mr_space(findings.volume, plan.data)
    probability = predict_2d(scan.array, model.networks, plan, context.device, context.options.mirror)
    return _labelled(findings, probability, scan, model, plan.data)


def predict_hybrid_3d(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings with the label map of the 3D network over its 2D branches."""
    data = context.plans.stage("hybrid_3d").data
    scan = to_mr_space(findings.volume, data)
    probability = predict_3d(scan.array, model.networks, context.plans, context.device, context.options.mirror)
    return _labelled(findings, probability, scan, model, data)


def _labelled(findings: Findings, probability: np.ndarray, scan: Volume, model: StageModel, data: MRData) -> Findings:
    """Findings with label map, discs' heights and signals, and what the names rest on; `scan` is the one in network space."""
    labels, named = label_scan(probability, scan, findings.volume, model, data)
    discs = measure_discs(findings.volume, labels, dict(zip(data.classes, data.label_values, strict=True)), data.orientation)
    extra = {"levels": {name: round(value, 4) for name, value in named.confidence.items()}, "discs": discs}
    return replace(findings, labels=labels, anchored=named.anchored, extra={**findings.extra, **extra},
                   flags=(*findings.flags, *flags_of(named, bool(labels.array.any()))))


def predict_2d(image: np.ndarray, networks: Sequence[TwoBranches], plan: StagePlan, device: torch.device,
               mirror: bool = False) -> np.ndarray:
    """Class probabilities (C, S, rows, columns) float32 of a z-scored image (S, rows, columns): mean of both branches and all folds.

    `mirror` averages with the image whose slices run the other way (left-right).
    """
    shape, total = image.shape, None
    for turned in _turns(mirror):
        padded, box = _pad(image[::-1] if turned else image, plan.network.crop_size, plan.network.in_plane_factor)
        for network in networks:
            _, prior = look(padded, network, plan, device)
            prior = prior.flip(1) if turned else prior
            total = prior if total is None else total + prior
    assert total is not None
    total /= len(networks) * (2 if mirror else 1)
    factor = plan.network.in_plane_factor
    result = np.empty((total.shape[0], *shape), np.float32)
    _, rows, columns = box
    for number in range(shape[0]):
        pixels = total[:, number][None]
        voxels = F.interpolate(pixels, scale_factor=factor, mode="bilinear", align_corners=False) if factor > 1 else pixels
        result[:, number] = voxels[0, :, rows, columns].numpy()
    return result


def predict_3d(image: np.ndarray, networks: Sequence[HybridNetwork], plans: Plans, device: torch.device,
               mirror: bool = False) -> np.ndarray:
    """Class probabilities (C, S, rows, columns) float32 of the 3D stage, mean of all folds; each fold looks through its own 2D branches."""
    plan, plan_2d = plans.stage("hybrid_3d"), plans.stage("hybrid_2d")
    factor, total = plan_2d.network.in_plane_factor, None
    for turned in _turns(mirror):
        padded, box = _pad(image[::-1] if turned else image, plan_2d.network.crop_size, factor, plan.network.patch_size)
        for network in networks:
            probability = _windows_3d(padded, network, plan, plan_2d, device)
            # Padding on the slice axis lies behind the image's slices, which run backwards in the mirrored one.
            probability = probability[:, box[0], box[1], box[2]]
            probability = probability.flip(1) if turned else probability
            total = probability if total is None else total + probability
    assert total is not None
    total /= len(networks) * (2 if mirror else 1)
    return total.numpy()


def look(image: torch.Tensor, network: TwoBranches, plan: StagePlan, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """2D branches over windows of every slice of a padded image (S, rows, columns) -> features (2 C, S, rows / 4f, columns / 4f) and
    prior (C, S, rows / f, columns / f), each averaged over the windows that see it."""
    size, batch = plan.network.crop_size, plan.run.inference_batch
    pixels = shrink(image, plan.network.in_plane_factor)
    stacks = neighbour_stacks(F.pad(pixels[None], (0, 0, 0, 0, 1, 1)))[0]                          # (S, 3, rows, columns)
    coarse = [n // FEATURE_STRIDE for n in pixels.shape[1:]]
    seen = torch.zeros(coarse)
    features = prior = None
    for row, column in _starts(pixels.shape[1:], size, plan.run.overlap, FEATURE_STRIDE):
        for first in range(0, len(stacks), batch):
            part = stacks[first:first + batch, :, row:row + size[0], column:column + size[1]].to(device)
            with torch.inference_mode(), autocast(device):
                f, p = (t.float().cpu().transpose(0, 1) for t in network(part))
            if features is None or prior is None:
                features, prior = torch.zeros(f.shape[0], len(stacks), *coarse), torch.zeros(p.shape[0], *pixels.shape)
            top, left, high, wide = (n // FEATURE_STRIDE for n in (row, column, *size))
            features[:, first:first + batch, top:top + high, left:left + wide] += f
            prior[:, first:first + batch, row:row + size[0], column:column + size[1]] += p
        seen[top:top + high, left:left + wide] += 1
    assert features is not None and prior is not None
    features /= seen
    prior /= seen.repeat_interleave(FEATURE_STRIDE, 0).repeat_interleave(FEATURE_STRIDE, 1)
    return features, prior


def _windows_3d(image: torch.Tensor, network: HybridNetwork, plan: StagePlan, plan_2d: StagePlan, device: torch.device) -> torch.Tensor:
    """Probabilities (C, S, rows, columns) of one fold over windows of a padded image; background where the 2D branches see nothing else."""
    size, factor = plan.network.patch_size, plan_2d.network.in_plane_factor
    step = FEATURE_STRIDE * factor
    features = prior = None
    if network.branches is not None:
        features, prior = look(image, network.branches, plan_2d, device)
    total, seen = torch.zeros(network.num_classes, *image.shape), torch.zeros(image.shape)
    corner, span = ([0, 0, 0], list(image.shape)) if prior is None else _part_to_refine(prior, image.shape, size, factor)
    windows = [box_slices(np.add(corner, start), size) for start in _starts(span, size, plan.run.overlap, step)]
    batch = items_at_once(plan.run.inference_batch, device)
    for first in range(0, len(windows), batch):
        boxes = windows[first:first + batch]
        looked = [None if source is None else _coarse_windows(source, boxes, scale).to(device)
                  for source, scale in ((prior, factor), (features, step))]
        with torch.inference_mode(), autocast(device):
            logits = network.refine(torch.stack([image[box] for box in boxes]).to(device), *looked)
        for box, probability in zip(boxes, logits.float().softmax(1).cpu(), strict=True):
            total[:, box[0], box[1], box[2]] += probability
            seen[box] += 1
    total[0][seen == 0] = 1.0
    total /= seen.clamp_(min=1.0)
    return total


def _part_to_refine(prior: torch.Tensor, shape: Sequence[int], size: Sequence[int], factor: int) -> tuple[list[int], list[int]]:
    """First voxel and shape of the part of a padded image (S, rows, columns) that holds every structure of the 2D branches' `prior`, with
    a margin; rows and columns start and end where windows may. One window of the given `size` at least, for nothing."""
    found = (1 - prior[0] >= SEEN_FROM).numpy()
    first, spans = [], []
    for axis, (length, window, around) in enumerate(zip(shape, size, AROUND, strict=True)):
        scale, step = (factor, FEATURE_STRIDE * factor) if axis else (1, 1)
        seen = np.flatnonzero(found.any(tuple(other for other in range(3) if other != axis))) * scale
        low = max(0, int(seen[0]) - around) if len(seen) else 0
        high = min(length, int(seen[-1]) + scale + around) if len(seen) else 0
        low = min(low, length - window) // step * step
        first.append(low)
        spans.append(max(window, -(-(high - low) // step) * step))
    return first, spans


def _coarse_windows(source: torch.Tensor, boxes: Sequence[Box], scale: int) -> torch.Tensor:
    """(boxes, C, S, rows, columns) of `source` (C, S, ...), whose rows and columns are `scale` times coarser than those of `boxes`."""
    return torch.stack([source[:, box[0], box[1].start // scale:box[1].stop // scale, box[2].start // scale:box[2].stop // scale]
                        for box in boxes])


def _turns(mirror: bool) -> tuple[bool, ...]:
    return (False, True) if mirror else (False,)


def _pad(image: np.ndarray, crop_size: Sequence[int], factor: int, patch: Sequence[int] = (1, 1, 1)) -> tuple[torch.Tensor, Box]:
    """Image (S, rows, columns) with zeros around: at least one window on each axis, rows and columns whole for the networks; and the box
    of the image in it. Where a crop shows more than the image the image lies in its middle, as crops of training have it: networks
    learn where in a scan a level stands."""
    whole = STRIDE_IN_PLANE * factor
    wanted, first = [max(image.shape[0], patch[0])], [0]
    for axis in (1, 2):
        window, length = crop_size[axis - 1] * factor, image.shape[axis]
        wanted.append(-(-max(length, window, patch[axis]) // whole) * whole)
        first.append(max(0, window - length) // 2)
    result, box = torch.zeros(wanted), box_slices(first, image.shape)
    result[box] = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    return result, box


def _starts(shape: Sequence[int], size: Sequence[int], overlap: float, step: int) -> Iterator[tuple[int, ...]]:
    """First indices of the windows; rows and columns are multiples of `step`, so that windows meet the coarser grids exactly."""
    # Rounding down to the step must not tear windows apart.
    axes = window_starts(shape, size, min(1 - overlap, 1 - step / min(size[-2:])))
    for axis in range(len(shape) - 2, len(shape)):
        axes[axis] = sorted({start // step * step for start in axes[axis]} | {shape[axis] - size[axis]})
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))
    yield from (tuple(int(n) for n in start) for start in grid)
