"""From evidence and what is known besides to a numbering; the same for a prediction and for numbering it again."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...anatomy.known import Known
from ...anatomy.vertebra import Vertebra
from ...anatomy.vertebral_gaps import vertebral_gaps
from ...errors import InputError
from ...flags import Flag
from ...imageio.grid import ImageGrid
from ..base import NumberingBasis
from .constraints import Constraints
from .decoder import Decoder, Numbering
from .evidence import combine_evidence
from .pins import resolve
from .plan import Penalties
from .reasons import reasons
from .shifts import shift_record
from .trust import EvidenceModel, combined_rows, decode_with_trust

CONTRADICTORY = 0.05
"""What was said is called contradictory when the scan alone gives it less than this fraction of what it gives its own reading. A scan that
tells nothing gives every level a few per cent and contradicts none."""

SOURCES = {"known": "What you said", "prior": "The earlier examination", "series": "The patient's other scans"}


@dataclass(frozen=True)
class Numbered:
    """A numbering and what it rests on.

    Attributes:
        basis: with the numbering's names.
        numbering: of all detections.
        anchored_by: "scan", "known" or "prior"; None: not anchored.
        known: for the record: `source`, `given`, `probability`; None where nothing was known.
        flags: a contradiction of what is known with the scan.
    """

    basis: NumberingBasis
    numbering: Numbering
    anchored_by: str | None
    known: Mapping[str, Any] | None = None
    flags: tuple[Flag, ...] = ()


def decode(basis: NumberingBasis, constraints: Constraints | None = None) -> Numbering:
    """The numbering of the evidence of `basis` under `constraints`; its `log_total` is -inf where they exclude each other."""
    penalties, gaps = Penalties.from_dict(basis.penalties), gaps_of(basis)
    if not basis.model:
        logs, variants = combine_evidence(basis.evidence, basis.weights, tuple(basis.evidence))
        return Decoder(penalties, basis.forbid_anomalies, constraints).decode(logs, gaps, variants)
    model = EvidenceModel.from_dict(basis.model)
    return decode_with_trust(basis.evidence, gaps, model, penalties, basis.weights, basis.forbid_anomalies, constraints)


def combined(basis: NumberingBasis) -> tuple[np.ndarray, np.ndarray | None]:
    """All classifiers together: logs (n, 25) and variants (n, 2)."""
    if basis.model:
        return combined_rows(basis.evidence, EvidenceModel.from_dict(basis.model))
    return combine_evidence(basis.evidence, basis.weights, tuple(basis.evidence))


def gaps_of(basis: NumberingBasis) -> np.ndarray:
    """(n - 1,) vertebral gaps of the detections."""
    return vertebral_gaps(np.array([v.body_centre for v in basis.detections]))


def probability_of(basis: NumberingBasis, constraints: Constraints) -> float:
    """Probability of `constraints` under the scan alone: the weight of the numberings that obey them against that of all."""
    return _share(decode(basis, constraints), decode(basis))


def number(basis: NumberingBasis, known: Known, scan: ImageGrid | None, mask_grid: ImageGrid | None) -> Numbered:
    """The numbering under what the user knows.

    A pin that counts means the vertebrae of the numbering that `basis` has, or where it has none yet, of the one by the scan alone. Raises
    InputError for a pin that means no vertebra, and for pins that exclude each other.
    """
    free = decode(basis)
    seen = basis.names if any(basis.names) else free.names
    if not known:
        return Numbered(replace(basis, names=free.names, free=free.names), free, "scan" if free.numbering_anchored else None)
    return number_under(basis, free, resolve(known, basis.detections, seen, scan, mask_grid), "known", str(known))


def number_under(basis: NumberingBasis, free: Numbering, constraints: Constraints, source: str, given: str,
                 anchors: bool = True) -> Numbered:
    """The numbering under `constraints`.

    It is anchored by the scan where that alone says the same and is sure; by the source where the scan does not contradict it and leaves no
    other numbering that obeys.

    Args:
        basis: evidence.
        free: its numbering without constraints.
        constraints: of every detection.
        source: "known", "prior" or "series".
        given: what was said, in words.
        anchors: False: the source is not sure itself, so it carries levels but anchors none.

    Raises:
        InputError: no numbering obeys.
    """
    numbering = decode(basis, constraints)
    if not math.isfinite(numbering.log_total):
        raise InputError(f"'{given}': these exclude each other; no numbering of {len(basis.detections)} vertebrae in this order has both.")
    probability = _share(numbering, free)
    record = {"source": source, "given": given, "probability": round(probability, 6)}
    agrees = free.numbering_anchored and all(a == b for a, b in zip(free.names, numbering.names, strict=True))
    basis = replace(basis, names=numbering.names, free=free.names)
    if probability < (threshold := CONTRADICTORY * (1.0 - free.shifted)):
        flags = (_contradiction(source, given, probability, threshold, free.names),)
        return Numbered(basis, replace(numbering, numbering_anchored=False), None, record, flags)
    if agrees:
        return Numbered(basis, replace(numbering, numbering_anchored=True), "scan", record)
    anchored = numbering.numbering_anchored and anchors
    by = "known" if source == "known" else "prior"
    return Numbered(basis, replace(numbering, numbering_anchored=anchored), by if anchored else None, record)


def apply_numbering(numbered: Numbered, measured: Mapping[int, Vertebra]) -> tuple[Vertebra, ...]:
    """The named vertebrae with level and confidence. `measured`: detections that later stages have said more of."""
    numbering, detections = numbered.numbering, numbered.basis.detections
    return tuple(replace(measured.get(i, detections[i]), level=name, confidence=float(confidence))
                 for i, (name, confidence) in enumerate(zip(numbering.names, numbering.confidence, strict=True)) if name is not None)


def explanation(numbered: Numbered) -> dict[str, Any]:
    """`extra.identify` of the record: how many detections are no vertebra, and `reasons`."""
    basis = numbered.basis
    return {"rejected": sum(name is None for name in basis.names)} | reasons(
        basis.evidence, basis.names, gaps_of(basis), Penalties.from_dict(basis.penalties), basis.forbid_anomalies) | shift_record(
            numbered.numbering)


def check_known(known: Known, forbid_anomalies: bool, modality: str = "CT") -> None:
    """InputError where what is known and another option exclude each other."""
    if known and modality == "MR":
        raise InputError("Known levels have no meaning for a model of MR, which writes labels alone; leave them out.")
    odd = [pin.text for pin in known.pins if pin.level in ("T13", "L6")]
    odd += [f"{count} {part} vertebrae" for part, count, usual in (("thoracic", known.thoracic, 12), ("lumbar", known.lumbar, 5))
            if count not in (None, usual)]
    if forbid_anomalies and odd:
        raise InputError(f"'{odd[0]}' and forbid_anomalies exclude each other; leave one out.")


def _share(part: Numbering, whole: Numbering) -> float:
    """At most 1: a vertebra more that is known to be there is no anomaly any longer, so its numberings gain weight."""
    return min(1.0, math.exp(min(part.log_total - whole.log_total, 0.0)))


def _contradiction(source: str, given: str, probability: float, threshold: float, alone: Sequence[str | None]) -> Flag:
    named = [name for name in alone if name is not None]
    reads = f"{named[0]} to {named[-1]}" if named else "no vertebra"
    message = (f"{SOURCES[source]} ({given}) contradicts the scan: read alone it shows {reads}, and gives what was said a probability of "
               f"{in_words(probability)}. The numbering follows what was said and is not anchored.")
    return Flag(f"{source}_contradicts_scan", "identify", "review", message, round(probability, 6), round(threshold, 6),
                "Count the vertebrae by eye, from a landmark such as the sacrum or the first rib.")


def in_words(probability: float) -> str:
    """"12 %", "0.4 %", "less than 1 in 10,000"."""
    if probability < 1e-4:
        return "less than 1 in 10,000"
    return f"{100 * probability:.0f} %" if probability >= 0.1 else f"{100 * probability:.2g} %"
