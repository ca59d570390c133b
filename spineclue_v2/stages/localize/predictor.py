"""Inference of stage 1: looks at slices straight from the network space volume, boxes of all folds pooled, then clustering.

A first look, with few slices, covers the whole field and tells where the spine is. A close look reads it: pictures as narrow as the
training's, slices as near to each other as the plan wants, along the row of bodies and on beyond its ends. Where the first look
shows no spine, the whole field is looked at closely before the answer is that there is none.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...anatomy.vertebra import Vertebra
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...preprocessing.resampling import to_network_space
from ...training.stage_model import StageModel
from ...utilities.triples import float_triple
from ..base import Context, Findings
from .clustering import SPACING_PER_HEIGHT, Boxes, Cluster, cluster_boxes
from .looks import Detectors, Field, look
from .spine_path import find_spine_path

if TYPE_CHECKING:
    import torch

FIRST_GAP_MM = 10.0
LARGEST_GAP_MM = 4.0     # nothing is called empty that was not looked at so closely
NARROW_MM = 200.0        # pictures of a close look at a whole field are no wider: wide ones show the detector more than it knows
SIDE_MM = 40.0           # slices reach this far beyond the bodies' middles to both sides,
FRONT_MM, BACK_MM = 25.0, 32.0   # and to the front and back: sections through bodies are what the clustering uses;
PICTURE_SIDE_MM, PICTURE_FRONT_MM, PICTURE_BACK_MM = 55.0, 40.0, 75.0   # pictures reach farther: they show whole vertebrae
AHEAD = 3                # steps that a row is followed beyond its ends in one look
MOST_LOOKS = 3
WEAK_FRACTION = 0.5         # of the plan's least score: so weak a box may still tell of a vertebra that the row has room for
ROOM = 0.65              # of the spacing: so far from all others
LEAST_EVIDENCE, SURE = 0.9, 0.5   # a spine's scores add up to the first, or one of them reaches the second: knees stay below


def predict(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings with the vertebrae located in the scan."""
    plan = context.plans.stage("localize")
    located = locate(to_network_space(findings.volume, plan.data), model.networks, plan, context.device)
    return replace(findings, vertebrae=tuple(located))


def locate(volume: Volume, networks: Sequence[torch.nn.Module], plan: StagePlan, device: torch.device) -> list[Vertebra]:
    """Vertebrae of a network space volume in cranio-caudal order with `box_centre`, `extent`, `score`, `hits`, and about where the middle
    of the body is (`body_centre`)."""
    spacing = plan.data.spacing_mm
    vertebrae = []
    for cluster in search(volume.array, Detectors(networks, plan, device))[2]:
        # Box edges lie on voxel faces, half a voxel before the centre of the first voxel.
        centre, body = volume.geometry.index_to_world(np.array([cluster.centre, cluster.body]) / spacing - 0.5)
        vertebrae.append(Vertebra(float_triple(centre), float_triple(cluster.extent), cluster.score, len(cluster.members),
                                  body_centre=float_triple(body)))
    return vertebrae


def detect(volume: Volume, networks: Sequence[torch.nn.Module], plan: StagePlan, device: torch.device) -> tuple[Boxes, dict[str, float]]:
    """Boxes of the last look of all folds in network space mm, and the gap between its slices per plane (mm).

    `volume`: int16 HU in the stage's network space.
    """
    boxes, gaps, _ = search(volume.array, Detectors(networks, plan, device))
    return boxes, gaps


def search(array: np.ndarray, detectors: Detectors) -> tuple[Boxes, dict[str, float], list[Cluster]]:
    """Boxes and gaps of the last look, and the vertebrae of one spine in cranio-caudal order; none when all that was found is weak.

    `array`: int16 HU (z, y, x) in the stage's network space.
    """
    plan, whole = detectors.plan, Field.whole(array.shape)
    width = plan.network.slice_size[1]
    narrow = min(width, round(NARROW_MM / plan.data.spacing_mm))
    close = min(LARGEST_GAP_MM, plan.run.slice_gap_mm)
    for gap, widest in ((FIRST_GAP_MM, width), (close, narrow)):
        boxes, gaps = look(array, whole, gap, widest, detectors, plan.run.min_score)
        # However weak: a first look with wide gaps has few boxes of any vertebra.
        row = find_spine_path(cluster_boxes(boxes, plan.run, gaps, len(detectors.networks)), plan.run.spacing_between_mm)
        if not row:
            continue
        boxes, gaps, row = _read(array, row, close, detectors)
        if convincing(row):
            return boxes, gaps, row
    return boxes, gaps, []


