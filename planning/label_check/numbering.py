"""What a model reads in the masks, against the levels that they have."""
from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from spineclue_v2.anatomy import NAME_OF_LABEL, level_distance
from spineclue_v2.anatomy.label_schemes import SCHEMES
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import Volume

from .row import SACRUM, Row
from .suspicion import Suspicion

if TYPE_CHECKING:
    from spineclue_v2.inference.model import Model

MOST = 0.75            # share of the vertebrae that must agree on one shift
SURE, UNSURE = 0.9, 0.4     # where the model's numbering is anchored, and where it is not


def check_numbering(row: Row, model: Model) -> list[Suspicion]:
    """Whether the classifiers of `model` number the masks otherwise; they see shapes and distances, neither the labels nor the scan.

    An alarm only where the model's own numbering is anchored: a shift by one that may be the model's is a note.
    """
    from spineclue_v2.inference.label_source import LabelSource
    from spineclue_v2.inference.relabel import relabel_map

    labels = np.where(row.labels.array == SACRUM, 0, row.labels.array)
    source = LabelSource(Volume(labels, row.labels.geometry), (SCHEMES["verse"],), True)
    try:
        result, owners, _ = relabel_map(source, model, use_levels=False)
    except InputError:
        return []              # more bodies than a spine has: what is wrong there, the masks say
    pairs = [(NAME_OF_LABEL[body.value], level) for body, level in owners]
    if not pairs:
        return []
    shift, agreeing = Counter(level_distance(given, read) for given, read in pairs).most_common(1)[0]
    sure = SURE if result.numbering_anchored else UNSURE
    if shift and len(pairs) > 2 and agreeing >= MOST * len(pairs):
        text = " ".join(f"{given}={read}" for given, read in pairs)
        way = "high" if shift > 0 else "low"
        return [Suspicion(row.case, "shifted", tuple(given for given, _ in pairs), sure, f"All levels may be {abs(shift)} too {way}: the "
                          f"model reads {pairs[0][1]} to {pairs[-1][1]} where {pairs[0][0]} to {pairs[-1][0]} is labelled.",
                          f"rename {text}")]
    other = [(given, read) for given, read in pairs if given != read]
    if not other:
        return []
    text = ", ".join(f"{given} as {read}" for given, read in other[:6])
    return [Suspicion(row.case, "shifted", tuple(given for given, _ in other), min(sure, 0.45),
                      f"The model reads {text}: from one vertebra on, the numbers may be off.")]
