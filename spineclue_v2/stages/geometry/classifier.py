"""The geometry classifier: levels from where the vertebrae lie, never from a pixel.

It sees body centres and, where known, pedicles, region probabilities and extents; it was trained on thousands of real landmark
sets. Nothing of it is pickled: a saved classifier is a dictionary of tensors and one JSON string.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...anatomy import LEVEL_INDEX, NUM_LEVELS
from ...errors import InputError
from ...training.tensor_files import load_weights, save_weights
from .features import CLASSES, L6, Batch, Landmarks
from .network import Schedule, SequenceNetwork, Shape, train
from .variants import with_rare_numberings

KIND = "spineclue_v2 geometry witness"

OPTIONAL = tuple(field.name for field in fields(Landmarks) if field.name not in ("centres", "targets"))

MEMBERS = 3


class GeometryClassifier:
    """An ensemble of small sequence networks; their mean probability is the classifier's.

    Attributes:
        networks: the members.
        inputs: which optional inputs training showed; others are ignored, since nothing was learned from them.
        about: plain JSON for the record (data, scans, ...), kept with the weights.
    """

    def __init__(self, networks: Sequence[SequenceNetwork], inputs: Sequence[str], about: Mapping[str, Any] | None = None):
        self.networks = [network.eval() for network in networks]
        self.inputs = tuple(inputs)
        self.about = dict(about or {})

    @classmethod
    def fit(cls, scans: Sequence[Landmarks], shape: Shape | None = None, schedule: Schedule | None = None,
            members: int = MEMBERS, about: Mapping[str, Any] | None = None) -> GeometryClassifier:
        """Train `members` networks on labelled scans; deterministic by `schedule.seed`.

        Every member also sees rare numberings made from regular spines (`geometry_variants`), other ones each.
        """
        scans = [scan for scan in scans if len(scan.centres) and scan.targets is not None]
        if not scans:
            raise InputError("The geometry classifier cannot be trained: no scan has both detections and true levels.")
        schedule = schedule or Schedule()
        inputs = [name for name in OPTIONAL if any(getattr(scan, name) is not None for scan in scans)]
        networks = []
        for member in range(members):
            seed = schedule.seed + member
            networks.append(train(with_rare_numberings(scans, seed), shape or Shape(), replace(schedule, seed=seed)))
        return cls(networks, inputs, dict(about or {}) | {"scans": len(scans)})

    def probabilities(self, scans: Sequence[Landmarks]) -> list[np.ndarray]:
        """(n, CLASSES) per scan: the 24 levels, "not a vertebra", L6; detections in cranio-caudal order."""
        if not scans:
            return []
        known = [replace(scan, targets=None, **{name: None for name in OPTIONAL if name not in self.inputs}) for scan in scans]
        batch = Batch.of(known)
        if batch.present.shape[1] == 0:
            return [np.zeros((0, CLASSES)) for _ in scans]
        with torch.inference_mode():
            mean = torch.stack([network(batch).double().softmax(dim=-1) for network in self.networks]).mean(dim=0).numpy()
        return [rows[:len(scan.centres)] for rows, scan in zip(mean, scans, strict=True)]

    def evidence(self, scan: Landmarks) -> tuple[np.ndarray, np.ndarray]:
        """What `Decoder.decode` takes: log-probabilities (n, 25) and variants (n, 2), T13 unknown (NaN), L6 by its own class."""
        return evidence_of(self.probabilities([scan])[0])

    def log_probabilities(self, centres_xyz: np.ndarray, extents: np.ndarray | None = None, pedicles: np.ndarray | None = None,
                          ctl: np.ndarray | None = None) -> np.ndarray:
        """(n, 25) log-probabilities over the 24 levels and "not a vertebra"; an L6 counts as L5, where the decoder starts it.

        Args:
            centres_xyz: (n, 3) body centres, LPS mm, in cranio-caudal order.
            extents: (n, 3) millimetres (z, y, x).
            pedicles: (n, 2, 3) left and right pedicle centres, LPS mm, NaN where unknown.
            ctl: (n, 3) probabilities of cervical, thoracic, lumbar.
        """
        left, right = (None, None) if pedicles is None else (pedicles[:, 0], pedicles[:, 1])
        centres = np.asarray(centres_xyz, dtype=float).reshape(-1, 3)
        rows = self.probabilities([Landmarks(centres, left=left, right=right, ctl=ctl, extents=extents)])[0]
        folded = rows[:, :NUM_LEVELS + 1].copy()
        folded[:, LEVEL_INDEX["L5"]] += rows[:, L6]
        return np.log(np.maximum(folded, 1e-12))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors (half precision) and plain JSON from which `from_state` builds the same classifier."""
        tensors = {f"{i}.{name}": value.half() for i, network in enumerate(self.networks)
                   for name, value in network.state_dict().items()}
        return tensors, {"kind": KIND, "shape": asdict(self.networks[0].shape), "members": len(self.networks),
                         "inputs": list(self.inputs), "about": self.about}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> GeometryClassifier:
        networks = []
        for i in range(description["members"]):
            network = SequenceNetwork(Shape(**description["shape"]))
            network.load_state_dict({name: tensors[f"{i}.{name}"].float() for name in network.state_dict()})
            networks.append(network)
        return cls(networks, description["inputs"], description["about"])

    def save(self, path: str | Path) -> None:
        save_weights(path, *self.state())

    @classmethod
    def load(cls, path: str | Path) -> GeometryClassifier:
        """Read `save`'s file; anything else is an InputError."""
        tensors, description = load_weights(path, KIND)
        return cls.from_state(tensors, description)


def evidence_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, CLASSES) -> what `Decoder.decode` takes: logs (n, 25) and variants (n, 2) with T13 unknown."""
    logs = np.log(np.maximum(rows, 1e-12))
    return logs[:, :NUM_LEVELS + 1], np.stack([np.full(len(rows), np.nan), logs[:, L6]], axis=1)
