"""nnU-Net's own metrics: overlap of equal label values, with the keys and means of its `summary.json`."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

KEYS = ("Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref")


def label_overlap(reference: np.ndarray, prediction: np.ndarray, labels: Iterable[int],
                  ignore_label: int | None = None) -> dict[int, dict[str, float]]:
    """{label: Dice, IoU, TP, FP, FN, TN, n_pred, n_ref} of two label arrays of one shape, as nnU-Net counts them.

    Voxels whose reference is `ignore_label` are left out. A label absent from both has Dice and IoU NaN.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"label maps of one shape expected, got {reference.shape} and {prediction.shape}")
    labels = [int(label) for label in labels]
    # Background is most of a scan: it is looked at only when label 0 itself is asked for.
    counted = np.ones(reference.shape, dtype=bool) if 0 in labels else (reference != 0) | (prediction != 0)
    voxels = reference.size
    if ignore_label is not None:
        ignored = reference == ignore_label
        voxels -= int(ignored.sum())
        counted &= ~ignored
    ref, pred = reference[counted], prediction[counted]
    size = int(max([*labels, ref.max(initial=0), pred.max(initial=0)])) + 1
    ref_counts, pred_counts = np.bincount(ref, minlength=size), np.bincount(pred, minlength=size)
    shared = np.bincount(ref[ref == pred], minlength=size)
    found = {}
    for label in labels:
        tp, n_ref, n_pred = int(shared[label]), int(ref_counts[label]), int(pred_counts[label])
        fp, fn = n_pred - tp, n_ref - tp
        some = tp + fp + fn > 0
        found[label] = {"Dice": 2 * tp / (2 * tp + fp + fn) if some else float("nan"),
                        "IoU": tp / (tp + fp + fn) if some else float("nan"),
                        "TP": tp, "FP": fp, "FN": fn, "TN": voxels - tp - fp - fn, "n_pred": n_pred, "n_ref": n_ref}
    return found


def label_means(per_case: Sequence[dict[int, dict[str, float]]], labels: Iterable[int]) -> dict[str, Any]:
    """`mean` (per label, over the cases where it is a number) and `foreground_mean` (over labels) as nnU-Net computes them."""
    mean = {str(label): {key: _nanmean([case[label][key] for case in per_case]) for key in KEYS} for label in labels}
    foreground = [values for label, values in mean.items() if label != "0"]
    return {"mean": mean, "foreground_mean": {key: float(np.mean([values[key] for values in foreground])) if foreground
                                              else float("nan") for key in KEYS}}


def _nanmean(values: Sequence[float]) -> float:
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else float("nan")
