"""How the geometry classifier that comes with the package is trained: real landmark sets and, above them, made spines.

VID's colonography and pancreas scans show T7..L5 of 1,616 people and no neck. The phantom's spine curves, drawn from published
spacing and bend statistics, supply whole spines with every level and the rare numberings, centres only.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...anatomy import EMITTING_LEVEL, LEVEL_INDEX
from .classifier import GeometryClassifier
from .features import L6, Augmentation, Landmarks
from .network import Schedule, Shape
from .vid_landmarks import read_scans

COLLECTIONS = ("colonography", "pancreas")
"""VID's VerSe part is left out: its scans may be those that the pipeline is tried on."""

NUM_SAMPLED_SPINES = 1600
VARIANT_FRACTION = {"T13": 0.03, "L6": 0.04, "no_T12": 0.03}
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
                       members: int = 3, found: Sequence[Landmarks] = ()) -> GeometryClassifier:
    """The shipped classifier, from a VID file; the detector's order is not used, since the pipeline has none.

    `found`: scans as the pipeline's earlier stages see them, with their misses and false detections.
    """
    real = [replace(scan.landmarks, rank=None) for scan in read_scans(landmark_file) if scan.collection in collections and scan.names]
    about = {"data": f"VID landmarks (Buergin et al. 2023, CC BY-SA 4.0), collections {', '.join(collections)}: {len(real)} scans; "
                     f"{NUM_SAMPLED_SPINES} spine curves of the package's phantom; {len(found)} times what was found in synthetic scans"}
    return GeometryClassifier.fit([*real, *sample_spine_curves(NUM_SAMPLED_SPINES, schedule.seed), *found], SHAPE, schedule, members, about)
