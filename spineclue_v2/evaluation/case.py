"""One scan: reference against prediction, every metric per vertebra, as plain JSON content."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import anatomy
from ..errors import InputError
from ..imageio.volume import ImageGrid, Volume
from . import metrics
from .matching import count_overlaps, match_by_dice
from .surface import surface_distances


@dataclass(frozen=True)
class Instances:
    """Vertebrae of a label map: `ids` (z, y, x) numbers them from 1, `names[id]` is the name each carries."""

    ids: np.ndarray
    names: dict[int, str]
    boxes: dict[int, tuple[slice, ...]]

    def mask(self, number: int, box: tuple[slice, ...]) -> np.ndarray:
        return self.ids[box] == number


def instances_of(labels: Volume, record: Mapping[str, Any] | None = None) -> Instances:
    """Vertebrae of a label map with VerSe values (sacrum, coccyx and unknown values are background).

    A label is one vertebra, unless `record` (the content of CASE.json) lists its level more than once: then its voxels go to the
    nearest of the listed body centres, so that a level given twice is seen as two vertebrae, at most one of them right.
    """
    from scipy.ndimage import find_objects

    lookup = np.zeros(int(labels.array.max(initial=0)) + 1, dtype=np.uint8)
    for label in anatomy.VERTEBRA_LABELS:
        if label < len(lookup):
            lookup[label] = label
    ids = lookup[labels.array]
    names = {label: anatomy.NAME_OF_LABEL[label] for label in anatomy.VERTEBRA_LABELS}
    for label, centres in _find_repeated(record).items():
        index = np.argwhere(ids == label)
        if not len(index):
            continue
        distance = np.linalg.norm(labels.geometry.index_to_world(index)[:, None] - np.array(centres)[None], axis=2)
        owner = np.argmin(distance, axis=1)
        for position in range(1, len(centres)):
            number = max(names) + 1
            ids[tuple(index[owner == position].T)] = number
            names[number] = anatomy.NAME_OF_LABEL[label]
    boxes = {number: box for number, box in enumerate(find_objects(ids), start=1) if box is not None}
    return Instances(ids, {number: names[number] for number in boxes}, boxes)


def _find_repeated(record: Mapping[str, Any] | None) -> dict[int, list[Any]]:
    centres: dict[int, list[Any]] = {}
    for vertebra in (record or {}).get("vertebrae", []):
        if vertebra.get("label") and vertebra.get("body_centre_mm"):
            centres.setdefault(int(vertebra["label"]), []).append(vertebra["body_centre_mm"])
    return {label: points for label, points in centres.items() if len(points) > 1}


def mask_centroids(labels: Volume) -> dict[int, np.ndarray]:
    """{label: centroid of its whole mask, (3,) LPS mm} for the vertebrae of a label map (VerSe 2020's definition)."""
    from scipy.ndimage import find_objects

    found = {}
    for label, box in enumerate(find_objects(labels.array), start=1):
        if box is not None and label in anatomy.VERTEBRA_LABELS:
            index = np.argwhere(labels.array[box] == label).mean(axis=0) + [s.start for s in box]
            found[label] = labels.geometry.index_to_world(index)
    return found


def check_same_grid(reference: ImageGrid, prediction: ImageGrid, case: str) -> None:
    """InputError unless prediction and reference lie on one grid."""
    if not reference.same_grid(prediction):
        def text(g: ImageGrid) -> str:
            return (f"shape {tuple(g.shape)}, spacing {tuple(round(float(s), 3) for s in g.spacing)} mm, "
                    f"origin {tuple(round(float(o), 1) for o in g.origin)}")
        raise InputError(f"{case}: prediction and reference lie on different grids (expected {text(reference)}; found "
                         f"{text(prediction)}; axes z, y, x in LPS order); predict the scan the reference was drawn on.")


def evaluate_case(reference: Volume, prediction: Volume | None, record: Mapping[str, Any] | None = None,
                  reference_centroids: Mapping[int, Any] | None = None,
                  predicted_centroids: Mapping[int, Any] | None = None, case: str = "case") -> dict[str, Any]:
    """All metrics of one scan.

    `reference`, `prediction`: label maps with VerSe values on one grid, in any orientation (None: nothing was predicted, all is
    missed). `record`: content of the prediction's CASE.json, for confidences and the anchoring flag. Centroids {label: LPS mm}
    for VerSe's id.rate default to mask centroids. Returns plain JSON content: `vertebrae` (one row per reference vertebra),
    `false_positives`, `counts`, `anomalies`, ... Raises InputError when the grids differ.
    """
    reference = reference.reoriented("LPS")
    if prediction is None:
        prediction = Volume(np.zeros_like(reference.array), reference.geometry)
    prediction = prediction.reoriented("LPS")
    check_same_grid(reference.geometry, prediction.geometry, case)
    truth, guess = instances_of(reference), instances_of(prediction, record)
    hits = metrics.verse_hits(mask_centroids(reference) if reference_centroids is None else reference_centroids,
                              mask_centroids(prediction) if predicted_centroids is None else predicted_centroids)
    confidences = _confidences(record)
    rows, matched = _compare(truth, guess, reference.geometry.spacing, hits, confidences)
    surplus = _surplus(guess, matched, confidences)
    true, given = [row["level"] for row in rows], [row["predicted"] for row in rows]
    detected = sum(row["dice"] >= metrics.HIT_DICE for row in rows)
    false = [row for row in surplus if not row["cut_by_border"]]
    return {
        "case": case,
        "predicted": bool(guess.names),
        "vertebrae": rows,
        "false_positives": false,
        "ignored_at_border": [row for row in surplus if row["cut_by_border"]],
        "counts": {"reference": len(rows), "matched": len(matched), "detected": detected,
                   "missed": len(rows) - detected, "false_positives": len(false) + len(matched) - detected,
                   "weak_pairs": len(matched) - detected, "verse_hits": sum(d is not None for d in hits.values()),
                   "verse_vertebrae": len(hits)},
        "verse_distances_mm": [d for d in hits.values() if d is not None],
        "all_right": metrics.all_right(true, given) if rows else None,
        "all_right_without_false_positives": (metrics.all_right(true, given) and not false) if rows else None,
        "numbering_right": all(t == g for t, g in zip(true, given, strict=True) if g is not None) if matched else None,
        "numbering_anchored": (record or {}).get("numbering_anchored"),
        "anomalies": metrics.anomalies(true, given, [row["level"] for row in false]),
    }


def _compare(truth: Instances, guess: Instances, spacing: Any, hits: Mapping[int, float | None],
             confidences: Mapping[str, list[Any]]) -> tuple[list[dict[str, Any]], set[int]]:
    """One row per reference vertebra, cranio-caudal, and the ids of the predicted vertebrae that were paired."""
    overlaps = count_overlaps(truth.ids, guess.ids)
    dice = overlaps.dice
    pairs = {overlaps.reference_ids[r]: (overlaps.prediction_ids[p], float(dice[r, p])) for r, p in match_by_dice(dice)}
    same = {overlaps.reference_ids[r]: _label_dice(overlaps, guess, r) for r in range(len(overlaps.reference_ids))}
    rows = []
    for number in sorted(truth.names, key=lambda n: anatomy.ORDER_INDEX[truth.names[n]]):
        partner, overlap = pairs.get(number, (None, 0.0))
        row = {"level": truth.names[number], "label": number, "predicted": guess.names[partner] if partner else None,
               "dice": overlap, "dice_same_label": same[number], "hd_mm": float("nan"), "hd95_mm": float("nan"), "nsd": 0.0,
               "verse_hit": hits.get(number) is not None, "verse_distance_mm": hits.get(number), "confidence": None}
        if partner:
            box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop))
                        for a, b in zip(truth.boxes[number], guess.boxes[partner], strict=True))
            row.update(surface_distances(truth.mask(number, box), guess.mask(partner, box), spacing))
            row["confidence"] = _take(confidences, guess, partner)
        rows.append(row)
    return rows, {partner for partner, _ in pairs.values()}


