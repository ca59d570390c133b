"""Review flags: what a reader of a result should know before trusting it, with a code that programs can ask for."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

SEVERITIES = ("info", "warning", "review")
"""`info`: something was assumed or left out. `warning`: the result may be less good. `review`: a person should look before using it."""

CODES: dict[str, str] = {
    "thick_slices": "Slices are so far apart that levels and masks are unreliable.",
    "known_contradicts_scan": "The scan speaks against what the user said of the levels; the numbering follows that and is not anchored.",
    "prior_contradicts_scan": "The scan speaks against the levels of an earlier examination; the numbering follows those, unanchored.",
    "series_contradicts_scan": "Read alone, this scan gives other levels than all scans of the patient together.",
    "incomplete": "The spine goes on in the scan where no vertebra was found.",
    "label_scheme": "The values of a label map were read as those of a known tool, or of none.",
    "levels_differ": "The other tool gives vertebrae other levels.",
    "levels_from_tool": "The other tool's levels decided the numbering; the classifiers alone read another.",
    "mask_mended": "Pieces of a label map were given to another vertebra or left out.",
    "merged_vertebrae": "One value of a label map covered two vertebrae.",
    "torn_vertebra": "Two values of a label map covered one vertebra.",
    "missing_vertebra": "A label map has no mask of a vertebra between two others.",
    "unlikely_body": "A body of a label map is no likely vertebra.",
    "level_without_value": "A level has no value in the scheme of the source.",
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
