"""What may be wrong with a label map, and how sure that is."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

KINDS = {
    "empty": "no vertebra is labelled",
    "flip": "the label map, or the scan with it, is turned or mirrored",
    "shifted": "the whole row is numbered too high or too low",
    "swapped": "neighbours have each other's level, or levels are out of order",
    "mixed": "a part of a vertebra has another one's level",
    "merged": "two vertebrae have one level",
    "cut": "a mask covers only a part of its vertebra",
    "island": "loose pieces far from their vertebra",
    "missing": "a vertebra between two others has no mask",
    "sacrum": "the sacrum, or a part of it, is labelled as a lumbar vertebra",
    "beside": "the labels do not lie on the bone of the scan",
    "known": "a report about this case of a public dataset",
}
"""Kind of suspicion -> what it says."""

ALARM = 0.5
"""From here on a suspicion is an alarm; below it is a note, which counts for the order of the cases only."""


@dataclass(frozen=True)
class Suspicion:
    """One thing that may be wrong.

    Attributes:
        case: name of the case.
        kind: key of `KINDS`.
        levels: the vertebrae that it is about, by their labels in the map.
        sure: 0..1, how far the value that was seen lies beyond what clean maps show; not a probability.
        message: one sentence with what was seen and expected.
        correction: what `--fix` would do ("rename L2=L3 L3=L2", "drop islands L4", "flip x"); "" where a person has to draw.
    """

    case: str
    kind: str
    levels: tuple[str, ...]
    sure: float
    message: str
    correction: str = ""

    @property
    def alarm(self) -> bool:
        return self.sure >= ALARM


def worst_first(found: Iterable[Suspicion]) -> list[Suspicion]:
    """All suspicions of the case with the surest one first, then those of the next case; within a case the surest first."""
    listed = list(found)
    worst: dict[str, float] = {}
    for entry in listed:
        worst[entry.case] = max(worst.get(entry.case, 0.0), entry.sure)
    return sorted(listed, key=lambda s: (-worst[s.case], s.case, -s.sure, s.kind, s.levels))
