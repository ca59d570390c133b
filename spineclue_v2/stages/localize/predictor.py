"""Inference of stage 1: slices straight from the network space volume, boxes of all folds pooled, then clustering."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ...anatomy.vertebra import Vertebra
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...preprocessing.resampling import to_network_space, windows
from ...training.device import autocast
from ...training.stage_model import StageModel
from ...utilities.triples import float_triple
from ..base import Context, Findings
from .clustering import Boxes, Cluster, cluster_boxes
from .data import PLANES, take_slice
from .network import SliceDetector
from .spine_path import find_spine_path

STRIDE = 32
FINE_GAP_MM = 4.0        # slices this close need no second look
REFINE_FRACTION = 0.7       # the second look must narrow the field of view to less than this
SIDE_MM = 40.0           # the second look reaches this far beyond the bodies' middles to both sides,
FRONT_MM, BACK_MM = 25.0, 32.0   # and to the front and back: sections through bodies are what the clustering uses
LEAST_EVIDENCE, SURE = 0.75, 0.5   # a spine's scores add up to the first, or one of them reaches the second: knees stay below
TILE_OVERLAP_MM = 64.0  # the tallest vertebra with its processes lies whole in one of two neighbouring tiles


def predict(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings with the vertebrae located in the scan."""
    plan = context.plans.stage("localize")
    located = locate(to_network_space(findings.volume, plan.data), model.networks, plan, context.device)
    return replace(findings, vertebrae=tuple(located))


def slice_positions(length: int, wanted: int) -> np.ndarray:
    """Indices of at most `wanted` slices spread evenly over `length`."""
    count = min(length, wanted)
    return np.unique(((np.arange(count) + 0.5) * length / count).astype(int))


def detect(volume: Volume, networks: list[SliceDetector], plan: StagePlan, device: torch.device) -> tuple[Boxes, dict[str, float]]:
    """Boxes of all slices and folds in network space mm, and the gap between slices per plane (mm).

    `volume`: int16 HU in the stage's network space. The plan's slices first cover the whole field of view; where that leaves wide
    gaps (a body scan), the same number of slices is laid again through the spine that was found, and those count.
    """
    spacing, shape = plan.data.spacing_mm, volume.array.shape
    whole = {plane: (0, shape[2 if plane == "sagittal" else 1]) for plane in PLANES}
    boxes, gaps = _detect_within(volume, networks, plan, device, whole)
    if max(gaps.values()) > FINE_GAP_MM:
        # However weak: a first look with wide gaps has few boxes of any vertebra.
        first = find_spine_path(cluster_boxes(boxes, plan.run, gaps, len(networks)), plan.run.spacing_between_mm)
        band = _spine_band(first, shape, spacing)
        if band is not None and any(band[p][1] - band[p][0] < REFINE_FRACTION * (whole[p][1] - whole[p][0]) for p in PLANES):
            boxes, gaps = _detect_within(volume, networks, plan, device, band)
    return boxes, gaps


def find_spine(boxes: Boxes, gaps: dict[str, float], plan: StagePlan, folds: int) -> list[Cluster]:
    """Vertebrae of one spine in cranio-caudal order; none when all that was found is little and weak."""
    spine = find_spine_path(cluster_boxes(boxes, plan.run, gaps, folds), plan.run.spacing_between_mm)
    scores = [cluster.score for cluster in spine]
    return spine if sum(scores) >= LEAST_EVIDENCE or max(scores, default=0.0) >= SURE else []


def _detect_within(volume: Volume, networks: list[SliceDetector], plan: StagePlan, device: torch.device,
                   ranges: dict[str, tuple[int, int]]) -> tuple[Boxes, dict[str, float]]:
    """Boxes of evenly spread slices whose positions lie in `ranges` (first, stop voxel per plane), and the gaps (mm)."""
    parts: list[Boxes] = []
    gaps: dict[str, float] = {}
    for number, plane in enumerate(PLANES):
        first, stop = ranges[plane]
        positions = first + slice_positions(stop - first, plan.run.slices_per_plane)
        gaps[plane] = (stop - first) * plan.data.spacing_mm / len(positions)
        for begin, rows in _tiles(volume.array.shape[0], plan):
            for chunk in np.array_split(positions, max(1, int(np.ceil(len(positions) / plan.run.inference_batch)))):
                parts += _detect_chunk(volume, networks, plan, device, number, chunk, begin, rows)
    return Boxes.concatenate(parts), gaps


