"""Why a numbering is what it is, in sentences: what each classifier reads alone, and which landmarks were seen."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..base import Evidence
from .decoder import Decoder
from .plan import Penalties

SEEN = 0.5                   # a landmark with this probability is reported
LANDMARKS = {"sacrum": "below", "skull base": "above", "last rib": "at", "first rib": "at"}   # columns of `Evidence.landmarks`


def reasons(evidence: Mapping[str, Evidence], names: Sequence[str | None], gaps: np.ndarray, penalties: Penalties,
            forbid_anomalies: bool = False) -> dict[str, list[str]]:
    """Sentences for the reader: `landmarks` ("sacrum below L5 (0.97)") and `alone`, what the decoder reads from each classifier alone.

    Args:
        evidence: of the classifiers that counted, detections in cranio-caudal order.
        names: the levels given to the detections, None = dropped.
        gaps: (n - 1,) vertebral gaps between the detections.
        penalties: of the decoder that reads each classifier alone.
        forbid_anomalies: as in the decoder.
    """
    seen = [sentence for found in evidence.values() if found.landmarks is not None for sentence in _landmarks(found.landmarks, names)]
    decoder, alone = Decoder(penalties, forbid_anomalies), []
    for classifier, found in evidence.items():
        read = decoder.decode(found.logs, gaps, found.variants).names
        alone.append(f"{classifier}: {_span(read)}{_against(read, names)}")
    return {"landmarks": seen, "alone": alone}


def _landmarks(seen: np.ndarray, names: Sequence[str | None]) -> list[str]:
    said = []
    for column, (landmark, side) in list(enumerate(LANDMARKS.items()))[:seen.shape[1]]:
        for name, probability in zip(names, seen[:, column], strict=True):
            if name is not None and probability >= SEEN:      # NaN, where the scan ends, is not
                said.append(f"{landmark} {side} {name} ({probability:.2f})")
    return said


def _span(names: Sequence[str | None]) -> str:
    """"T12 to L5", "L3" or "nothing"."""
    named = [name for name in names if name is not None]
    return "nothing" if not named else named[0] if len(named) == 1 else f"{named[0]} to {named[-1]}"


def _against(alone: Sequence[str | None], names: Sequence[str | None]) -> str:
    """How many detections it names otherwise."""
    both = [(a, b) for a, b in zip(alone, names, strict=True) if b is not None]
    other = sum(a != b for a, b in both)
    return f", {other} of {len(both)} differently" if other else ""