def _label_dice(overlaps: Any, guess: Instances, row: int) -> float:
    """Dice of a reference vertebra with everything that carries its own name: 0 under a shifted numbering."""
    name = anatomy.NAME_OF_LABEL[overlaps.reference_ids[row]]
    columns = [c for c, number in enumerate(overlaps.prediction_ids) if guess.names[number] == name]
    size = overlaps.prediction_sizes[columns].sum() + overlaps.reference_sizes[row]
    return float(2 * overlaps.counts[row, columns].sum() / size)


def _surplus(guess: Instances, matched: set[int], confidences: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Predicted vertebrae without a true partner. VerSe labels only vertebrae fully in view: one the border cuts is no error."""
    rows = []
    for number, box in guess.boxes.items():
        if number in matched:
            continue
        cut = any(s.start == 0 or s.stop == n for s, n in zip(box, guess.ids.shape, strict=True))
        rows.append({"level": guess.names[number], "cut_by_border": cut, "confidence": _take(confidences, guess, number)})
    return rows


def _confidences(record: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """{level: confidences in the order of CASE.json}."""
    found: dict[str, list[Any]] = {}
    for vertebra in (record or {}).get("vertebrae", []):
        found.setdefault(vertebra.get("level"), []).append(vertebra.get("confidence"))
    return found


def _take(confidences: Mapping[str, list[Any]], guess: Instances, number: int) -> float | None:
    name = guess.names[number]
    position = sorted(n for n, other in guess.names.items() if other == name).index(number)
    values = confidences.get(name, [])
    return values[position] if position < len(values) else None
