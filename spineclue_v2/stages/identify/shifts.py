"""How probable a numbering is beside its shifts: the numbers behind "these names may all be one level off"."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...anatomy import ANATOMICAL_ORDER, ORDER_INDEX
from .decoder import MOVED, NEVER, Lattice, Numbering

SHIFTS = (-2, -1, 0, 1, 2)    # levels; below 0 towards the head
LEAST = 0.005                 # other levels with less than this are not recorded


def shift_probabilities(names: Sequence[str | None], lattices: Sequence[Lattice], priors: np.ndarray) -> tuple[float, ...]:
    """Posterior (5,) of the numberings that give no vertebra of `names` another level than the one `SHIFTS` further down.

    Without a shift this is 1 - `Numbering.shifted`, by which a numbering is anchored. What is missing to 1 are numberings with a level
    more or less in between.

    Args:
        names: a numbering of n detections, None = false detection.
        lattices: of the sets of classifiers that may be right.
        priors: (len(lattices),) log priors of these sets.
    """
    totals = np.array([lattice.log_total(lattice.emission) for lattice in lattices])
    weights = priors + totals
    weights = np.exp(weights - np.logaddexp.reduce(weights))
    found = []
    for shift in SHIFTS:
        allowed = [None if name is None else _moved(ORDER_INDEX[name], shift) for name in names]
        posterior = [float(np.exp(_held(lattice, allowed) - total)) for lattice, total in zip(lattices, totals, strict=True)]
        found.append(float(np.clip(weights @ np.array(posterior), 0.0, 1.0)))
    return tuple(found)


def shift_record(numbering: Numbering) -> dict[str, Any]:
    """For `extra.identify`: `shifts` ({shift, levels, probability}) and, by vertebra, `other_levels` ({level: probability}).

    Empty where the numbering does not know its shifts, or names nothing.
    """
    named = [(i, name) for i, name in enumerate(numbering.names) if name is not None]
    if not named:
        return {}
    shifts = [{"shift": shift, "levels": _span(_moved(ORDER_INDEX[named[0][1]], shift), _moved(ORDER_INDEX[named[-1][1]], shift)),
               "probability": round(p, 6)} for shift, p in zip(SHIFTS, numbering.shifts, strict=False)]
    others = [{other: round(float(p), 4) for other, p in zip(ANATOMICAL_ORDER, numbering.posterior[i], strict=False)
               if p >= LEAST and other != name} for i, name in named]
    return {"shifts": shifts, "other_levels": others}


def _moved(index: int, shift: int) -> list[int]:
    """ANATOMICAL_ORDER indices that lie `shift` levels below `index`; none beyond the ends."""
    found = {index}
    for _ in range(abs(shift)):
        found = {int(other) for one in found for other in MOVED[1 if shift > 0 else -1][one]}
    return sorted(found)


def _held(lattice: Lattice, allowed: Sequence[Sequence[int] | None]) -> float:
    """Log weight of all paths that give no detection a name but its allowed ones."""
    emission = lattice.emission.copy()
    for i, indices in enumerate(allowed):
        if indices is not None:
            emission[i] = NEVER
            emission[i, list(indices)] = lattice.emission[i, list(indices)]
    return lattice.log_total(emission)


def _span(first: Sequence[int], last: Sequence[int]) -> str | None:
    """"C7 to T11", as the regular names have it; None where there are no such levels."""
    if not first or not last:
        return None
    upper, lower = (next((ANATOMICAL_ORDER[i] for i in indices if ANATOMICAL_ORDER[i] not in ("T13", "L6")), ANATOMICAL_ORDER[indices[0]])
                    for indices in (first, last))
    return upper if upper == lower else f"{upper} to {lower}"
