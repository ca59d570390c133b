"""How the geometry classifier that comes with the package is trained: real landmark sets and, above them, made spines.

VID's colonography and pancreas scans show T7..L5 of 1,616 people and no neck. The phantom's spine curves, drawn from published
spacing and bend statistics, supply whole spines with every level and the rare numberings, centres only.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...anatomy import EMITTING_LEVEL, LEVEL_INDEX
from ...errors import InputError
from .features import Augmentation, Batch, augment
from .landmarks import L6, OPTIONAL, UNKNOWN, Landmarks
from .network import GeometryNetwork, SequenceNetwork, Shape
from .variants import with_rare_numberings
from .vid_landmarks import read_scans

logger = logging.getLogger(__name__)

MEMBERS = 3

COLLECTIONS = ("colonography", "pancreas")
"""VID's VerSe part is left out: its scans may be those that the pipeline is tried on."""

NUM_SAMPLED_SPINES = 1600
VARIANT_FRACTION = {"T13": 0.03, "L6": 0.04, "no_T12": 0.03}
@dataclass(frozen=True)
class Schedule:
    """How the network is trained."""

    epochs: int = 60
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    smoothing: float = 0.02
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)


SHAPE = Shape(width=64, layers=3, heads=4, dropout=0.1)
SCHEDULE = Schedule(epochs=30, batch=96, augmentation=Augmentation(window=0.6, exchange=0.3))


def sample_spine_curves(count: int, seed: int) -> list[Landmarks]:
    """`count` phantom spines, body centres and levels only; half of them cut to a field of view as in VerSe.

    A T13 is labelled T12: the decoder starts it from T12's evidence. L6 has its own class.
    """
    from ...phantom.spine import draw_fov, draw_subject

    generator = np.random.default_rng(seed)
    variants = [None, *VARIANT_FRACTION]
    shares = [1.0 - sum(VARIANT_FRACTION.values()), *VARIANT_FRACTION.values()]
    out = []
    for _ in range(count):
        variant = variants[generator.choice(len(variants), p=shares)]
        placed = draw_subject(generator, variant, None, {}, 0.0).placed
        targets = np.array([L6 if v.name == "L6" else LEVEL_INDEX[EMITTING_LEVEL[v.name]] for v in placed])
        chosen = np.ones(len(placed), dtype=bool)
        if generator.random() < 0.5:
            first, last = (LEVEL_INDEX[EMITTING_LEVEL[name]] for name in draw_fov(generator))
            chosen = (targets >= first) & ((targets <= last) | (targets == L6))
        out.append(Landmarks(np.array([v.centre for v in placed])[chosen], targets[chosen]))
    return out


def train_for_pipeline(landmark_file: str | Path, collections: Sequence[str] = COLLECTIONS, schedule: Schedule = SCHEDULE,
                       members: int = MEMBERS, found: Sequence[Landmarks] = ()) -> tuple[GeometryNetwork, dict[str, object]]:
    """The shipped network, from a VID file, and what `fitted` of its checkpoint says; the detector's order is not used, since the
    pipeline has none.

    `found`: scans as the pipeline's earlier stages see them, with their misses and false detections.
    """
    real = [replace(scan.landmarks, rank=None) for scan in read_scans(landmark_file) if scan.collection in collections and scan.names]
    about = (f"VID landmarks (Buergin et al. 2023, CC BY-SA 4.0), collections {', '.join(collections)}: {len(real)} scans; "
             f"{NUM_SAMPLED_SPINES} spine curves of the package's phantom; {len(found)} times what was found in synthetic scans")
    network, inputs = fit_network([*real, *sample_spine_curves(NUM_SAMPLED_SPINES, schedule.seed), *found], SHAPE, schedule, members)
    return network, {"inputs": list(inputs), "about": about}


def fit_network(scans: Sequence[Landmarks], shape: Shape | None = None, schedule: Schedule | None = None,
                members: int = MEMBERS) -> tuple[GeometryNetwork, tuple[str, ...]]:
    """Train `members` networks on labelled scans, and the optional inputs that these showed; deterministic by `schedule.seed`.

    Every member also sees rare numberings made from regular spines (`variants`), other ones each.
    """
    scans = [scan for scan in scans if len(scan.centres) and scan.targets is not None]
    if not scans:
        raise InputError("The geometry classifier cannot be trained: no scan has both detections and true levels.")
    schedule, shape = schedule or Schedule(), shape or Shape()
    with torch.random.fork_rng(devices=[]):  # every weight is replaced below: the global state stays as it was
        network = GeometryNetwork(shape, members)
    for number, member in enumerate(network.members):
        seed = schedule.seed + number
        trained = train_member(with_rare_numberings(scans, seed), shape, replace(schedule, seed=seed))
        member.load_state_dict(trained.state_dict())
    return network.eval(), tuple(name for name in OPTIONAL if any(getattr(scan, name) is not None for scan in scans))


def train_member(scans: Sequence[Landmarks], shape: Shape, schedule: Schedule) -> SequenceNetwork:
    """Train on labelled scans (`targets` given), each seen once per epoch in a new random view; deterministic by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(schedule.seed)
        generator = torch.Generator().manual_seed(schedule.seed)
        network = SequenceNetwork(shape).train()
        data = Batch.of([scan for scan in scans if len(scan.centres)], spare=1)
        scans_seen = len(data.present)
        batches = math.ceil(scans_seen / schedule.batch)
        optimizer = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.learning_rate, total_steps=schedule.epochs * batches)
        for epoch in range(schedule.epochs):
            total = 0.0
            for rows in _similar_lengths(data, schedule.batch, generator):
                view = augment(data.take(rows, spare=1), schedule.augmentation, generator)
                loss = F.cross_entropy(network(view).flatten(0, 1), view.targets.flatten(), ignore_index=UNKNOWN,
                                       label_smoothing=schedule.smoothing)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                total += float(loss.detach()) * len(rows)
            logger.debug("geometry classifier, epoch %d: loss %.4f", epoch, total / scans_seen)
    return network.eval()


def _similar_lengths(data: Batch, size: int, generator: torch.Generator) -> list[Tensor]:
    """Random batches of scans of similar length, in random order: short scans do not pay for long ones."""
    length = data.present.sum(dim=1) + 3.0 * torch.rand(len(data.present), generator=generator)
    batches = length.argsort().split(size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]
