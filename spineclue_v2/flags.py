"""Review flags: what a reader of a result should know before trusting it, with a code that programs can ask for."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

SEVERITIES = ("info", "warning", "review")
"""`info`: something was assumed or left out. `warning`: the result may be less good. `review`: a person should look before using it."""

CODES: dict[str, str] = {
    "several_series": "The folder holds several DICOM series that could be the scan; the longest was taken.",
    "other_objects": "DICOM files that are no slices of the scan (reports, other modalities) were left out.",
    "modality_unknown": "The header names no modality; the scan was taken for one of the model's.",
    "slices_left_out": "Slices of the series that do not fit the others (scout views, other orientations) were left out.",
    "duplicate_slices": "Slices were there twice with the same content; one of each was used.",
    "uneven_slices": "The slices lie beside even steps by more than rounding explains.",
    "sheared_grid": "The axes of the scan are not at right angles; results lie on its own grid.",
    "no_orientation": "The header does not state how the patient lies; an orientation was assumed.",
    "forms_differ": "The NIfTI header gives the scan two places (qform and sform) that differ.",
    "spacing_contradicts": "The NIfTI header states a spacing that its orientation matrix contradicts.",
    "unit_assumed": "The unit of length in the header makes no plausible scan; another one was assumed.",
    "missing_rescale": "DICOM slices do not say how their numbers become HU; they were taken for HU.",
    "unit_not_hu": "The DICOM header calls the unit of the values something else than HU.",
    "intensity_offset": "A number that the user gave was added to all values.",
    "offset_assumed": "All values look like HU + 1024; 1024 was subtracted.",
    "thick_slices": "Slices are so far apart that levels and masks are unreliable.",
    "modality_assumed": "Whether the scan is CT or MR was told by its values, since its file does not say.",
    "modality_contradicted": "The scan looks like another modality than the user said, or does not show that it is that one.",
    "counted_from_sacrum": "Levels of an MR are counted from the sacrum; how many lumbar vertebrae the whole spine has is not known.",
    "no_sacrum": "No sacrum was found in an MR, so its levels may all be shifted.",
    "unsure_level": "The level of a vertebra in an MR is less sure than it should be.",
    "unnamed_body": "A vertebral body in an MR has no level that fits and was left out.",
    "known_contradicts_scan": "The scan speaks against what the user said of the levels; the numbering follows that and is not anchored.",
    "prior_contradicts_scan": "The scan speaks against the levels of an earlier examination; the numbering follows those, unanchored.",
    "series_contradicts_scan": "Read alone, this scan gives other levels than all scans of the patient together.",
    "vessels_bright": "Contrast in the vessels raises the density of bone.",
    "incomplete": "The spine goes on in the scan where no vertebra was found.",
    "no_vertebra": "No vertebra was found; the label map is empty.",
    "not_anchored": "The numbering as a whole may be shifted: other numberings hold a noticeable part of the probability.",
    "low_confidence": "Single levels are unsure (confidence under 0.7) although the numbering as a whole is anchored.",
    "disagreement": "Two classifiers or more, each alone, would name half of the vertebrae or more differently.",
    "few_vertebrae": "The numbering rests on one or two vertebrae.",
    "repeated_level": "A level was given to two vertebrae, or levels do not follow one another in cranio-caudal order.",
    "unusual_numbering": "The numbering has a T13, an L6 or no T12.",
    "merged_masks": "A mask has more than 1.8 times the volume of its neighbours: two vertebrae may be one.",
    "small_mask": "A whole mask has less than 0.4 times the volume of its neighbours: it may be a piece.",
    "cut_vertebrae": "Vertebrae are cut by the border of the scan; their sizes and heights are those of what is seen.",
    "heights_doubtful": "Half of the vertebrae or more that lie whole in view have no trustworthy body heights.",
    "rejected_detections": "Detections were dropped because the sequence of levels took them for no vertebra.",
    "metal": "Voxels beyond 2500 HU lie at the spine: metal, whose streaks spoil masks and HU.",
    "dense_bone": "The middle of a body is denser than 700 HU: cement, sclerosis or metal.",
    "head_foot": "Spinous processes do not point downwards, or sizes fall downwards: head and feet may be swapped in the header.",
    "front_back": "Bodies do not lie in front of their arches: front and back may be swapped in the header.",
    "left_right": "More lung lies left of T6 to T12 than right: left and right may be swapped in the header.",
    "picture_failed": "A picture could not be drawn; everything else is complete.",
    "levels_left_out": "Vertebrae were found that were not asked for; they are not in the result.",
    "levels_not_found": "Levels that were asked for were not found.",
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
        stage: where it was noticed: "read", a stage's name, "result" (all of it), or "output" (a file that is missing).
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


def quality_status(flags: Iterable[Flag]) -> str:
    """"review" or "warning", whichever is the gravest among the flags; "ok" where none says more than `info`."""
    severities = {flag.severity for flag in flags}
    return next((severity for severity in ("review", "warning") if severity in severities), "ok")