def _spine_band(spine: list[Cluster], shape: tuple[int, ...], spacing: float) -> dict[str, tuple[int, int]] | None:
    """Voxel range of slice positions per plane (sagittal: x, coronal: y) around the bodies found; None without any."""
    if not spine:
        return None
    bodies = np.array([c.body for c in spine])
    band = {}
    for plane, axis, before, after in (("sagittal", 2, SIDE_MM, SIDE_MM), ("coronal", 1, FRONT_MM, BACK_MM)):
        low, high = (bodies[:, axis].min() - before) / spacing, (bodies[:, axis].max() + after) / spacing
        band[plane] = (max(0, int(low)), min(shape[axis], int(np.ceil(high))))
    return band


def locate(volume: Volume, networks: list[SliceDetector], plan: StagePlan, device: torch.device) -> list[Vertebra]:
    """Vertebrae of a network space volume in cranio-caudal order with `box_centre`, `extent`, `score`, `hits`."""
    boxes, gaps = detect(volume, networks, plan, device)
    spacing = plan.data.spacing_mm
    vertebrae = []
    for cluster in find_spine(boxes, gaps, plan, len(networks)):
        # Box edges lie on voxel faces, half a voxel before the centre of the first voxel.
        centre = volume.geometry.index_to_world(cluster.centre / spacing - 0.5)
        vertebrae.append(Vertebra(float_triple(centre), float_triple(cluster.extent), cluster.score, len(cluster.members)))
    return vertebrae


def _tiles(rows: int, plan: StagePlan) -> list[tuple[int, int]]:
    """(first row, rows) of tiles along the spine in array order (z up); one tile where the scan fits the training slice."""
    size = plan.network.slice_size[0]
    if rows <= size:
        return [(0, rows)]
    # Plans of short scans have tiles hardly taller than the overlap: half a tile is the least step.
    step = max(size // 2, size - int(round(TILE_OVERLAP_MM / plan.data.spacing_mm)))
    count = int(np.ceil((rows - size) / step)) + 1
    return [(int(b), size) for b in np.unique(np.linspace(0, rows - size, count).round().astype(int))]


def _detect_chunk(volume: Volume, networks: list[SliceDetector], plan: StagePlan, device: torch.device, plane: int,
                  positions: np.ndarray, begin: int, rows: int) -> list[Boxes]:
    spacing, total = plan.data.spacing_mm, volume.array.shape[0]
    part = volume.array[begin:begin + rows]
    cuts = np.stack([windows(take_slice(part, PLANES[plane], int(p)), plan.data.windows_hu) for p in positions])
    height, width = cuts.shape[-2:]
    padded = torch.zeros(len(cuts), cuts.shape[1], -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE)
    padded[:, :, :height, :width] = torch.from_numpy(cuts)
    result = []
    for network in networks:
        with torch.inference_mode(), autocast(device, bfloat16=False):
            found = network.boxes(padded.to(device), plan.run.min_score, plan.run.nms_iou)
        for position, boxes in zip(positions, found, strict=True):
            x0, y0, x1, y1, score = boxes.numpy().astype(float).T if len(boxes) else np.zeros((5, 0))
            # Rows run downwards from the tile's upper end; z runs upwards.
            z0, z1 = begin + rows - np.minimum(y1, height), begin + rows - np.maximum(y0, 0)
            inside = ((z0 > begin + 0.5) | (begin == 0)) & ((z1 < begin + rows - 0.5) | (begin + rows == total)) & (z1 > z0)
            count = int(inside.sum())
            result.append(Boxes(np.full(count, plane), np.full(count, (position + 0.5) * spacing), z0[inside] * spacing,
                                z1[inside] * spacing, np.clip(x0[inside], 0, width) * spacing,
                                np.clip(x1[inside], 0, width) * spacing, score[inside]))
    return result