def _read(array: np.ndarray, row: list[Cluster], gap_mm: float, detectors: Detectors) -> tuple[Boxes, dict[str, float], list[Cluster]]:
    """Close looks along a row and beyond its ends, until it leads nowhere that was not looked at."""
    plan = detectors.plan
    field = _field_around(row, array.shape, plan)
    for _ in range(MOST_LOOKS):
        boxes, gaps = look(array, field, gap_mm, plan.network.slice_size[1], detectors, WEAK_FRACTION * plan.run.min_score)
        row = row_of(boxes, gaps, plan, len(detectors.networks))
        further = _field_around(row, array.shape, plan) if row else field
        if field.holds(further):
            break
        field = field.joined(further)
    return boxes, gaps, row


def find_spine(boxes: Boxes, gaps: dict[str, float], plan: StagePlan, folds: int) -> list[Cluster]:
    """Vertebrae of one spine in cranio-caudal order; none when all that was found is little and weak."""
    row = row_of(boxes, gaps, plan, folds)
    return row if convincing(row) else []


def convincing(row: list[Cluster]) -> bool:
    """Whether the evidence for a row is enough to call it a spine."""
    scores = [cluster.score for cluster in row]
    return sum(scores) >= LEAST_EVIDENCE or max(scores, default=0.0) >= SURE


def row_of(boxes: Boxes, gaps: dict[str, float], plan: StagePlan, folds: int) -> list[Cluster]:
    """The row that boxes of the plan's least score make, and what weaker boxes add where that has room for a vertebra."""
    run = plan.run
    strong = boxes.take(np.flatnonzero(boxes.score >= run.min_score))
    row = find_spine_path(cluster_boxes(strong, run, gaps, folds), run.spacing_between_mm)
    if len(row) < 2 or len(strong) == len(boxes):
        return row
    bodies = np.array([cluster.body for cluster in row])
    usual = float(np.median(np.linalg.norm(np.diff(bodies, axis=0), axis=1)))
    added = []
    for cluster in cluster_boxes(boxes, run, gaps, folds):
        distance = np.linalg.norm((bodies - cluster.body) * (1.0, 1.0, 0.5), axis=1)   # both sides of one vertebra lie apart along x
        expected = float(np.clip(SPACING_PER_HEIGHT * row[int(distance.argmin())].body_height, *run.spacing_between_mm))
        if distance.min() > ROOM * (min(usual, expected) if len(row) > 2 else expected):
            added.append(cluster)
    return find_spine_path(row + added, run.spacing_between_mm) if added else row


def _field_around(row: list[Cluster], shape: tuple[int, ...], plan: StagePlan) -> Field:
    """The field of a close look at a row and, over the whole length of the scan, at the steps that it may go on beyond its ends."""
    spacing = plan.data.spacing_mm
    bodies = np.array([cluster.body for cluster in row])
    places = [bodies]
    back = min(2, len(bodies) - 1)
    for end in (bodies, bodies[::-1]) if back else ():
        step = (end[0] - end[back]) / back
        ahead = end[0] + np.arange(1, AHEAD + 1)[:, None] * step
        places.append(ahead[(ahead[:, 0] > 0) & (ahead[:, 0] < shape[0] * spacing)])
    every = np.concatenate(places)

    def reach(axis: int, before: float, after: float) -> tuple[int, int]:
        first = int(np.clip(np.floor((every[:, axis].min() - before) / spacing), 0, shape[axis] - 1))
        return first, int(np.clip(np.ceil((every[:, axis].max() + after) / spacing), first + 1, shape[axis]))

    y, x = reach(1, PICTURE_FRONT_MM, PICTURE_BACK_MM), reach(2, PICTURE_SIDE_MM, PICTURE_SIDE_MM)
    return Field((0, y[0], x[0]), (shape[0], y[1], x[1]), sagittal=reach(2, SIDE_MM, SIDE_MM), coronal=reach(1, FRONT_MM, BACK_MM))
