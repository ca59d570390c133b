"""Which unlabelled cases are worth labelling next: those that the model doubts, of levels that the dataset has few of."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2.anatomy import ORDER_INDEX
from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import read_labels
from spineclue_v2.utilities.files import read_json

from .label_check.check import verse_labels

NOT_ANCHORED, REVIEW, INCOMPLETE = 0.5, 0.25, 0.25     # added to the mean doubt of a case's levels
LEAST_DOUBT = 0.02                                     # nothing is known for certain


@dataclass(frozen=True)
class Suggestion:
    """A case with its worth and the two things that it is the product of.

    Attributes:
        case: name.
        worth: `doubt` times `rarity`.
        doubt: mean of 1 - confidence, more where the numbering is not anchored, a flag asks for review or the spine is incomplete.
        rarity: mean over its levels of 1 / sqrt(1 + cases that show the level), labelled ones and those suggested before it.
        levels: as predicted.
    """

    case: str
    worth: float
    doubt: float
    rarity: float
    levels: tuple[str, ...]


def doubt_of(record: Mapping[str, Any]) -> float:
    """Doubt of a prediction from its CASE.json."""
    confidences = [v["confidence"] for v in record.get("vertebrae", []) if v.get("confidence") is not None]
    doubt = 1.0 - float(np.mean(confidences)) if confidences else 1.0
    doubt += NOT_ANCHORED * (not record.get("numbering_anchored")) + REVIEW * bool(record.get("review_required"))
    return max(doubt + INCOMPLETE * bool(record.get("incomplete")), LEAST_DOUBT)


def rank(records: Mapping[str, Mapping[str, Any]], known: Mapping[str, int], count: int) -> list[Suggestion]:
    """The `count` cases of highest worth, best first; each counts among those that show its levels once it is chosen.

    Greedy: with rarity a concave function of the counts, the sum is submodular and greedy choice keeps 63 % of the best possible
    (Nemhauser et al. 1978).

    Args:
        records: {case: content of CASE.json}.
        known: {level: labelled cases that show it}.
        count: how many are wanted.
    """
    chosen: list[Suggestion] = []
    counts, left = Counter(known), dict(records)
    doubts = {case: doubt_of(record) for case, record in records.items()}
    levels = {case: tuple(v["level"] for v in record.get("vertebrae", []) if v.get("level") in ORDER_INDEX)
              for case, record in records.items()}
    while left and len(chosen) < count:
        rarities = {case: float(np.mean([1 / np.sqrt(1 + counts[level]) for level in levels[case]])) if levels[case] else 0.0
                    for case in left}
        best = min(left, key=lambda case: (-doubts[case] * rarities[case], case))
        doubt, rarity = doubts[best], rarities[best]
        chosen.append(Suggestion(best, round(doubt * rarity, 4), round(doubt, 4), round(rarity, 4), levels[best]))
        counts.update(levels[best])
        del left[best]
    return chosen


def suggest(raw: RawDataset, predictions: str | Path, count: int) -> list[Suggestion]:
    """Rank the cases of imagesUl that were predicted into the folder `predictions`. Raises InputError where there is nothing to rank."""
    if not raw.unlabelled:
        raise InputError(f"{raw.folder} has no unlabelled scan; put scans as CASE_0000{raw.file_ending} into its imagesUl.")
    folder = Path(predictions)
    records = {case: read_json(folder / f"{case}.json", "record") for case in raw.unlabelled if (folder / f"{case}.json").is_file()}
    if not records:
        raise InputError(f"{folder} holds no prediction of {raw.name}'s unlabelled scans; run spineclue_predict -i "
                         f"{raw.folder / 'imagesUl'} -o {folder} first.")
    known: Counter[str] = Counter()
    for case in raw.cases:
        values = np.unique(verse_labels(read_labels(raw.label(case)), raw.verse_value).array)
        known.update(level for level, value in _levels().items() if value in values)
    return rank(records, known, count)


def _levels() -> dict[str, int]:
    from spineclue_v2.anatomy import LABEL_OF_NAME

    return {level: LABEL_OF_NAME[level] for level in ORDER_INDEX}
