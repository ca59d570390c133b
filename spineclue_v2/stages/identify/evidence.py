"""What the classifiers say together: weighted sums of their log-probabilities, variants included."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...anatomy import LEVEL_INDEX
from ..base import CLASSIFIERS, Evidence, is_enabled

NOT_A_VERTEBRA_SHAPE = 0.02  # the shape classifier has no such class: a small constant keeps the decoder's false detections possible
FLOOR = 1e-6
STARTS = (LEVEL_INDEX["T12"], LEVEL_INDEX["L5"])  # where the evidence of T13 and L6 starts from, in a classifier that does not know them


def shape_logs(probabilities: np.ndarray) -> np.ndarray:
    """(n, 24) probabilities of the shape classifier -> (n, 25) logs with "not a vertebra"."""
    whole = np.concatenate([probabilities * (1 - NOT_A_VERTEBRA_SHAPE), np.full((len(probabilities), 1), NOT_A_VERTEBRA_SHAPE)], axis=1)
    return np.log(np.maximum(whole, FLOOR))


def fold_variants(evidence: Evidence) -> np.ndarray:
    """(n, 25) logs in which an L6 counts as L5, where the decoder starts it: for readers that do not know variants."""
    logs = evidence.logs.copy()
    if evidence.variants is not None:
        for column, own in zip(STARTS, evidence.variants.T, strict=True):
            logs[:, column] = np.logaddexp(logs[:, column], np.nan_to_num(own, nan=-np.inf))
    return logs


def combine_evidence(evidence: Mapping[str, Evidence], weights: Mapping[str, float],
                     classifiers: Sequence[str] = CLASSIFIERS) -> tuple[np.ndarray, np.ndarray | None]:
    """What `Decoder.decode` takes of several classifiers: log-probabilities (n, 25), rows normalised, and variants (n, 2) or None.

    Args:
        evidence: by classifier; shape counts whether enabled or not where no other one is there.
        weights: of each classifier's logs; 1 where none is given. Evidence with a weight of its own keeps that.
        classifiers: which are enabled (see `is_enabled` for those of other packages).
    """
    used = {name: found for name, found in evidence.items() if name != "shape" and is_enabled(name, classifiers)}
    if "shape" in evidence and ("shape" in classifiers or not used):
        used = {"shape": evidence["shape"]} | used
    weight = {name: weights.get(name, 1.0) if found.weight is None else found.weight for name, found in used.items()}
    total = np.sum([weight[name] * found.logs for name, found in used.items()], axis=0)
    norm = np.logaddexp.reduce(total, axis=1, keepdims=True)
    if all(found.variants is None for found in used.values()):
        return total - norm, None
    variants = np.zeros((len(total), 2))
    for name, found in used.items():
        start = found.logs[:, STARTS]
        own = start if found.variants is None else np.where(np.isnan(found.variants), start, found.variants)
        variants += weight[name] * own
    known = np.any([~np.isnan(found.variants) for found in used.values() if found.variants is not None], axis=0)
    return total - norm, np.where(known, variants - norm, np.nan)
