"""How probable a numbering is beside its shifts: the numbers behind "these names may all be one level off"."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...anatomy import ANATOMICAL_ORDER, ORDER_INDEX
from .decoder import NEVER, Lattice, Numbering

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
    total = np.logaddexp.reduce(weights)
    if not np.isfinite(total):                # no numbering obeys what is known
        return ()
    weights = np.exp(weights - total)
    found = []
    for shift in SHIFTS:
        there = _moved(names, shift)
        posterior = [float(np.exp(_held(lattice, names, there) - total)) for lattice, total in zip(lattices, totals, strict=True)]
        found.append(float(np.clip(weights @ np.array(posterior), 0.0, 1.0)))
    return tuple(found)


def shift_record(numbering: Numbering) -> dict[str, Any]:
    """For `extra.identify`: `shifts` ({shift, levels, probability}) and, by vertebra, `other_levels` ({level: probability}).

    Empty where the numbering does not know its shifts, or names nothing.
    """
    named = [(i, name) for i, name in enumerate(numbering.names) if name is not None]
    if not named:
        return {}
    shifts = [{"shift": shift, "levels": _span(_moved([name for _, name in named], shift)), "probability": round(p, 6)}
              for shift, p in zip(SHIFTS, numbering.shifts, strict=False)]
    others = [{other: round(float(p), 4) for other, p in zip(ANATOMICAL_ORDER, numbering.posterior[i], strict=False)
               if p >= LEAST and other != name} for i, name in named]
    return {"shifts": shifts, "other_levels": others}


def _moved(names: Sequence[str | None], shift: int) -> list[str | None]:
    """Each name `shift` levels further down, through T13 only where the numbering has one; None beyond the ends."""
    order = [level for level in ANATOMICAL_ORDER if level != "T13" or "T13" in names]
    places = [None if name is None else order.index(name) + shift for name in names]
    return [order[place] if place is not None and 0 <= place < len(order) else None for place in places]


def _held(lattice: Lattice, names: Sequence[str | None], there: Sequence[str | None]) -> float:
    """Log weight of all paths that give no detection of `names` another name than its one in `there`."""
    emission = lattice.emission.copy()
    for i, (name, level) in enumerate(zip(names, there, strict=True)):
        if name is not None:
            emission[i] = NEVER
        if level is not None:
            emission[i, ORDER_INDEX[level]] = lattice.emission[i, ORDER_INDEX[level]]
    return lattice.log_total(emission)


def _span(names: Sequence[str | None]) -> str | None:
    """"C7 to T11"; None where one of them has no level."""
    if None in names:
        return None
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
