"""Review flags: what a reader of a result should know before trusting it, with a code that programs can ask for."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

SEVERITIES = ("info", "warning", "review")
"""`info`: something was assumed or left out. `warning`: the result may be less good. `review`: a person should look before using it."""

CODES: dict[str, str] = {
    "thick_slices": "Slices are so far apart that levels and masks are unreliable.",
    "modality_assumed": "Whether the scan is CT or MR was told by its values, since its file does not say.",
    "modality_contradicted": "The scan looks like another modality than the user said.",
    "counted_from_sacrum": "Levels of an MR are counted from the sacrum; how many lumbar vertebrae the whole spine has is not known.",
    "no_sacrum": "No sacrum was found in an MR, so its levels may all be shifted.",
    "unsure_level": "The level of a vertebra in an MR is less sure than it should be.",
    "unnamed_body": "A vertebral body in an MR has no level that fits and was left out.",
    "incomplete": "The spine goes on in the scan where no vertebra was found.",
}
"""Meaning of every code, in one sentence. A flag with another code cannot be made."""


@dataclass(frozen=True)
class Flag:
    """One finding about a result.

    Attributes:
        code: one of `CODES`.
        stage: where it was noticed: "read", a stage's name, or "result".
        severity: one of `SEVERITIES`.
        message: one sentence for the reader.
        observed: what was measured or found: a number or text; None where there is nothing to measure.
        threshold: what `observed` was held against.
        what_to_do: one sentence.

    Raises:
        ValueError: an unknown code or severity.
    """

    code: str
    stage: str
    severity: str
    message: str
    observed: float | str | None = None
    threshold: float | str | None = None
    what_to_do: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"flag code {self.code!r} is not among {sorted(CODES)}")
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity {self.severity!r} is not among {SEVERITIES}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def review_required(flags: Iterable[Flag]) -> bool:
    """Whether any of them asks for a person."""
    return any(flag.severity == "review" for flag in flags)
