"""Whether a prediction agrees with itself: parts of the scan go through the same pipeline, and must give the same vertebrae the same names.

A network that guesses a level from what happens to be in the picture changes its mind when the picture ends elsewhere. What it says of the
whole scan and of parts of it alike is not proved right, but is right more often.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import VERTEBRA_LABELS
from ..anatomy.label_boxes import label_boxes
from ..errors import InputError
from ..export.label_map import label_map
from ..imageio.orientation import oriented_view
from ..imageio.volume import Volume, read_labels, read_volume
from ..inference.model import Model
from ..inference.pipeline import Options
from ..inference.predict_scan import predict_scan
from ..utilities.files import read_json

logger = logging.getLogger(__name__)

LEAST = 4                # vertebrae of a scan that parts can be cut from, and of a part
PART = 0.7               # of a scan's vertebrae that each of the two parts holds
SAME = 0.6               # Dice of a vertebra in the part and in the whole, under one name
AGREED = 0.9             # of the vertebrae of both parts


@dataclass(frozen=True)
class Judged:
    """What became of one predicted scan: `kept` or not, and why; `agreed` of `asked` vertebrae had the same name and place in a part."""

    case: str
    kept: bool
    reason: str
    agreed: int = 0
    asked: int = 0

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def refusal(record: dict[str, Any]) -> str | None:
    """Why a prediction is not taken for labels whatever its parts say, from its CASE.json; None where nothing speaks against it."""
    if record.get("status") != "ok":
        return "no vertebra was found"
    if not record.get("numbering_anchored"):
        return "its numbering is not anchored"
    if record.get("incomplete"):
        return "vertebrae between others were not found"
    if len(record["vertebrae"]) < LEAST:
        return f"fewer than {LEAST} vertebrae, so that no part can be compared"
    return None


def judge_scan(case: str, scan: Path, predictions: Path, model: Model) -> Judged:
    """Compare the prediction of a scan (`CASE.json`, `CASE.nii.gz` in `predictions`) with those of two parts of it."""
    why = refusal(read_json(predictions / f"{case}.json", "prediction"))
    if why is not None:
        return Judged(case, False, why)
    volume, labels = oriented_view(read_volume(scan)), oriented_view(read_labels(predictions / f"{case}.nii.gz"))
    boxes = {value: box for value, box in label_boxes(labels.array).items() if value in VERTEBRA_LABELS}
    agreed = asked = 0
    for first, stop in parts(boxes, len(volume.array)):
        found = _part_labels(volume, first, stop, model)
        whole = {value: box for value, box in boxes.items() if box[0].start >= first and box[0].stop <= stop}
        asked += len(whole)
        agreed += sum(_dice(labels.array[first:stop] == value, found == value) >= SAME for value in whole)
    kept = asked > 0 and agreed >= AGREED * asked
    return Judged(case, kept, f"{agreed} of {asked} vertebrae have the same name and place when the scan ends elsewhere", agreed, asked)


def parts(boxes: dict[int, Any], slices: int) -> list[tuple[int, int]]:
    """Index ranges along z of the upper and the lower part: `PART` of the vertebrae each, up to the middle of the next one.

    Args:
        boxes: {label: box (z, y, x)} in an LPS view of so many `slices`.
    """
    order = sorted(boxes, key=lambda value: -(boxes[value][0].start + boxes[value][0].stop))      # cranial first
    count = min(max(LEAST, math.ceil(PART * len(order))), len(order) - 1)
    middles = [(boxes[value][0].start + boxes[value][0].stop) // 2 for value in order]
    return [(middles[count], slices), (0, middles[-count - 1] + 1)]


def _part_labels(volume: Volume, first: int, stop: int, model: Model) -> np.ndarray:
    """Label values (z, y, x) that the pipeline gives to slices `first` to `stop` of an LPS view."""
    array = np.ascontiguousarray(volume.array[first:stop])
    grid = volume.geometry.cropped((first, 0, 0), array.shape)
    try:
        result = predict_scan(Volume(array, grid), model, Options(measures=False), keep_scan=False)
    except InputError as error:
        logger.info("A part cannot be predicted, so it does not agree: %s", error)
        return np.zeros(array.shape, np.uint8)
    own, masks = result.grids()
    return np.asarray(label_map(result.vertebrae, masks, own))


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    both = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / both if both else 0.0


def describe(judged: Sequence[Judged]) -> str:
    """One line: how many are kept, and why the others are not."""
    kept = sum(entry.kept for entry in judged)
    reasons: dict[str, int] = {}
    for entry in judged:
        if not entry.kept:
            why = "its parts disagree" if entry.asked else entry.reason
            reasons[why] = reasons.get(why, 0) + 1
    rest = "; ".join(f"{number}: {why}" for why, number in sorted(reasons.items(), key=lambda item: -item[1]))
    return f"{kept} of {len(judged)} unlabelled scans are kept" + (f" ({rest})" if rest else "")

